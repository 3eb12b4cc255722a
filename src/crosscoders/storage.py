"""Files that are written whole or not at all, and that say by themselves whether they are damaged.

A file is sealed by a digest of everything before it. Where the seal stands depends on the kind of the file: readers of
netCDF ignore bytes after the end of HDF5, pages and SVG pictures end with a comment, and JSON has a key for it. The format
of PNG has checksums of its own.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import struct
import tempfile
import zlib
from collections.abc import Callable
from pathlib import Path

from crosscoders.errors import UserError

SEAL = b"\nblake2b:"
DIGEST_CHARACTERS = 128
COMMENT = {".html": (b"\n<!--", b"\n-->\n"), ".svg": (b"\n<!--", b"\n-->\n"), ".js": (b"\n/*", b"\n*/\n")}
"""What stands around the seal in files that are text for people, so that it is a comment."""
KEY = "content_sha256"
"""The seal of JSON: SHA-256 of the content without this key, keys sorted."""
SEALED = (".nc", ".html", ".js", ".svg", ".png", ".ipynb")
"""Suffixes of files of results that :func:`verify` can judge by themselves; JSON stands in model folders unsealed."""
PNG = b"\x89PNG\r\n\x1a\n"
PROVENANCE = "provenance.json"
"""The file of a model folder that lists the others."""


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


def write_sealed(content: bytes | str, path: Path | str, flush: bool = True) -> None:
    """Write content atomically, followed by its seal, by which a reader finds any damage.

    Parameters
    ----------
    content : bytes or str
    path : path
        Final name; pages and SVG pictures get the seal as a comment.
    flush : bool
        Whether the bytes are on the disk before the file gets its name.

    Raises
    ------
    UserError
        The disk is full or the folder cannot be written.
    """
    path, content = Path(path), content.encode() if isinstance(content, str) else content

    def save(temporary: Path) -> None:
        temporary.write_bytes(content)
        seal(temporary, path)

    atomic(path, save, len(content), flush)


def seal(file: Path, path: Path) -> None:
    """Append the seal to a file that is complete.

    Parameters
    ----------
    file : Path
        Where the content stands now.
    path : Path
        The name that the file will get; its suffix says what the seal looks like. PNG needs none.
    """
    if path.suffix == ".png":
        return
    before, after = COMMENT.get(path.suffix, (b"", b""))
    hexadecimal = _digest(file, file.stat().st_size)
    with open(file, "ab") as stream:
        stream.write(before + SEAL + hexadecimal.encode() + after)


def read_sealed(path: Path | str) -> bytes:
    """Verify a sealed file and return its content.

    Parameters
    ----------
    path : path

    Returns
    -------
    bytes
        The content without the seal.

    Raises
    ------
    UserError
        The file is absent or damaged; the line names it.
    """
    verify(path)
    return Path(path).read_bytes()[: -_seal_bytes(Path(path))]


def _seal_bytes(path: Path) -> int:
    """Length of the seal of a file."""
    return sum(map(len, COMMENT.get(path.suffix, ()))) + len(SEAL) + DIGEST_CHARACTERS


def digest(path: Path | str) -> str:
    """The digest in the seal of a netCDF file, without checking it.

    Parameters
    ----------
    path : path

    Returns
    -------
    str
        128 hexadecimal digits.
    """
    with open(path, "rb") as file:
        file.seek(-DIGEST_CHARACTERS, os.SEEK_END)
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
    """Check that a file is whole and unchanged, by its seal or, for PNG, by the checksums of the format.

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
    if path.suffix in (".json", ".ipynb"):
        read_json(path)
    elif path.suffix == ".png":
        if not _is_whole_png(path.read_bytes()):
            raise UserError(f"{path}: truncated or corrupt; delete it and run again")
    else:
        _verify_seal(path)


def _verify_seal(path: Path) -> None:
    """Compare the seal with what stands before it."""
    before, after = COMMENT.get(path.suffix, (b"", b""))
    size, length = path.stat().st_size, _seal_bytes(path)
    with open(path, "rb") as file:
        file.seek(max(0, size - length))
        ending = file.read()
    start, end = before + SEAL, len(ending) - len(after)
    if len(ending) != length or not ending.startswith(start) or ending[end:] != after:
        raise UserError(f"{path}: truncated ({size:,} bytes, no checksum at its end); delete it and run again")
    if _digest(path, size - length) != ending[len(start) : end].decode(errors="replace"):
        raise UserError(f"{path}: corrupt (its checksum does not match its content); delete it and run again")


def _is_whole_png(content: bytes) -> bool:
    """Whether every chunk of a PNG has its checksum, and the last one ends it."""
    place, kind = len(PNG), b""
    while content.startswith(PNG) and place + 12 <= len(content) and kind != b"IEND":
        end = place + 8 + struct.unpack_from(">I", content, place)[0]
        kind = content[place + 4 : place + 8]
        if content[end : end + 4] != struct.pack(">I", zlib.crc32(content[place + 4 : end])):
            return False
        place = end + 4
    return kind == b"IEND" and place == len(content)


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


def write_sealed_json(content: dict, path: Path | str) -> None:
    """Write a mapping as JSON, atomically, with the digest of its content.

    Parameters
    ----------
    content : dict
        A notebook keeps the digest in its metadata.
    path : path
        Final name.

    Raises
    ------
    UserError
        The disk is full or the folder cannot be written.
    """
    mark = {KEY: _content_sha256(content)}
    inside = {"metadata": content["metadata"] | mark} if Path(path).suffix == ".ipynb" else mark
    write_json(content | inside, path)


def read_json(path: Path | str) -> dict:
    """The content of a sealed JSON file.

    Parameters
    ----------
    path : path

    Returns
    -------
    dict
        Without the digest.

    Raises
    ------
    UserError
        The file is absent, or not as it was written; the line names it.
    """
    path = Path(path)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        stated = (content["metadata"] if path.suffix == ".ipynb" else content).pop(KEY)
        whole = stated == _content_sha256(content)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        whole = False
    if not whole:
        raise UserError(f"{path}: missing or not as it was written; delete it and run again")
    return content


def _content_sha256(content: dict) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


def verify_folder(folder: Path, weights: bool = True) -> dict:
    """Check the files of a model folder against its list, and return the list's content.

    Parameters
    ----------
    folder : Path
        Holds `provenance.json`, whose `files` are names and SHA-256.
    weights : bool
        Whether files of weights, which may be large, are checked too.

    Returns
    -------
    dict

    Raises
    ------
    UserError
        A file is missing or differs; the line names it.
    """
    try:
        provenance = read_json(folder / PROVENANCE)
    except UserError as error:
        raise UserError(str(error).replace("delete it", "delete the folder")) from None
    for name, expected in provenance["files"].items():
        if name.endswith(".safetensors") and not weights:
            continue
        if not (folder / name).is_file() or sha256(folder / name) != expected:
            raise UserError(f"{folder / name}: missing or not as written; delete the folder and run again")
    return provenance


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
