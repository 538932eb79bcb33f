"""base-mlx beside llama.cpp on the CPU: both sides take turns on the same GGUF files, with as many threads.

python3 cpu.py --base-mlx PROGRAM --model FILE [--model FILE] [--threads 2] [--rounds 3]

Needs llama-cpp-python in this Python, and no Rust. Prints every round, then a table of medians for each model.

llama.cpp is measured with flash attention and without, each in a process of its own, and every figure is the better of the
two: on CPUs its prefill is faster with, its decode without, and left to itself it takes the first.
"""

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

from sizes import count

SIDES = ["llama.cpp", "base-mlx"]
FLASH_ATTENTION = ["on", "off"]


def measure(side, arguments, model, *sizes, settings=FLASH_ATTENTION):
    """What one side says: of llama.cpp the better figures of these settings, and which of them decodes faster."""
    if side == "base-mlx":
        program = [arguments.base_mlx, "bench", "--device", "cpu", "--repeat", "1", "--json"]
        return process(side, program, arguments, model, *sizes)
    program = [sys.executable, str(Path(__file__).with_name("llama.py")), "--flash-attention"]
    runs = {setting: process(side, [*program, setting], arguments, model, *sizes) for setting in settings}
    better = lambda key: (max if key.endswith("_per_second") else min)(run[key] for run in runs.values())
    decodes_with = max(runs, key=lambda setting: runs[setting]["decode_tokens_per_second"])
    return {"decodes_with": decodes_with, **{key: better(key) for key in runs[decodes_with]}}


def process(side, program, arguments, model, prompt, generate, streams=1):
    """What one process says that loads the model, tries once and then measures once."""
    command = program + ["--model", str(model), "--prompt", str(prompt), "--generate", str(generate), "--streams", str(streams),
                "--threads", str(arguments.threads)]
    output = subprocess.run(command, capture_output=True, text=True)
    if output.returncode != 0:
        sys.exit(f"{side} failed with {output.returncode}:\n{output.stdout}\n{output.stderr}")
    return json.loads(output.stdout)


@contextlib.contextmanager
def busy_core(core):
    """Another process that wants the core for itself; it ends with this one, or after ten minutes."""
    code = f"""
import os, time
parent, end = os.getppid(), time.monotonic() + 600
if hasattr(os, "sched_setaffinity"):
    os.sched_setaffinity(0, [{core}])
while os.getppid() == parent and time.monotonic() < end:
    sum(range(100_000))
"""
    child = subprocess.Popen([sys.executable, "-c", code])
    try:
        yield
    finally:
        child.kill()
        child.wait()


def one_round(arguments, model, order):
    """Every figure of both sides, by its row of the table; the sides take turns at each, in this order."""
    both = lambda *sizes: {side: measure(side, arguments, model, *sizes) for side in order}
    whole = both(arguments.prompt, arguments.generate)
    many = both(arguments.prompt // arguments.streams, arguments.generate, arguments.streams)
    # Short, as some fall to a few tokens a second.
    quiet = both(32, 32)
    # With the better setting of these alone, for there each takes long.
    settings = [quiet["llama.cpp"]["decodes_with"]]
    with busy_core(cores()[0]):
        taken = {side: measure(side, arguments, model, 32, 32, settings=settings) for side in order}
    # Reads it into the page cache.
    with open(model, "rb") as file:
        while file.read(1 << 24):
            pass
    cold = both(10, 2)

    def figures(side):
        decode, beside = (runs[side]["decode_tokens_per_second"] for runs in [quiet, taken])
        yield f"prefill {arguments.prompt}, tok/s", whole[side]["prefill_tokens_per_second"]
        yield "decode, 1 stream, tok/s", whole[side]["decode_tokens_per_second"]
        yield f"decode, {arguments.streams} streams in all, tok/s", many[side]["decode_tokens_per_second"]
        yield "decode, one core taken, tok/s", beside
        yield "of decode without that, %", 100 * beside / decode
        yield "cold start to first token of 10, ms", cold[side]["cold_first_token_ms"]
        yield "peak memory, MB", whole[side]["peak_rss_mb"]
        if whole[side].get("memory_share"):
            yield "decode, of memory's speed, %", 100 * whole[side]["memory_share"]
            yield "memory's speed, GB/s", whole[side]["memory_bytes_per_second"] / 1e9

    return {side: dict(figures(side)) for side in SIDES}


def cores():
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count()))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base-mlx", required=True, help="the program")
    parser.add_argument("--model", type=Path, action="append", required=True, help="a GGUF file that both can load")
    parser.add_argument("--rounds", type=count, default=3)
    parser.add_argument("--threads", type=count, default=len(cores()))
    parser.add_argument("--prompt", type=count, default=512, help="of all streams together where there are several")
    parser.add_argument("--generate", type=count, default=64)
    parser.add_argument("--streams", type=count, default=8)
    arguments = parser.parse_args()
    if arguments.generate < 2:
        parser.error(f"--generate is {arguments.generate}: a rate needs at least 2")
    if arguments.prompt < arguments.streams:
        parser.error(f"--prompt is {arguments.prompt}: {arguments.streams} streams share it, which need a token each")

    ours = measure("base-mlx", arguments, arguments.model[0], 2, 2)
    theirs = measure("llama.cpp", arguments, arguments.model[0], 2, 2)
    print(f"{ours['cpu'] or ours['arch']}, {arguments.threads} threads ({ours['device']}); base-mlx {ours['version']}, "
          f"llama-cpp-python {theirs['version']}", flush=True)
    for model in arguments.model:
        rounds = []
        for turn in range(arguments.rounds):
            # Going first may be better or worse, so neither side always does.
            rounds.append(one_round(arguments, model, SIDES if turn % 2 == 0 else SIDES[::-1]))
            for side in SIDES:
                figures = rounds[-1][side]
                shown = "; ".join(f"{name} {value:,.1f}" for name, value in figures.items())
                print(f"{model.stem}, round {turn + 1}, {side}: {shown}", flush=True)
        print_table(model, rounds)


def print_table(model, rounds):
    print(f"\n| {model.stem}: median (lowest–highest) | llama.cpp, flash attention on or off, whichever is better "
          "| base-mlx | base-mlx / llama.cpp |")
    print("|---|---|---|---|")
    for name in rounds[0]["base-mlx"]:
        sides = [[each[side][name] for each in rounds if name in each[side]] for side in SIDES]
        cells = [f"{statistics.median(values):,.1f} ({min(values):,.1f}–{max(values):,.1f})" if values else ""
                 for values in sides]
        ratio = f"{statistics.median(sides[1]) / statistics.median(sides[0]):.2f}" if sides[0] else ""
        print(f"| {name} | {cells[0]} | {cells[1]} | {ratio} |")
    print(flush=True)


main()
