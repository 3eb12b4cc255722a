"""Command lines: one-line errors, readable progress, files fetched only if they are what was pinned."""

import argparse

import pytest

from crosscoders import stage
from crosscoders.data import wheels
from crosscoders.errors import UserError
from crosscoders.study.settings.models import Wheel

SIX = "8abb2f1d86890a2dfb989f9a77cfcfd3e47c2a354b01111771326f8aa26e0254"


def wheel(**changes) -> Wheel:
    content = {
        "kind": "wheel",
        "package": "six",
        "version": "1.16.0",
        "sha256": SIX,
        "file": "six.py",
        "licence": "MIT",
    }
    return Wheel.model_validate(content | changes)


@pytest.mark.network
def test_a_pinned_wheel_is_fetched_and_checked(tmp_path):
    assert "Benjamin Peterson" in wheels.wheel_file(wheel(), tmp_path).read_text()
    with pytest.raises(UserError, match=f"six==1.16.0: SHA-256 is {SIX}; expected 0000"):
        wheels.wheel_file(wheel(sha256="0" * 64), tmp_path)
    with pytest.raises(UserError, match=r"no file 'seven\.py' in the wheel"):
        wheels.wheel_file(wheel(file="seven.py"), tmp_path)
    with pytest.raises(UserError, match=r"six==0\.0\.0: cannot be downloaded"):
        wheels.wheel_file(wheel(version="0.0.0"), tmp_path)


def test_progress_is_whole_lines_with_rate_and_time_left(capsys, monkeypatch, tmp_path):
    clock = iter([0.0, 2.0, 6.0, 10.0, 20.0])
    monkeypatch.setattr(stage.time, "monotonic", lambda: next(clock))
    progress = stage.Progress("train x", 1000)
    progress.reach(100)  # done before an interruption: no part of the rate
    for done in (325, 550, 775, 1000):
        progress.reach(done, step=3, loss=0.12345, dead_fraction=0.5)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "train x   55%  step 3  loss 0.1235  dead fraction 0.5  75 tokens/s  0:06 left"
    assert len(lines) == 2
    assert lines[-1].startswith("train x  100%")


def test_bad_input_ends_with_one_line_and_status_1(capsys, tmp_path):
    def fail(_):
        raise UserError("file.nc: corrupt")

    arguments = argparse.Namespace(log=tmp_path / "logs" / "x.log", threads=0)
    with pytest.raises(SystemExit) as ended:
        stage.run(fail, arguments)
    stage._log.clear()
    assert ended.value.code == 1
    assert capsys.readouterr().err == "error: file.nc: corrupt\n"
    assert arguments.log.read_text() == "error: file.nc: corrupt\n"


def test_a_disk_that_fills_up_under_another_library_is_one_line(capsys, tmp_path):
    def fail(_):
        raise RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)")

    with pytest.raises(SystemExit):
        stage.run(fail, argparse.Namespace(log=None, threads=0, output=tmp_path / "models" / "provenance.json"))
    found = capsys.readouterr().err
    assert found.startswith(f"error: {tmp_path}/models/provenance.json: disk full: needs more space, ")
    assert len(found.splitlines()) == 1


def test_a_mistake_in_the_code_keeps_its_traceback():
    with pytest.raises(ZeroDivisionError):
        stage.run(lambda _: 1 / 0, argparse.Namespace(log=None, threads=0))
