"""Makes a Qwen3 with random weights as a GGUF file of Q4_0: speed does not depend on their values.

python3 make_gguf.py FILE --shape qwen3-0.6b --tokenizer FOLDER_WITH_TOKENIZER_JSON
"""

import argparse
import json
from pathlib import Path

import gguf
import numpy as np

from shapes import COMMON, SHAPES

Q4_0 = gguf.GGMLQuantizationType.Q4_0
# Of a block's 32 values, 0 to 15 less 8: about 0.02 on average.
SCALE = np.float16(0.004)


def q4_0(random, out, width):
    """Blocks of a scale and 32 values, two in a byte."""
    blocks = random.integers(0, 256, (out, width // 32, 18), dtype=np.uint8)
    blocks[:, :, :2] = np.frombuffer(SCALE.tobytes(), np.uint8)
    return blocks.reshape(out, -1)


def add_tokenizer(writer, path, vocab_size):
    tokenizer = json.loads(path.read_text())
    unused = gguf.TokenType.UNUSED
    tokens, kinds = [f"[PAD{i}]" for i in range(vocab_size)], [unused] * vocab_size
    for token, i in tokenizer["model"]["vocab"].items():
        tokens[i], kinds[i] = token, gguf.TokenType.NORMAL
    for added in tokenizer["added_tokens"]:
        kind = gguf.TokenType.CONTROL if added["special"] else gguf.TokenType.USER_DEFINED
        tokens[added["id"]], kinds[added["id"]] = added["content"], kind
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    merges = tokenizer["model"]["merges"]
    writer.add_token_merges([merge if isinstance(merge, str) else " ".join(merge) for merge in merges])
    writer.add_eos_token_id(tokens.index("<|im_end|>"))
    writer.add_add_bos_token(False)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--shape", choices=SHAPES, default="qwen3-0.6b")
    parser.add_argument("--tokenizer", type=Path, required=True, help="folder of tokenizer.json")
    arguments = parser.parse_args()

    shape = COMMON | SHAPES[arguments.shape]
    hidden_size, intermediate_size, head_dim = shape["hidden_size"], shape["intermediate_size"], shape["head_dim"]
    heads, kv_heads = shape["num_attention_heads"], shape["num_key_value_heads"]
    # With its last name the file counts as made.
    unfinished = arguments.file.with_suffix(".unfinished")
    writer = gguf.GGUFWriter(unfinished, shape["model_type"])
    writer.add_name(f"{arguments.shape}, random weights")
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q4_0)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_context_length(shape["max_position_embeddings"])
    writer.add_embedding_length(hidden_size)
    writer.add_block_count(shape["num_hidden_layers"])
    writer.add_feed_forward_length(intermediate_size)
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_rope_freq_base(shape["rope_theta"])
    writer.add_layer_norm_rms_eps(shape["rms_norm_eps"])
    add_tokenizer(writer, arguments.tokenizer / "tokenizer.json", shape["vocab_size"])

    random = np.random.default_rng(7)
    matrix = lambda name, out, width: writer.add_tensor(f"{name}.weight", q4_0(random, out, width), raw_dtype=Q4_0)
    norm = lambda name, width: writer.add_tensor(f"{name}.weight", np.ones(width, np.float32))
    matrix("token_embd", shape["vocab_size"], hidden_size)
    for layer in (f"blk.{i}" for i in range(shape["num_hidden_layers"])):
        norm(f"{layer}.attn_norm", hidden_size)
        matrix(f"{layer}.attn_q", heads * head_dim, hidden_size)
        matrix(f"{layer}.attn_k", kv_heads * head_dim, hidden_size)
        matrix(f"{layer}.attn_v", kv_heads * head_dim, hidden_size)
        norm(f"{layer}.attn_q_norm", head_dim)
        norm(f"{layer}.attn_k_norm", head_dim)
        matrix(f"{layer}.attn_output", hidden_size, heads * head_dim)
        norm(f"{layer}.ffn_norm", hidden_size)
        matrix(f"{layer}.ffn_gate", intermediate_size, hidden_size)
        matrix(f"{layer}.ffn_up", intermediate_size, hidden_size)
        matrix(f"{layer}.ffn_down", hidden_size, intermediate_size)
    norm("output_norm", hidden_size)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    unfinished.rename(arguments.file)


main()
