"""Makes the golden states and vectors of the encoders.

    python3 make_encoders.py [NAME]

Needs torch, transformers, sentence-transformers, safetensors and numpy. Each variant becomes a checkpoint folder and, beside
it, `<variant>.safetensors` with some texts' tokens, where each ends, and the states after the last norm, computed in float32
by transformers from the very files that are committed; of a cross-encoder the scores, too. `minilm.json` and
`minilm.safetensors` are fifty texts and their vectors by sentence-transformers and the real model, which is not committed.
"""

import inspect
import json
import os
import random
import shutil
import sys
import zlib
from pathlib import Path

import numpy as np
import torch
import transformers
from safetensors.numpy import save_file

HERE = Path(__file__).parent
LENGTHS = [1, 7, 20, 2, 33]
SMALL = dict(
    vocab_size=64, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48,
    max_position_embeddings=40, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
)
QWEN = dict(
    vocab_size=64, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, head_dim=8,
    intermediate_size=48, max_position_embeddings=64, tie_word_embeddings=True,
)
VARIANTS = {
    "bert": (transformers.BertModel, transformers.BertConfig(**SMALL, type_vocab_size=2)),
    "bert_tanh": (
        transformers.BertModel, transformers.BertConfig(**SMALL, type_vocab_size=2, hidden_act="gelu_new")),
    "bert_ranks": (
        transformers.BertForSequenceClassification,
        transformers.BertConfig(**SMALL, type_vocab_size=2, num_labels=1)),
    "xlm_roberta": (
        transformers.XLMRobertaModel,
        transformers.XLMRobertaConfig(**SMALL, type_vocab_size=1, layer_norm_eps=1e-5)),
    "xlm_roberta_ranks": (
        transformers.XLMRobertaForSequenceClassification,
        transformers.XLMRobertaConfig(**SMALL, type_vocab_size=1, layer_norm_eps=1e-5, num_labels=1)),
    "nomic_bert": (transformers.NomicBertModel, transformers.NomicBertConfig(**SMALL, type_vocab_size=2)),
    "nomic_bert_transformers": (
        transformers.NomicBertModel, transformers.NomicBertConfig(**SMALL, type_vocab_size=2)),
    "qwen3": (transformers.Qwen3Model, transformers.Qwen3Config(**QWEN)),
    # Without a head, and not tied to anything.
    "qwen3_untied": (transformers.Qwen3Model, transformers.Qwen3Config(**QWEN | dict(tie_word_embeddings=False))),
}


def main():
    only = sys.argv[1] if len(sys.argv) > 1 else ""
    for name, (family, config) in VARIANTS.items():
        if only in name:
            variant(name, family, config)
    if only in "minilm":
        minilm()


def variant(name, family, config):
    torch.manual_seed(zlib.crc32(name.encode()))
    model = family(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            # What starts as all ones or zeros would not be missed.
            shift = 1.0 if parameter.ndim == 1 and parameter.mean() > 0.5 else 0.0
            parameter.copy_((torch.randn_like(parameter) * 0.3 + shift).half().float())
    folder = HERE / name
    shutil.rmtree(folder, ignore_errors=True)
    # transformers writes the names of the original checkpoints.
    model.half().save_pretrained(folder)
    # Read again, as halving has rounded what is no parameter, too.
    model = family.from_pretrained(folder, dtype=torch.float32).eval()
    if name == "nomic_bert":
        # The first checkpoints' words; those of transformers have a variant of their own.
        original_config(folder / "config.json")
    (folder / "generation_config.json").unlink(missing_ok=True)
    rng = random.Random(zlib.crc32(name.encode()))
    texts = [[rng.randrange(3, config.vocab_size) for _ in range(length)] for length in LENGTHS]
    pairs = getattr(config, "type_vocab_size", 1) > 1
    assert not pairs or "token_type_ids" in inspect.signature(family.forward).parameters
    # Every other is a pair.
    types = [
        [int(pairs and number % 2 and i >= len(text) // 2) for i in range(len(text))]
        for number, text in enumerate(texts)
    ]
    states, scores = [], []
    with torch.no_grad():
        for text, kinds in zip(texts, types):
            more = dict(token_type_ids=torch.tensor([kinds])) if pairs else {}
            out = model(torch.tensor([text]), output_hidden_states=True, **more)
            last = out.last_hidden_state if hasattr(out, "last_hidden_state") else out.hidden_states[-1]
            states.append(last[0].numpy())
            if hasattr(out, "logits"):
                scores.append(out.logits[0].numpy())
    golden = dict(
        tokens=np.concatenate([np.array(text, np.uint32) for text in texts]),
        types=np.concatenate([np.array(kinds, np.uint32) for kinds in types]),
        ends=np.cumsum(np.array(LENGTHS, np.uint32), dtype=np.uint32),
        states=np.concatenate(states),
    )
    if scores:
        golden["scores"] = np.concatenate(scores)
    save_file(golden, HERE / f"{name}.safetensors")
    print(name, sum(file.stat().st_size for file in folder.iterdir()), "bytes")


def original_config(path):
    """In the words of the checkpoints on the hub."""
    config = json.loads(path.read_text())
    path.write_text(json.dumps(dict(
        model_type="nomic_bert", architectures=["NomicBertModel"], activation_function="swiglu", causal=False,
        layer_norm_epsilon=config["layer_norm_eps"], mlp_fc1_bias=False, mlp_fc2_bias=False,
        n_embd=config["hidden_size"], n_head=config["num_attention_heads"], n_inner=config["intermediate_size"],
        n_layer=config["num_hidden_layers"], n_positions=config["max_position_embeddings"], parallel_block=False,
        prenorm=False, qkv_proj_bias=False, rotary_emb_base=1000, rotary_emb_fraction=1.0,
        rotary_emb_interleaved=False, rotary_emb_scale_base=None, rotary_scaling_factor=None,
        scale_attn_by_inverse_layer_idx=False, type_vocab_size=config["type_vocab_size"], use_rms_norm=False,
        vocab_size=config["vocab_size"],
    ), indent=2) + "\n")


def minilm():
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(Path(os.environ["BASE_MLX_TEST_MODELS"]) / "minilm"), device="cpu")
    # All that its positions have room for, which is more than it was trained with.
    model.max_seq_length = 512
    rng = random.Random(1)
    words = (
        "the a of river compiler größer 東京 naïve don't 3.14 kernel; sings quickly under (blue) light — and never "
        "tokenization antidisestablishmentarianism café 🙂 rain? snow! queue, tree where 2026 x=y"
    ).split()
    texts = ["a"]
    for step in range(49):
        wanted = 1 + step * 10
        text = []
        while len(model.tokenizer(" ".join(text))["input_ids"]) < wanted:
            text.append(rng.choice(words))
        texts.append(" ".join(text) or "b")
    lengths = [len(model.tokenizer(text)["input_ids"]) for text in texts]
    assert max(lengths) <= 500, lengths
    vectors = model.encode(texts, batch_size=1, convert_to_numpy=True)
    (HERE / "minilm.json").write_text(json.dumps(dict(texts=texts, tokens=lengths), ensure_ascii=False) + "\n")
    save_file(dict(vectors=vectors), HERE / "minilm.safetensors")
    print("minilm", len(texts), "texts of", min(lengths), "to", max(lengths), "tokens")


main()
