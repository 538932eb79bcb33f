"""Drives a chat over a pseudo terminal; fails with what was on the screen."""

import fcntl
import os
import pty
import select
import struct
import sys
import termios
import time

screen = b""
read_up_to = 0


def expect(text, seconds=120):
    """Waits until `text` is on the screen after what was expected last; returns what came before it."""
    global screen, read_up_to
    end = time.monotonic() + seconds
    while True:
        found = screen.find(text.encode(), read_up_to)
        if found >= 0:
            before = screen[read_up_to:found].decode(errors="replace")
            read_up_to = found + len(text.encode())
            return before
        left = end - time.monotonic()
        ready, _, _ = select.select([terminal], [], [], max(left, 0))
        try:
            data = os.read(terminal, 65536) if ready else b""
        except OSError:
            data = b""
        if not data:
            sys.exit(f"no {text!r} on the screen:\n{screen.decode(errors='replace')}")
        screen += data


def type_line(text):
    os.write(terminal, text.encode() + b"\r")


child, terminal = pty.fork()
if child == 0:
    os.environ["TERM"] = "xterm"
    os.execv(sys.argv[1], [sys.argv[1], "run", "smollm2", "--temperature", "0", "--ctx", "2048"])
# Wide, so that no line wraps.
fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 50, 1000, 0, 0))

expect(">>> ")
type_line("What is the capital of France? Answer in one word.")
expect("Paris")
expect(">>> ")

# What was said is remembered.
type_line("/show")
expect("messages 2")
expect("temperature 0")
expect(">>> ")
type_line("/set temperature 0.2")
expect("temperature is 0.2")
type_line("/set temperature hot")
expect("`temperature` cannot be `hot`: expected a number, 0 to 2")
type_line("/set max_tokens 8")
expect("max_tokens is 8")
type_line("/sett x")
expect("there is no command /sett")
type_line("/help")
expect("/bye")
expect(">>> ")

# A message of several lines.
type_line('"""')
expect("... ")
type_line("Name a colour.")
expect("... ")
type_line('Any colour."""')
expect(">>> ")
type_line("Name\\")
expect("... ")
type_line("a fruit.")
expect(">>> ")
type_line("/show")
expect("messages 6")

type_line("/reset")
expect("anew")
type_line("/show")
expect("messages 0")

# Ctrl-C ends the answer, and the chat goes on.
type_line("/set max_tokens 1500")
expect("max_tokens is 1500")
type_line("/set system Answer at great length.")
expect("system is")
expect(">>> ")
type_line("Write a very long story about a ship, with many chapters.")
expect("chapters.")
expect(" the ")
os.write(terminal, b"\x03")
expect("(stopped)", 20)
expect(">>> ")
type_line("/show")
expect("messages 2")
expect(">>> ")

type_line("/bye")
_, status = os.waitpid(child, 0)
if os.waitstatus_to_exitcode(status) != 0:
    sys.exit(f"it ended with status {status}")
