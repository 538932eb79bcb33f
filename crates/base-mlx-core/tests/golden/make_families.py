"""Makes the golden logits of the model families: tiny random checkpoints, and what mlx-lm computes from them.

    python3 make_families.py [--only FAMILY[/VARIANT]]

Needs mlx, mlx-lm, gguf and numpy. Each variant becomes a checkpoint folder `<family>/<variant>/` and, beside it,
`<family>/<variant>.safetensors` with the tokens of one prompt and the logits after each of them, computed in float32 on
MLX's CPU device from the very files that are committed. Weights come from a fixed seed for each variant.
"""

import argparse
import json
import shutil
import zlib
from pathlib import Path

import gguf
import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_flatten, tree_unflatten
from mlx_lm.utils import _get_classes, load_model

HERE = Path(__file__).parent
PROMPT_TOKENS = 40
DTYPES = {"float32": mx.float32, "float16": mx.float16, "bfloat16": mx.bfloat16}

SMALL = dict(
    hidden_size=64,
    intermediate_size=96,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    vocab_size=96,
    rms_norm_eps=1e-5,
    rope_theta=10000.0,
    max_position_embeddings=512,
    tie_word_embeddings=True,
    torch_dtype="bfloat16",
)
# One layer is enough to see a rope.
ROPE = SMALL | dict(num_hidden_layers=1, intermediate_size=64, vocab_size=64)
QWEN = SMALL | dict(rope_theta=1000000.0, rms_norm_eps=1e-6)

BITS = [2, 3, 4, 5, 6, 8]
GROUPS = [32, 64, 128]
LINEARS = [
    "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj",
    "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj",
]


def every_width(layers):
    """Settings for each linear layer which together cover every width with every group size."""
    widths = [dict(group_size=group, bits=bits) for group in GROUPS for bits in BITS]
    names = [f"model.layers.{layer}.{name}" for layer in range(layers) for name in LINEARS]
    return {name: widths[i % len(widths)] for i, name in enumerate(names)}


# What `config.json` says, and under "quantize" how MLX packs the weights ("default" for layers not named).
VARIANTS = {
    "llama/tied": SMALL | dict(
        model_type="llama", intermediate_size=64, vocab_size=64, torch_dtype="float32", hidden_act="silu"),
    "llama/untied": SMALL | dict(
        model_type="llama", tie_word_embeddings=False, head_dim=32, num_key_value_heads=1, torch_dtype="float16"),
    "llama/bias": SMALL | dict(model_type="llama", attention_bias=True, mlp_bias=True),
    "llama/llama3_rope": ROPE | dict(
        model_type="llama", torch_dtype="float16",
        # Wavelengths of 6 to 20,000 positions: some are kept, some blended, some stretched.
        rope_scaling=dict(rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
                          original_max_position_embeddings=64)),
    "llama/linear_rope": ROPE | dict(model_type="llama", rope_scaling=dict(type="linear", factor=2.5)),
    "llama/yarn_rope": ROPE | dict(
        model_type="llama",
        rope_scaling=dict(rope_type="yarn", factor=4.0, original_max_position_embeddings=64)),
    "llama/mistral": SMALL | dict(
        model_type="mistral", head_dim=32, num_key_value_heads=1, sliding_window=7, tie_word_embeddings=False),
    "llama/layer_types": ROPE | dict(
        model_type="llama", num_hidden_layers=2, sliding_window=5,
        layer_types=["full_attention", "sliding_attention"]),
    "llama/every_width": SMALL | dict(
        model_type="llama", hidden_size=128, intermediate_size=128, num_hidden_layers=3, vocab_size=64,
        quantize=dict(default=dict(group_size=32, bits=6)) | every_width(3)),
    "qwen2/tied": QWEN | dict(model_type="qwen2"),
    "qwen2/quantised": QWEN | dict(
        model_type="qwen2", hidden_size=128, intermediate_size=192, torch_dtype="float16",
        quantize=dict(default=dict(group_size=64, bits=4))),
    "qwen3/tied": QWEN | dict(model_type="qwen3", head_dim=32),
    "qwen3/sharded": QWEN | dict(
        model_type="qwen3", head_dim=16, tie_word_embeddings=False, shards=3, rope_theta=None,
        rope_parameters=dict(rope_type="default", rope_theta=5000000.0)),
    "qwen3/quantised": QWEN | dict(
        model_type="qwen3", head_dim=32, hidden_size=128, intermediate_size=64, tie_word_embeddings=False,
        quantize=dict(default=dict(group_size=32, bits=8), lm_head=False)),
}
GGUF_TWIN = "llama/llama3_rope"


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", default="", help="a family, or family/variant")
    only = parser.parse_args().only
    mx.set_default_device(mx.cpu)
    for name, config in VARIANTS.items():
        if name.startswith(only):
            make(name, dict(config))


