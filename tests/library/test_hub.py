"""Crosscoders pushed to and read from the hub, with a stand-in of it at the boundary of the network."""

import subprocess
import sys

import pytest
from tests import project
from tests.formats.test_formats import portable
from tests.library import hub

from crosscoders.formats import recognise


@pytest.fixture
def stand_in(tmp_path):
    with hub.running() as (address, repos):
        variables = project.ENVIRONMENT | {
            "HF_ENDPOINT": address,
            "HF_HUB_OFFLINE": "0",
            "HF_HOME": str(tmp_path / "home"),
            "HF_TOKEN": "secret",
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "OMP_NUM_THREADS": "1",
            "NO_PROXY": "127.0.0.1",
        }
        yield variables, repos


def command(variables, *arguments) -> subprocess.CompletedProcess:
    run = [sys.executable, "-m", "crosscoders.cli", *map(str, arguments)]
    return subprocess.run(run, env=variables, capture_output=True, text=True)


def python(variables, code: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-c", code], env=variables, capture_output=True, text=True)


READ = """
import torch, crosscoders
coder = crosscoders.from_hub({repo!r}, {revision!r})
print(coder, float(coder.encode({{name: torch.ones(1, 12) for name in coder.sources}}).sum()))
"""


def test_a_crosscoder_is_pushed_with_a_card_and_read_again_by_its_revision(member, tmp_path, stand_in):
    variables, repos = stand_in
    made = portable(member, "batchtopk")
    recognise.write(made, tmp_path / "study", "netcdf")
    done = command(variables, "push", tmp_path / "study/crosscoder.nc", "me/mine", "--licence", "mit")
    assert done.returncode == 0, done.stderr[-2000:]
    (revision,) = repos["me/mine"]
    assert done.stdout == f"me/mine@{revision}: pushed as crosscoder_learning\n"
    files = repos["me/mine"][revision]
    assert sorted(files) == ["README.md", "config.json", "model.safetensors"]
    recognise.write(made, tmp_path / "expected", "crosscoder_learning")
    assert files["model.safetensors"] == (tmp_path / "expected/model.safetensors").read_bytes()
    card = files["README.md"].decode()
    assert card.startswith("---\nlicense: mit\nlibrary_name: crosscoders\ntags:\n- crosscoder\n")
    assert "A crosscoder of 24 latents (batchtopk, k = 4) over 2 sources" in card
    assert "| chat | 12 | 21 |" in card and 'crosscoders.from_hub("me/mine"' in card
    read = python(variables, READ.format(repo="me/mine", revision=revision))
    assert read.returncode == 0, read.stderr[-2000:]
    assert read.stdout.startswith(
        "<crosscoder of 24 latents, batchtopk of 4; base (12), chat (12); crosscoder_learning>"
    )


def test_a_hub_that_refuses_or_lacks_something_is_one_line(member, tmp_path, stand_in):
    variables, repos = stand_in
    recognise.write(portable(member, "topk"), tmp_path / "study", "netcdf")
    path = tmp_path / "study/crosscoder.nc"
    done = command(variables, "push", path, "me/mine")
    assert done.stderr.startswith("error: crosscoder_learning cannot express the activation 'topk'")
    assert not repos
    done = command(variables | {"HF_TOKEN": "wrong"}, "push", path, "me/mine", "--format", "sparsify")
    assert done.stderr.startswith("error: me/mine: cannot be pushed to the hub (") and done.stderr.count("\n") == 1
    for revision, expected in (("0" * 40, "cannot be fetched from the hub"), ("main", "branches and tags move")):
        read = python(variables, READ.format(repo="me/mine", revision=revision))
        assert expected in read.stderr.splitlines()[-1]
        assert "UserError" in read.stderr.splitlines()[-1]


@pytest.mark.slow
def test_the_card_of_a_studys_crosscoder_shows_what_was_measured(finished_project):
    from crosscoders.library import card

    path = finished_project / "results/smoke/crosscoders/base-vs-chat/batchtopk/seed-0.nc"
    evaluation = card.measured(path)
    text = card.text(recognise.read(path), evaluation, "me/mine", "netcdf")
    explained = float(evaluation["fraction_variance_explained"].sel(source="chat"))
    assert f"| chat | {explained:.4f} | " in text
    assert "study `smoke`, setting `base-vs-chat`" in text and "license" not in text
