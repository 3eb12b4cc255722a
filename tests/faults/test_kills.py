"""kill -9 of a whole run, wherever it is: the same command then ends with the same bytes.

`FAULTS=long` kills at more than a hundred points, 40 of them in trainings between their checkpoint and their end.
"""

import random
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from tests.faults.jobs import LONG, Job, differing, jobs, remove
from tests.faults.kills import checkpoint_of, kill, snakemake_command, start
from tests.project import SMOKE, copy, copy_finished, manifest, snakemake

TRAININGS, OTHERS = (40, 56) if LONG else (2, 3)
WHOLE = 12


def killed_job(project: Path, reference: Path, job: Job, seconds: float, forget: bool) -> str:
    """Kill a run so many seconds into a job, run it again, and say what is wrong, or an empty text."""
    training = job.rule in ("train_crosscoder", "train_aligned")
    remove(project, job.outputs)
    checkpoint, log = project / checkpoint_of(job) if training else None, project / job.command[-1]
    log.unlink(missing_ok=True)
    process = start(project, snakemake_command(*job.outputs))
    ran = kill(process, until=checkpoint.exists if training else log.exists, after=0.0 if training else seconds)
    if training and not checkpoint.exists():
        return "again"  # the training ended before the kill
    if not training and not ran:
        return "again"
    if forget:
        shutil.rmtree(project / ".snakemake")
    done = snakemake(project, *job.outputs, *SMOKE, check=False)
    printed = done.stdout + done.stderr
    if done.returncode or "Traceback" in printed:
        return printed[-3000:]
    if training and "resuming at step" not in log.read_text():
        return f"did not resume: {log.read_text()}"
    return ", ".join(differing(reference, project, job.outputs))


def outcomes(reference: Path, folder: Path, chosen: list[Job]) -> list[tuple[str, str]]:
    """Kill at one point in each of some jobs, in two copies of the project at a time."""
    copies = [copy_finished(reference, folder / f"project-{i}") for i in range(2)]

    def one(number: int) -> tuple[str, str]:
        job, project = chosen[number], copies.pop()
        draw = random.Random(f"kill {number}")
        try:
            for attempt in range(6):  # a job that ends sooner than the kill comes is killed earlier
                outcome = killed_job(project, reference, job, draw.uniform(0, 3 / 2**attempt), forget=number % 2 == 1)
                if outcome != "again":
                    break
            return f"{job.rule} {job.outputs[0]}", outcome
        finally:
            if not (project / ".snakemake/metadata").is_dir() or outcome:
                shutil.rmtree(project)
                copy_finished(reference, project)
            copies.append(project)

    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(one, range(len(chosen))))


@pytest.mark.slow
@pytest.mark.parametrize("training", [True, False], ids=["between checkpoint and end", "in any other job"])
def test_a_run_that_was_killed_ends_with_the_same_bytes(finished_project, tmp_path, training):
    made = [job for job in jobs(finished_project) if (job.rule in ("train_crosscoder", "train_aligned")) == training]
    made = [job for job in made if job.rule not in ("report", "manifest")] if not LONG else made
    random.Random("kills").shuffle(made)
    number = TRAININGS if training else OTHERS
    chosen = (made * (number // len(made) + 1))[:number]
    seen = outcomes(finished_project, tmp_path, chosen)
    assert [(name, outcome) for name, outcome in seen if outcome] == []
    print(f"killed and finished: {len(seen)}")


@pytest.mark.slow
@pytest.mark.skipif(not LONG, reason="takes minutes: FAULTS=long")
@pytest.mark.parametrize("number", range(WHOLE))
def test_a_whole_study_that_was_killed_ends_with_the_same_bytes(finished_project, tmp_path, number):
    project = copy(tmp_path / "project")
    process = start(project, snakemake_command())
    assert kill(process, until=lambda: True, after=random.Random(number).uniform(5, 65))
    if number % 2:
        shutil.rmtree(project / ".snakemake", ignore_errors=True)
    done = snakemake(project, *SMOKE)
    assert "Traceback" not in done.stdout + done.stderr
    assert manifest(project)["artifacts"] == manifest(finished_project)["artifacts"]


@pytest.mark.slow
@pytest.mark.skipif(not LONG, reason="takes minutes: FAULTS=long")
def test_a_study_that_was_killed_again_and_again_ends_with_the_same_bytes(finished_project, tmp_path):
    project = copy(tmp_path / "project")
    for number, seconds in enumerate((14, 9, 11, 13)):
        kill(start(project, snakemake_command()), until=lambda: True, after=seconds)
        if number == 1:
            shutil.rmtree(project / ".snakemake", ignore_errors=True)
    snakemake(project, *SMOKE)
    assert manifest(project)["artifacts"] == manifest(finished_project)["artifacts"]
