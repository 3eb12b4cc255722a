"""The format of SAELens: cfg.json, sae_weights.safetensors; single SAEs, or the sources of a crosscoder side by side.

Architectures: standard (relu), jumprelu (f_j = z_j where z_j exceeds `threshold`_j), topk. BatchTopK is saved as jumprelu.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from crosscoders.errors import UserError, shortened
from crosscoders.formats import portable as form
from crosscoders.formats import stacked
from crosscoders.formats import tensors as files
from crosscoders.formats.portable import Folded, Portable

NAME = "sae-lens"
CONFIG, WEIGHTS = "cfg.json", "sae_weights.safetensors"
FILES = (CONFIG, WEIGHTS)
ARCHITECTURES = ("standard", "jumprelu", "topk")
WRITTEN_FOR = "6.54.12"
"""The version whose `cfg.json` we write; without one SAELens takes the file for one from before 6.0."""
TRIVIAL = {
    "reshape_activations": (None, "none"),
    "finetuning_scaling_factor": (None, False),
    "normalize_activations": (None, False, "none", "expected_average_only_in"),
}
"""Settings, and values of them that change nothing; the last one is folded into the weights when SAELens saves them."""


def read(folder: Path, sources: Sequence[str] | None = None) -> Portable:
    """Read an SAE, or a crosscoder whose sources stand side by side.

    Parameters
    ----------
    folder : Path
    sources : list of str, optional
        Names of the sources, which divide the columns equally; those in the file, or a single one, where absent.

    Returns
    -------
    Portable

    Raises
    ------
    UserError
        A file is absent, damaged, of another format, or says what this package cannot express.
    """
    config, tensors = files.read_json(folder / CONFIG), files.read_safetensors(folder / WEIGHTS)
    architecture = _architecture(config, folder / CONFIG)
    encoder, decoder = tensors.take("W_enc", "d", "F").T.double(), tensors.take("W_dec", "F", "d").double()
    bias, decoder_bias = tensors.take("b_enc", "F").double(), tensors.take("b_dec", "d").double()
    files.agree(config, tensors, folder / CONFIG, d_in="d", d_sae="F")
    scaling = tensors.values.get("scaling_factor")
    if scaling is not None and not torch.equal(scaling.float(), torch.ones_like(scaling).float()):
        raise UserError(f"{folder / WEIGHTS}: scaling_factor is not 1; expected weights without fine-tuned scales")
    weights = Folded(encoder, bias, decoder, decoder_bias)
    given = {"centred": bool(config.get("apply_b_dec_to_input", True))}
    if architecture == "standard":
        return stacked.unfolded(weights, tensors, sources, NAME, **given)
    if architecture == "jumprelu":
        threshold = tensors.take("threshold", "F").double()
        if (threshold < 0).any():
            raise UserError(f"{folder / WEIGHTS}: threshold holds negative numbers; expected activations")
        return stacked.unfolded(weights, tensors, sources, NAME, threshold=threshold, **given)
    k = files.count_of(_topk_settings(config), "k", folder / CONFIG)
    if k > tensors.sizes["F"]:
        raise UserError(f"{folder / CONFIG}: k is {k}; expected at most the {tensors.sizes['F']} latents")
    if config.get("rescale_acts_by_decoder_norm"):
        weights = _normed(weights)
    return stacked.unfolded(weights, tensors, sources, NAME, k=k, **given)


def _topk_settings(config: dict) -> dict:
    """Where `k` stands: before version 6.0 among the keywords of the activation."""
    inside = config.get("activation_fn_kwargs")
    return config if "k" in config or not isinstance(inside, dict) else inside


def _architecture(config: dict, path: Path) -> str:
    """The architecture, if this package can express it with the other settings."""
    function = config.get("activation_fn", config.get("activation_fn_str", "relu"))
    architecture = "topk" if function == "topk" else config.get("architecture", "standard")
    if architecture not in ARCHITECTURES:
        shown = shortened(repr(architecture), 60)
        raise UserError(f"{path}: the architecture {shown} is not read; expected {', '.join(ARCHITECTURES)}")
    if function not in ("relu", "topk"):
        raise UserError(f"{path}: the activation {shortened(repr(function), 60)} is not read; expected relu or topk")
    for key, values in TRIVIAL.items():
        if key in config and config[key] not in values:
            shown = shortened(repr(config[key]), 60)
            raise UserError(
                f"{path}: {key} is {shown}; expected 'none', which an affine map of activations can express"
            )
    return architecture


def _normed(weights: Folded) -> Folded:
    """Weights whose decoder vectors have norm 1, as SAELens applies them where it rescales by decoder norms."""
    norms = weights.decoder.norm(dim=1)
    norms = torch.where(norms > 0, norms, 1.0)
    return Folded(
        weights.encoder * norms[:, None],
        weights.encoder_bias * norms,
        weights.decoder / norms[:, None],
        weights.decoder_bias,
    )


def write(portable: Portable, folder: Path) -> None:
    """Write an SAE whose activation is that of all sources side by side; its codes of topk are our scores f_j N_j.

    Parameters
    ----------
    portable : Portable
    folder : Path

    Raises
    ------
    UserError
        The format cannot express the crosscoder, or the folder cannot be written.
    """
    crosscoder = form.require_plain(portable, NAME, ("relu", "topk", "batchtopk", "jumprelu"))
    on_above, config, values = crosscoder.on_above, {}, {}
    if crosscoder.activation == "topk":
        crosscoder = stacked.ranked_by_activation(crosscoder)
        config = {"architecture": "topk", "k": crosscoder.k, "rescale_acts_by_decoder_norm": False}
    elif isinstance(on_above, float) and on_above == 0 and crosscoder.activation == "relu":
        config = {"architecture": "standard"}
    else:
        config, values = {"architecture": "jumprelu"}, {"threshold": stacked.activation_threshold(crosscoder).float()}
    crosscoder = form.silenced(crosscoder, stacked.always_off(crosscoder))
    raw = stacked.centred(replace(portable, crosscoder=crosscoder))
    values |= {
        "W_enc": raw.encoder.T.float(),
        "W_dec": raw.decoder.float(),
        "b_enc": raw.encoder_bias.float(),
        "b_dec": raw.decoder_bias.float(),
    }
    config |= {
        "d_in": sum(crosscoder.widths),
        "d_sae": crosscoder.latents,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": True,
        "normalize_activations": "none",
        "reshape_activations": "none",
        "metadata": {"sae_lens_version": WRITTEN_FOR, "sae_lens_training_version": None},
    }
    files.write_folder(folder, WEIGHTS, values, stacked.metadata(portable), (CONFIG, config))
