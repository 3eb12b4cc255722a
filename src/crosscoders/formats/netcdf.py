"""Our own files: one netCDF, as the stage `train_crosscoder` writes it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import xarray as xr

from crosscoders import artifacts, provenance
from crosscoders.crosscoder.files import from_dataset
from crosscoders.errors import UserError
from crosscoders.formats import portable as form
from crosscoders.formats.portable import Portable
from crosscoders.study.blocks import ACTIVATIONS

NAME = "netcdf"
FILES = ("crosscoder.nc",)
SHARED: dict[str, tuple[str, ...]] = {
    "scale": ("source",),
    "sink_norm": ("source",),
    "encoder_bias": ("latent",),
    "threshold": ("latent",),
    "reads": ("latent", "source"),
    "writes": ("latent", "source"),
    "tied": ("latent",),
    "penalty": ("latent",),
}
"""Dimensions of the variables of all sources; a threshold may be one number for all latents."""
OPTIONAL: dict[str, tuple[str, ...]] = {"rank_weight": ("latent",)}
"""Variables that only some crosscoders have."""
MAY_BE_INFINITE = ("sink_norm",)


def read(path: Path, sources: Sequence[str] | None = None) -> Portable:
    """Read a crosscoder of a study, or one that :func:`write` wrote into a folder.

    Parameters
    ----------
    path : Path
        The file, or a folder with the file `crosscoder.nc`.
    sources : list of str, optional
        Names in place of those in the file.

    Returns
    -------
    Portable

    Raises
    ------
    UserError
        The file is absent, damaged, or holds no crosscoder.
    """
    path = path / FILES[0] if path.is_dir() else path
    try:
        dataset = artifacts.read(path)
    except (OSError, ValueError, RuntimeError, KeyError):
        raise UserError(f"{path}: cannot be read as netCDF; expected a crosscoder of a study") from None
    names = _checked(dataset, path)
    crosscoder, sink_norm = from_dataset(dataset), torch.tensor(dataset["sink_norm"].values)
    # A source that is made of two others has no norm of its own; a file that came from a peer knows no norm at all.
    derived = [] if "format" in dataset.attrs else [n for n, norm in zip(names, sink_norm, strict=True) if norm.isinf()]
    crosscoder.sources = form.source_names(sources, names, len(names), path)
    return Portable(
        crosscoder,
        mean=[torch.tensor(np.asarray(dataset[f"mean_{name}"].values, np.float64)) for name in names],
        scale=torch.tensor(dataset["scale"].values),
        sink_norm=sink_norm,
        differences=derived,
        origin=dataset.attrs.get("format", NAME),
    )


def _checked(dataset: xr.Dataset, path: Path) -> list[str]:
    """Names of the sources, if a dataset is a crosscoder in all its parts.

    Raises
    ------
    UserError
        It lacks a part, or one has other dimensions or holds numbers that are not finite.
    """
    if "encoder_bias" in dataset and "source" in dataset["encoder_bias"].dims:
        raise UserError(f"{path}: an aligned crosscoder has a code per source; expected a crosscoder with one code")
    names = [str(name) for name in dataset["source"].values] if "source" in dataset.dims else []
    expected = SHARED | {f"{part}_{name}": dims for name in names for part, dims in _per_source(name).items()}
    lacking = [name for name in expected if name not in dataset]
    known = dataset.attrs.get("activation") in ACTIVATIONS and isinstance(dataset.attrs.get("k"), (int, np.integer))
    if not names or lacking or not known:
        lacks = lacking[0] if lacking else "its sources, activation or k"
        raise UserError(f"{path}: holds no crosscoder (it lacks {lacks}); expected crosscoders/SETTING/NAME/seed-N.nc")
    for name, dims in (expected | {name: OPTIONAL[name] for name in OPTIONAL if name in dataset}).items():
        allowed = ((), dims) if name == "threshold" else (dims,)
        if dataset[name].dims not in allowed or dataset[name].dtype.kind not in "iuf":
            raise UserError(f"{path}: {name} has the dimensions {dataset[name].dims}; expected numbers over {dims}")
        if name not in MAY_BE_INFINITE and not np.isfinite(dataset[name].values).all():
            raise UserError(f"{path}: {name} holds numbers that are not finite; expected weights")
    return names


def _per_source(name: str) -> dict[str, tuple[str, ...]]:
    """Dimensions of the variables of a source."""
    width = f"width_{name}"
    matrix = ("latent", width)
    return {"mean": (width,), "encoder": matrix, "decoder": matrix, "decoder_bias": (width,)}


def write(portable: Portable, folder: Path) -> None:
    """Write a crosscoder as `crosscoder.nc`.

    Parameters
    ----------
    portable : Portable
    folder : Path

    Raises
    ------
    UserError
        The source of a difference would lose what it is made of, or the folder cannot be written.
    """
    if portable.differences:
        form.refuse("a netCDF file outside of its study", f"what the difference {portable.differences[0]!r} is made of")
    artifacts.write(described(portable, {"format": portable.origin}), folder / FILES[0])


def described(portable: Portable, settings: dict) -> xr.Dataset:
    """The dataset of a crosscoder with the attributes that every artifact has."""
    attributes = provenance.provenance("none", "export", settings)
    return portable.to_dataset().assign_attrs(**attributes, title=f"crosscoder read from {portable.origin}")
