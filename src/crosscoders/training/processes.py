"""The processes of one training: its stage starts them, watches over them, and ends with one line where one is lost.

A training that asks for several processes is one job and one command all the same. The stage's own process computes
nothing: it starts the same command once per process, copies what the first of them prints, and waits. Under `torchrun`,
which may start processes on several machines, the stage starts none and joins those.
"""

from __future__ import annotations

import argparse
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

from crosscoders import stage
from crosscoders.device import chosen_device
from crosscoders.errors import UserError
from crosscoders.kernels import backends
from crosscoders.kernels.mesh import ALONE, Alone, Mesh
from crosscoders.study.settings.crosscoders import Training
from crosscoders.study.stage_section import AlignedSection, TrainingSection

MEETING = "CROSSCODERS_MEETING"
"""The variable that names the file by which processes that a stage started find each other."""
PATIENCE = timedelta(hours=2)
"""How long a process waits for the others, as while the first one writes a checkpoint."""
LOST = "error: another process of this training has ended"
"""How the line of a process begins that ended because of another one."""
INTERRUPTED = "interrupted; the same command continues"


def run(
    arguments: argparse.Namespace, training: Training, section: TrainingSection, work: Callable[[Alone], None]
) -> None:
    """Do the work of a training stage: here, or in processes of its own where the training asks for several.

    Parameters
    ----------
    arguments : argparse.Namespace
        Of the stage.
    training : Training
    section : TrainingSection or AlignedSection
    work : function
        Gets the mesh of its process, and is called once in every process.

    Raises
    ------
    UserError
        There are fewer GPUs than processes, or a process was lost.
    """
    if training.processes == 1:
        work(ALONE)
    elif "RANK" in os.environ and "WORLD_SIZE" in os.environ:
        with _connected(training, section.device) as mesh:
            work(mesh)
    else:
        _launch(arguments, training, section)


@contextmanager
def _connected(training: Training, device: str) -> Iterator[Mesh]:
    """The mesh of a process that a stage or `torchrun` has started."""
    device, started = chosen_device(device), int(os.environ["WORLD_SIZE"])
    if started != training.processes:
        wanted = f"training.ranks: {training.ranks} × replicas {training.replicas}"
        raise UserError(f"{wanted}: {started} processes were started; expected {training.processes}")
    if MEETING in os.environ:
        threading.Thread(target=_end_with_the_stage, daemon=True).start()
    if "lo" in dict(map(reversed, socket.if_nameindex())) and MEETING in os.environ:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # the name of a machine need not have an address
    if device == "cuda":
        _check_gpus(int(os.environ["LOCAL_RANK"]) + 1, training)
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    kinds = "cpu:gloo,cuda:nccl" if device == "cuda" else "gloo"
    meeting = os.environ.get(MEETING, "env://")
    dist.init_process_group(
        kinds, init_method=meeting, rank=int(os.environ["RANK"]), world_size=started, timeout=PATIENCE
    )
    yield Mesh(training.ranks, training.replicas, device)
    dist.destroy_process_group()  # not after an error, as it may wait for the others


def _check_gpus(needed: int, training: Training) -> None:
    """Refuse more processes than there are GPUs."""
    found = torch.cuda.device_count()
    if found < needed:
        wanted = f"training.ranks: {training.ranks} × replicas {training.replicas}"
        raise UserError(f"{wanted} need a GPU each; this machine has {found}")


def _end_with_the_stage() -> None:
    """End this process when the one that started it is gone, and with it the other end of the standard input."""
    while os.read(0, 1):
        pass
    os._exit(1)


class _Process:
    """One process of a training, and what it printed."""

    def __init__(self, command: list[str], variables: dict[str, str], shown: bool):
        self.shown, self.lines = shown, list[str]()
        self.process = subprocess.Popen(
            command,
            env=os.environ | variables,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            encoding="utf-8",
            errors="replace",
            process_group=0,  # an interruption from the terminal reaches the stage, which then ends its processes
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        for line in self.process.stdout:
            line = line.rstrip("\n")
            if line.startswith("error: ") or not self.shown:
                self.lines.append(line)
            elif not line.endswith(INTERRUPTED):
                stage.say(line)

    @property
    def status(self) -> int | None:
        """How the process ended; None while it runs."""
        return self.process.poll()

    def printed(self) -> list[str]:
        """Errors of the first process, all lines of another, once it has ended."""
        self._reader.join()
        return self.lines

    def finish(self, grace: float) -> None:
        """Wait for the end of the process, kill it after some seconds, and wait for what it printed."""
        try:
            self.process.wait(grace)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self._reader.join(grace)
        with suppress(OSError):
            self.process.stdin.close()


def _launch(arguments: argparse.Namespace, training: Training, section: TrainingSection | AlignedSection) -> None:
    """Start the processes of a training on this machine, and wait for their end."""
    device, count = chosen_device(section.device), training.processes
    if device == "cuda":
        _check_gpus(count, training)
    backends.choose(device)  # kernels are compiled before processes need them
    threads = max(1, (arguments.threads or torch.get_num_threads()) // count)
    command = [sys.executable, "-m", "crosscoders", f"training.{section.stage}"]
    command += [*_without_log(sys.argv[1:]), "--threads", str(threads)]
    with tempfile.TemporaryDirectory(prefix="crosscoders-") as folder:
        meeting = Path(folder, "meeting").as_uri()
        shared = {MEETING: meeting, "WORLD_SIZE": str(count), "TORCH_CPP_LOG_LEVEL": "FATAL"}
        group = []
        try:
            for rank in range(count):
                own = {"RANK": str(rank), "LOCAL_RANK": str(rank)}
                group.append(_Process(command, shared | own, shown=rank == 0))
            _wait(group)
        finally:
            for one in group:
                one.process.terminate()  # does nothing to one that has ended
            for one in group:
                one.finish(grace=3.0)


def _without_log(arguments: list[str]) -> list[str]:
    """A command's arguments without the log, which the stage's own process writes."""
    kept, skip = [], False
    for argument in arguments:
        if not skip and argument != "--log" and not argument.startswith("--log="):
            kept.append(argument)
        skip = argument == "--log"
    return kept


def _wait(group: list[_Process]) -> None:
    """Wait for the end of all processes.

    Raises
    ------
    UserError
        One has failed; the others are to be stopped.
    """
    while any(process.status is None for process in group):
        if any(process.status for process in group):
            break
        time.sleep(0.02)
    if not any(process.status for process in group):
        return
    time.sleep(0.3)  # so that one that was killed is found before those that missed it
    raise UserError(_cause(group))


def _cause(group: list[_Process]) -> str:
    """Why a training has ended, as the line of the process that ended first by itself."""
    ended = [(rank, process) for rank, process in enumerate(group) if process.status]
    for rank, process in ended:
        if process.status < 0:
            name = signal.Signals(-process.status).name
            return (
                f"rank {rank} of {len(group)} was ended by {name}; the same command continues from the last checkpoint"
            )
    for _, process in ended:
        errors = [line for line in process.printed() if line.startswith("error: ")]
        if errors and not errors[-1].startswith(LOST):
            return "\n".join(line.removeprefix("error: ") for line in errors)
    rank, process = next(((r, p) for r, p in ended if not any(line.startswith(LOST) for line in p.printed())), ended[0])
    for line in process.printed():
        stage.say(line)
    return f"rank {rank} of {len(group)} ended with status {process.status}; the same command continues"
