"""All formats by name, and which one a file or folder is in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType

import torch

from crosscoders.errors import UserError
from crosscoders.formats import ckkissane, crosscoder_learning, netcdf, sae_lens, sparsify
from crosscoders.formats.portable import Portable

FORMATS: dict[str, ModuleType] = {
    module.NAME: module for module in (crosscoder_learning, ckkissane, sae_lens, sparsify, netcdf)
}
"""Every format by its name: a module with `FILES` and `read`."""
WRITTEN = [name for name in FORMATS if name != ckkissane.NAME]
"""Formats whose modules have `write` besides."""


def format_of(path: Path) -> str:
    """The format of a crosscoder, by the names of its files.

    Parameters
    ----------
    path : Path
        A netCDF file, or a folder.

    Returns
    -------
    str
        A key of `FORMATS`.

    Raises
    ------
    UserError
        There is no such path, or its files are those of no format.
    """
    if path.is_file() and path.suffix == ".nc":
        return netcdf.NAME
    if not path.is_dir():
        raise UserError(f"{path}: no such folder, and no netCDF file; expected a crosscoder")
    for name, module in FORMATS.items():
        if all((path / file).is_file() for file in module.FILES):
            return name
    known = "; ".join(f"{name}: {', '.join(module.FILES)}" for name, module in FORMATS.items())
    raise UserError(f"{path}: holds the files of no known format; expected one of {known}")


def read(
    path: Path | str, sources: Sequence[str] | None = None, input_scale: Mapping[str, float] | None = None
) -> Portable:
    """Read a crosscoder in any known format.

    Parameters
    ----------
    path : path
        A netCDF file of a study, or a folder.
    sources : list of str, optional
        Names of the sources in order; those in the files, or usual ones, where absent.
    input_scale : {source: float}, optional
        By what the activations of each source were multiplied in training, where the files do not say.

    Returns
    -------
    Portable

    Raises
    ------
    UserError
        Nothing there can be read as a crosscoder; the line says why.
    """
    path = Path(path)
    found = FORMATS[format_of(path)].read(path, sources)
    if input_scale:
        _multiply(found, input_scale, path)
    return found


def _multiply(found: Portable, input_scale: Mapping[str, float], path: Path) -> None:
    """Set the scales of a crosscoder whose files give none, in place."""
    names = found.crosscoder.sources
    if set(input_scale) != set(names):
        raise UserError(f"input_scale: given for {', '.join(input_scale)}; expected a number for {', '.join(names)}")
    if found.origin not in (ckkissane.NAME, crosscoder_learning.NAME) or (found.scale != 1).any():
        raise UserError(f"input_scale: {path} says itself how activations are normalised; remove input_scale")
    factors = torch.tensor([float(input_scale[name]) for name in names], dtype=torch.float64)
    if not (torch.isfinite(factors) & (factors > 0)).all():
        raise UserError(f"input_scale: {dict(input_scale)}; expected positive numbers")
    found.scale = 1 / factors


def write(portable: Portable, folder: Path | str, format_name: str) -> None:
    """Write a crosscoder in a known format.

    Parameters
    ----------
    portable : Portable
    folder : path
        Made where it does not exist.
    format_name : str
        One of `WRITTEN`.

    Raises
    ------
    UserError
        The format cannot express the crosscoder, or the folder cannot be written.
    """
    FORMATS[format_name].write(portable, Path(folder))
