"""The only reader and writer of netCDF: atomic, checksummed, self-describing.

Every artifact is an ordinary netCDF-4 file followed by a 137-byte trailer that holds a BLAKE2b digest of everything
before it. HDF5 ignores bytes after its own end, so xarray, ncdump and h5py read the files unchanged, while a single
flipped bit or a truncation anywhere in the file is found by :func:`crosscoders.storage.verify`. A file appears under its
final name only when it is complete and on the disk (temporary file in the same folder, fsync, rename).
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import h5py
import netCDF4
import numpy as np
import xarray as xr

from crosscoders import storage
from crosscoders.errors import UserError

BF16 = "bfloat16 bit pattern"


def variable(
    dims: Iterable[str] | str, values: object, long_name: str, units: str = "1", **attributes: object
) -> xr.Variable:
    """A described variable: every array in an artifact says what it is and in which units.

    Parameters
    ----------
    dims : names
        Dimensions of `values`, in order; a text for a single one.
    values : array
    long_name : str
        What the variable is, for readers.
    units : str
        `1` for numbers without a unit.
    **attributes
        Further attributes of the variable.

    Returns
    -------
    xarray.Variable
    """
    return xr.Variable(dims, values, {"long_name": long_name, "units": units, **attributes})


def flags(dims: Iterable[str] | str, values: object, meanings: Iterable[str], long_name: str) -> xr.Variable:
    """A CF flag variable: small integers with `flag_values` and `flag_meanings`.

    Parameters
    ----------
    dims : names
        Dimensions of `values`, in order; a text for a single one.
    values : array of int
        Each an index into `meanings`.
    meanings : words
        What the values 0, 1, 2 and so on stand for; none contains a space.
    long_name : str
        What the variable is, for readers.

    Returns
    -------
    xarray.Variable
        In int8.
    """
    meanings = list(meanings)
    return xr.Variable(
        dims,
        np.asarray(values, dtype=np.int8),
        {
            "long_name": long_name,
            "flag_values": np.arange(len(meanings), dtype=np.int8),
            "flag_meanings": " ".join(meanings),
        },
    )


def flag(array: xr.DataArray, meaning: str) -> int:
    """The value that stands for `meaning` in a CF flag variable.

    Parameters
    ----------
    array : xarray.DataArray
        A variable made by :func:`flags`.
    meaning : str

    Returns
    -------
    int
    """
    return array.attrs["flag_meanings"].split().index(meaning)


def from_bits(bits: np.ndarray) -> np.ndarray:
    """Float32 values of bfloat16 bit patterns.

    Parameters
    ----------
    bits : array of uint16, any shape

    Returns
    -------
    array of float32
        In the shape of `bits`.
    """
    return (np.asarray(bits, dtype=np.uint32) << 16).view(np.float32)


def write(dataset: xr.Dataset, path: Path | str, contiguous: Iterable[str] = ()) -> None:
    """Write `dataset` to `path`, complete or not at all, with its checksum trailer.

    Parameters
    ----------
    dataset : xarray.Dataset
        Its variables carry `long_name` and `units`; its attributes carry :func:`crosscoders.provenance.provenance`.
    path : path
        Final name.
    contiguous : names
        Variables to store in one piece, so that :func:`memory_map` can map them.

    Raises
    ------
    UserError
        The disk is full or the folder cannot be written.
    """
    path = Path(path)
    encoding = {name: {"contiguous": True, "_FillValue": None} for name in contiguous}
    for name, item in dataset.variables.items():
        if item.dtype.kind in "iufb" and name not in encoding:
            encoding[name] = {"_FillValue": None}

    def save(temporary: Path) -> None:
        dataset.to_netcdf(temporary, engine="netcdf4", format="NETCDF4", encoding=encoding)
        storage.seal(temporary, path)

    storage.atomic(path, save, dataset.nbytes + (1 << 16))


def read(path: Path | str) -> xr.Dataset:
    """Verify an artifact and load it whole into memory.

    The function reads text without xarray, which would pad every string to the length of the longest.

    Parameters
    ----------
    path : path

    Returns
    -------
    xarray.Dataset

    Raises
    ------
    UserError
        The file is absent or damaged; the line names it.
    """
    storage.verify(path)
    with netCDF4.Dataset(path) as file:
        texts = {
            name: xr.Variable(stored.dimensions, np.asarray(stored[...], dtype=object), stored.__dict__)
            for name, stored in file.variables.items()
            if stored.dtype is str
        }
    with xr.open_dataset(path, engine="netcdf4", mask_and_scale=False, drop_variables=list(texts)) as dataset:
        return dataset.load().assign(texts)


def memory_map(path: Path | str, name: str) -> np.ndarray:
    """Map a contiguous variable of an already verified artifact read-only, without loading it.

    Parameters
    ----------
    path : path
    name : str
        Name of the variable.

    Returns
    -------
    array
        In the shape and type in which the variable is stored.

    Raises
    ------
    UserError
        The variable is absent or was not stored contiguously.
    """
    with h5py.File(path, "r") as file:
        if name not in file:
            raise UserError(f"{path}: no variable {name!r}; it has {sorted(file)}")
        stored = file[name]
        offset, shape, dtype = stored.id.get_offset(), stored.shape, stored.dtype
    if offset is None:
        raise UserError(f"{path}: variable {name!r} is not contiguous and cannot be mapped")
    return np.memmap(path, dtype=dtype, mode="r", offset=offset, shape=shape)
