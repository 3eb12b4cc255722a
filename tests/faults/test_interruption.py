"""An interrupted study says in one line that the same command continues, also while its jobs still import."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from crosscoders import __main__

ROOT = Path(__file__).parents[2]
STAGE = [sys.executable, "-m", "crosscoders", "language_models.fetch_model", "--settings", "{}", "--output", "x"]


def group(command: list[str], **options) -> subprocess.Popen:
    """A process in a group of its own, as a terminal starts one: a shell in the background would let it ignore Ctrl-C."""
    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        **options,
    )


def jobs(parent: int) -> list[str]:
    """Command lines of all processes of a group that run a stage."""
    lines = subprocess.run(["ps", "-eo", "pgid=,args="], capture_output=True, text=True, check=True).stdout.splitlines()
    mine = [line.split(maxsplit=1)[1] for line in lines if line.split()[0] == str(parent)]
    return [line for line in mine if line.startswith(("python -m crosscoders ", f"{sys.executable} -m crosscoders "))]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("seconds", [0.3, 0.8, 1.5])
def test_a_stage_that_still_imports_ends_with_one_line(number, seconds):
    process = group(STAGE, cwd=ROOT)
    time.sleep(seconds)
    process.send_signal(number)
    printed, _ = process.communicate(timeout=60)
    if "usage:" not in printed:  # else it had imported everything and read its arguments, which are none
        assert "Traceback" not in printed
        started = printed.strip() != "" or process.returncode == 130  # else Python itself had not started
        assert not started or printed.strip() == "language_models.fetch_model: interrupted; the same command continues"


CALLED_FROM_C = """
import ctypes, os, sys
from crosscoders import __main__
call = ctypes.CFUNCTYPE(None)(lambda: (os.kill(os.getpid(), {number}), sum(range(1000))))
__main__.runpy.run_module = lambda *_, **__: call()
sys.argv = ["crosscoders", "language_models.fetch_model"]
__main__.main()
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interruption_within_what_a_library_calls_from_c_is_one_line(number):
    """An exception that is raised there is lost, or aborts the process with lines of C++."""
    process = group([sys.executable, "-c", CALLED_FROM_C.format(number=int(number))], cwd=ROOT)
    printed, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    assert printed.strip() == "language_models.fetch_model: interrupted; the same command continues"


@pytest.mark.parametrize(("cause", "code"), [(KeyboardInterrupt(), 130), (ValueError(), None)])
def test_an_interruption_while_a_class_is_made_is_one_too(monkeypatch, capsys, cause, code):
    """Python 3.11 turns it into a RuntimeError; other errors stay what they are."""

    def run(*_, **__):
        raise RuntimeError("Error calling __set_name__") from cause

    monkeypatch.setattr(sys, "argv", ["crosscoders", "language_models.fetch_model"])
    monkeypatch.setattr(__main__.runpy, "run_module", run)
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        with pytest.raises(SystemExit if code else RuntimeError) as ended:
            __main__.main()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if code:
        assert ended.value.code == code
        assert capsys.readouterr().err.strip() == "language_models.fetch_model: interrupted; the same command continues"


@pytest.mark.slow
@pytest.mark.parametrize("seconds", [0.2, 2.0])
def test_an_interrupted_study_says_that_the_same_command_continues(tmp_path, seconds):
    (tmp_path / "studies").symlink_to(ROOT / "studies")
    command = ["snakemake", "--snakefile", str(ROOT / "Snakefile"), "--directory", str(tmp_path), "--cores", "2"]
    command += ["--workflow-profile", str(ROOT / "profiles/default"), "--configfile", str(ROOT / "studies/smoke.yaml")]
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    process = group(command, cwd=ROOT, env=environment)
    deadline = time.monotonic() + 120
    while not jobs(process.pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(seconds)
    os.killpg(process.pid, signal.SIGINT)
    printed, _ = process.communicate(timeout=120)
    assert process.returncode != 0
    assert "Traceback" not in printed
    assert "The same command continues where this run stopped." in printed
    assert jobs(process.pid) == []
