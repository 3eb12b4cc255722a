"""The format of `crosscoder_learning`, the fork of dictionary_learning by science-of-finetuning: config.json, model.safetensors.

It normalises by an affine map per source, x = (a − `activation_mean`) `activation_global_scale`, and has two kinds: CrossCoder
(relu), and BatchTopKCrossCoder, where a latent is on if f_j c_j exceeds one `threshold`. The factor c_j is the code
normalisation, for crosscoders N_j = Σ_s ‖W_dec,j^s‖.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import torch

from crosscoders.errors import UserError, shortened
from crosscoders.formats import portable as form
from crosscoders.formats import tensors as files
from crosscoders.formats.portable import Portable
from crosscoders.formats.tensors import Tensors

NAME = "crosscoder_learning"
CONFIG, WEIGHTS = "config.json", "model.safetensors"
FILES = (CONFIG, WEIGHTS)
CODE_NORMALISATIONS = ("CROSSCODER", "SAE", "MIXED", "NONE", "DECOUPLED")
"""What `code_normalization_id` counts, from 1."""


def read(folder: Path, sources: Sequence[str] | None = None) -> Portable:
    """Read a crosscoder.

    Parameters
    ----------
    folder : Path
    sources : list of str, optional
        Names of the sources in order; those in the files, or usual ones, where absent.

    Returns
    -------
    Portable

    Raises
    ------
    UserError
        A file is absent, damaged, or of another format, or says what this package cannot express.
    """
    config, weights = files.read_json(folder / CONFIG), files.read_safetensors(folder / WEIGHTS)
    encoder = weights.take("encoder.weight", "n", "d", "F")
    decoder = weights.take("decoder.weight", "n", "F", "d")
    bias, decoder_bias = weights.take("encoder.bias", "F"), weights.take("decoder.bias", "n", "d")
    files.agree(config, weights, folder / CONFIG, activation_dim="d", dict_size="F", num_layers="n")
    count = weights.sizes["n"]
    if config.get("encoder_layers") not in (None, list(range(count))):
        raise UserError(f"{folder / CONFIG}: encoder_layers leaves sources out; expected an encoder that reads all")
    names = form.source_names(sources, weights.metadata.get("sources"), count, folder)
    threshold, k = weights.number("threshold"), weights.number("k")
    rows = decoder.permute(1, 0, 2)
    crosscoder = form.make(
        encoder.permute(2, 0, 1).flatten(1),
        bias,
        rows.flatten(1),
        decoder_bias.flatten(),
        names,
        "relu" if threshold is None else "batchtopk",
        None if threshold is None else _latents_per_token(k, weights.sizes["F"], folder),
        0.0 if threshold is None else _score_threshold(threshold, rows, config, weights),
    )
    found = form.without_units(crosscoder, NAME)
    _read_units(found, weights)
    return found


def _latents_per_token(k: float | None, latents: int, folder: Path) -> int:
    """How many latents per token a BatchTopKCrossCoder kept in training."""
    if k is None or k != int(k) or not 0 < k <= latents:
        raise UserError(f"{folder / WEIGHTS}: k is {k}; expected a whole number of at most {latents} latents")
    return int(k)


def _score_threshold(threshold: float, rows: torch.Tensor, config: dict, weights: Tensors) -> float | torch.Tensor:
    """The threshold of our score f_j N_j, which is θ N_j / c_j; `rows` are the decoders, (F, n, d)."""
    kind = _code_normalisation(config, weights)
    if kind == "CROSSCODER":
        return threshold
    norms, joint = rows.norm(dim=2).sum(1), rows.flatten(1).norm(dim=1)
    factor = torch.ones_like(joint) if kind == "NONE" else joint
    if kind == "MIXED":
        shares = [config.get(f"code_normalization_alpha_{part}", usual) for part, usual in (("sae", 1.0), ("cc", 0.1))]
        if not all(isinstance(share, (int, float)) and math.isfinite(share) and share >= 0 for share in shares):
            raise UserError(f"{weights.path.parent / CONFIG}: code_normalization_alpha_*: {shares}; expected numbers")
        factor = shares[0] * joint + shares[1] * norms
    return torch.where(factor > 0, threshold * norms / factor, torch.tensor(float(threshold)))


def _code_normalisation(config: dict, weights: Tensors) -> str:
    """The name of the code normalisation; files of 2024 state none and mean CROSSCODER."""
    place, number = weights.path, weights.number("code_normalization_id")
    stored = None
    if number is not None:
        if number not in range(1, len(CODE_NORMALISATIONS) + 1):
            raise UserError(f"{place}: code_normalization_id is {number}; expected 1 to {len(CODE_NORMALISATIONS)}")
        stored = CODE_NORMALISATIONS[int(number) - 1]
    stated = config.get("code_normalization") or stored or "CROSSCODER"
    if str(stated).upper() not in CODE_NORMALISATIONS:
        shown = shortened(repr(stated), 60)
        raise UserError(f"{place.parent / CONFIG}: code_normalization is {shown}; expected {CODE_NORMALISATIONS}")
    stated = str(stated).upper()
    if stored is not None and stated != stored:
        raise UserError(f"{place.parent / CONFIG}: code_normalization is {stated}, but {place.name} says {stored}")
    if stated == "DECOUPLED":
        raise UserError(f"{place.parent}: a decoupled code has one activation per source; expected one code")
    return stated


def _read_units(found: Portable, weights: Tensors) -> None:
    """Take mean and scale over, in place; NaN in the mean or the deviation means that nothing is normalised."""
    parts = ("activation_mean", "activation_std")
    if not all(name in weights.values for name in parts):
        return
    mean, deviation = (weights.take(name, "n", "d", finite=False) for name in parts)
    if mean.isnan().any() or deviation.isnan().any():
        return
    factor = weights.take("activation_global_scale", "n")
    if not mean.isfinite().all() or not (factor > 0).all():
        raise UserError(f"{weights.path}: activation_mean or activation_global_scale is no normalisation")
    found.mean, found.scale = list(mean.double()), 1 / factor.double()


def write(portable: Portable, folder: Path) -> None:
    """Write a crosscoder.

    Parameters
    ----------
    portable : Portable
    folder : Path

    Raises
    ------
    UserError
        The format cannot express the crosscoder, or the folder cannot be written.
    """
    crosscoder = form.require_plain(portable, NAME, ("relu", "batchtopk"))
    threshold, ranked = crosscoder.threshold, crosscoder.activation == "batchtopk"
    if isinstance(threshold, torch.Tensor):
        form.refuse(NAME, "a threshold per latent; it has one for all")
    if not ranked and threshold != 0:
        form.refuse(NAME, f"relu above the threshold {threshold}; its relu has none")
    if not ranked:  # our score of a latent without decoder is 0, and the latent off
        crosscoder = form.silenced(crosscoder, crosscoder.decoder_norms().sum(1) == 0)
    count, width, latents = len(crosscoder.widths), crosscoder.widths[0], crosscoder.latents
    scale = portable.scale.float()
    values = {
        "encoder.weight": crosscoder.encoder.reshape(latents, count, width).permute(1, 2, 0),
        "encoder.bias": crosscoder.encoder_bias,
        "decoder.weight": crosscoder.decoder.reshape(latents, count, width).permute(1, 0, 2),
        "decoder.bias": crosscoder.decoder_bias.reshape(count, width),
        "code_normalization_id": torch.tensor(1),
        "target_rms": torch.tensor(math.sqrt(width)),
        "activation_mean": torch.stack(portable.mean).float(),
        "activation_std": scale[:, None].expand(count, width),
        "activation_global_scale": (1 / portable.scale).float(),
    }
    config = {
        "activation_dim": width,
        "code_normalization": "CROSSCODER",
        "dict_class": "BatchTopKCrossCoder" if ranked else "CrossCoder",
        "dict_size": latents,
        "num_layers": count,
    }
    if ranked:
        values |= {"k": torch.tensor(crosscoder.k, dtype=torch.int32), "threshold": torch.tensor(float(threshold))}
        config["k"] = crosscoder.k
    files.write_folder(folder, WEIGHTS, values, {"sources": crosscoder.sources}, (CONFIG, config))
