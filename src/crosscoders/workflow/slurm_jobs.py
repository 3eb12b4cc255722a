"""Jobs that can never start: found before the first one is submitted, and among those that wait."""

from __future__ import annotations

import re
import subprocess
import sys
import threading
from collections.abc import Iterable
from typing import Any

from crosscoders.errors import shortened
from crosscoders.workflow.slurm_cluster import SECONDS, Cluster, Node, Partition, gpus

UNITS = {"threads": "threads", "mem": "MB of memory", "gpu": "GPUs", "runtime": "minutes"}
"""Resource to what it counts."""

NEVER = re.compile(
    r"Partition(TimeLimit|Config)|BadConstraints|DependencyNeverSatisfied|JobHoldMaxRequeue|MaxMemPerLimit"
    r"|Invalid(Account|QOS)|(Account|QOS)NotAllowed|(Assoc|QOS)(Max|Min)\w*(PerJob|PerNode|NotSatisfied)"
)
"""How reasons begin that neither the end of another job nor the return of a node resolves."""


# -- before the first job ----------------------------------------------------------------------------------------------


def problems(jobs: Iterable[Any], cluster: Cluster) -> list[str]:
    """What no node of a job's partition offers.

    Parameters
    ----------
    jobs : iterable of snakemake.jobs.Job
        Jobs to be submitted.
    cluster : Cluster

    Returns
    -------
    list of str
        A line for each rule and resource: the value that is asked for and the largest that there is.
    """
    lines = []
    for job in jobs:
        if not any(job.resources.get(name) for name in ("cluster", "clusters", "slurm_cluster")):
            lines += [f"rule {job.rule.name}: {line}" for line in _of_job(job, cluster)]
    return list(dict.fromkeys(lines))


def _of_job(job: Any, cluster: Cluster) -> list[str]:
    """What is wrong with one job."""
    lines = _account_problems(job.resources.get("slurm_account"), cluster)
    named = job.resources.get("slurm_partition") or cluster.default
    if not named:
        known = ", ".join(sorted(cluster.partitions))
        return [*lines, f"slurm_partition: none is named and the cluster has no default; expected one of {known}"]
    names = str(named).split(",")
    unknown = [name for name in names if name not in cluster.partitions]
    if unknown:
        known = ", ".join(sorted(cluster.partitions))
        return [*lines, f"slurm_partition: {unknown[0]!r} is not known to Slurm; expected one of {known}"]
    return lines + _exceeded(requests(job), [cluster.partitions[name] for name in names], str(named))


def _account_problems(account: object, cluster: Cluster) -> list[str]:
    if not account:
        return []
    if not cluster.accounting:
        return [f"slurm_account: {str(account)!r} is not known, as the cluster keeps no accounts; expected none"]
    known = {name.lower() for name in cluster.accounts}
    unknown = [name for name in re.split(r"[,\s]+", str(account)) if name and name.lower() not in known]
    expected = ", ".join(cluster.accounts) or "an account of yours"
    return [f"slurm_account: {name!r} is not one of yours; expected {expected}" for name in unknown]


def requests(job: Any) -> dict[str, int]:
    """What a job asks of one node, by the name of its resource; what is not known before other jobs end is left out.

    Parameters
    ----------
    job : snakemake.jobs.Job

    Returns
    -------
    {str: int}
        `threads`, `mem` in MB, `gpu`, and `runtime` in minutes.
    """
    given = job.resources.get
    threads = given("cpus_per_task") or job.threads
    per_cpu = given("mem_mb_per_cpu")
    mem = per_cpu * threads if isinstance(per_cpu, int) and isinstance(threads, int) else given("mem_mb")
    gpu = given("gpu") or gpus(str(given("gres") or ""))
    asked = {"threads": threads, "mem": mem, "gpu": gpu, "runtime": given("runtime")}
    return {name: value for name, value in asked.items() if isinstance(value, int) and value > 0}


def _exceeded(asked: dict[str, int], partitions: list[Partition], name: str) -> list[str]:
    """Lines for what is more than any node or partition of those named offers."""
    nodes = [node for partition in partitions for node in partition.nodes]
    offered = {resource: max((_of_node(node, resource) for node in nodes), default=0) for resource in asked}
    limits = [partition.runtime for partition in partitions]
    if "runtime" in asked:
        offered["runtime"] = asked["runtime"] if None in limits else max(limits)
    lines = [
        f"{resource}: {value} {UNITS[resource]} are more than partition {name!r} has; expected at most {offered[resource]}"
        for resource, value in asked.items()
        if value > offered[resource]
    ]
    together = {resource: value for resource, value in asked.items() if resource != "runtime"}
    if not lines and not any(all(_of_node(node, key) >= value for key, value in together.items()) for node in nodes):
        listed = " and ".join(f"{value} {UNITS[key]}" for key, value in together.items())
        lines = [f"resources: no node of partition {name!r} has {listed}; expected less of one of them"]
    return lines


def _of_node(node: Node, resource: str) -> int:
    """What a node has of a resource of a job."""
    return {"threads": node.threads, "mem": node.mem_mb, "gpu": node.gpu}.get(resource, 0)


# -- while jobs wait ---------------------------------------------------------------------------------------------------


class Watch(threading.Thread):
    """Looks at the jobs of a run that wait; cancels those that can never start, with a line that says why.

    Limits may be set where no check can see them, or change while jobs wait. A job is cancelled when it was seen twice with
    such a reason, and Snakemake then ends as after any job that failed.
    """

    def __init__(self, prefix: str, seconds: float) -> None:
        """Watch jobs whose names begin with `prefix`, every so many seconds, until the process ends."""
        super().__init__(name="slurm-watch", daemon=True)
        self.prefix, self.seconds, self.seen = prefix, seconds, set()
        self.ended = threading.Event()

    def run(self) -> None:
        """Look again and again."""
        while not self.ended.wait(self.seconds):
            self.look()

    def look(self) -> None:
        """Look once."""
        command = ["squeue", "--me", "-h", "--states=PENDING", "-o", "%i|%r|%P|%j|%k"]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS)
        except (OSError, subprocess.TimeoutExpired):
            return
        waiting = [line.split("|", 4) for line in done.stdout.splitlines()]
        hopeless = [job for job in waiting if len(job) == 5 and job[3].startswith(self.prefix) and NEVER.match(job[1])]
        for number, reason, partition, _, comment in hopeless:
            if number in self.seen:
                rule = comment.removeprefix("rule_").split("_wildcards_")[0]
                line = f"rule {rule}: job {number} can never start in partition {partition!r}; Slurm says {reason}"
                print(shortened(f"error: {line}; it is cancelled"), file=sys.stderr, flush=True)
                subprocess.run(["scancel", number], capture_output=True, timeout=SECONDS)
        self.seen = {job[0] for job in hopeless}
