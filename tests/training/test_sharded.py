"""Several processes train what one trains: the same steps, checkpoints and files, and one line where one is lost."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from multiprocessing import forkserver
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr
from tests.activations.test_dataset import fitted, written
from tests.project import ROOT, small_study
from tests.training import meshes

from crosscoders import artifacts
from crosscoders.crosscoder import crosscoder
from crosscoders.errors import UserError
from crosscoders.kernels import ranking
from crosscoders.kernels.mesh import ALONE, dealt
from crosscoders.study import loading
from crosscoders.study.settings.crosscoders import Training
from crosscoders.training import processes


@pytest.fixture(scope="module", autouse=True)
def _started_fast():
    """Processes are copies of one that has loaded torch, and run the sources of this project."""
    forkserver._forkserver._stop()  # one that runs already may have other sources
    meshes.PROCESS.set_forkserver_preload(["tests.training.meshes"])
    with pytest.MonkeyPatch.context() as changes:
        changes.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), str(ROOT / "src")]))
        forkserver.ensure_running()


@pytest.fixture(autouse=True)
def _without_gradients():
    torch.set_grad_enabled(False)


def assert_close(found, expected, at="", tolerance=1e-10):
    """Equality of checkpoints: of tensors to 1e-10 of their norm, of numbers to 1e-10 of them or of one."""
    if isinstance(expected, dict):
        assert found.keys() == expected.keys(), at
        for key, value in expected.items():
            assert_close(found[key], value, f"{at}/{key}", tolerance)
    elif isinstance(expected, list):
        assert len(found) == len(expected), at
        for number, (a, b) in enumerate(zip(found, expected, strict=True)):
            assert_close(a, b, f"{at}/{number}", tolerance)
    elif isinstance(expected, torch.Tensor):
        assert found.shape == expected.shape and found.dtype == expected.dtype, at
        assert (found.double() - expected.double()).norm() <= tolerance * expected.double().norm(), at
    else:
        assert found == pytest.approx(expected, rel=tolerance, abs=tolerance), at


@pytest.fixture(scope="module")
def alone():
    """Every member, trained by one process."""
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    return meshes.states(ALONE, list(meshes.MEMBERS), meshes.STEPS)


def assert_formula(name: str, ranks: int, replicas: int, one: dict) -> None:
    """Bytes by purpose are those of the formula of docs/sharding.md, and further ones only where it says so."""
    sent, fallbacks = dict(one["sent"]), sum(each["fallbacks"] for each in one["state"]["selections"])
    revived = sum(share > 0 for share in one["state"]["history"]["dead_fraction"])
    auxiliary = sent.pop("auxiliary", 0)
    assert (auxiliary > 0) == (revived > 0 and ranks > 1 and not name.startswith("aligned"))
    expected = {purpose: meshes.STEPS * size for purpose, size in one["formula"].items()}
    if "selection" in expected:
        expected["selection"] += 8 * fallbacks
    assert sent == expected
    tokens, width = meshes.TOKENS // replicas, sum(meshes.MEMBERS[name][3].values())
    levels = {"nested": 2, "delta": 2}.get(name, len(meshes.MEMBERS[name][3]) if name.startswith("aligned") else 1)
    assert one["formula"].get("reconstruction", 0) == (ranks > 1) * 8 * levels * tokens * width


@pytest.mark.parametrize(("ranks", "replicas"), [(2, 1), (4, 1), (2, 2)])
def test_every_member_takes_the_steps_of_one_process(alone, ranks, replicas):
    """With masks, ties, penalties, learned thresholds and dead latents that are revived."""
    found = meshes.on_mesh(ranks, replicas, meshes.states, list(meshes.MEMBERS), meshes.STEPS)
    for name, one in found.items():
        assert_close(one["state"], alone[name]["state"], name)
        assert_formula(name, ranks, replicas, one)
    revived = [name for name, one in alone.items() if max(one["state"]["history"]["dead_fraction"]) > 0]
    assert len(revived) > 4


@pytest.mark.parametrize("ranks", [2, 4])
def test_a_long_training_is_that_of_one_process(ranks):
    names = ["batchtopk"]
    found = meshes.on_mesh(ranks, 1, meshes.states, names, 150)
    for name, one in meshes.states(ALONE, names, 150).items():
        assert_close(found[name]["state"], one["state"], name)


def test_a_checkpoint_of_two_ranks_goes_on_with_any_number(alone):
    saved = meshes.on_mesh(2, 1, meshes.stopped)
    assert_close(saved, meshes.stopped(ALONE))
    expected = [alone[name]["state"] for name in meshes.RESUMED]
    assert_close(meshes.resumed(ALONE, saved), expected)
    assert_close(meshes.on_mesh(4, 1, meshes.resumed, saved), expected)


def test_a_training_on_a_window_is_that_of_one_process():
    """Ranks and replicas hand their state from one segment to the next; in float32, as files hold it."""
    expected = meshes.on_a_window(ALONE, ["batchtopk", "l1", "dedicated"])
    for ranks, replicas in ((2, 1), (1, 2)):
        found = meshes.on_mesh(ranks, replicas, meshes.on_a_window, list(expected))
        assert_close(found, expected, tolerance=1e-4)
    steps = {name: state["step"] for name, state in expected.items()}
    assert set(steps.values()) == {meshes.STEPS}


def test_thresholds_of_blocks_are_those_of_one_process():
    expected = meshes.thresholds(ALONE, "delta")
    assert len(expected) == 28 and len(expected.unique()) == 2
    assert_close(meshes.on_mesh(2, 1, meshes.thresholds, "delta"), expected)


def test_of_equal_scores_the_same_are_kept_as_by_one_process():
    cases = [(kind, k, groups) for kind in ("batch", "token") for k in (3, 20) for groups in ([28], [5, 12, 11])]
    for ranks, replicas in ((4, 1), (2, 2)):
        found = meshes.on_mesh(ranks, replicas, meshes.ranked_often, cases)
        for case, one in zip(cases, found, strict=True):
            assert torch.equal(one, meshes.ranked(ALONE, *case)), case


def test_the_search_by_digits_finds_what_sorting_finds():
    scores = torch.randn(5000, generator=torch.Generator().manual_seed(1)).abs()
    keep, threshold = ranking.largest_together(scores, lambda: torch.arange(5000), 77, ALONE)
    assert threshold == float(scores.sort(descending=True).values[76])
    assert int(keep.sum()) == 77 and scores[keep].min() == threshold


@pytest.mark.parametrize("widths", [[5, 5], [5, 8]])
def test_initial_weights_are_those_that_one_process_draws(monkeypatch, widths):
    whole = crosscoder.initial_directions(100, widths, 3, 0.5)
    monkeypatch.setattr(crosscoder, "DRAWN_ROWS", 16)
    for rank in range(3):
        own = dealt([60, 40], 3, rank)
        assert torch.equal(crosscoder.initial_directions(100, widths, 3, 0.5, own=own), whole[own])
    assert torch.equal(torch.cat([dealt([60, 40], 3, rank) for rank in range(3)]).sort().values, torch.arange(100))


def test_kernels_for_a_gpu_train_over_ranks_as_well(alone):
    """Through Triton's interpreter where there is no GPU."""
    pytest.importorskip("triton")
    found = meshes.on_mesh(2, 1, meshes.steps_of_triton, "batchtopk", 4)
    one = meshes.trained("batchtopk", meshes.STEPS, ALONE, until=4).to_dict()
    assert_close(found, one, "triton")


