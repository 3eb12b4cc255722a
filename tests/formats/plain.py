"""The documented forward pass of every format, in plain NumPy from the files of a folder: code and reconstruction.

It shares nothing with the package, so that a mistake in reading cannot hide one in writing.
"""

import json
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import load_file


def crosscoder_learning(folder: Path, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """`CrossCoder` and `BatchTopKCrossCoder`: x is (T, n, d)."""
    config, w = json.loads((folder / "config.json").read_text()), load_file(folder / "model.safetensors")
    w = {name: value.astype(np.float64) for name, value in w.items()}
    if np.isfinite(w["activation_mean"]).all():
        x = (x - w["activation_mean"]) * w["activation_global_scale"][:, None]
    f = np.maximum(np.einsum("tnd,ndf->tf", x, w["encoder.weight"]) + w["encoder.bias"], 0)
    per_source = np.linalg.norm(w["decoder.weight"], axis=2)  # (n, F)
    joint = np.sqrt((per_source**2).sum(0))
    factor = {
        "CROSSCODER": per_source.sum(0),
        "SAE": joint,
        "MIXED": joint + 0.1 * per_source.sum(0),
        "NONE": np.ones_like(joint),
    }[config["code_normalization"]]
    if "threshold" in w:
        f = f * (f * factor > w["threshold"])
    rebuilt = np.einsum("tf,nfd->tnd", f, w["decoder.weight"]) + w["decoder.bias"]
    if np.isfinite(w["activation_mean"]).all():
        rebuilt = rebuilt / (w["activation_global_scale"][:, None] + 1e-8) + w["activation_mean"]
    return f, rebuilt


def ckkissane(folder: Path, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Its `CrossCoder`: x is (T, 2, d), already multiplied by the factors of training."""
    w = {name: value.double().numpy() for name, value in torch.load(folder / "cc_weights.pt").items()}
    f = np.maximum(np.einsum("tnd,ndf->tf", x, w["W_enc"]) + w["b_enc"], 0)
    return f, np.einsum("tf,fnd->tnd", f, w["W_dec"]) + w["b_dec"]


def sae_lens(folder: Path, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Its inference SAEs standard, jumprelu and topk: x is (T, d)."""
    config, w = json.loads((folder / "cfg.json").read_text()), load_file(folder / "sae_weights.safetensors")
    w = {name: value.astype(np.float64) for name, value in w.items()}
    z = (x - w["b_dec"] * config["apply_b_dec_to_input"]) @ w["W_enc"] + w["b_enc"]
    norms = np.linalg.norm(w["W_dec"], axis=1) if config.get("rescale_acts_by_decoder_norm") else 1.0
    f = np.maximum(z * norms, 0)
    if config["architecture"] == "jumprelu":
        f = f * (z > w["threshold"])
    if config["architecture"] == "topk":
        f = largest(f, config["k"])
    return f, (f / norms) @ w["W_dec"] + w["b_dec"]


def sparsify(folder: Path, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Its `SparseCoder`: x is (T, d)."""
    config, w = json.loads((folder / "cfg.json").read_text()), load_file(folder / "sae.safetensors")
    w = {name: value.astype(np.float64) for name, value in w.items()}
    f = largest(np.maximum((x - w["b_dec"]) @ w["encoder.weight"].T + w["encoder.bias"], 0), config["k"])
    return f, f @ w["W_dec"] + w["b_dec"]


def largest(f: np.ndarray, k: int) -> np.ndarray:
    """The k largest entries of every row, 0 elsewhere."""
    kept = np.zeros_like(f)
    order = np.argsort(-f, axis=1, kind="stable")[:, :k]
    np.put_along_axis(kept, order, np.take_along_axis(f, order, 1), 1)
    return kept
