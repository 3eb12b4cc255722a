"""The files of a finished study by SHA-256, and their comparison with its manifest."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from crosscoders import stage, storage
from crosscoders.errors import UserError

NAME = "manifest.json"
UNLISTED = ("logs", "benchmarks", "trackers")
"""Folders whose files say how a run went; a later run changes them."""
CHECKPOINT = ".checkpoint"
"""Ending of what an interrupted training leaves behind."""
DOCUMENTS = (".ipynb", "report.html")
"""Endings of files that hold the times of the run; with the notebooks' pages they differ between two equal runs."""


def listing(folder: Path) -> dict[str, str]:
    """SHA-256 of every file of a study; whatever has a seal is verified first, and model folders by their lists.

    Parameters
    ----------
    folder : Path

    Returns
    -------
    {path within the folder: str}

    Raises
    ------
    UserError
        One line per damaged file.
    """
    listed = files(folder)
    for path in listed:
        if Path(path).name == storage.PROVENANCE:
            storage.verify_folder((folder / path).parent)
    return _verified_digests(folder, listed)


def verify_documents(folder: Path) -> None:
    """Verify the pictures, pages and notebooks of a study, from which its report is made.

    Parameters
    ----------
    folder : Path

    Raises
    ------
    UserError
        One line per damaged file.
    """
    documents = [path for path in files(folder) if Path(path).suffix in storage.SEALED and not path.endswith(".nc")]
    _verified_digests(folder, documents)


def _verified_digests(folder: Path, paths: list[str]) -> dict[str, str]:
    """SHA-256 of files that are whole; a line for each that is not."""
    digests = _digests(folder, paths, verified=True)
    problems = [str(one) for one in digests.values() if isinstance(one, UserError)]
    problems += [f"{folder / path}: cannot be read; expected a file" for path, one in digests.items() if one is None]
    if problems:
        raise UserError("\n".join(problems))
    return digests


def files(folder: Path) -> list[str]:
    """Files of a study that a manifest lists, by path within its folder.

    Hidden files are what a killed job had not finished, and kept replies of endpoints, which the artifacts made of them hold.
    """
    listed = []
    for path in folder.rglob("*"):
        parts = path.relative_to(folder).parts
        hidden = any(part.startswith(".") for part in parts)
        unlisted = parts[0] in UNLISTED or parts == (NAME,) or path.name.endswith(CHECKPOINT)
        if not hidden and not unlisted and (path.is_file() or path.is_symlink()) and not path.is_dir():
            listed.append(path.relative_to(folder).as_posix())
    return sorted(listed)


def verify(folder: Path) -> list[str]:
    """Compare a finished study with its manifest.

    Parameters
    ----------
    folder : Path
        `results/STUDY`.

    Returns
    -------
    list of str
        A line for every file that is missing, changed, or not listed; empty where there is none.

    Raises
    ------
    UserError
        There is no such folder, or no manifest that can be trusted.
    """
    manifest = read(folder)
    listed = {**manifest["artifacts"], **manifest["documents"]}
    present = files(folder)
    present_digests = _digests(folder, [path for path in present if path in listed], verified=False)
    lines = [f"{folder / path}: missing" for path in listed if path not in present_digests]
    lines += [f"{folder / path}: changed" for path, digest in present_digests.items() if digest != listed[path]]
    lines += [f"{folder / path}: not in the manifest" for path in present if path not in listed]
    return sorted(lines)


def read(folder: Path) -> dict:
    """The manifest of a finished study.

    Parameters
    ----------
    folder : Path

    Returns
    -------
    dict

    Raises
    ------
    UserError
        There is no such folder, or no manifest that is as it was written.
    """
    path = folder / NAME
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; expected the results of a study, as results/embedded")
    if not path.is_file():
        raise UserError(f"{path}: missing; the study is not finished, or the file was removed")
    content = storage.read_json(path)
    if not {"artifacts", "documents"} <= content.keys():
        raise UserError(f"{path}: lists no files; delete it and run again")
    return content


def is_document(path: str) -> bool:
    """Whether a file holds the times of the run, and so differs between two equal runs."""
    return path.endswith(DOCUMENTS) or (path.startswith("notebooks/") and path.endswith(".html"))


def _digests(folder: Path, paths: list[str], verified: bool) -> dict[str, str | UserError | None]:
    """SHA-256 of files; an error in place of it where a file is damaged, None where a file cannot be read."""
    progress = stage.Progress(f"hash {folder}", len(paths), "files")

    def digest(path: str) -> str | UserError | None:
        try:
            if verified and Path(path).suffix in storage.SEALED:
                storage.verify(folder / path)
            return storage.sha256(folder / path)
        except UserError as error:
            return error
        except OSError:
            return None

    digests = {}
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # hashing releases the interpreter's lock
        for path, result in zip(paths, pool.map(digest, paths), strict=True):
            digests[path] = result
            progress.update(1)
    return digests