# -- the stage ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict[str, list[Path]]:
    """Activations of two sources and their normalisation."""
    folder = tmp_path_factory.mktemp("activations")
    shards = written(folder, 6, 6)
    artifacts.write(fitted(shards), folder / "normalisation.nc")
    return {"activations": shards, "validation": shards[1:], "normalisation": [folder / "normalisation.nc"]}


def command(files: dict[str, list[Path]], folder: Path, device: str = "cpu", **training) -> list[str]:
    """The command of a training, with its outputs and log in a folder."""
    options = meshes.recipe("dedicated", 100).settings.model_dump(mode="json")
    text = json.dumps(options).replace('"p"', '"base"').replace('"q"', '"chat"')
    options = json.loads(text) | {"sources": None}
    options["training"] |= {"checkpoint_steps": 10} | training
    names = {"study": "s", "setting_name": "pair", "crosscoder_name": "dedicated", "seed": 0}
    section = names | {"device": device, "sources": ["base", "chat"], "null": None, "crosscoder": options}
    outputs = {"output": "seed-0.nc", "history": "seed-0.history.nc", "log": "seed-0.log"}
    paths = files | {flag: [folder / name] for flag, name in outputs.items()}
    made = [sys.executable, "-m", "crosscoders", "training.train_crosscoder", "--settings", json.dumps(section)]
    return made + [text for flag, values in paths.items() for text in (f"--{flag}", *map(str, values))]


