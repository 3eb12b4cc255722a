"""What libraries expect around a process and may not find: a home to write in, a terminal that shows all letters.

A private temporary folder stands in for files that libraries keep at home, where there is none or it cannot be written.
"""

from __future__ import annotations

import atexit
import io
import os
import shutil
import sys
import tempfile
from pathlib import Path

import platformdirs

FOLDERS = {
    "XDG_CACHE_HOME": "cache",
    "IPYTHONDIR": "ipython",
    "JUPYTER_CONFIG_DIR": "jupyter/config",
    "JUPYTER_DATA_DIR": "jupyter/data",
    "JUPYTER_RUNTIME_DIR": "jupyter/runtime",
    "MPLCONFIGDIR": "matplotlib",
    "TRITON_CACHE_DIR": "triton",
}
"""Variables by which Snakemake, Jupyter, matplotlib, Hugging Face and Triton are told where to keep their files."""


def ensure_home() -> None:
    """Send libraries to a temporary folder where they cannot write at home; jobs inherit what is set here.

    A home that can be read keeps its name, since settings of pip, git and others lie there. Folders that a user names by a
    variable of their own stay, unless they cannot be written.
    """
    home, cache = Path(os.path.expanduser("~")), user_cache()
    if home.is_absolute() and _writable(home) and _writable(cache):
        return
    private = Path(tempfile.mkdtemp(prefix="crosscoders-home-"))
    atexit.register(_remove, private, os.getpid())
    models = cache / "huggingface"
    for variable, name in FOLDERS.items():
        if not _writable(Path(os.environ.get(variable) or os.devnull)):
            os.environ[variable] = str(private / name)
            (private / name).mkdir(parents=True)
    if models.is_absolute() and models.is_dir():  # models that were fetched before can still be read there
        os.environ.setdefault("HF_HOME", str(models))
    if not (home.is_absolute() and home.is_dir()):
        os.environ["HOME"] = str(private)


def show_all_letters() -> None:
    """Print letters that the terminal's encoding lacks as escapes, in place of failing."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def user_cache(name: str | None = None) -> Path:
    """The user's cache folder.

    Parameters
    ----------
    name : str, optional
        The folder of one program in it.

    Returns
    -------
    Path
        A path that cannot be written where the system does not know the user's home.
    """
    try:
        return Path(platformdirs.user_cache_dir(name))
    except RuntimeError:
        return Path(os.devnull, "cache")


def _writable(folder: Path) -> bool:
    """Whether a file can be written in a folder, which is made where it is absent."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False


def _remove(folder: Path, process: int) -> None:
    """Remove the folder at the end of the process that made it, not of one that was forked from it."""
    if os.getpid() == process:
        shutil.rmtree(folder, ignore_errors=True)
