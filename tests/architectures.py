"""Configurations of small language models of several architectures."""

import transformers

SMALL = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
GEMMA = SMALL | {"head_dim": 8, "sliding_window": 16}
CONFIGS = {
    "llama": transformers.LlamaConfig(**SMALL),
    "gpt2": transformers.GPT2Config(vocab_size=64, n_embd=32, n_layer=4, n_head=4, n_positions=64),
    "gpt-neox": transformers.GPTNeoXConfig(**SMALL),
    "gemma-2": transformers.Gemma2Config(**GEMMA),
    "gemma-3": transformers.Gemma3TextConfig(**GEMMA),
    "qwen-2": transformers.Qwen2Config(**SMALL),
    "qwen-3": transformers.Qwen3Config(**SMALL, head_dim=8),
}
