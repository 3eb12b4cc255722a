"""The only reader and writer of netCDF: atomic, checksummed, self-describing.

Every artifact is an ordinary netCDF-4 file followed by a 137-byte trailer that holds a BLAKE2b digest of everything
before it. HDF5 ignores bytes after its own end, so xarray, ncdump and h5py read the files unchanged, while a single
flipped bit or a truncation anywhere in the file is found by :func:`verify`. A file appears under its final name only
when it is complete and on the disk (temporary file in the same folder, fsync, rename).
"""

from __future__ import annotations

import errno
import functools
import hashlib
import importlib.metadata
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path

import h5py
import netCDF4
import numpy as np
import xarray as xr

from crosscoders.errors import UserError

TRAILER_PREFIX = b"\nblake2b:"
TRAILER_BYTES = len(TRAILER_PREFIX) + 128
PACKAGES = ("torch", "transformers", "tokenizers", "numpy", "xarray", "netCDF4", "snakemake")
BF16 = "bfloat16 bit pattern"


def provenance(study: str, stage: str, settings: object, seed: int | None = None) -> dict[str, str | int]:
    """Global attributes every artifact carries: what made it, from which settings, code and packages.

    Parameters
    ----------
    study, stage : str
        Names of the study and of the stage.
    settings : object
        What the stage was given; anything that JSON can hold.
    seed : int, optional

    Returns
    -------
    dict
        Name of each attribute to its value; settings and versions are JSON.
    """
    attributes: dict[str, str | int] = {
        "Conventions": "CF-1.11",
        "study": study,
        "stage": stage,
        "settings": json_text(settings),
        "commit": commit(),
        "versions": json_text(versions()),
    }
    if seed is not None:
        attributes["seed"] = seed
    return attributes


def json_text(content: object) -> str:
    """JSON with sorted keys: how attributes hold what netCDF cannot.

    Parameters
    ----------
    content : object
        Anything that JSON can hold.

    Returns
    -------
    str
        One line.
    """
    return json.dumps(content, sort_keys=True, ensure_ascii=False)


