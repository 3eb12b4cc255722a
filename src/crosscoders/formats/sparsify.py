"""The format of `sparsify` (pip: eai-sparsify): cfg.json, sae.safetensors; topk, single SAEs or sources side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from crosscoders.errors import UserError, shortened
from crosscoders.formats import portable as form
from crosscoders.formats import stacked
from crosscoders.formats import tensors as files
from crosscoders.formats.portable import Folded, Portable

NAME = "sparsify"
CONFIG, WEIGHTS = "cfg.json", "sae.safetensors"
FILES = (CONFIG, WEIGHTS)
TRIVIAL = {"activation": (None, "topk"), "skip_connection": (None, False), "transcode": (None, False)}
"""Settings, and the values of them that this package can express."""


def read(folder: Path, sources: Sequence[str] | None = None) -> Portable:
    """Read a sparse autoencoder, or a crosscoder whose sources stand side by side.

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
    for key, values in TRIVIAL.items():
        if config.get(key) not in values:
            shown = shortened(repr(config[key]), 60)
            raise UserError(f"{folder / CONFIG}: {key} is {shown}; expected {values[-1]!r}")
    encoder, bias = tensors.take("encoder.weight", "F", "d").double(), tensors.take("encoder.bias", "F").double()
    decoder, decoder_bias = tensors.take("W_dec", "F", "d").double(), tensors.take("b_dec", "d").double()
    files.agree(config, tensors, folder / CONFIG, d_in="d")
    k = files.count_of(config, "k", folder / CONFIG)
    if k > tensors.sizes["F"]:
        raise UserError(f"{folder / CONFIG}: k is {k}; expected at most the {tensors.sizes['F']} latents")
    weights = Folded(encoder, bias, decoder, decoder_bias)
    return stacked.unfolded(weights, tensors, sources, NAME, k=k)


def write(portable: Portable, folder: Path) -> None:
    """Write an autoencoder whose activation is that of all sources side by side; its codes are our scores f_j N_j.

    Parameters
    ----------
    portable : Portable
    folder : Path

    Raises
    ------
    UserError
        The format cannot express the crosscoder, or the folder cannot be written.
    """
    crosscoder = stacked.ranked_by_activation(form.require_plain(portable, NAME, ("topk",)))
    raw = stacked.centred(replace(portable, crosscoder=crosscoder))
    values = {
        "encoder.weight": raw.encoder.float(),
        "encoder.bias": raw.encoder_bias.float(),
        "W_dec": raw.decoder.float(),
        "b_dec": raw.decoder_bias.float(),
    }
    config = {
        "activation": "topk",
        "d_in": sum(crosscoder.widths),
        "k": crosscoder.k,
        "normalize_decoder": False,
        "num_latents": crosscoder.latents,
        "skip_connection": False,
        "transcode": False,
    }
    files.write_folder(folder, WEIGHTS, values, stacked.metadata(portable), (CONFIG, config))
