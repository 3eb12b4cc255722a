"""Trackers see what a training does, and change no byte of it."""

import json
import struct
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from tests.project import ENVIRONMENT, ROOT

from crosscoders import artifacts, cli
from crosscoders.study import loading
from crosscoders.study.queries import trainings
from crosscoders.training import trackers
from crosscoders.workflow import plan, sections

STEPS = 60
TRAINED = "crosscoders/base-vs-chat/batchtopk/seed-0.nc"
LABEL = "crosscoders/base-vs-chat/batchtopk/seed-0"


def trained(project: Path, folder: Path, followed: dict, **variables: str) -> tuple[Path, str]:
    """Train the smoke study's crosscoder of two models once more, as the workflow does; the study's folder and the log."""
    done, results = project / "results/smoke", folder / "results/smoke"
    settings = sections.section(
        loading.load("studies/smoke.yaml"), "train_crosscoder", setting="base-vs-chat", crosscoder="batchtopk", seed="0"
    )
    files = {"output": results / TRAINED, "history": results / TRAINED.replace(".nc", ".history.nc")}
    lists = {
        split: sorted((done / "activations/base-vs-chat" / name).iterdir())
        for split, name in (("activations", "train"), ("validation", "validation"))
    }
    command = [
        sys.executable,
        "-m",
        "crosscoders",
        "training.train_crosscoder",
        "--settings",
        settings,
        "--threads",
        "1",
    ]
    command += ["--normalisation", str(done / "activations/base-vs-chat/normalisation.nc")]
    for name, paths in lists.items():
        command += [f"--{name}", *map(str, paths)]
    for name, path in files.items():
        command += [f"--{name}", str(path)]
    environment = ENVIRONMENT | {"PYTHONPATH": str(project / "src"), "CROSSCODERS_TRACKERS": json.dumps(followed)}
    environment["GLIBC_TUNABLES"] = "glibc.malloc.hugetlb=1"
    run = subprocess.run(command, cwd=project, env=environment | variables, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return results, run.stderr


@pytest.mark.slow
def test_tensorboard_shows_every_step_and_changes_no_byte(finished_project, tmp_path, monkeypatch):
    accumulator = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator", reason="needs the extra `tensorboard`"
    )
    monkeypatch.chdir(finished_project)
    results, _ = trained(finished_project, tmp_path, {"crosscoders.batchtopk": ["tensorboard"]})
    assert (results / TRAINED).read_bytes() == (finished_project / "results/smoke" / TRAINED).read_bytes()
    events = accumulator.EventAccumulator(str(results / "trackers/tensorboard" / LABEL)).Reload()
    history = artifacts.read(results / TRAINED.replace(".nc", ".history.nc"))
    for name, key in (
        ("loss", "loss"),
        ("l0", "l0"),
        ("dead_share", "dead_fraction"),
        ("learning_rate", "learning_rate"),
    ):
        shown = events.Scalars(name)
        assert [one.step for one in shown] == list(range(1, STEPS + 1))
        np.testing.assert_allclose([one.value for one in shown], history[key].values, rtol=1e-6)
    for s, source in enumerate(history["source"].values):
        shown = [one.value for one in events.Scalars(f"fve/{source}")]
        np.testing.assert_allclose(shown, 1 - history["normalised_error"].values[:, s], atol=1e-6)


@pytest.mark.slow
def test_wandb_writes_a_run_and_sends_nothing(finished_project, tmp_path, monkeypatch):
    pytest.importorskip("wandb", reason="needs the extra `wandb`")
    monkeypatch.chdir(finished_project)
    given = {"crosscoders.batchtopk": ["wandb"]}
    results, _ = trained(finished_project, tmp_path, given, WANDB_BASE_URL="http://127.0.0.1:9", WANDB_API_KEY="k" * 40)
    assert (results / TRAINED).read_bytes() == (finished_project / "results/smoke" / TRAINED).read_bytes()
    (run,) = (results / "trackers/wandb" / LABEL / "wandb").glob("offline-run-*")
    rows = wandb_rows(next(run.glob("*.wandb")))
    history = artifacts.read(results / TRAINED.replace(".nc", ".history.nc"))
    assert [row["_step"] for row in rows] == list(range(1, STEPS + 1))
    np.testing.assert_allclose([row["loss"] for row in rows], history["loss"].values, rtol=1e-6)
    assert {"fve", "fve/base", "l0", "dead_share", "learning_rate"} <= rows[0].keys()


def wandb_rows(path: Path) -> list[dict]:
    """The rows in a run's file: a log as LevelDB writes it, of records in protocol buffers."""
    from wandb.proto import wandb_internal_pb2

    content, place, piece, rows = path.read_bytes(), 7, b"", []
    while place + 7 <= len(content):
        if (left := 32768 - place % 32768) < 7:  # no header begins in the last bytes of a block
            place += left
            continue
        _, length, kind = struct.unpack_from("<IHB", content, place)
        piece += content[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or the last part
            record = wandb_internal_pb2.Record.FromString(piece)
            items = record.history.item
            if items:
                rows.append({item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items})
            piece = b""
    return rows


def test_a_tracker_is_in_no_jobs_settings_and_a_missing_one_is_a_line(tmp_path, monkeypatch, capsys):
    study = tmp_path / "trackers.yaml"
    study.write_text("crosscoders:\n  l1:\n    training: {trackers: [wandb, tensorboard]}\n")
    monkeypatch.chdir(ROOT)
    without, followed = loading.load("studies/smoke.yaml"), loading.load("studies/smoke.yaml", study)
    assert trainings.trackers(followed) == {"crosscoders.l1": ["wandb", "tensorboard"]}
    for job in plan.jobs(followed):
        if job.rule in sections.SECTIONS:
            assert sections.section(followed, job.rule, **dict(job.wildcards)) == sections.section(
                without, job.rule, **dict(job.wildcards)
            )
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    cli.main(["check", "studies/smoke.yaml", str(study)])
    lines = [line for line in capsys.readouterr().out.splitlines() if "trackers" in line]
    expected = "warning: crosscoders.l1.training.trackers: {} is not installed, so it follows no training"
    assert [line.startswith(expected.format(name)) for name, line in zip(("wandb", "tensorboard"), lines, strict=True)]


def test_an_error_of_a_tracker_ends_no_training(tmp_path, monkeypatch, capsys):
    class Broken:
        def __init__(self, *_):
            raise OSError("no network")

    monkeypatch.setitem(trackers.KINDS, "wandb", Broken)
    monkeypatch.setattr(trackers, "figures", lambda state: {"loss": 1.0})
    with trackers.Trackers({"wandb": tmp_path}, "study/one/seed-0", 5) as followed:
        for step in range(1, 6):
            followed.follow(SimpleNamespace(step=step))
    assert capsys.readouterr().err == "wandb: study/one/seed-0 is no longer followed (no network)\n"
