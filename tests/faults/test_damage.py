"""Damaged files of every kind: each is named by the stage that reads it, or by `crosscoders verify`; none is used.

`FAULTS=long` damages a thousand files.
"""

import collections
import json
import random
from pathlib import Path

import pytest
from tests.faults.jobs import LONG, Job, differing, files_read, holds_times, jobs, linked, remove, replace, run

LAST = ("index", "report", "manifest")
"""Rules whose jobs look at all pictures, pages and notebooks."""
READ, VERIFIED, RESUMED = (700, 300, 60) if LONG else (40, 16, 4)


def damaged(content: bytes, draw: random.Random) -> bytes:
    """Content cut short, with one flipped bit, or with a block of zeros, but not the same."""
    kind = draw.choice(["cut", "flip", "flip", "zeros"])
    place = draw.randrange(len(content))
    if kind == "cut":
        return content[:place]
    changed = bytearray(content)
    if kind == "zeros":
        changed[place : place + 512] = bytes(len(changed[place : place + 512]))
    if kind == "flip" or changed == content:
        changed[place] ^= 1 << draw.randrange(8)
    return bytes(changed)


def read_damaged(folder: Path, job: Job, victim: str, number: int) -> str:
    """What a job does with a damaged file: `refused`, `not used`, or what is wrong with it."""
    with linked(folder) as here:
        content = damaged((here / victim).read_bytes(), random.Random(f"read {number}"))
        harmless = _same_json(content, (folder / victim).read_bytes())
        replace(here / victim, content)
        remove(here, job.outputs)
        status, printed = run(here, *job.command)
        if status == 0 and not harmless and any(map(holds_times, job.outputs)):
            return "used silently in what cannot be compared"
        return _judged(status, printed, victim, differing(folder, here, job.outputs))


def _same_json(one: bytes, other: bytes) -> bool:
    """Whether two files are JSON of one content: space between entries means nothing."""
    try:
        return json.loads(one) == json.loads(other)
    except ValueError:
        return False


def _judged(status: int, printed: str, victim: str, changed: list[str]) -> str:
    if "Traceback" in printed:
        return f"traceback: {printed[-2000:]}"
    lines = [line for line in printed.splitlines() if line.startswith("error: ")]
    if status == 0:
        return f"used silently, {changed} differ" if changed else "not used"
    named = any(victim in line or f"{Path(victim).parent}/" in line for line in lines)
    return "refused" if named else f"not named: {printed[-2000:]}"


def verify_damaged(folder: Path, victim: str, number: int) -> str:
    """What `crosscoders verify` says of a damaged file."""
    with linked(folder) as here:
        replace(here / victim, damaged((here / victim).read_bytes(), random.Random(f"verify {number}")))
        status, printed = run(here, "verify", "results/smoke")
        if status == 1 and victim in printed and "Traceback" not in printed:
            return "named"
        return f"status {status}: {printed[-2000:]}"


def resume_damaged(folder: Path, job: Job, checkpoint: str, content: bytes, number: int) -> str:
    """What a training does with a damaged checkpoint: it says so and starts again, to the same bytes."""
    with linked(folder) as here:
        draw = random.Random(f"resume {number}")
        (here / checkpoint).write_bytes(damaged(content, draw) if number else content)
        status, printed = run(here, *job.command)
        said = "checkpoint not used: " in printed if number else "resuming at step" in printed
        right = status == 0 and said and "Traceback" not in printed and not differing(folder, here, job.outputs)
        return "as it should" if right else f"status {status}: {printed[-2000:]}"


def counted(kind: str, outcomes: list[tuple[str, str]], good: set[str]) -> None:
    """Print how often each outcome was seen; fail with all others."""
    print(
        f"{kind}: {len(outcomes)} files,", dict(collections.Counter(outcome.split(":")[0] for _, outcome in outcomes))
    )
    assert [(name, outcome) for name, outcome in outcomes if outcome not in good] == []


def suffix(name: str) -> str:
    """The kind of a file: the folder of its stage and the end of its name."""
    return f"{name.split('/')[2]} {Path(name).suffix}"


@pytest.mark.slow
def test_a_damaged_file_is_refused_by_the_stage_that_reads_it(pool, finished_project):
    draw = random.Random("damage")
    made = jobs(finished_project)
    pairs = [(job, name) for job in made for name in files_read(finished_project, job) if job.rule != "manifest"]
    pairs += [(job, name) for job in made if job.rule in LAST for name in documents(finished_project)]
    pairs = [(job, name) for job, name in pairs if name not in job.outputs]  # a job removes its own before it begins
    if not LONG:  # notebooks and reports take seconds each
        pairs = [(job, name) for job, name in pairs if not job.rule.startswith(("notebook", "report"))]
    draw.shuffle(pairs)
    by_kind = collections.defaultdict(list)
    for job, name in pairs:
        by_kind[job.rule, suffix(name)].append((job, name))
    rounds = [pair for i in range(max(map(len, by_kind.values()))) for of in by_kind.values() for pair in of[i : i + 1]]
    chosen = (rounds * (READ // len(rounds) + 1))[:READ]
    waiting = [
        (f"{job.rule} {name}", pool.submit(read_damaged, finished_project, job, name, number))
        for number, (job, name) in enumerate(chosen)
    ]
    outcomes = [(name, future.result()) for name, future in waiting]
    counted("read", outcomes, {"refused", "not used"})
    assert sum(outcome == "refused" for _, outcome in outcomes) > 0.8 * len(outcomes)


def documents(folder: Path) -> list[str]:
    """Pictures, pages and notebooks of the finished study."""
    kinds = ("*.png", "*.svg", "*.html", "*.ipynb")
    return sorted(str(path.relative_to(folder)) for kind in kinds for path in (folder / "results").rglob(kind))


@pytest.mark.slow
def test_any_damaged_file_of_a_finished_study_is_named(pool, finished_project):
    results = finished_project / "results/smoke"
    names = [
        str(path.relative_to(finished_project))
        for path in sorted(results.rglob("*"))
        if path.is_file() and path.relative_to(results).parts[0] not in ("logs", "benchmarks")
    ]
    random.Random("verify").shuffle(names)
    chosen = (names * (VERIFIED // len(names) + 1))[:VERIFIED]
    waiting = [(name, pool.submit(verify_damaged, finished_project, name, i)) for i, name in enumerate(chosen)]
    counted("verified", [(name, future.result()) for name, future in waiting], {"named"})


def stamps(folder: Path) -> dict[Path, tuple[int, int]]:
    """Size and time of every file of a study."""
    return {path: (path.stat().st_size, path.stat().st_mtime_ns) for path in folder.rglob("*") if path.is_file()}


@pytest.mark.slow
def test_what_a_job_does_in_a_linked_folder_leaves_the_shared_study_alone(pool, finished_project):
    """Other tests read that study; its logs were once written through links."""
    before = stamps(finished_project / "results")
    job = next(job for job in jobs(finished_project) if job.rule == "collate_trials")
    victim = next(name for name in job.inputs if "/planted/" in name)
    assert pool.submit(read_damaged, finished_project, job, victim, 0).result() == "refused"
    assert stamps(finished_project / "results") == before


@pytest.mark.slow
def test_a_training_does_not_go_on_from_a_damaged_checkpoint(pool, finished_project, killed_trainings):
    chosen = [killed_trainings[i % len(killed_trainings)] for i in range(RESUMED)]
    waiting = [
        (name, pool.submit(resume_damaged, finished_project, job, name, content, number))
        for number, (job, name, content) in enumerate(chosen)
    ]
    counted("resumed", [(name, future.result()) for name, future in waiting], {"as it should"})
