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


def run(variables, code: str) -> list[str]:
    """What a process prints, in which the hub's client knows the stand-in alone."""
    done = subprocess.run([sys.executable, "-c", code], env=variables, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.splitlines()


PUSHED = """
import contextlib, io, crosscoders
from crosscoders import cli
with contextlib.redirect_stdout(io.StringIO()) as said:
    cli.main(["push", {path!r}, "me/mine", "--licence", "mit"])
print(said.getvalue().strip())
print(crosscoders.from_hub("me/mine", said.getvalue()[8:48]))
"""
REFUSED = """
import crosscoders
from crosscoders import cli
from crosscoders.errors import UserError
for arguments in (["me/mine"], ["me/mine", "--format", "sparsify"]):
    try:
        cli.main(["push", {path!r}, *arguments])
    except SystemExit as end:
        print(end)
for revision in ("0" * 40, "main"):
    try:
        crosscoders.from_hub("me/mine", revision)
    except UserError as error:
        print(error)
"""


def test_a_crosscoder_is_pushed_with_a_card_and_read_again_by_its_revision(member, tmp_path, stand_in):
    variables, repos = stand_in
    made = portable(member, "batchtopk")
    recognise.write(made, tmp_path / "study", "netcdf")
    said, shown = run(variables, PUSHED.format(path=str(tmp_path / "study/crosscoder.nc")))
    (revision,) = repos["me/mine"]
    assert said == f"me/mine@{revision}: pushed as crosscoder_learning"
    assert shown == "<crosscoder of 24 latents, batchtopk of 4; base (12), chat (12); crosscoder_learning>"
    files = repos["me/mine"][revision]
    assert sorted(files) == ["README.md", "config.json", "model.safetensors"]
    recognise.write(made, tmp_path / "expected", "crosscoder_learning")
    assert files["model.safetensors"] == (tmp_path / "expected/model.safetensors").read_bytes()
    card = files["README.md"].decode()
    assert card.startswith("---\nlicense: mit\nlibrary_name: crosscoders\ntags:\n- crosscoder\n")
    assert "A crosscoder of 24 latents (batchtopk, k = 4) over 2 sources" in card
    assert "| chat | 12 | 21 |" in card and 'crosscoders.from_hub("me/mine"' in card


def test_a_hub_that_refuses_or_lacks_something_is_one_line(member, tmp_path, stand_in):
    variables, repos = stand_in
    recognise.write(portable(member, "topk"), tmp_path / "study", "netcdf")
    code = REFUSED.format(path=str(tmp_path / "study/crosscoder.nc"))
    lines = run(variables | {"HF_TOKEN": "wrong"}, code)
    assert lines[0].startswith("error: crosscoder_learning cannot express the activation 'topk'")
    assert lines[1].startswith("error: me/mine: cannot be pushed to the hub (")
    assert lines[2].startswith(f"me/mine@{'0' * 40}: cannot be fetched from the hub (")
    assert lines[3].startswith("revision: 'main'; expected a commit hash") and len(lines) == 4
    assert not repos


@pytest.mark.slow
def test_the_card_of_a_studys_crosscoder_shows_what_was_measured(finished_project):
    from crosscoders.library import card

    path = finished_project / "results/smoke/crosscoders/base-vs-chat/batchtopk/seed-0.nc"
    evaluation = card.measured(path)
    text = card.text(recognise.read(path), evaluation, "me/mine", "netcdf")
    explained = float(evaluation["fraction_variance_explained"].sel(source="chat"))
    assert f"| chat | {explained:.4f} | " in text
    assert "study `smoke`, setting `base-vs-chat`" in text and "license" not in text