@functools.cache
def commit() -> str:
    """Commit of the checkout this package runs from, `-dirty` appended where tracked files differ.

    Returns
    -------
    str
        40 hexadecimal digits; `unknown` where the package's own folder is no checkout, as in a source archive, even if
        that was unpacked inside of another repository. Variables such as `GIT_DIR`, which name a repository, are not followed.
    """
    project = Path(__file__).parents[2]
    try:
        if not Path(_git(project, "rev-parse", "--show-toplevel")).samefile(project):
            return "unknown"
        return _git(project, "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _git(folder: Path, *arguments: str) -> str:
    """What git prints in a folder, of the repository that the folder lies in."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    done = subprocess.run(["git", *arguments], cwd=folder, env=environment, capture_output=True, check=True)
    return os.fsdecode(done.stdout).removesuffix("\n")


@functools.cache
def versions() -> dict[str, str]:
    """Versions of the packages that decide the numbers.

    Returns
    -------
    dict of str
        Name to version, for those of `PACKAGES` that are installed.
    """
    found = {}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


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


def atomic(path: Path, write: Callable[[Path], None], needed: int = 0, flush: bool = True) -> None:
    """Call `write` on a temporary file beside `path`, then flush it to disk and rename it to `path`.

    Parameters
    ----------
    path : Path
        Final name.
    write : function
        Gets the path of the temporary file and fills it.
    needed : int
        Bytes that the file will take, where that is known. The function looks for that much free space before writing.
    flush : bool
        Without it a power failure, though no killed process, may leave a damaged file.

    Raises
    ------
    UserError
        The folder is read-only or the disk is full; the line names the path and, for a full disk, the bytes free.
    """
    path = Path(path)
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if shutil.disk_usage(path.parent).free < needed:
            raise OSError(errno.ENOSPC, "disk full")
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
        os.close(handle)
        temporary = Path(name)
        write(temporary)
        os.chmod(temporary, 0o644)
        if flush:
            descriptor = os.open(temporary, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        os.replace(temporary, path)
    except (OSError, RuntimeError) as error:
        raise storage_error(path, error, needed) from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def storage_error(path: Path, error: Exception, needed: int = 0) -> Exception:
    """A `UserError` with path and bytes for a full disk or a read-only folder; any other error unchanged.

    Libraries that write files themselves (safetensors, netCDF) raise errors of their own, so their text counts too.

    Parameters
    ----------
    path : Path
        The file that was being written.
    error : Exception
    needed : int
        Bytes that the file would take; 0 where that is not known.

    Returns
    -------
    Exception
    """
    number, text = getattr(error, "errno", None), str(error)
    folder = next((parent for parent in path.parents if parent.exists()), Path("."))
    free = shutil.disk_usage(folder).free
    wanted = f"needs {needed:,} bytes" if needed else "needs more space"
    if number in (errno.EROFS, errno.EACCES, errno.EPERM) or "Read-only file system" in text:
        return UserError(f"{path}: cannot write in {folder} (read-only or no permission): {wanted}")
    full = number in (errno.ENOSPC, errno.EDQUOT) or "No space left on device" in text
    if full or (needed and free < needed) or free < 1 << 20:
        return UserError(f"{path}: disk full: {wanted}, {free:,} bytes are free in {folder}")
    return error


def write(dataset: xr.Dataset, path: Path | str, contiguous: Iterable[str] = ()) -> None:
    """Write `dataset` to `path`, complete or not at all, with its checksum trailer.

    Parameters
    ----------
    dataset : xarray.Dataset
        Its variables carry `long_name` and `units`; its attributes carry :func:`provenance`.
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
        _seal(temporary)

    atomic(path, save, dataset.nbytes + (1 << 16))


def write_sealed(content: bytes, path: Path | str, flush: bool = False) -> None:
    """Write bytes atomically, followed by the checksum trailer, by which a reader finds what a power failure damaged.

    Parameters
    ----------
    content : bytes
    path : path
        Final name.
    flush : bool
        Whether the bytes are on the disk before the file gets its name.

    Raises
    ------
    UserError
        The disk is full or the folder cannot be written.
    """

    def save(temporary: Path) -> None:
        temporary.write_bytes(content)
        _seal(temporary)

    atomic(Path(path), save, len(content), flush)


def read_sealed(path: Path | str) -> bytes:
    """Verify a sealed file and return its content.

    Parameters
    ----------
    path : path

    Returns
    -------
    bytes
        The content without the trailer.

    Raises
    ------
    UserError
        The file is absent or damaged; the line names it.
    """
    verify(path)
    return Path(path).read_bytes()[:-TRAILER_BYTES]


def _seal(path: Path) -> None:
    """Append the checksum trailer."""
    found = _digest(path, path.stat().st_size)
    with open(path, "ab") as file:
        file.write(TRAILER_PREFIX + found.encode())


def digest(path: Path | str) -> str:
    """The digest recorded in an artifact, without checking it.

    Parameters
    ----------
    path : path

    Returns
    -------
    str
        128 hexadecimal digits.
    """
    with open(path, "rb") as file:
        file.seek(-128, os.SEEK_END)
        return file.read().decode(errors="replace")


def _digest(path: Path, length: int) -> str:
    """BLAKE2b of the first `length` bytes of a file."""
    running = hashlib.blake2b()
    with open(path, "rb") as file:
        while length > 0:
            block = file.read(min(1 << 22, length))
            if not block:
                break
            running.update(block)
            length -= len(block)
    return running.hexdigest()


def verify(path: Path | str) -> None:
    """Check that an artifact is whole and unchanged.

    Parameters
    ----------
    path : path

    Raises
    ------
    UserError
        The file is absent, truncated, or differs from what was written; the line names it.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such artifact")
    size = path.stat().st_size
    with open(path, "rb") as file:
        file.seek(max(0, size - TRAILER_BYTES))
        trailer = file.read()
    if len(trailer) != TRAILER_BYTES or not trailer.startswith(TRAILER_PREFIX):
        raise UserError(f"{path}: truncated ({size:,} bytes, no checksum at its end); delete it and run again")
    if _digest(path, size - TRAILER_BYTES) != trailer[len(TRAILER_PREFIX) :].decode(errors="replace"):
        raise UserError(f"{path}: corrupt (its checksum does not match its content); delete it and run again")


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
    verify(path)
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


def write_json(content: object, path: Path | str) -> None:
    """Write JSON atomically, keys sorted.

    Parameters
    ----------
    content : object
        Anything that JSON can hold.
    path : path
        Final name.

    Raises
    ------
    UserError
        The disk is full or the folder cannot be written.
    """
    text = json.dumps(content, indent=1, sort_keys=True, ensure_ascii=False) + "\n"
    atomic(Path(path), lambda temporary: temporary.write_text(text, encoding="utf-8"))


def sha256(path: Path | str) -> str:
    """SHA-256 of a file, for the manifest and for fetched files.

    Parameters
    ----------
    path : path

    Returns
    -------
    str
        64 hexadecimal digits.
    """
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
