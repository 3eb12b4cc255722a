"""What the processes of jobs inherit, and the claim by which one run at a time makes a study."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shlex
import shutil
import socket
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TextIO

import yaml

from crosscoders import storage
from crosscoders.errors import UserError
from crosscoders.study.places import from_here

_claims: list[TextIO] = []


def prepare(project: Path | str, snakefile: Path | str, study: Sequence[str], changes: Sequence[str] | None) -> None:
    """Let jobs run the sources of a project with this Python, also in environments that lack them, and read UTF-8.

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
    _prefer_this_python()
    arguments = ["--snakefile", str(from_here(snakefile)), "--configfile", *study]
    os.environ["STUDY_ARGUMENTS"] = shlex.join([*arguments, *(["--config", *changes] if changes else [])])


def _prefer_this_python() -> None:
    """Make `python` mean the one that runs here: an environment can be used without being activated."""
    folder, found = Path(sys.executable).parent, shutil.which("python")
    if (folder / "python").exists() and (found is None or Path(found).parent != folder):
        os.environ["PATH"] = os.pathsep.join(filter(None, [str(folder), os.environ.get("PATH", "")]))


def name_trackers(trackers: Mapping[str, list[str]]) -> None:
    """Tell trainings what follows them, beside their settings: a tracker that is added or left out reruns no training.

    Parameters
    ----------
    trackers : {section: list of str}
        As :func:`crosscoders.study.queries.trainings.trackers` gives it.
    """
    os.environ["CROSSCODERS_TRACKERS"] = json.dumps(trackers)


IMAGE = "CROSSCODERS_IMAGE"
"""The variable that names another image than the one that envs/crosscoders.def makes."""


def image(project: Path | str, used: bool) -> str | None:
    """The container in which jobs run where a run asks for apptainer.

    Parameters
    ----------
    project : path
        The folder of this project.
    used : bool
        Whether this run asks for it.

    Returns
    -------
    str, optional
        A path, or an address as `docker://...`. None where the run does not ask for it, since Snakemake looks at the name of an
        image all the same.

    Raises
    ------
    UserError
        The image is a path that is not there, or that Snakemake does not take.
    """
    if not used:
        return None
    named = os.environ.get(IMAGE) or str(from_here(Path(project, "envs/crosscoders.sif")))
    if "://" not in named and not Path(named).is_file():
        command = "apptainer build envs/crosscoders.sif envs/crosscoders.def"
        raise UserError(f"container: {named} does not exist; expected an image, as `{command}` makes it")
    if len(named.split()) > 1:
        raise UserError(f"container: {named!r} holds a space; expected {IMAGE} to name an image by a path without")
    return named


def check_module(project: Path | str, prefix: str | None) -> None:
    """Refuse what cannot work where another Snakefile uses this one as a `module`.

    Parameters
    ----------
    project : path
        The folder of this project, as the other Snakefile names it.
    prefix : str, optional
        The `prefix` that the other Snakefile gives.

    Raises
    ------
    UserError
        The project does not lie in a folder here, or its files are to lie elsewhere than in `results/`.
    """
    if not Path(project, "src/crosscoders").is_dir():
        raise UserError(
            f"module: snakefile: {project} is no folder here; expected the Snakefile of a clone of this project"
        )
    if prefix is not None:
        raise UserError(f"module: prefix: {prefix!r} cannot be used, as stages name results/ too; expected no prefix")


def study_file(config: Mapping[str, object]) -> str | None:
    """Write the study that another Snakefile gives as `config` of a module, so that the report's job can read it.

    Parameters
    ----------
    config : mapping
        Settings of a study.

    Returns
    -------
    str, optional
        The path of the file, which lies in `.snakemake/` under a name of its content; None where the mapping is empty.
    """
    if not config:
        return None
    text = yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True).encode()
    path = Path(".snakemake", "studies", f"module-config-{hashlib.sha256(text).hexdigest()[:12]}.yaml")
    if not path.is_file():
        storage.atomic(path, lambda temporary: temporary.write_bytes(text), flush=False)
    return str(path)


LOOKING = {
    "--report",
    "--summary",
    "-D",
    "--detailed-summary",
    "--dag",
    "--rulegraph",
    "--filegraph",
    "--d3dag",
    "--lint",
    "--list",
}
"""Arguments of Snakemake with which it runs no job."""


def respect_claim(results: Path | str, arguments: Sequence[str]) -> None:
    """Refuse to make a study that another run makes now, before Snakemake looks at files that appear and disappear.

    The jobs of a run may start Snakemake themselves, as that of the report does; they are part of it.

    Parameters
    ----------
    results : path
        `results/STUDY`.
    arguments : list of str
        Those of Snakemake.

    Raises
    ------
    UserError
        As :func:`claim`.
    """
    if "STUDY_ARGUMENTS" not in os.environ and not LOOKING & set(arguments) and _claim_file(results).is_file():
        with _claim_file(results).open(encoding="utf-8") as file:
            _locked(file, results, fcntl.LOCK_SH)


def _claim_file(results: Path | str) -> Path:
    return Path(".snakemake", "runs", f"{Path(results).name}.txt")


def _locked(file: TextIO, results: Path | str, kind: int) -> bool:
    """Lock the file of a claim; False on file systems that know no locks."""
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        file.seek(0)
        holder = file.read().strip() or "another process"
        raise UserError(f"{results}: {holder} makes this study now; please wait for its end, or stop it") from None
    except OSError:
        return False
    return True


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
    path = _claim_file(results)
    path.parent.mkdir(parents=True, exist_ok=True)
    file = path.open("a+", encoding="utf-8")
    if not _locked(file, results, fcntl.LOCK_EX):
        return
    file.truncate(0)
    print(f"process {os.getpid()} on {socket.gethostname()}", file=file, flush=True)
    _claims.append(file)
