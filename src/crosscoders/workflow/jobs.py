"""What the processes of jobs inherit."""

from __future__ import annotations

import os
from pathlib import Path


def prepare(project: Path | str) -> None:
    """Let jobs run the sources of a project, also in environments that do not have them installed, and read UTF-8.

    envs/crosscoders.yaml finds the lock by `CROSSCODERS_PROJECT`.

    Parameters
    ----------
    project : path
        The folder of the Snakefile.
    """
    project = Path(project).absolute()
    os.environ["CROSSCODERS_PROJECT"] = str(project)
    sources, before = str(project / "src"), os.environ.get("PYTHONPATH", "")
    if sources not in before.split(os.pathsep):
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [sources, before]))
    os.environ["PYTHONUTF8"] = "1"
