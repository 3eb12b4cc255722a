"""What profiles/slurm sets according to the cluster, and what a run asks of Slurm before its first job.

The profile is read on machines without Slurm too, where a dry run shows the jobs; it then sets nothing of a cluster.
"""

from __future__ import annotations

import functools
import os
import sys
import uuid
from typing import Any

from crosscoders.errors import UserError
from crosscoders.workflow.slurm_cluster import Cluster, cluster
from crosscoders.workflow.slurm_jobs import Watch, problems

THREADS = "CROSSCODERS_THREADS"
"""The variable that says how many threads heavy rules take at most."""
MANY = 8
"""Threads of heavy rules where nothing else is said."""
FEW = 2
"""The most threads that rules themselves take, by which they run on one machine."""
SHORTEST_AGE = 240
"""Seconds that jobs which ended must stay in the queue where nothing else tells of them; Snakemake asks every 180 s."""


def status_command() -> str | None:
    """The command that tells which jobs ended: `sacct` where the cluster keeps accounting, else `squeue`.

    Returns
    -------
    str, optional
        None where there is no cluster.
    """
    found = _cluster()
    return None if found is None else "sacct" if found.accounting else "squeue"


def partition() -> str | None:
    """The partition that the user names in `SBATCH_PARTITION`, as for `sbatch`; None leaves it to the cluster.

    Returns
    -------
    str, optional
    """
    return os.environ.get("SBATCH_PARTITION") or None


def account() -> str | None:
    """The account that the user names in `SBATCH_ACCOUNT`, else the user's default one.

    Returns
    -------
    str, optional
        None where the cluster keeps no accounting, since it knows no accounts.
    """
    found = _cluster()
    if found is None or not found.accounting:
        return None
    return os.environ.get("SBATCH_ACCOUNT") or next(iter(found.accounts), None)


def threads(most: int = MANY) -> int:
    """The threads of a heavy rule: at most those of the largest node of the partition.

    Parameters
    ----------
    most : int
        How many a rule takes at most, where `CROSSCODERS_THREADS` does not say it.

    Returns
    -------
    int
    """
    most = _said() or most
    found = _cluster()
    name = None if found is None else partition() or found.default
    known = found.partitions.get(name) if found is not None and name else None
    return min(most, known.largest("threads") or most) if known else most


def model_threads() -> int | None:
    """The threads of a rule that trains a language model, whose last bits depend on how many threads share its sums.

    Returns
    -------
    int, optional
        None leaves it to the rule, for the same bytes as on one machine: nobody says another number, and the largest node of
        the partition has as many as the rule takes.
    """
    fitting = threads(FEW)
    return fitting if _said() or fitting < FEW else None


def _said() -> int | None:
    """How many threads the user asks for, if any."""
    said = os.environ.get(THREADS)
    if said is not None and not (said.isdigit() and int(said) > 0):
        sys.exit(f"error: {THREADS}: {said!r} does not fit; expected a number of threads from 1 on")
    return int(said) if said else None


@functools.cache
def run_name() -> str:
    """A name of this run, with which Slurm's names of its jobs begin.

    Returns
    -------
    str
    """
    return f"crosscoders-{uuid.uuid4().hex[:8]}"


def begin(workflow: Any) -> None:
    """Check the jobs of a run against what the cluster offers, and watch those that wait; where Slurm runs no jobs, nothing.

    Parameters
    ----------
    workflow : snakemake.workflow.Workflow

    Raises
    ------
    UserError
        A job can never start, or Slurm does not answer: one line per rule and resource.
    """
    if workflow.executor_plugin.name != "slurm":
        return
    found, settings = cluster(), workflow.executor_settings
    jobs = [job for job in workflow.dag.needrun_jobs() if not job.is_local]
    lines = [*_status_problems(found), *problems(jobs, found)]
    if lines:
        raise UserError("\n".join(lines))
    if settings.jobname_prefix:
        Watch(settings.jobname_prefix, settings.init_seconds_before_status_checks).start()


def _status_problems(found: Cluster) -> list[str]:
    """What to say of a cluster that forgets jobs before Snakemake has asked for them."""
    if found.accounting or found.job_age >= SHORTEST_AGE:
        return []
    return [
        f"Slurm: MinJobAge: {found.job_age} s are too few where no accounting is kept; "
        f"expected at least {SHORTEST_AGE}, or ends of jobs are missed"
    ]


def _cluster() -> Cluster | None:
    """The cluster, where there is one; what is wrong with it is said when a run begins."""
    try:
        return cluster()
    except UserError:
        return None
