"""Makes the golden states and vectors of the encoders.

    python3 make_encoders.py [NAME]

Needs torch, transformers, sentence-transformers, safetensors, gguf, sentencepiece, protobuf and numpy. Each variant becomes a
checkpoint folder and, beside it, `<variant>.safetensors` with some texts' tokens, where each ends, and the states after the
last norm, computed in float32 by transformers from the very files that are committed; of a cross-encoder the scores, too.
`minilm.json` and `minilm.safetensors` are fifty texts and their vectors by sentence-transformers and the real model, which is
not committed.

`twins` writes some checkpoints again as llama.cpp's converter would, with a made-up vocabulary: `<variant>/twin.gguf`. That of
`bert_q8` is all there is of it: its states are those of `bert` with the weights that its blocks hold. `sentencepiece.json` is
what the library of that name makes of some texts with the vocabulary of `xlm_roberta`'s.
"""

import inspect
import io
import json
import os
import random
import shutil
import sys
import tempfile
import zlib
from pathlib import Path

import gguf
import numpy as np
import sentencepiece
import torch
import transformers
from safetensors.numpy import load_file, save_file
from sentencepiece import sentencepiece_model_pb2

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
    if only in "twins":
        twins()


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
    save_golden(name, family, config, model)
    print(name, sum(file.stat().st_size for file in folder.iterdir()), "bytes")


