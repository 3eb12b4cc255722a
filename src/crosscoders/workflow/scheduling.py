"""One repair of Snakemake's scheduler, which otherwise takes more of a processor with every job that is done.

Snakemake looks for jobs to start again a second after each look (`max-jobs-per-timespan`), with a timer of its own for every
look. A look that a finished job brings about adds a timer that never ends, so that looks grow with the jobs that are done. Each
look reads the sizes of all inputs of all jobs that are ready. Of Snakemake 9.27, 57 timers were counted after 120 jobs.
"""

from __future__ import annotations

import threading
from weakref import WeakKeyDictionary

from snakemake.scheduling.job_scheduler import JobScheduler

_waiting: WeakKeyDictionary[JobScheduler, threading.Timer] = WeakKeyDictionary()


def look_once_per_timespan(scheduler: type = JobScheduler) -> None:
    """Let at most one look wait at a time, and let none hold up the end of a run.

    Parameters
    ----------
    scheduler : type
        Snakemake's class; one that works otherwise is left as it is.
    """
    if hasattr(scheduler, "_schedule_reevalutation"):  # spelt so there
        scheduler._schedule_reevalutation = _look_later


def _look_later(self: JobScheduler, delay: float) -> None:
    def look() -> None:
        _waiting.pop(self, None)
        self._open_jobs.release()

    if self not in _waiting:
        timer = _waiting[self] = threading.Timer(delay, look)
        timer.daemon = True
        timer.start()
