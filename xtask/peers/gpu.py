"""base-mlx beside mlx-lm on the same GPU and the same MLX: both sides take turns on the same checkpoint.

python3 gpu.py --base-mlx PROGRAM --model FOLDER [--device cuda] [--rounds 3]

Needs mlx-lm in this Python, and no Rust. Prints every round, then a table of medians.
"""

import argparse
import json
import re
import statistics
import subprocess
import sys

from sizes import count


def mlx_lm(model, prompt, generate, streams):
    command = [sys.executable, "-m", "mlx_lm.benchmark", "--model", model, "-p", str(prompt), "-g", str(generate),
               "-b", str(streams), "-n", "1"]
    output = subprocess.run(command, capture_output=True, text=True)
    found = re.search(r"Averages: prompt_tps=([\d.]+), generation_tps=([\d.]+)", output.stdout)
    if output.returncode != 0 or not found:
        sys.exit(f"mlx-lm failed:\n{output.stdout}\n{output.stderr}")
    return float(found[1]), float(found[2])


def base_mlx(program, model, prompt, generate, streams, device, flags):
    command = [program, "bench", "--model", model, "--prompt", str(prompt), "--generate", str(generate), "--streams",
               str(streams), "--repeat", "1", "--device", device, "--json", *flags]
    output = subprocess.run(command, capture_output=True, text=True)
    if output.returncode != 0:
        sys.exit(f"base-mlx failed:\n{output.stderr}")
    result = json.loads(output.stdout)
    return result["prefill_tokens_per_second"], result["decode_tokens_per_second"]


def counts(text):
    return [count(part) for part in text.split(",")]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base-mlx", required=True, help="the program")
    parser.add_argument("--model", required=True, help="a folder that both can load")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--rounds", type=count, default=3)
    parser.add_argument("--streams", type=counts, default="1,4,16,64", help="how many answers at once, in turn")
    parser.add_argument("--prompt", type=count, default=512)
    parser.add_argument("--generate", type=count, default=128)
    parser.add_argument("--long-prompt", type=int, default=2048, help="for prefill; 0 leaves it out")
    parser.add_argument("--stock", action="store_true", help="base-mlx with MLX's own operations alone")
    arguments = parser.parse_args()
    flags = ["--stock-kernels"] if arguments.stock else []

    # What, prompt, generated tokens, streams, which of the two rates.
    rows = [(f"decode, {streams} stream{'s' * (streams > 1)}", arguments.prompt, arguments.generate, streams, 1)
            for streams in arguments.streams]
    if arguments.long_prompt:
        rows.append((f"prefill {arguments.long_prompt}", arguments.long_prompt, 16, 1, 0))
    table = []
    for name, prompt, generate, streams, rate in rows:
        ours, theirs = [], []
        for turn in range(arguments.rounds):
            theirs.append(mlx_lm(arguments.model, prompt, generate, streams)[rate])
            ours.append(base_mlx(arguments.base_mlx, arguments.model, prompt, generate, streams, arguments.device,
                                 flags)[rate])
            print(f"{name}, round {turn + 1}: mlx-lm {theirs[-1]:.1f}, base-mlx {ours[-1]:.1f}", flush=True)
        table.append((name, theirs, ours))

    span = lambda values: f"{min(values):,.0f}–{max(values):,.0f}"
    print("\n| tokens per second | mlx-lm | base-mlx | ratio of medians |")
    print("|---|---|---|---|")
    for name, theirs, ours in table:
        ratio = statistics.median(ours) / statistics.median(theirs)
        print(f"| {name} | {span(theirs)} | {span(ours)} | {ratio:.2f} |")


main()
