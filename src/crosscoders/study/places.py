"""Where the files lie that a study names: its paths are read from the folder of the study file, else from here.

`Here` is the working directory.
"""

from __future__ import annotations

import copy
from pathlib import Path

from crosscoders.errors import shortened

WITH_PATHS = ("models", "corpora", "crosscoders")
"""Collections of a study whose entries may have a `path`."""


def from_here(path: Path | str) -> Path:
    """A path as rules spell it: relative where it lies within the working directory, absolute elsewhere.

    A folder that is moved with all that is in it then keeps its spelling, and Snakemake reruns nothing.

    Parameters
    ----------
    path : path
        Relative paths are returned as they are.

    Returns
    -------
    Path
    """
    path = Path(path)
    for here in (Path.cwd(), Path.cwd().resolve()):
        if path.is_relative_to(here):
            return path.relative_to(here)
    return path


def place_paths(content: dict, folder: Path | None = None) -> tuple[dict, dict[str, str]]:
    """Replace `~` and relative paths in the settings of a study by where their files are.

    Parameters
    ----------
    content : dict
        Settings as they were read; what does not have the right form is left for the checks.
    folder : Path, optional
        The folder of the study file, in which relative paths are looked up first. The working directory comes second.

    Returns
    -------
    content : dict
        A copy. A path that was found in the working directory alone, or nowhere, keeps its spelling.
    lines : {place: str}
        What to say of a path that was found nowhere, by the place of its entry, as `corpora.wiki`; empty where it was.
    """
    content, lines = copy.deepcopy(content), {}
    for collection in WITH_PATHS:
        entries = content.get(collection)
        for name, entry in entries.items() if isinstance(entries, dict) else ():
            path = entry.get("path") if isinstance(entry, dict) else None
            if isinstance(path, str) and path:
                placed = _found(path, folder)
                entry["path"] = placed or path
                lines[f"{collection}.{name}"] = "" if placed else f"path: {path!r} {_nowhere(path, folder)}"
    return content, lines


def _found(path: str, folder: Path | None) -> str | None:
    """Where a path leads, or None where nothing is there."""
    home = _expanded(path)
    if home.is_absolute():
        return str(home) if _is_there(home) else None
    if folder is not None and _is_there(folder.absolute() / home):
        return str(from_here(folder.absolute() / home))
    return path if _is_there(home) else None


def _is_there(path: Path) -> bool:
    """Whether there is such a file or folder; there is none of a name that no file can have."""
    try:
        return path.exists()
    except (OSError, ValueError):
        return False


def _nowhere(path: str, folder: Path | None) -> str:
    """Which places were looked at, and what was expected there."""
    home, here = _expanded(path), Path.cwd()
    if home.is_absolute():
        expanded = "" if str(home) == path else f" ({shortened(str(home), 60)})"
        return f"does not exist{expanded}; expected an existing path"
    shown = shortened(str(here), 40)
    if folder is None or folder.absolute() == here:
        return f"does not exist in {shown}; expected an existing path"
    return f"is neither in the study file's folder nor in {shown}; expected an existing path"


def _expanded(path: str) -> Path:
    """The path with `~` replaced by a home folder, where there is one."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        return Path(path)
