"""What the processes of jobs inherit, and the claim by which one run at a time makes a study."""

from __future__ import annotations

import fcntl
import os
import shlex
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import TextIO

from crosscoders import storage
from crosscoders.errors import UserError
from crosscoders.study.places import from_here

_claims: list[TextIO] = []


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


def claim(results: Path | str) -> None:
    """Let no other run make this study before this process ends, however it ends.

    The system itself lets go of the claim when the process dies, so a killed run leaves nothing to unlock. On file systems
    that know no such claims the function does nothing.

    Parameters
    ----------
    results : path
        `results/STUDY`.

    Raises
    ------
    UserError
        Another run makes this study now; the line names its process and machine. Or nothing can be written in the folder,
        which Snakemake would tell by a traceback.
    """
    storage.atomic(Path(results, ".writable"), lambda temporary: temporary.write_bytes(b" "), flush=False)
    Path(results, ".writable").unlink()
    path = Path(".snakemake", "runs", f"{Path(results).name}.txt")
    path.parent.mkdir(parents=True, exist_ok=True)
    file = path.open("a+", encoding="utf-8")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.seek(0)
        holder = file.read().strip() or "another process"
        raise UserError(f"{results}: {holder} makes this study now; please wait for its end, or stop it") from None
    except OSError:
        return
    file.truncate(0)
    print(f"process {os.getpid()} on {socket.gethostname()}", file=file, flush=True)
    _claims.append(file)
