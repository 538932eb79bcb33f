"""Measures llama.cpp as `base-mlx bench --json` measures base-mlx, and prints the same keys.

python3 llama.py --model FILE --flash-attention on [--prompt 512] [--generate 64] [--streams 1] [--threads 2]

Needs llama-cpp-python in this Python, whose low-level functions are llama.cpp's own.
"""

import argparse
import json
import resource
import sys
import time

import llama_cpp

from sizes import count


def load(arguments):
    model_params = llama_cpp.llama_model_default_params()
    model_params.n_gpu_layers = 0
    model = llama_cpp.llama_model_load_from_file(arguments.model.encode(), model_params)
    params = llama_cpp.llama_context_default_params()
    params.n_ctx = arguments.streams * (arguments.prompt + arguments.generate)
    params.n_seq_max = arguments.streams
    params.n_batch = BATCH
    params.flash_attn_type = FLASH_ATTENTION[arguments.flash_attention]
    params.n_threads = params.n_threads_batch = arguments.threads
    context = model and llama_cpp.llama_init_from_model(model, params)
    if not context:
        sys.exit(f"llama.cpp cannot load {arguments.model}")
    return context


def evaluate(context, batch, tokens):
    """Tokens as (id, position, stream, whether its logits are wanted), at once; returns when they are computed."""
    batch.n_tokens = len(tokens)
    for i, (token, position, stream, wanted) in enumerate(tokens):
        batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.logits[i] = token, position, 1, wanted
        batch.seq_id[i][0] = stream
    if llama_cpp.llama_decode(context, batch) != 0:
        sys.exit("llama.cpp cannot evaluate a batch")
    llama_cpp.llama_synchronize(context)


def run(context, batch, prompt, generate, streams):
    """Seconds of the prompts, and of all tokens after each stream's first, which comes out of its prompt."""
    llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(context), True)
    prompts = [(100 + position, position, stream, position == prompt - 1)
               for stream in range(streams) for position in range(prompt)]
    begun = time.perf_counter()
    for start in range(0, len(prompts), BATCH):
        evaluate(context, batch, prompts[start:start + BATCH])
    first = time.perf_counter()
    for position in range(prompt, prompt + generate - 1):
        evaluate(context, batch, [(700 + position, position, stream, True) for stream in range(streams)])
    return first - begun, time.perf_counter() - first


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--flash-attention", choices=FLASH_ATTENTION, required=True)
    parser.add_argument("--prompt", type=count, default=512)
    parser.add_argument("--generate", type=count, default=64)
    parser.add_argument("--streams", type=count, default=1)
    parser.add_argument("--threads", type=count, default=2)
    arguments = parser.parse_args()
    if arguments.generate < 2 or arguments.streams > BATCH:
        parser.error(f"--generate must be at least 2, --streams at most {BATCH}")
    prompt, generate, streams = arguments.prompt, arguments.generate, arguments.streams

    silent = llama_cpp.llama_log_callback(lambda level, text, data: None)
    llama_cpp.llama_log_set(silent, None)
    llama_cpp.llama_backend_init()
    # What Python and its modules hold is no fault of llama.cpp's.
    before = peak_rss()
    begun = time.perf_counter()
    context = load(arguments)
    loaded = time.perf_counter()
    batch = llama_cpp.llama_batch_init(BATCH, 0, 1)
    # The first run pays for cold memory, as that of base-mlx does.
    cold, _ = run(context, batch, prompt, generate, streams)
    prefill, decode = run(context, batch, prompt, generate, streams)
    print(json.dumps({
        "version": llama_cpp.__version__,
        "prefill_tokens_per_second": streams * prompt / prefill,
        "decode_tokens_per_second": streams * (generate - 1) / decode,
        "load_ms": (loaded - begun) * 1000,
        "cold_first_token_ms": (loaded - begun + cold) * 1000,
        "peak_rss_mb": (peak_rss() - before) / 1e6,
    }))


def peak_rss():
    # Linux counts in KiB, macOS in bytes.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


BATCH = 512
FLASH_ATTENTION = {
    "on": llama_cpp.LLAMA_FLASH_ATTN_TYPE_ENABLED,
    "off": llama_cpp.LLAMA_FLASH_ATTN_TYPE_DISABLED,
}

main()
