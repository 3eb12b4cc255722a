"""The jobs of a finished study, and a way to run one of them alone, in a process that has its libraries loaded."""

import base64
import json
import multiprocessing
import os
import runpy
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import forkserver
from pathlib import Path

from tests.project import ROOT

LONG = os.environ.get("FAULTS") == "long"
LOADED = [
    "netCDF4",
    "transformers.models.llama.modeling_llama",
    "crosscoders.stage",
    "crosscoders.training.job",
    "crosscoders.report.figures",
]
DOCUMENTS = (".ipynb", "report.html", "manifest.json")


@dataclass(frozen=True)
class Job:
    """A job that made files of a study: its rule, its command after `python -m crosscoders`, what it read and wrote."""

    rule: str
    command: tuple[str, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


def jobs(folder: Path) -> list[Job]:
    """The jobs of a finished study in the project at `folder`, by their rules and outputs."""
    made: dict[str, dict] = {}
    for path in (folder / ".snakemake/metadata").iterdir():
        record = json.loads(path.read_text())
        output = base64.b64decode(path.name).decode()
        made.setdefault(record["shellcmd"], record | {"outputs": []})["outputs"].append(output)
    return sorted(
        (
            Job(
                record["rule"],
                tuple(shlex.split(command)[3:]),
                tuple(name for name in record["input"] if name.startswith("results/")),
                tuple(sorted(record["outputs"])),
            )
            for command, record in made.items()
        ),
        key=lambda job: (job.rule, job.outputs),
    )


def files_read(folder: Path, job: Job) -> list[str]:
    """Every file under `results/` that a job reads; a model counts by all files of its folder."""
    named = []
    for name in job.inputs:
        whole = Path(name).name == "provenance.json"
        named += (
            [str(path.relative_to(folder)) for path in sorted((folder / name).parent.iterdir())] if whole else [name]
        )
    return named


@contextmanager
def processes(folder: Path = ROOT) -> Iterator[ProcessPoolExecutor]:
    """Two processes at a time, a new one for every job, started from one that has loaded what stages import.

    They run the sources of a copy of the project, as its jobs do, since results name the commit of their sources.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(LOADED)
    forkserver._forkserver._stop()  # one that runs already has the sources of another copy
    sources, before = str(folder / "src"), os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = sources
    sys.path.insert(0, sources)
    try:
        with ProcessPoolExecutor(2, context, max_tasks_per_child=1) as pool:
            yield pool
    finally:
        sys.path.remove(sources)
        os.environ.pop("PYTHONPATH") if before is None else os.environ.update(PYTHONPATH=before)


@contextmanager
def linked(folder: Path) -> Iterator[Path]:
    """A folder to work in that has all of a project without copying it; files must be replaced there, never edited.

    Logs are left out: a job writes its log in place, which would change what the project's own study says of its run.
    """
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix="linked-") as name:
        here = Path(name)
        subprocess.run(["cp", "-al", str(folder / "results"), str(here / "results")], check=True)
        for logs in here.glob("results/*/logs"):
            shutil.rmtree(logs)
        for other in ("notebooks", "report", "src", "studies", "rules", "profiles", "envs", "Snakefile"):
            (here / other).symlink_to(folder / other)
        yield here


def replace(path: Path, content: bytes) -> None:
    """Other content under the same name and time, without touching what other links of the file show."""
    stamp = path.stat()
    path.unlink()
    path.write_bytes(content)
    os.utime(path, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))


def run(here: Path, *command: str) -> tuple[int, str]:
    """Run a stage in this process, which ends with it; returns the status and what was printed."""
    os.chdir(here)
    with tempfile.TemporaryFile() as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
        status = _status(command)
        sys.stdout.flush()
        sys.stderr.flush()
        file.seek(0)
        return status, file.read().decode(errors="replace")


def _status(command: tuple[str, ...]) -> int:
    sys.argv = ["crosscoders", *command]
    try:
        runpy.run_module("crosscoders.__main__" if command[0] != "verify" else "crosscoders.cli", run_name="__main__")
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        sys.excepthook(*sys.exc_info())
        return 1
    return 0


def differing(reference: Path, here: Path, outputs: tuple[str, ...]) -> list[str]:
    """Outputs that are absent or have other bytes than in a reference; of those that hold times, only absent ones."""
    return [
        name
        for name in outputs
        if not (here / name).is_file() or (not holds_times(name) and not _equal(reference / name, here / name))
    ]


def holds_times(name: str) -> bool:
    """Whether a file holds the times of the run, so that two equal runs differ in it."""
    return name.endswith(DOCUMENTS) or "/notebooks/" in name


def _equal(one: Path, other: Path) -> bool:
    return one.read_bytes() == other.read_bytes()


def remove(here: Path, outputs: tuple[str, ...]) -> None:
    """Remove the outputs of a job, of a model its folder."""
    for name in outputs:
        path = here / name
        shutil.rmtree(path.parent) if path.name == "provenance.json" else path.unlink(missing_ok=True)