def make(name, config):
    folder = HERE / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    quantize = config.pop("quantize", None)
    shards = config.pop("shards", 1)
    config = {key: value for key, value in config.items() if value is not None}

    seed = zlib.crc32(name.encode())
    model_class, args_class = _get_classes(config)
    model = model_class(args_class.from_dict(config))
    model.update(random_parameters(model, np.random.default_rng(seed), DTYPES[config["torch_dtype"]]))
    if quantize:
        config["quantization"] = pack(model, quantize)
    save(folder, dict(tree_flatten(model.parameters())), shards)
    (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n")

    model, _ = load_model(folder)
    if config["model_type"] == "mistral":
        window_everywhere(model, config["sliding_window"])
    model.set_dtype(mx.float32)
    tokens = np.random.default_rng(seed + 1).integers(0, config["vocab_size"], PROMPT_TOKENS)
    logits = model(mx.array(tokens)[None])[0].astype(mx.float32)
    mx.save_safetensors(
        str(folder) + ".safetensors", {"tokens": mx.array(tokens.astype(np.uint32)), "logits": logits})
    if name == GGUF_TWIN:
        save_gguf(folder / "twin.gguf", model, config)
    size = sum(file.stat().st_size for file in folder.iterdir())
    print(f"{name}: {size:,} bytes, largest logit {mx.abs(logits).max().item():.3f}")


def random_parameters(model, rng, dtype):
    """Values for which every part matters: unit-sized activations, attention that is far from uniform."""
    def values(name, shape):
        normal = rng.standard_normal(shape)
        if name.endswith("norm.weight"):
            return 1 + 0.2 * normal
        if name.endswith(".bias"):
            return 0.3 * normal
        if "embed_tokens" in name:
            return 0.5 * normal
        return 1.5 * normal / np.sqrt(shape[1])

    flat = tree_flatten(model.parameters())
    return tree_unflatten([(name, mx.array(values(name, x.shape)).astype(dtype)) for name, x in flat])


def pack(model, settings):
    """Quantises in place; returns what config.json says about it."""
    default = settings.pop("default")
    nn.quantize(model, **default, class_predicate=lambda path, module: (
        hasattr(module, "to_quantized") and settings.get(path, True)))
    return default | settings


def save(folder, tensors, shards):
    if shards == 1:
        mx.save_safetensors(str(folder / "model.safetensors"), tensors, metadata={"format": "mlx"})
        return
    names = sorted(tensors)
    weight_map = {}
    for shard in range(shards):
        file = f"model-{shard + 1:05}-of-{shards:05}.safetensors"
        part = names[shard::shards]
        mx.save_safetensors(
            str(folder / file), {name: tensors[name] for name in part}, metadata={"format": "mlx"})
        weight_map |= {name: file for name in part}
    total = sum(x.nbytes for x in tensors.values())
    index = dict(metadata=dict(total_size=total), weight_map=weight_map)
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=1) + "\n")


def window_everywhere(model, window):
    """mlx-lm reads a window from `layer_types` only; the paper and transformers give it to every layer of a Mistral."""
    model.model.sliding_window = window
    model.model.swa_idx = 0
    for layer in model.model.layers:
        layer.use_sliding = True


def save_gguf(path, model, config):
    """The same model as llama.cpp's converter would write it: other names, q and k for pairs (2i, 2i + 1), and the
    stretched frequencies as a tensor of factors."""
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    head_dim = config["hidden_size"] // heads
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_rope_dimension_count(head_dim)
    writer.add_vocab_size(config["vocab_size"])
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)

    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config["num_hidden_layers"])
    for name, x in tree_flatten(model.parameters()):
        values = np.array(x)
        if name.endswith(("q_proj.weight", "k_proj.weight")):
            count = heads if "q_proj" in name else kv_heads
            pairs = values.reshape(count, 2, head_dim // 2, -1)
            values = np.ascontiguousarray(pairs.swapaxes(1, 2)).reshape(values.shape)
        dtype = np.float32 if values.ndim == 1 else np.float16
        writer.add_tensor(names.get_name(name, try_suffixes=(".weight",)), values.astype(dtype))
    base = config["rope_theta"] ** (np.arange(0, head_dim, 2) / head_dim)
    stretched = np.array(model.model.layers[0].self_attn.rope._freqs)
    writer.add_tensor("rope_freqs.weight", (stretched / base).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


if __name__ == "__main__":
    main()
