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

NAME = "netcdf"
FILES = ("crosscoder.nc",)
SHARED = ("scale", "sink_norm", "encoder_bias", "threshold", "reads", "writes", "tied", "penalty")
PER_SOURCE = ("mean", "encoder", "decoder", "decoder_bias")


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
    if "source" in dataset["encoder_bias"].dims if "encoder_bias" in dataset else False:
        raise UserError(f"{path}: an aligned crosscoder has a code per source; expected a crosscoder with one code")
    names = [str(name) for name in dataset["source"].values] if "source" in dataset.dims else []
    needed = [*SHARED, *(f"{part}_{name}" for name in names for part in PER_SOURCE)]
    lacking = [name for name in needed if name not in dataset]
    if not names or lacking or not {"activation", "k"} <= dataset.attrs.keys():
        lacks = lacking[0] if lacking else "its sources or activation"
        raise UserError(f"{path}: holds no crosscoder (it lacks {lacks}); expected crosscoders/SETTING/NAME/seed-N.nc")
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
