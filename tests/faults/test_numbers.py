"""Numbers that are not finite: a model that gives them, and trainings that diverge, end with a line; good checkpoints stay."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.faults.jobs import Job, jobs, linked, remove, replace, run
from tests.faults.kills import checkpoint_of

from crosscoders import storage


def spoiled(folder: Path, value: float) -> None:
    """Write a value into one weight of a model folder's second layer, and list the file as it is then."""
    weights = folder / "model.safetensors"
    tensors = load_file(weights)
    name = next(name for name in tensors if "layers.1." in name and "down_proj" in name)
    tensors[name][0, 0] = value
    content = storage.read_json(folder / storage.PROVENANCE)
    weights.unlink()
    save_file(tensors, weights, {"format": "pt"})
    content["files"][weights.name] = storage.sha256(weights)
    (folder / storage.PROVENANCE).unlink()
    storage.write_sealed_json(content, folder / storage.PROVENANCE)


@contextmanager
def spoiled_base(folder: Path, value: float) -> Iterator[Path]:
    """A finished study whose base model has a weight of the given value."""
    with linked(folder) as here:
        base = here / "results/smoke/models/base"
        for path in base.iterdir():
            replace(path, path.read_bytes())
        spoiled(base, value)
        yield here


def extracted(folder: Path, job: Job, value: float) -> tuple[int, str, bool]:
    """Extract activations of a model with a weight of the given value: status, output, whether there is a shard."""
    with spoiled_base(folder, value) as here:
        remove(here, job.outputs)
        status, printed = run(here, *job.command)
        return status, printed, (here / job.outputs[0]).exists()


@pytest.mark.slow
@pytest.mark.parametrize("value", [float("nan"), float("inf"), 3e38], ids=["NaN", "infinite", "overflow"])
def test_activations_that_are_not_finite_are_a_line(pool, finished_project, value):
    job = next(job for job in jobs(finished_project) if job.outputs[0].endswith("activations/cross-layer/test/000.nc"))
    status, printed, written = pool.submit(extracted, finished_project, job, value).result()
    assert status == 1 and not written, printed
    lines = [line for line in printed.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and "Traceback" not in printed
    assert "source 'layer-01': activation of token " in lines[0] and "is not finite" in lines[0], lines


def with_settings(job: Job, change: Callable[[dict], None]) -> list[str]:
    """The command of a job with other settings."""
    command = list(job.command)
    place = command.index("--settings") + 1
    settings = json.loads(command[place])
    change(settings)
    command[place] = json.dumps(settings)
    return command


def diverged(folder: Path, job: Job, kind: str) -> tuple[int, str, int]:
    """Run a training with far too large steps: status, output, and the step of the checkpoint that is left, else -1."""

    def grow(settings: dict) -> None:
        settings[kind]["training"] |= {
            "learning_rate": 1e12,
            "gradient_clip": 1e12,
            "checkpoint_steps": 1,
            "steps": 400,
        }
        settings[kind]["training"] |= {"warmup_steps": 390, "decay_share": 0.0}

    with linked(folder) as here:
        remove(here, job.outputs)
        status, printed = run(here, *with_settings(job, grow))
        path = here / checkpoint_of(job)
        if not path.exists():
            return status, printed, -1
        saved = torch.load(path, weights_only=True)
        finite = all(bool(torch.isfinite(value).all()) for value in saved["parameters"])
        return status, printed, saved["step"] if finite else -1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("rule", "kind", "section"),
    [("train_crosscoder", "crosscoder", "crosscoders."), ("train_aligned", "aligned", "aligned.")],
)
def test_a_training_that_diverges_is_a_line_and_its_last_good_checkpoint_stays(
    pool, finished_project, rule, kind, section
):
    job = next(job for job in jobs(finished_project) if job.rule == rule)
    status, printed, step = pool.submit(diverged, finished_project, job, kind).result()
    (line,) = (line for line in printed.splitlines() if line.startswith("error: "))
    assert status == 1 and "Traceback" not in printed
    assert line.startswith(f"error: {section}") and line.endswith("; expected a lower learning_rate"), line
    assert " is nan at step " in line or " is inf at step " in line
    assert step == int(line.split(" at step ")[1].split(";")[0]), "the checkpoint is of the state before that step"


def fine_tuned(folder: Path, job: Job) -> tuple[int, str]:
    """Fine-tune a model one of whose weights is infinite."""
    with spoiled_base(folder, float("inf")) as here:
        remove(here, job.outputs)
        return run(here, *job.command)


@pytest.mark.slow
def test_a_fine_tune_that_diverges_is_a_line(pool, finished_project):
    job = next(job for job in jobs(finished_project) if job.rule == "fine_tune")
    status, printed = pool.submit(fine_tuned, finished_project, job).result()
    (line,) = (line for line in printed.splitlines() if line.startswith("error: "))
    assert status == 1 and "Traceback" not in printed
    assert line.startswith("error: models.chat: the ") and " at step " in line
