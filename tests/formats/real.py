"""Peers' own packages, in their own environment: `real.py FORMAT INPUT OUTPUT FOLDER…` writes codes and reconstructions.

It needs NumPy, torch and the package of the format.
"""

import sys

import numpy as np
import torch


def crosscoder_learning(folder, x):
    """The fork of science-of-finetuning; the package of the same name on PyPI has no crosscoder."""
    import json
    from pathlib import Path

    from dictionary_learning import dictionary

    kind = getattr(dictionary, json.loads(Path(folder, "config.json").read_text())["dict_class"])
    coder = kind.from_pretrained(folder, from_hub=True)
    code = coder.encode(x)
    return code, coder.decode(code)


def sae_lens(folder, x):
    """`sae_lens.SAE.load_from_disk`."""
    from sae_lens import SAE

    sae = SAE.load_from_disk(folder)
    code = sae.encode(x)
    return code, sae.decode(code)


def sparsify(folder, x):
    """`sparsify.SparseCoder.load_from_disk`."""
    from sparsify import SparseCoder

    coder = SparseCoder.load_from_disk(folder)
    values, index, _ = coder.encode(x)
    code = torch.zeros(len(x), coder.num_latents).scatter_(1, index, values)
    return code, coder.decode(values, index)


def saved_by_sae_lens(folder, x):
    """SAEs that `sae-lens` itself saves, one per architecture; the folder gets them all."""
    from sae_lens.saes import jumprelu_sae, standard_sae, topk_sae

    torch.manual_seed(0)
    size = {"d_in": x.shape[1], "d_sae": 24}
    made = {
        "standard": standard_sae.StandardSAE(standard_sae.StandardSAEConfig(**size)),
        "uncentred": standard_sae.StandardSAE(standard_sae.StandardSAEConfig(**size, apply_b_dec_to_input=False)),
        "jumprelu": jumprelu_sae.JumpReLUSAE(jumprelu_sae.JumpReLUSAEConfig(**size)),
        "topk": topk_sae.TopKSAE(topk_sae.TopKSAEConfig(**size, k=3, rescale_acts_by_decoder_norm=True)),
    }
    for name, sae in made.items():
        sae.b_enc.data = 0.1 * torch.randn(24)
        sae.b_dec.data = torch.randn(x.shape[1])
        if name == "jumprelu":
            sae.threshold.data = torch.rand(24)
        sae.save_model(f"{folder}/{name}")
    return torch.stack([sae.encode(x) for sae in made.values()]), torch.stack([sae(x) for sae in made.values()])


def saved_by_sparsify(folder, x):
    """A coder that `sparsify` itself saves."""
    from sparsify import SparseCoder, SparseCoderConfig

    torch.manual_seed(0)
    coder = SparseCoder(x.shape[1], SparseCoderConfig(num_latents=24, k=3))
    coder.b_dec.data = torch.randn(x.shape[1])
    coder.save_to_disk(folder)
    return sparsify(folder, x)


def trained_by_sparsify(folder, x):
    """A coder that the trainer of `sparsify` leaves after a few steps, with decoder norms that its last step changed."""
    from datasets import Dataset
    from sparsify import SparseCoderConfig, TrainConfig, Trainer
    from transformers import LlamaConfig, LlamaModel

    torch.manual_seed(0)
    size = {"hidden_size": x.shape[1], "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 1}
    rows = torch.randint(64, (12, 16)).tolist()
    options = {"batch_size": 4, "layers": [0], "log_to_wandb": False, "save_dir": folder, "run_name": "run"}
    config = TrainConfig(SparseCoderConfig(num_latents=24, k=3), **options)
    with torch.enable_grad():
        model = LlamaModel(LlamaConfig(vocab_size=64, **size))
        Trainer(config, Dataset.from_dict({"input_ids": rows}).with_format("torch"), model).fit()
    return sparsify(f"{folder}/run/layers.0", x)


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    name, given, result, *places = sys.argv[1:]
    x = torch.from_numpy(np.load(given))
    both = [globals()[name](place, x) for place in places]
    np.savez(result, code=torch.stack([one[0] for one in both]), rebuilt=torch.stack([one[1] for one in both]))
