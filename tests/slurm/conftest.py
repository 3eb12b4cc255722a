"""One Slurm for all tests of this folder."""

import pytest
from tests.slurm import cluster


@pytest.fixture(scope="session")
def slurm():
    """The variables with which commands find a Slurm of one node without accounting."""
    started = cluster.started()
    try:
        variables = started.__enter__()
    except cluster.CannotStart as reason:
        pytest.skip(str(reason))
    yield variables
    started.__exit__(None, None, None)
