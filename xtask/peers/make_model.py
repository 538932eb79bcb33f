"""Makes a Qwen3 with random weights in the layout of mlx-lm's checkpoints: speed does not depend on their values.

python3 make_model.py FOLDER --shape qwen3-4b --bits 4 --tokenizer FOLDER_WITH_TOKENIZER_JSON
"""

import argparse
import json
import shutil
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten, tree_map
from mlx_lm.models import qwen3

from shapes import COMMON, SHAPES

GROUP_SIZE = 64


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--shape", choices=SHAPES, default="qwen3-4b")
    parser.add_argument("--bits", type=int, choices=[4, 8, 16], default=4, help="16 is bfloat16, without groups")
    parser.add_argument("--tokenizer", type=Path, required=True, help="folder of tokenizer.json and its config")
    arguments = parser.parse_args()

    mx.random.seed(7)
    config = COMMON | SHAPES[arguments.shape]
    model = qwen3.Model(qwen3.ModelArgs(**config))
    shrink = lambda a: (mx.random.normal(a.shape) * 0.02).astype(mx.bfloat16) if a.ndim > 1 else a.astype(mx.bfloat16)
    model.update(tree_map(shrink, model.parameters()))
    if arguments.bits < 16:
        nn.quantize(model, group_size=GROUP_SIZE, bits=arguments.bits)
        config["quantization"] = {"group_size": GROUP_SIZE, "bits": arguments.bits}
    mx.eval(model.parameters())

    arguments.folder.mkdir(parents=True, exist_ok=True)
    weights = dict(tree_flatten(model.parameters()))
    mx.save_safetensors(str(arguments.folder / "model.safetensors"), weights, metadata={"format": "mlx"})
    for name in ["tokenizer.json", "tokenizer_config.json"]:
        shutil.copy(arguments.tokenizer / name, arguments.folder / name)
    # Last: with it the folder counts as made.
    config |= dict(architectures=["Qwen3ForCausalLM"], hidden_act="silu", eos_token_id=151645, torch_dtype="bfloat16")
    (arguments.folder / "config.json").write_text(json.dumps(config, indent=2))


main()
