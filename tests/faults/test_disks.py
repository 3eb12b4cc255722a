"""A full disk and a read-only one under the results: a line with path and bytes, and after room is made, the same bytes.

`FAULTS=long` tries every stage. The tests mount small disks in memory, which takes root.
"""

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.faults.jobs import LONG, Job, differing, jobs, remove
from tests.project import SMOKE, copy_finished, snakemake

MEGABYTES = 160
LEFT = 4096
"""Bytes that a full disk has left."""
SHORT = ("fetch_text", "train_crosscoder", "html")


def mount(*arguments: str) -> bool:
    """Mount a disk; False where this process may not."""
    return subprocess.run(["mount", *arguments], capture_output=True).returncode == 0


@pytest.fixture(scope="module")
def project(finished_project, tmp_path_factory) -> Iterator[Path]:
    """A finished study whose results lie on a small disk of their own."""
    folder = copy_finished(finished_project, tmp_path_factory.mktemp("disk") / "project")
    results, beside = folder / "results", folder / "beside"
    results.rename(beside)
    results.mkdir()
    if os.geteuid() != 0 or not mount("-t", "tmpfs", "-o", f"size={MEGABYTES}m", "none", str(results)):
        pytest.skip("only root can mount a small disk")
    subprocess.run(["cp", "-a", f"{beside}/.", str(results)], check=True)
    yield folder
    subprocess.run(["umount", str(results)], check=True)


def one_of_each(folder: Path) -> list[Job]:
    """A job of every rule."""
    rules = {job.rule: job for job in jobs(folder)}
    return [job for rule, job in sorted(rules.items()) if LONG or rule in SHORT]


def lines(folder: Path, job: Job, *arguments: str) -> str:
    """What a run that makes the outputs of a job prints where it fails."""
    done = snakemake(folder, *job.outputs, *arguments, *SMOKE, check=False)
    printed = done.stdout + done.stderr
    assert done.returncode != 0, f"{job.rule} was made: {printed[-3000:]}"
    assert "Traceback" not in printed, f"{job.rule}: {printed[-6000:]}"
    said = [line for line in printed.splitlines() if line.startswith("error: ")]
    assert said, f"{job.rule} says nothing of why it failed: {printed[-6000:]}"
    return "\n".join(said)


def made(folder: Path, reference: Path, job: Job) -> None:
    """The same command finishes with the same bytes."""
    done = snakemake(folder, *job.outputs, *SMOKE, check=False)
    assert done.returncode == 0, f"{job.rule}: {(done.stdout + done.stderr)[-3000:]}"
    assert differing(reference, folder, job.outputs) == []


@pytest.mark.slow
def test_a_full_disk_is_a_line_and_costs_nothing(project, finished_project):
    filler = project / "results/filler"
    for job in one_of_each(finished_project):
        remove(project, job.outputs)
        with filler.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, max(1, shutil.disk_usage(filler.parent).free - LEFT))
        try:
            said = lines(project, job)
            assert "results/smoke/" in said and ": disk full: needs " in said and " bytes are free in " in said, (
                job.rule,
                said,
            )
        finally:
            filler.unlink()
        made(project, finished_project, job)


@pytest.mark.slow
def test_a_read_only_disk_is_a_line_and_costs_nothing(project, finished_project):
    for job in one_of_each(finished_project):
        remove(project, job.outputs)
        assert mount("-o", "remount,ro", str(project / "results")), job.rule
        try:
            said = lines(project, job)
            assert "results/smoke/" in said and "read-only" in said, (job.rule, said)
        finally:
            assert mount("-o", "remount,rw", str(project / "results")), job.rule
        made(project, finished_project, job)


def test_results_on_a_read_only_disk_are_not_made_again(project, finished_project):
    (job,) = (job for job in one_of_each(finished_project) if job.rule == "train_crosscoder")
    before = [(project / name).read_bytes() for name in job.outputs]
    assert mount("-o", "remount,ro", str(project / "results"))
    try:
        said = lines(project, job, "--forcerun", "train_crosscoder")
    finally:
        assert mount("-o", "remount,rw", str(project / "results"))
    assert said.startswith("error: results/smoke/") and any(name in said for name in job.outputs), said
    assert "read-only" in said and "\n" not in said
    assert [(project / name).read_bytes() for name in job.outputs] == before