def run(made: list[str]) -> subprocess.CompletedProcess:
    return subprocess.run(made, cwd=ROOT, capture_output=True, text=True, timeout=120)


@pytest.fixture(scope="module")
def two(files, tmp_path_factory) -> tuple[Path, str]:
    """The folder of a training by two ranks that nothing has disturbed, and what it printed."""
    folder = tmp_path_factory.mktemp("two")
    done = run(command(files, folder, ranks=2))
    assert done.returncode == 0, done.stderr
    return folder, done.stdout + done.stderr


def assert_same_form(one: xr.Dataset, other: xr.Dataset) -> None:
    """Files of trainings by other numbers of processes differ by rounding, and in the settings that they state."""
    assert list(one.variables) == list(other.variables) and one.sizes == other.sizes
    assert {key for key in one.attrs if one.attrs[key] != other.attrs[key]} == {"settings"}
    for key in one.data_vars:
        assert one[key].attrs == other[key].attrs and one[key].dtype == other[key].dtype
        np.testing.assert_allclose(one[key], other[key], rtol=1e-3, atol=1e-5, err_msg=key)


def test_a_stage_of_two_ranks_writes_the_file_of_one(files, two, tmp_path):
    folder, printed = two
    assert run(command(files, tmp_path)).returncode == 0
    for name in ("seed-0.nc", "seed-0.history.nc"):
        one, other = artifacts.read(tmp_path / name), artifacts.read(folder / name)
        assert_same_form(one, other)
    assert json.loads(one.attrs["settings"])["crosscoder"]["training"].keys().isdisjoint({"ranks", "replicas"})
    assert json.loads(other.attrs["settings"])["crosscoder"]["training"]["ranks"] == 2
    assert (folder / "seed-0.log").read_text() == printed, "there is one log, and the first process alone prints"
    assert printed.count("kernels by") == 1
    assert "2 ranks × 1 replicas, " in printed and "by the formula of docs/sharding.md" in printed
    assert not list(folder.glob("*.checkpoint"))


def rank_of(process: int) -> str | None:
    """The rank of a process, by its environment."""
    variables = Path(f"/proc/{process}/environ").read_bytes().split(b"\0")
    return next((text[5:].decode() for text in variables if text.startswith(b"RANK=")), None)


def children(process: int) -> list[int]:
    lines = subprocess.run(["ps", "-eo", "ppid=,pid="], capture_output=True, text=True, check=True).stdout.splitlines()
    return [int(pid) for parent, pid in map(str.split, lines) if int(parent) == process]


