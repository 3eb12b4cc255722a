"""Where a result comes from: settings, code and packages, as every file of results states them."""

from __future__ import annotations

import functools
import importlib.metadata
import json
import os
import subprocess
from pathlib import Path

PACKAGES = ("torch", "transformers", "tokenizers", "numpy", "xarray", "netCDF4", "snakemake")


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
    installed = {}
    for package in PACKAGES:
        try:
            installed[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return installed
