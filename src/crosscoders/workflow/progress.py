"""How far a run of the whole study is, and how long it has left: one line whenever a job is done."""

from __future__ import annotations

import time
from collections.abc import Mapping

from crosscoders.study.settings.study import Study
from crosscoders.workflow import plan

BAR = 30
"""Letters of the bar."""
SURE = 0.05
"""Share of the work from which the time that it took says how long the rest will take."""
NOTEBOOK = "notebook_"
"""How the names of rules that run notebooks begin; one function says what all of them cost."""


def seconds_by_rule(study: Study) -> dict[str, float]:
    """What a job of each rule is expected to take on the reference machine, on average.

    Parameters
    ----------
    study : Study

    Returns
    -------
    {rule: seconds}
    """
    taken: dict[str, list[float]] = {}
    for job in plan.jobs(study):
        taken.setdefault(job.rule, []).append(job.cost(study).seconds())
    return {rule: sum(seconds) / len(seconds) for rule, seconds in taken.items()}


class Run:
    """What a run has done of what it has to do.

    Parameters
    ----------
    jobs : {rule: int}
        Jobs that this run has to do.
    seconds : {rule: float}
        Expected duration of a job; a rule that is not named counts as the mean of those that are.
    began : float
        When the run began, on the clock of `time.monotonic`.
    """

    def __init__(self, jobs: Mapping[str, int], seconds: Mapping[str, float], began: float | None = None):
        self.began = time.monotonic() if began is None else began
        mean = sum(seconds.values()) / max(len(seconds), 1) or 1.0
        rules = {rule: "notebook" if rule.startswith(NOTEBOOK) else rule for rule in jobs}
        self.weights = {rule: seconds.get(name, mean) for rule, name in rules.items()}
        self.all = sum(self.weights[rule] * count for rule, count in jobs.items())
        self.done = 0.0
        self.last = ""

    def finish(self, rule: str, name: str) -> None:
        """Count a job as done; `name` is how the next line calls it."""
        self.done += self.weights.get(rule, 0.0)
        self.last = name

    def line(self, done: int, total: int, now: float | None = None) -> str:
        """The bar, the share of the expected work that is done, the jobs, the time left, and the job that was just done.

        Parameters
        ----------
        done, total : int
            Jobs.
        now : float, optional
            On the clock of `began`.

        Returns
        -------
        str
        """
        share = 1.0 if done == total else min(self.done / max(self.all, 1e-9), 0.99)
        filled = round(BAR * share)
        parts = [f"[{'#' * filled}{'-' * (BAR - filled)}] {share:4.0%}", f"{done} of {total} jobs"]
        if SURE <= share < 1:
            elapsed = (time.monotonic() if now is None else now) - self.began
            parts.append(f"about {plan.duration(elapsed * (1 - share) / share)} left")
        return "  ".join([*parts, self.last] if self.last else parts)


_study: list[Study] = []


def begin(study: Study) -> None:
    """Say which study this process runs; what its jobs are expected to take follows from it."""
    _study[:] = [study]


def run(jobs: Mapping[str, int]) -> Run:
    """A run that begins now; the jobs count alike where no study was named."""
    return Run(jobs, seconds_by_rule(_study[0]) if _study else {})