def killed(made: list[str], folder: Path, victim: str) -> tuple[int, list[str]]:
    """Kill a rank, or the stage itself, once there is a checkpoint; the status, and what was printed of errors."""
    process = subprocess.Popen(made, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    while process.poll() is None and not (list(folder.glob("seed-0.checkpoint")) and len(children(process.pid)) == 2):
        time.sleep(0.001)
    ranks = {rank_of(child): child for child in children(process.pid)}
    os.kill(process.pid if victim == "stage" else ranks[victim], signal.SIGKILL)
    printed, _ = process.communicate(timeout=60)
    deadline = time.monotonic() + 20
    while any(Path(f"/proc/{rank}").exists() for rank in ranks.values()) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not any(Path(f"/proc/{rank}").exists() for rank in ranks.values()), "no process is left behind"
    return process.returncode, [line for line in printed.splitlines() if "kernels by" not in line]


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="finds ranks in /proc")
def test_a_lost_process_ends_the_job_with_one_line_and_the_same_command_goes_on(files, two, tmp_path):
    """Also after the stage itself was killed, with which its ranks end, and also by one process."""
    made = command(files, tmp_path, ranks=2)
    lost = "error: rank 1 of 2 was ended by SIGKILL; the same command continues from the last checkpoint"
    assert killed(made, tmp_path, "1") == (1, [lost])
    assert killed(made, tmp_path, "stage")[0] == -signal.SIGKILL
    other = tmp_path / "one"
    other.mkdir()
    shutil.copy(tmp_path / "seed-0.checkpoint", other)
    for again in (made, command(files, other)):
        done = run(again)
        assert done.returncode == 0 and "resuming at step" in done.stderr
    for name in ("seed-0.nc", "seed-0.history.nc"):
        assert (tmp_path / name).read_bytes() == (two[0] / name).read_bytes()
        assert_same_form(artifacts.read(other / name), artifacts.read(two[0] / name))


def test_divergence_of_many_ranks_is_one_line(files, tmp_path):
    done = run(command(files, tmp_path, ranks=2, learning_rate=1e11, gradient_clip=1e11))
    assert done.returncode == 1
    errors = [line for line in (done.stdout + done.stderr).splitlines() if "kernels by" not in line]
    assert len(errors) == 1
    assert errors[0].startswith("error: crosscoders.dedicated: the ") and errors[0].endswith("lower learning_rate")


def test_bad_numbers_of_processes_are_one_line_each(monkeypatch):
    def problem(**training) -> str:
        study = small_study("sharded")
        member = study["crosscoders"]["batchtopk"]
        blocks = (
            {"few": {"share": 3 / 128}, "most": {"share": 125 / 128}}
            if training.get("ranks") == 4
            else member["blocks"]
        )
        changed = member | {"blocks": blocks, "training": member["training"] | training}
        with pytest.raises(UserError) as caught:
            loading.check(study | {"crosscoders": {"batchtopk": changed}}, Path("study.yaml"), {})
        return str(caught.value)

    at = "study.yaml: crosscoders.batchtopk.training"
    assert problem(ranks=3) == f"{at}.ranks: 3; expected a divisor of latents = 128"
    assert problem(replicas=3) == f"{at}.replicas: 3; expected a divisor of batch_tokens = 256"
    assert "training.ranks: 4; expected at most 3, the latents of the smallest group of a block" in problem(ranks=4)
    assert "ranks" in problem(ranks=0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    training = meshes.recipe("l1", 10).settings.training.model_copy(update={"ranks": 2})
    section = type("Section", (), {"device": "cuda", "stage": "train_crosscoder"})
    with pytest.raises(UserError, match=r"training.ranks: 2 × replicas 1 need a GPU each; this machine has 1"):
        processes.run(None, training, section, lambda mesh: None)


def test_torchrun_must_start_as_many_processes_as_are_asked_for(monkeypatch):
    training = meshes.recipe("l1", 10).settings.training.model_copy(update={"ranks": 2})
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "4")
    section = type("Section", (), {"device": "cpu"})
    with pytest.raises(UserError, match=r"training.ranks: 2 × replicas 1: 4 processes were started; expected 2"):
        processes.run(None, training, section, lambda mesh: None)


def test_one_process_leaves_no_trace_in_settings():
    training = meshes.recipe("l1", 10).settings.training
    assert training.model_dump().keys().isdisjoint({"ranks", "replicas"})
    assert Training.model_validate(training.model_dump() | {"ranks": 2}).model_dump()["ranks"] == 2
