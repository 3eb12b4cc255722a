"""Latents that are most like one: of its own crosscoder, and of other crosscoders with the same sources."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import xarray as xr

from crosscoders import artifacts
from crosscoders.analysis import latent_examples
from crosscoders.analysis.latent_examples import numbers
from crosscoders.crosscoder.crosscoder import Crosscoder
from crosscoders.crosscoder.files import from_dataset
from crosscoders.errors import UserError

NEAREST = 6
"""Latents of the same crosscoder that are named as nearest to each."""
NEAREST_OF_OTHERS = 3
"""The same of each other crosscoder."""
SHOWN = ("relative_norm", "nu_error", "nu_reconstruction")
"""What is said of a latent of another crosscoder."""


def own_neighbours(coder: Crosscoder, alive: np.ndarray) -> dict[int, list]:
    """Per alive latent, [latent, decoder cosine] of those that are nearest to it."""
    latents, cosines = latent_examples.nearest(coder.decoder, alive, NEAREST)
    return {
        j: [[other, round(cosine, 3)] for other, cosine in zip(*row, strict=True)]
        for j, *row in zip(alive.tolist(), latents.tolist(), cosines.tolist(), strict=True)
    }


def in_units_of(coder: Crosscoder, scale: xr.DataArray, other: Crosscoder, other_scale: xr.DataArray) -> torch.Tensor:
    """Decoder vectors of another crosscoder in the units and the order of sources of one, (m', D).

    A crosscoder that was trained elsewhere has units of its own, and cosines over several sources depend on them.

    Parameters
    ----------
    coder, other : Crosscoder
    scale, other_scale : (S,) xarray.DataArray
        Activations per unit of each, by source.

    Raises
    ------
    UserError
        It has other sources, or sources of other widths.
    """
    widths, other_widths = (dict(zip(one.sources, one.widths, strict=True)) for one in (coder, other))
    if widths != other_widths:
        raise UserError(f"latent_page: sources of widths {other_widths}; expected {widths}, to compare crosscoders")
    parts = [
        other.decoder[:, other.columns[other.sources.index(name)]]
        * float(other_scale.sel(source=name) / scale.sel(source=name))
        for name in coder.sources
    ]
    return torch.cat(parts, dim=1)


def neighbours_elsewhere(
    coder: Crosscoder, scale: xr.DataArray, alive: np.ndarray, crosscoder: Path, latents: Path
) -> dict[int, list]:
    """Per alive latent, the latents of another crosscoder that are nearest to it.

    Parameters
    ----------
    coder : Crosscoder
    scale : (S,) xarray.DataArray
        Its units.
    alive : (a,) int
        Its latents.
    crosscoder, latents : Path
        What training and classification wrote of the other.

    Returns
    -------
    {latent: list of [latent, cosine, Δ, ν of the error, ν of the reconstruction]}
        Nearest first; of those alone that fire on the test documents.
    """
    dataset, known = artifacts.read(crosscoder), artifacts.read(latents)
    decoder = in_units_of(coder, scale, from_dataset(dataset), dataset["scale"])
    others = np.flatnonzero(known["density"].values > 0)
    found, cosines = latent_examples.nearest(coder.decoder, alive, NEAREST_OF_OTHERS, (decoder, others))
    columns = [numbers(known[name].values[others], 3) for name in SHOWN]
    said = dict(zip(others.tolist(), zip(*columns, strict=True), strict=True))
    return {
        j: [[other, round(cosine, 3), *said[other]] for other, cosine in zip(*row, strict=True)]
        for j, *row in zip(alive.tolist(), found.tolist(), cosines.tolist(), strict=True)
    }
