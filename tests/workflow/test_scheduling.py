"""Snakemake looks for jobs to start once in a timespan, however many jobs are done."""

import threading
import time

from snakemake.scheduling.job_scheduler import JobScheduler

from crosscoders.workflow import scheduling


class Scheduler:
    """What the repair uses of Snakemake's scheduler."""

    def __init__(self):
        self._open_jobs = threading.Semaphore(0)

    def _schedule_reevalutation(self, delay):
        raise AssertionError


def test_snakemake_still_has_what_is_repaired():
    assert callable(JobScheduler._schedule_reevalutation)


def test_one_look_waits_at_a_time_and_none_holds_up_the_end():
    scheduling.look_once_per_timespan(Scheduler)
    one, before = Scheduler(), threading.active_count()
    for _ in range(20):
        one._schedule_reevalutation(0.05)
    assert threading.active_count() == before + 1
    assert all(thread.daemon for thread in threading.enumerate() if isinstance(thread, threading.Timer))
    assert one._open_jobs.acquire(timeout=5)
    time.sleep(0.1)
    assert not one._open_jobs.acquire(blocking=False), "twenty requests bring about one look"
    one._schedule_reevalutation(0.01)
    assert one._open_jobs.acquire(timeout=5), "the next request is heard"


def test_a_scheduler_that_works_otherwise_is_left_as_it_is():
    class Other:
        pass

    scheduling.look_once_per_timespan(Other)
    assert not hasattr(Other, "_schedule_reevalutation")
