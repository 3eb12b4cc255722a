"""Small language models of many architectures, with random weights, and a tokenizer for them."""

from pathlib import Path

import numpy as np
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from crosscoders.language_models.model_tokens import ModelTokens

SIZES = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "head_dim": 8,
    "sliding_window": 16,
    "pad_token_id": 0,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "moe_intermediate_size": 16,
    "num_experts_per_tok": 2,
    "state_size": 8,
    # names of old configs
    "n_embd": 32,
    "n_layer": 4,
    "n_head": 4,
    "n_positions": 64,
    "d_model": 32,
    "n_layers": 4,
    "n_heads": 4,
    "max_seq_len": 64,
    "num_layers": 4,
    "num_heads": 4,
    "ffn_dim": 48,
    "attention_types": [[["global", "local"], 2]],
    "word_embed_proj_dim": 32,
    "rotary_dim": 4,
}
VISION = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 28,
    "patch_size": 14,
}
OLD = [
    "gpt2",
    "gpt_neo",
    "gptj",
    "gpt_neox",
    "bloom",
    "opt",
    "mpt",
    "falcon",
    "codegen",
    "biogpt",
    "xglm",
    "openai-gpt",
]
DENSE = [
    "llama",
    "mistral",
    "qwen2",
    "qwen3",
    "gemma",
    "gemma2",
    "gemma3_text",
    "phi",
    "phi3",
    "olmo2",
    "cohere2",
    "stablelm",
    "starcoder2",
    "granite",
    "smollm3",
    "nemotron",
]
EXPERTS = ["mixtral", "qwen2_moe", "qwen3_moe", "olmoe", "gpt_oss", "granitemoe", "phimoe"]
SEVERAL_PARTS = ["gemma3"]
RECURRENT = ["mamba", "rwkv", "recurrent_gemma", "lfm2"]
ARCHITECTURES = [*OLD, *DENSE, *EXPERTS, *SEVERAL_PARTS, *RECURRENT]
SHIFTED = ("mamba", "rwkv")
"""Architectures whose `hidden_states` begin with what the first layer gives, without what it reads."""


def config(kind: str, **changes) -> transformers.PreTrainedConfig:
    """A configuration of four layers of width 32."""
    made, default = CONFIG_MAPPING[kind], CONFIG_MAPPING[kind]()
    if kind == "falcon":
        changes = {"alibi": False, **changes}
    sizes = {
        name: value
        for name, value in SIZES.items()
        if hasattr(default, name) and (kind, name) != ("falcon", "head_dim")
    }
    if getattr(default, "text_config", None) is not None:
        inner = type(default.text_config)()
        sizes = {"text_config": {name: value for name, value in SIZES.items() if hasattr(inner, name)}}
        sizes["vision_config"] = {name: value for name, value in VISION.items() if hasattr(default.vision_config, name)}
    return made(**(sizes | changes))


def model(kind: str, **changes) -> transformers.PreTrainedModel:
    """A model with random weights."""
    torch.manual_seed(0)
    return transformers.AutoModelForCausalLM.from_config(config(kind, **changes)).eval()


def tokenizer(special: tuple[str, ...] = ("<s>", "</s>")) -> transformers.PreTrainedTokenizerFast:
    """A tokenizer of 64 tokens: the special ones, letters, digits and a few signs."""
    letters = "abcdefghijklmnopqrstuvwxyz0123456789.,:;!?'-Ġ"
    vocabulary = {token: i for i, token in enumerate([*special, *letters])}
    found = Tokenizer(models.BPE(vocabulary, [], unk_token=special[0]))
    found.pre_tokenizer, found.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    found.add_special_tokens(list(special))
    return transformers.PreTrainedTokenizerFast(tokenizer_object=found, bos_token=special[0], eos_token=special[1])


def save(folder: Path, kind: str, **changes) -> Path:
    """A model folder, as a user has one."""
    model(kind, **changes).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


COMMON = ["llama", "gpt2", "gpt_neox", "gemma2", "gemma3_text", "qwen2", "qwen3"]
CONFIGS = {kind: config(kind) for kind in COMMON}
"""Configurations of the most used architectures."""


def reading(ids: np.ndarray, position: np.ndarray, sink: int = 0) -> ModelTokens:
    """One document, read by a model whose tokenizer is the split's."""
    document, counted = np.zeros(len(ids), int), np.ones(len(ids), bool)
    return ModelTokens(ids, position, document, counted, np.arange(len(ids)), sink, own=False)
