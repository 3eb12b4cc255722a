"""What the processes of jobs inherit."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from pathlib import Path

from crosscoders.study.places import from_here


def prepare(project: Path | str, snakefile: Path | str, study: Sequence[str], changes: Sequence[str] | None) -> None:
    """Let jobs run the sources of a project, also in environments that do not have them installed, and read UTF-8.

    envs/crosscoders.yaml finds the lock by `CROSSCODERS_PROJECT`. The report's job finds the study by `STUDY_ARGUMENTS`: in
    the settings of the job another spelling of the study's path would make the report anew.

    Parameters
    ----------
    project : path
        The folder of this project.
    snakefile : path
    study : list of str
        Study files.
    changes : list of str, optional
        What stands after `--config` on the command line.
    """
    project = Path(project).absolute()
    os.environ["CROSSCODERS_PROJECT"] = str(project)
    sources, before = str(project / "src"), os.environ.get("PYTHONPATH", "")
    if sources not in before.split(os.pathsep):
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [sources, before]))
    os.environ["PYTHONUTF8"] = "1"
    arguments = ["--snakefile", str(from_here(snakefile)), "--configfile", *study]
    os.environ["STUDY_ARGUMENTS"] = shlex.join([*arguments, *(["--config", *changes] if changes else [])])
