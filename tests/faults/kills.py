"""Killing: a stage between its checkpoint and its end, and whole runs of Snakemake at any moment."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from tests.faults.jobs import Job, linked, remove
from tests.project import SMOKE, environment

PAUSE = 0.0005
"""Seconds between two looks for what a kill waits for."""


def checkpoint_of(job: Job) -> str:
    """The name of a training's checkpoint."""
    (output,) = (name for name in job.outputs if not name.endswith("history.nc"))
    return str(Path(output).with_suffix(".checkpoint"))


def killed_with_checkpoint(folder: Path, job: Job) -> tuple[Job, str, bytes]:
    """Kill a training once it has a checkpoint; the job, the name of the checkpoint, and its content."""
    name = checkpoint_of(job)
    for _ in range(5):
        with linked(folder) as here:
            remove(here, job.outputs)
            process = start(here, [sys.executable, "-m", "crosscoders", *job.command])
            kill(process, until=(here / name).exists)
            if (here / name).exists():
                return job, name, (here / name).read_bytes()
    raise AssertionError(f"{name}: the training was never killed between its checkpoint and its end")


def start(folder: Path, command: list[str]) -> subprocess.Popen:
    """A process in a group of its own."""
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    return subprocess.Popen(command, cwd=folder, env=environment(folder), start_new_session=True, **quiet)


def snakemake_command(*targets: str) -> list[str]:
    """A run of the smoke study, or of some of its files."""
    return ["snakemake", "--cores", "2", *targets, *SMOKE]


def kill(process: subprocess.Popen, until: Callable[[], bool], after: float = 0.0) -> bool:
    """Kill a whole group some seconds after something holds; whether the group still ran then."""
    while process.poll() is None and not until():
        time.sleep(PAUSE)
    deadline = time.monotonic() + after
    while process.poll() is None and time.monotonic() < deadline:
        time.sleep(PAUSE)
    ran = process.poll() is None
    if ran:
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    return ran