def save_golden(name, family, config, model):
    rng = random.Random(zlib.crc32(name.encode()))
    texts = [[rng.randrange(3, config.vocab_size) for _ in range(length)] for length in LENGTHS]
    pairs = getattr(config, "type_vocab_size", 1) > 1
    assert not pairs or "token_type_ids" in inspect.signature(family.forward).parameters
    # The longer ones are pairs.
    types = [[int(pairs and len(text) > 7 and i >= len(text) // 2) for i in range(len(text))] for text in texts]
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


def twins():
    wordpieces, sentencepieces = wordpiece_vocabulary(), sentencepiece_vocabulary()
    pooling = gguf.PoolingType
    twin("bert", wordpieces, pooling.CLS)
    # What scores pairs need not say so.
    twin("bert_ranks", wordpieces, None)
    twin("nomic_bert", wordpieces, pooling.MEAN)
    twin("xlm_roberta", sentencepieces, pooling.MEAN)
    twin("xlm_roberta_ranks", sentencepieces, pooling.RANK)
    twin("qwen3", byte_vocabulary(), pooling.LAST)
    quantised = twin("bert", wordpieces, pooling.MEAN, "bert_q8", gguf.GGMLQuantizationType.Q8_0)
    family, config = VARIANTS["bert"]
    model = family.from_pretrained(HERE / "bert", dtype=torch.float32).eval()
    with torch.no_grad():
        for name, values in quantised.items():
            model.get_parameter(name).copy_(torch.from_numpy(values))
    save_golden("bert_q8", family, config, model)


def twin(name, vocabulary, pooling, to=None, quantization=None):
    """Returns the values that the file has, under the checkpoint's names."""
    family, config = VARIANTS[name]
    arch = {"bert": "bert", "xlm-roberta": "bert", "nomic_bert": "nomic-bert", "qwen3": "qwen3"}[config.model_type]
    folder = HERE / (to or name)
    folder.mkdir(exist_ok=True)
    writer = gguf.GGUFWriter(folder / "twin.gguf", arch)
    # Of no token; XLM-RoBERTa's places begin behind the number of padding.
    skipped = config.pad_token_id + 1 if config.model_type == "xlm-roberta" else 0
    writer.add_context_length(config.max_position_embeddings - skipped)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    if arch == "qwen3":
        writer.add_head_count_kv(config.num_key_value_heads)
        writer.add_key_length(config.head_dim)
        writer.add_value_length(config.head_dim)
        writer.add_layer_norm_rms_eps(config.rms_norm_eps)
        writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    else:
        writer.add_layer_norm_eps(config.layer_norm_eps)
        writer.add_causal_attention(False)
        writer.add_token_type_count(config.type_vocab_size)
    if arch == "nomic-bert":
        writer.add_rope_freq_base(1000.0)
    if pooling is not None:
        writer.add_pooling_type(pooling)
    vocabulary(writer)

    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH[arch.upper().replace("-", "_")], config.num_hidden_layers)
    held = {}
    for full, values in load_file(HERE / name / "model.safetensors").items():
        plain = full.removeprefix("bert.").removeprefix("roberta.")
        if plain.endswith(("position_ids", "inv_freq")):
            continue
        if plain.startswith("pooler."):
            if not name.endswith("ranks"):
                continue
            # What stands before the last layer of a head.
            plain = plain.replace("pooler.dense", "classifier.dense")
        if plain.startswith("classifier.") and plain.count(".") == 1:
            plain = plain.replace("classifier.", "classifier.out_proj.")
        if arch == "qwen3":
            plain = "model." + plain
        new = names.get_name(plain, try_suffixes=(".weight", ".bias"))
        assert new, plain
        values = values.astype(np.float32)
        if new == "position_embd.weight":
            values = values[skipped:]
        rarely = new in ("position_embd.weight", "token_types.weight")
        if values.ndim == 1 or rarely:
            writer.add_tensor(new, np.ascontiguousarray(values))
        elif quantization and values.shape[1] % 32 == 0:
            blocks = gguf.quants.quantize(values, quantization)
            writer.add_tensor(new, blocks, raw_dtype=quantization)
            held[full] = gguf.quants.dequantize(blocks, quantization)
        else:
            writer.add_tensor(new, values.astype(np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    print(to or name, (folder / "twin.gguf").stat().st_size, "bytes as GGUF")
    return held


def wordpiece_vocabulary():
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    letters = "abcdefghijklmnopqrstuvwxyz"
    pieces = [*letters, *(f"##{letter}" for letter in letters), "the", "##ing", "cat", "##er", "##ly", "東", "."]
    tokens = special + pieces
    assert len(tokens) == 64

    def marked(token):
        if token in special:
            return token
        return token[2:] if token.startswith("##") else "\u2581" + token

    def write(writer):
        writer.add_tokenizer_model("bert")
        writer.add_tokenizer_pre("bert-bge")
        writer.add_token_list([marked(token) for token in tokens])
        types = gguf.TokenType
        writer.add_token_types([types.CONTROL if token in special else types.NORMAL for token in tokens])
        writer.add_bos_token_id(2)
        writer.add_unk_token_id(1)
        writer.add_sep_token_id(3)
        writer.add_pad_token_id(0)
        writer.add_mask_token_id(4)

    return write


def sentencepiece_vocabulary():
    """A vocabulary of 64 as XLM-RoBERTa's is: that of the library with four names in the place of its three."""
    words = "the cats sing and the dogs sing while a cat sits on the stone and sings of the sea ﬁne ｗide".split()
    rng = random.Random(2)
    lines = [" ".join(rng.choice(words) for _ in range(8)) for _ in range(400)]
    with tempfile.TemporaryDirectory() as folder:
        # Its own rules take 300 kB.
        rules = Path(folder) / "rules.tsv"
        pairs = {"ﬁ": "fi", "ｗ": "w", "ａ": "a", "\t": " ", "\n": " ", "\u00a0": " ", "\u3000": " ", "\u200b": "", "é": "e", "Ａ": "a"}
        rules.write_text("".join(
            "\t".join(" ".join(f"{ord(c):X}" for c in side) for side in pair) + "\n" for pair in pairs.items()))
        model = io.BytesIO()
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(lines), model_writer=model, vocab_size=62, hard_vocab_limit=False,
            normalization_rule_tsv=str(rules), num_threads=1, minloglevel=2)
    proto = sentencepiece_model_pb2.ModelProto.FromString(model.getvalue())
    processor = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    count = processor.vocab_size()
    pieces = [processor.id_to_piece(i) for i in range(3, count)]
    scores = [processor.get_score(i) for i in range(3, count)]
    gap = 64 - 4 - len(pieces)
    assert gap > 0
    types = gguf.TokenType

    def write(writer):
        writer.add_tokenizer_model("t5")
        writer.add_tokenizer_pre("default")
        writer.add_token_list(["<s>", "<pad>", "</s>", "<unk>"] + pieces + [f"[PAD{64 - gap + i}]" for i in range(gap)])
        writer.add_token_scores([0.0] * 4 + scores + [-10000.0] * gap)
        writer.add_token_types(
            [types.CONTROL] * 3 + [types.UNKNOWN] + [types.NORMAL] * len(pieces) + [types.UNUSED] * gap)
        writer.add_add_space_prefix(True)
        writer.add_remove_extra_whitespaces(True)
        writer.add_precompiled_charsmap(proto.normalizer_spec.precompiled_charsmap)
        writer.add_bos_token_id(0)
        writer.add_eos_token_id(2)
        writer.add_unk_token_id(3)
        writer.add_sep_token_id(2)
        writer.add_pad_token_id(1)

    def numbers(text):
        ids = [3 if i == processor.unk_id() else i + 1 for i in processor.encode(text)]
        return [0] + ids + [2]

    texts = [
        "", " ", "a", "the cats sing", "  the   cats  ", "The CATS", "ﬁne ｗide ａnd", "caﬁé\u00a0sea", "東京 the 東", "stone🙂stone",
        "unbelievable", "a\tb\nc", "[PAD63]", "the▁cat", "sing" * 50, "\u200bsea\u3000sea", "Ａ é", ".,!?", "\u0301a",
    ]
    (HERE / "sentencepiece.json").write_text(
        json.dumps([dict(text=text, tokens=numbers(text)) for text in texts], ensure_ascii=False, indent=1) + "\n")
    return write


def byte_vocabulary():
    tokens = [chr(c) for c in range(ord("a"), ord("z") + 1)] + ["Ġ"] + [chr(c) for c in range(ord("0"), ord("9") + 1)] + ["ab"]
    tokens += [f"[unused{i}]" for i in range(63 - len(tokens))] + ["<|endoftext|>"]
    types = gguf.TokenType

    def write(writer):
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre("qwen2")
        writer.add_token_list(tokens)
        writer.add_token_types([types.UNUSED if token.startswith("[") else types.NORMAL for token in tokens[:-1]] + [types.CONTROL])
        writer.add_token_merges(["a b"])
        writer.add_eos_token_id(63)
        writer.add_pad_token_id(63)
        writer.add_add_bos_token(False)
        writer.add_add_eos_token(True)

    return write


main()
