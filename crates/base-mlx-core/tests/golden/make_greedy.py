"""Makes the greedy goldens of real models: what llama.cpp answers to five prompts, token by token.

    python3 make_greedy.py [--only MODEL]

Needs llama-cpp-python and jinja2, and in $BASE_MLX_TEST_MODELS the folder that `cargo xtask models` fills. Writes `greedy/<model>.json`: for each
prompt its text, its tokens and two runs of up to 64 greedy tokens, with the five largest logits before each of them.

- `quantised`: the file as it is. llama.cpp rounds activations to 8 bits to multiply them with blocks.
- `float32`: the same weights expanded to F32 by llama.cpp's own quantiser, with an F32 cache: no rounding at all. This is
  the judge, since base-mlx does not round activations; the other run shows how far llama.cpp is from it.
"""

import argparse
import ctypes
import json
import os
import tempfile
from pathlib import Path

import jinja2
import llama_cpp
import numpy as np

HERE = Path(__file__).parent
MODELS = ["smollm2", "qwen2.5-coder-0.5b"]
MAX_TOKENS = 64
TOP = 5
QUESTIONS = [
    "What is the capital of France? Answer in one word.",
    "Explain in simple words why the sky is blue.",
    "Write a Python function that returns the n-th Fibonacci number.",
    "List five fruits and the colour of each as a JSON object.",
    "Write the first lines of a story about a lighthouse keeper in Łódź who can't sleep. 🌊",
]


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", choices=MODELS)
    args = parser.parse_args()
    folder = Path(os.environ["BASE_MLX_TEST_MODELS"])
    for name in [args.only] if args.only else MODELS:
        prompts = make(folder / f"{name}.gguf")
        write(HERE / "greedy" / f"{name}.json", dict(model=name, prompts=prompts))


def make(path):
    model = load(path)
    prompts = []
    for question in QUESTIONS:
        text = render(model, question)
        tokens = model.tokenize(text.encode(), add_bos=False, special=True)
        prompts.append(dict(text=text, tokens=tokens, quantised=greedy(model, tokens)))
    model.close()
    with tempfile.TemporaryDirectory() as folder:
        expanded = Path(folder) / "f32.gguf"
        expand(path, expanded)
        model = load(expanded, type_k=llama_cpp.GGML_TYPE_F32, type_v=llama_cpp.GGML_TYPE_F32)
        for prompt in prompts:
            prompt["float32"] = greedy(model, prompt["tokens"])
        model.close()
    return prompts


def load(path, **options):
    return llama_cpp.Llama(str(path), n_ctx=512, n_batch=512, n_threads=2, verbose=False, **options)


def render(model, question):
    environment = jinja2.Environment(trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(model.metadata["tokenizer.chat_template"])
    return template.render(messages=[dict(role="user", content=question)], add_generation_prompt=True)


def greedy(model, prompt):
    """Tokens up to and with the one that ends the answer, and the largest logits each was chosen from."""
    model.reset()
    chosen, top = [], []
    new = prompt
    while len(chosen) < MAX_TOKENS:
        model.eval(new)
        pointer = llama_cpp.llama_get_logits_ith(model.ctx, -1)
        logits = np.ctypeslib.as_array(pointer, (model.n_vocab(),))
        best = np.argsort(-logits, kind="stable")[:TOP]
        chosen.append(int(best[0]))
        top.append([[int(token), round(float(logits[token]), 4)] for token in best])
        if llama_cpp.llama_token_is_eog(llama_cpp.llama_model_get_vocab(model.model), chosen[-1]):
            break
        new = chosen[-1:]
    return dict(tokens=chosen, top=top)


def expand(path, to):
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = llama_cpp.LLAMA_FTYPE_ALL_F32
    params.allow_requantize = True
    status = llama_cpp.llama_model_quantize(str(path).encode(), str(to).encode(), ctypes.byref(params))
    if status != 0:
        raise SystemExit(f"llama.cpp could not expand {path}: {status}")


def write(path, golden):
    path.parent.mkdir(exist_ok=True)
    text = json.dumps(golden, ensure_ascii=False, separators=(",", ":"))
    # A line for each run, so that a change shows where it is.
    for key in ['{"text"', '"tokens"', '"top"', '"quantised"', '"float32"']:
        text = text.replace(key, "\n" + key)
    path.write_text(text + "\n")
    for prompt in golden["prompts"]:
        runs = [prompt[name]["tokens"] for name in ["quantised", "float32"]]
        same = next((i for i, (a, b) in enumerate(zip(*runs)) if a != b), min(map(len, runs)))
        print(f"{golden['model']}: {len(prompt['tokens'])} tokens, answers of {len(runs[0])} and {len(runs[1])}, "
              f"the first {same} alike")


if __name__ == "__main__":
    main()
