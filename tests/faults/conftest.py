"""What tests of faults share."""

import pytest
from tests.faults.jobs import jobs, processes
from tests.faults.kills import killed_with_checkpoint


@pytest.fixture(scope="session")
def killed_trainings(finished_project, tmp_path_factory):
    """Trainings, each with the name and the content of the checkpoint that was there when it was killed."""
    trainings = [job for job in jobs(finished_project) if job.rule in ("train_crosscoder", "train_aligned")]
    return [killed_with_checkpoint(finished_project, job) for job in trainings]


@pytest.fixture(scope="module")
def pool(finished_project):
    """Processes that run the jobs of the finished study."""
    with processes(finished_project) as running:
        yield running
