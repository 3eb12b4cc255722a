"""A Slurm of one node, started for tests and stopped after them: own ports, own folder, no accounting.

It needs Debian's packages slurm-wlm and munge, and root, as whom both of its daemons run.
"""

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

NEEDED = ("slurmctld", "slurmd", "munged", "sbatch", "srun")
SYSTEM = os.pathsep.join(("/usr/sbin", "/sbin"))
CORES, MEMORY, GPUS, MINUTES = 2, 8000, 2, 600
"""What the node offers, and the time limit of its partition `main`; that of `short` is half an hour."""

CONFIG = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
SlurmUser=root
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={folder}/munge.socket
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
SlurmdParameters=config_overrides
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherParams=OverMemoryKill
JobAcctGatherFrequency=1
ReturnToService=2
GresTypes=gpu
NodeName={host} NodeAddr=127.0.0.1 CPUs={cores} RealMemory={memory} Gres=gpu:{gpus} State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES MaxTime={minutes} State=UP
PartitionName=short Nodes=ALL MaxTime=30 State=UP
"""
DEVICES = ("/dev/null", "/dev/zero")
"""Files that stand for GPUs; no test computes on one."""


class CannotStart(Exception):
    """There is no Slurm here that could be started; the message says why."""


def missing() -> str | None:
    """Why no Slurm can be started here."""
    if sys.platform != "linux" or os.geteuid() != 0:
        return "a Slurm for tests needs Linux and root"
    lacking = [name for name in NEEDED if shutil.which(name, path=f"{os.environ['PATH']}{os.pathsep}{SYSTEM}") is None]
    return f"no {', '.join(lacking)}: `apt-get install slurm-wlm munge`" if lacking else None


@contextmanager
def started() -> Iterator[dict[str, str]]:
    """The variables with which commands find a running Slurm."""
    reason = missing()
    if reason:
        raise CannotStart(reason)
    with ExitStack() as stack:
        folder = Path(
            tempfile.mkdtemp(prefix="slurm-")
        )  # a socket's path may have a hundred letters, pytest's folders more
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        variables = _configured(folder)
        options = [f"--{name}={folder}/munge.{name.split('-')[0]}" for name in ("socket", "pid-file", "log-file")]
        options += [f"--key-file={folder}/munge.key", f"--seed-file={folder}/munge.seed"]
        for daemon in (["munged", "--force", *options], ["slurmctld"], ["slurmd"]):
            stack.callback(_stop, folder / f"{daemon[0].replace('munged', 'munge')}.pid")
            done = subprocess.run(daemon, env=variables, capture_output=True, text=True)
            if done.returncode:
                raise CannotStart(f"{daemon[0]} does not start: {done.stderr.strip()[-200:]}")
        _wait_until_idle(variables)
        stack.callback(subprocess.run, ["scancel", "--user=root"], env=variables, capture_output=True)
        yield variables


def _configured(folder: Path) -> dict[str, str]:
    """Write the files of a cluster; the variables that lead to them."""
    for name in ("state", "spool", "bin"):
        (folder / name).mkdir()
    (folder / "munge.key").write_bytes(os.urandom(1024))
    (folder / "munge.key").chmod(0o400)
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(2)]
    ports = [bound.getsockname()[1] for bound in sockets]
    for bound in sockets:
        bound.close()
    host, size = (
        socket.gethostname().split(".")[0],
        {"cores": CORES, "memory": MEMORY, "gpus": GPUS, "minutes": MINUTES},
    )
    (folder / "slurm.conf").write_text(CONFIG.format(host=host, ports=ports, folder=folder, **size))
    (folder / "gres.conf").write_text("".join(f"Name=gpu File={device}\n" for device in DEVICES))
    # The executor takes all of Slurm's variables from the environment in which it calls srun, also the place of the settings.
    srun = shutil.which("srun")
    (folder / "bin/srun").write_text(f'#!/bin/sh\nSLURM_CONF={folder}/slurm.conf exec {srun} "$@"\n')
    (folder / "bin/srun").chmod(0o755)
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM", "SBATCH", "SRUN"))}
    path = os.pathsep.join([f"{folder}/bin", str(Path(sys.executable).parent), os.environ["PATH"], SYSTEM])
    return kept | {"SLURM_CONF": f"{folder}/slurm.conf", "PATH": path}


def _wait_until_idle(variables: dict[str, str], seconds: float = 30) -> None:
    last = time.monotonic() + seconds
    while time.monotonic() < last:
        done = subprocess.run(["sinfo", "-h", "-o", "%T"], env=variables, capture_output=True, text=True)
        if done.stdout.split()[:1] == ["idle"]:
            return
        time.sleep(0.1)
    raise CannotStart(f"the node is {done.stdout.strip() or done.stderr.strip()!r} after {seconds:.0f} s")


def _stop(pid_file: Path, seconds: float = 10) -> None:
    """End a daemon by the number in its file, and wait until it has gone."""
    with suppress(OSError, ValueError):
        number, last = int(pid_file.read_text()), time.monotonic() + seconds
        os.kill(number, 15)
        while time.monotonic() < last:
            os.kill(number, 0)
            time.sleep(0.05)
        os.kill(number, 9)
