"""Crosscoders, plain and aligned, as datasets and back, with all that is needed to apply one to raw activations."""

from __future__ import annotations

import json
from collections.abc import Sequence

import numpy as np
import torch
import xarray as xr
from pydantic import TypeAdapter

from crosscoders import artifacts
from crosscoders.crosscoder.aligned import Aligned
from crosscoders.crosscoder.crosscoder import Crosscoder
from crosscoders.study.settings.crosscoders import AnyCrosscoder, CrosscoderSettings, PublishedSettings

_variable = artifacts.variable


def to_dataset(crosscoder: Crosscoder, normalisation: xr.Dataset) -> xr.Dataset:
    """A crosscoder with the normalisation it needs.

    Parameters
    ----------
    crosscoder : Crosscoder
        On the CPU.
    normalisation : xarray.Dataset
        What `fit_normalisation` wrote.

    Returns
    -------
    xarray.Dataset
        Over `latent`, `source` and `width_{source}`.
    """
    encoders, decoders = (
        [matrix[:, c] for c in crosscoder.columns] for matrix in (crosscoder.encoder, crosscoder.decoder)
    )
    biases = [crosscoder.decoder_bias[columns] for columns in crosscoder.columns]
    dataset = _with_weights(normalisation, crosscoder.sources, encoders, decoders, biases)
    dataset["encoder_bias"] = _variable("latent", crosscoder.encoder_bias.numpy(), "encoder bias")
    on_above = crosscoder.on_above
    threshold = ("latent", on_above.numpy()) if isinstance(on_above, torch.Tensor) else ((), np.float64(on_above))
    dataset["threshold"] = _variable(*threshold, "score above which a latent is on at inference")
    masks = {"reads": "encoder reads the source", "writes": "decoder writes the source"}
    for name, label in masks.items():
        mask = getattr(crosscoder, name).numpy().astype(np.int8)
        dataset[name] = _variable(("latent", "source"), mask, label)
    tied = crosscoder.tied.numpy().astype(np.int8)
    dataset["tied"] = _variable("latent", tied, "one decoder direction for all sources")
    dataset["penalty"] = _variable("latent", crosscoder.penalty.numpy(), "factor on the sparsity penalty")
    if crosscoder.rank_weight is not None:
        label = "what activations are multiplied by where latents are ranked"
        dataset["rank_weight"] = _variable("latent", crosscoder.rank_weight.numpy(), label)
    return dataset.assign_attrs(activation=crosscoder.activation, k=crosscoder.k or 0)


def from_dataset(dataset: xr.Dataset) -> Crosscoder:
    """The inverse of :func:`to_dataset`, without the normalisation.

    Parameters
    ----------
    dataset : xarray.Dataset
        What `train_crosscoder` wrote.

    Returns
    -------
    Crosscoder
        On the CPU.
    """
    sources, threshold = _sources(dataset), dataset["threshold"]
    crosscoder = Crosscoder(
        encoder=torch.cat(_per_source(dataset, "encoder"), dim=-1),
        encoder_bias=_tensor(dataset["encoder_bias"]),
        decoder=torch.cat(_per_source(dataset, "decoder"), dim=-1),
        decoder_bias=torch.cat(_per_source(dataset, "decoder_bias"), dim=-1),
        sources=sources,
        widths=[dataset.sizes[f"width_{name}"] for name in sources],
        reads=_tensor(dataset["reads"]).bool(),
        writes=_tensor(dataset["writes"]).bool(),
        tied=_tensor(dataset["tied"]).bool(),
        penalty=_tensor(dataset["penalty"]),
        activation=dataset.attrs["activation"],
        k=int(dataset.attrs["k"]) or None,
        threshold=_tensor(threshold) if threshold.ndim else float(threshold),
        rank_weight=_tensor(dataset["rank_weight"]) if "rank_weight" in dataset else None,
    )
    if crosscoder.selection.learns_threshold:
        crosscoder.log_threshold, crosscoder.threshold = crosscoder.threshold.log(), 0.0
    return crosscoder


