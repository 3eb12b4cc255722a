"""What a Slurm cluster says of itself: its partitions, their nodes, and whether it keeps accounts."""

from __future__ import annotations

import functools
import getpass
import re
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass

from crosscoders.errors import UserError

SECONDS = 60
"""How long Slurm may take to answer."""


@dataclass(frozen=True)
class Node:
    """What one node offers to a job: threads, memory in MB as Slurm counts it, and GPUs."""

    threads: int
    mem_mb: int
    gpu: int


@dataclass(frozen=True)
class Partition:
    """The nodes of a partition, and the longest time in minutes that a job may take there; None where it is unlimited."""

    name: str
    nodes: tuple[Node, ...]
    runtime: int | None

    def largest(self, resource: str) -> int:
        """The largest value of a resource that a node offers.

        Parameters
        ----------
        resource : str
            `threads`, `mem_mb` or `gpu`.

        Returns
        -------
        int
        """
        return max((getattr(node, resource) for node in self.nodes), default=0)


@dataclass(frozen=True)
class Cluster:
    """A cluster: its partitions by name, the name of the default one, and what it keeps of jobs that ended.

    `job_age` is for how many seconds `squeue` shows a job that ended. `accounts` are those of the user, the default one
    first; they are empty where the cluster keeps no accounting.
    """

    partitions: dict[str, Partition]
    default: str | None
    accounting: bool
    job_age: int
    accounts: tuple[str, ...] = ()


@functools.cache
def cluster() -> Cluster:
    """Ask Slurm, once in the life of a process.

    Returns
    -------
    Cluster

    Raises
    ------
    UserError
        There are no Slurm commands here, or the controller does not answer.
    """
    config = dict(re.findall(r"^(\w+)\s*= (.*?)\s*$", _said("scontrol", "show", "config"), re.MULTILINE))
    described = [_fields(line) for line in _said("scontrol", "-a", "-o", "show", "partition").splitlines() if line]
    nodes: dict[str, list[Node]] = {}
    for line in _said("sinfo", "-a", "-N", "-h", "-o", "%R|%c|%m|%G").splitlines():
        name, threads, mem_mb, gres = line.split("|")
        nodes.setdefault(name, []).append(Node(_number(threads), _number(mem_mb), gpus(gres)))
    accounting = "slurmdbd" in config.get("AccountingStorageType", "")
    default = next((fields["PartitionName"] for fields in described if fields.get("Default") == "YES"), None)
    age = _number(config.get("MinJobAge", "0"))
    partitions = [_partition(fields, nodes.get(fields["PartitionName"], [])) for fields in described]
    by_name = {partition.name: partition for partition in partitions}
    return Cluster(by_name, default, accounting, age, _accounts() if accounting else ())


def _partition(fields: dict[str, str], nodes: Sequence[Node]) -> Partition:
    """A partition, whose own limits may be lower than its nodes."""
    threads, mem_mb = fields.get("MaxCPUsPerNode", ""), fields.get("MaxMemPerNode", "")
    most = (int(threads) if threads.isdigit() else None, int(mem_mb) if mem_mb.isdigit() else None)
    limited = (Node(_least(node.threads, most[0]), _least(node.mem_mb, most[1]), node.gpu) for node in nodes)
    return Partition(fields["PartitionName"], tuple(limited), minutes(fields.get("MaxTime", "UNLIMITED")))


def _least(value: int, limit: int | None) -> int:
    return value if limit is None else min(value, limit)


def _accounts() -> tuple[str, ...]:
    """The accounts of the user, the default one first."""
    user = f"user={getpass.getuser()}"
    default = _said("sacctmgr", "-n", "-P", "show", "user", user, "format=DefaultAccount").split()
    others = _said("sacctmgr", "-n", "-P", "show", "association", user, "format=Account").split()
    return tuple(dict.fromkeys([*default, *others]))


def _said(*command: str) -> str:
    """What a Slurm command prints."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS)
    except FileNotFoundError:
        raise UserError(f"Slurm: there is no command {command[0]} here; expected a login node of a cluster") from None
    except subprocess.TimeoutExpired:
        raise UserError(f"Slurm: {command[0]} gave no answer in {SECONDS} s; expected a running controller") from None
    if done.returncode:
        reason = (done.stderr.strip() or f"exit status {done.returncode}").splitlines()[-1]
        raise UserError(f"Slurm: {command[0]} failed ({reason}); expected a running controller")
    return done.stdout


def _fields(line: str) -> dict[str, str]:
    """The entries `NAME=VALUE` of a line."""
    return dict(part.split("=", 1) for part in line.split() if "=" in part)


def _number(text: str) -> int:
    """The number with which a text begins, as in `20000+` and `300 sec`."""
    found = re.match(r"\d+", text)
    return int(found[0]) if found else 0


def gpus(gres: str) -> int:
    """How many GPUs a list of generic resources names.

    Parameters
    ----------
    gres : str
        As `gpu:a100:4(S:0-1),shard:8`.

    Returns
    -------
    int
    """
    entries = [re.sub(r"\(.*?\)", "", entry).split(":") for entry in re.split(r",(?![^(]*\))", gres)]
    return sum(int(entry[-1]) if entry[-1].isdigit() else 1 for entry in entries if entry[0] == "gpu")


def minutes(time: str) -> int | None:
    """A time limit as Slurm writes it, in minutes.

    Parameters
    ----------
    time : str
        `UNLIMITED`, `infinite`, `DAYS-HOURS:MINUTES:SECONDS`, or less of that.

    Returns
    -------
    int, optional
        None where there is no limit.
    """
    if not time[:1].isdigit():
        return None
    days, _, rest = time.rpartition("-")
    parts = [int(part) for part in rest.split(":")]
    parts = [*parts, 0, 0][:3] if days else [0, 0, *parts][-3:]
    return int(days or 0) * 1440 + parts[0] * 60 + parts[1]
