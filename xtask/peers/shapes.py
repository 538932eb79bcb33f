"""Sizes of models whose weights are made up, under their names in config.json."""

COMMON = dict(model_type="qwen3", num_key_value_heads=8, head_dim=128, rms_norm_eps=1e-6, vocab_size=151936,
              max_position_embeddings=40960, tie_word_embeddings=True)
SHAPES = {
    "qwen3-0.6b": dict(hidden_size=1024, num_hidden_layers=28, intermediate_size=3072, num_attention_heads=16,
                       rope_theta=1000000.0),
    "qwen3-4b": dict(hidden_size=2560, num_hidden_layers=36, intermediate_size=9728, num_attention_heads=32,
                     rope_theta=5000000.0),
    "tiny": dict(hidden_size=256, num_hidden_layers=3, intermediate_size=512, num_attention_heads=8,
                 rope_theta=1000000.0),
}