def settings_of(dataset: xr.Dataset) -> CrosscoderSettings | PublishedSettings:
    """The settings that a crosscoder was trained with, or read by.

    Parameters
    ----------
    dataset : xarray.Dataset
        What `train_crosscoder` or `import_crosscoder` wrote.

    Returns
    -------
    CrosscoderSettings or PublishedSettings
    """
    stated = json.loads(dataset.attrs["settings"])["crosscoder"]
    return TypeAdapter(AnyCrosscoder).validate_python(stated)


def aligned_to_dataset(coder: Aligned, normalisation: xr.Dataset) -> xr.Dataset:
    """An aligned crosscoder with the normalisation it needs; biases and thresholds of encoders are per source.

    Parameters
    ----------
    coder : Aligned
        On the CPU.
    normalisation : xarray.Dataset
        What `fit_normalisation` wrote.

    Returns
    -------
    xarray.Dataset
        Over `latent`, `source` and `width_{source}`.
    """
    decoders, biases = coder.decoder.split(coder.widths, dim=1), coder.decoder_bias.split(coder.widths)
    dataset = _with_weights(normalisation, coder.sources, coder.encoders, decoders, biases)
    dataset["encoder_bias"] = _variable(("source", "latent"), coder.encoder_bias.numpy(), "encoder bias")
    thresholds = coder.thresholds.numpy()
    dataset["threshold"] = _variable("source", thresholds, "score above which a latent is on at inference")
    shared = {"support": "global"} if coder.global_support else {}
    return dataset.assign_attrs(activation=coder.activation, k=coder.k or 0, **shared)


def aligned_from_dataset(dataset: xr.Dataset) -> Aligned:
    """The inverse of :func:`aligned_to_dataset`, without the normalisation.

    Parameters
    ----------
    dataset : xarray.Dataset
        What `train_aligned` wrote.

    Returns
    -------
    Aligned
        On the CPU.
    """
    encoders = _per_source(dataset, "encoder")
    return Aligned(
        encoders=encoders,
        encoder_bias=_tensor(dataset["encoder_bias"]),
        decoder=torch.cat(_per_source(dataset, "decoder"), dim=1),
        decoder_bias=torch.cat(_per_source(dataset, "decoder_bias")),
        sources=_sources(dataset),
        widths=[encoder.shape[1] for encoder in encoders],
        activation=dataset.attrs["activation"],
        k=int(dataset.attrs["k"]) or None,
        thresholds=_tensor(dataset["threshold"]),
        global_support=dataset.attrs.get("support") == "global",
    )


def _with_weights(
    normalisation: xr.Dataset,
    sources: list[str],
    encoders: Sequence[torch.Tensor],
    decoders: Sequence[torch.Tensor],
    biases: Sequence[torch.Tensor],
) -> xr.Dataset:
    """The normalisation of some sources, and per source encoder and decoder, (m, d_s), and decoder bias, (d_s,)."""
    dataset = normalisation[["scale", "sink_norm"] + [f"mean_{name}" for name in sources]].sel(source=sources)
    dataset.attrs = {}
    for name, encoder, decoder, bias in zip(sources, encoders, decoders, biases, strict=True):
        width = f"width_{name}"
        dataset[f"encoder_{name}"] = _variable(("latent", width), encoder.numpy(), f"encoder for {name}")
        dataset[f"decoder_{name}"] = _variable(("latent", width), decoder.numpy(), f"decoder for {name}")
        dataset[f"decoder_bias_{name}"] = _variable(width, bias.numpy(), f"decoder bias for {name}")
    return dataset


def _sources(dataset: xr.Dataset) -> list[str]:
    return [str(name) for name in dataset["source"].values]


def _per_source(dataset: xr.Dataset, name: str) -> list[torch.Tensor]:
    return [_tensor(dataset[f"{name}_{source}"]) for source in _sources(dataset)]


def _tensor(array: xr.DataArray) -> torch.Tensor:
    return torch.from_numpy(np.array(array.values))
