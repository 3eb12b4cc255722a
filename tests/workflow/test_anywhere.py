"""The workflow in unkind places: odd folders, started elsewhere, an environment not activated, no home, an ASCII locale."""

import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import xarray as xr
import yaml
from tests.project import ROOT, copy, small_study

NAMED = ("HOME", "XDG_CACHE_HOME", "IPYTHONDIR", "MPLCONFIGDIR", "HF_HOME", "LANG")
UNKIND = {"HOME": "/dev/null/home", "LC_ALL": "C", "PYTHONIOENCODING": "ascii"}


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """A copy of the project, a small planted study, and a folder to work in, all with spaces and other letters."""
    folder = tmp_path_factory.mktemp("any") / "ü ber 'all'"
    project, study, here = folder / "the pröject", folder / "my study", folder / "wörk here"
    for made in (study, here):
        made.mkdir(parents=True)
    copy(project)
    text = yaml.safe_dump(small_study("small"), sort_keys=False)
    (study / "ä.yaml").write_text(text, encoding="utf-8")
    return project, study / "ä.yaml", here


def snakemake(places, *arguments, **variables):
    """Run Snakemake from the working folder, on the project and the study elsewhere."""
    project, study, here = places
    environment = {name: value for name, value in os.environ.items() if name not in NAMED} | UNKIND | variables
    environment["PYTHONPATH"] = str(project / "src")
    activated, others = Path(sys.executable).parent, os.environ["PATH"].split(os.pathsep)
    environment["PATH"] = os.pathsep.join(folder for folder in others if Path(folder) != activated)
    command = [sys.executable, "-m", "snakemake", "--cores", "2", "-s", project / "Snakefile", "-d", here]
    command += ["--configfile", study, *arguments]
    done = subprocess.run(command, cwd=here, env=environment, capture_output=True, encoding="utf-8", errors="replace")
    return done.returncode, done.stdout + done.stderr


@pytest.fixture(scope="module")
def finished(places):
    """The study, made with neither a home nor a terminal that shows its letters."""
    code, output = snakemake(places)
    assert code == 0, output[-6000:]
    assert "Traceback" not in output
    return places


def test_a_study_is_made_in_folders_with_spaces_and_other_letters(finished):
    project, _, here = finished
    results = here / "results/small"
    for name in ("report.html", "manifest.json", "notebooks/planted-pair.html", "planted/pair/batchtopk/seed-0.nc"):
        assert (results / name).is_file(), name
    assert (results / "logs/trial/pair/batchtopk/seed-0.log").is_file()
    assert not (project / "results").exists() and not (project / ".snakemake").exists()
    with xr.open_dataset(results / "summary/pair.nc") as summary:
        assert summary.attrs["commit"] == "unknown"


@pytest.mark.parametrize("variables", [{}, {"HOME": "/proc/1/nonexistent"}, {"LC_ALL": "C.UTF-8"}], ids=str)
def test_a_finished_study_has_nothing_to_do_elsewhere(finished, variables):
    code, output = snakemake(finished, "-n", **variables)
    assert code == 0 and "Nothing to be done" in output and "Traceback" not in output, output


def test_an_encoding_without_the_letters_of_the_folder_is_no_obstacle(places):
    code, output = snakemake(places, "-n", PYTHONUTF8="0")
    assert code == 0 and "This was a dry-run" in output and "Traceback" not in output, output


def test_no_folder_is_left_behind(finished, tmp_path):
    code, _ = snakemake(finished, "-n", TMPDIR=str(tmp_path))
    assert code == 0 and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("file", "rules"),
    [
        ("src/crosscoders/planted/trial.py", {"trial", "collate_trials", "report"}),
        ("notebooks/planted.ipynb", {"notebook_pair", "html", "report"}),
    ],
)
def test_an_edit_of_code_or_notebook_elsewhere_reruns_what_it_can_change(finished, file, rules):
    path = finished[0] / file
    original = path.read_bytes()
    path.write_bytes(original + b"\n")
    try:
        _, output = snakemake(finished, "-n", "--quiet", "rules")
    finally:
        path.write_bytes(original)
    planned = set(re.findall(r"^(\w+) +\d+$", output, re.MULTILINE)) - {"total", "all"}
    assert rules <= planned, output
    assert "trial" in rules or "trial" not in planned


def test_make_quotes_the_folder(places):
    project = places[0]
    done = subprocess.run(
        ["make", "-n", "--no-print-directory", "study", "CONFIG=my study.yaml", "UV="],
        cwd=project,
        env={name: value for name, value in os.environ.items() if not name.startswith("MAKE") and name != "MFLAGS"},
        capture_output=True,
        encoding="utf-8",
    )
    assert done.returncode == 0
    for line in done.stdout.replace("\\\n", " ").splitlines():
        assert str(project) not in re.sub(r'"[^"]*"', "", line), line
    assert 'snakemake --cores all --configfile "my study.yaml"' in done.stdout


# -- the lock ----------------------------------------------------------------------------------------------------------


def locked(name):
    """Names of a lock, lower case, with version and number of hashes."""
    found = {}
    for entry in (ROOT / "envs" / name).read_text(encoding="utf-8").replace("\\\n", " ").splitlines():
        if entry.strip() and not entry.startswith("#"):
            package, version = re.match(r"([\w.-]+)(?:\[.*\])?==([\w.]+)", entry).groups()
            found.setdefault(package.lower(), []).append((version, entry.count("--hash=sha256:")))
    return found


def test_the_lock_pins_and_hashes_all_that_is_asked_for():
    lock = locked("requirements.txt")
    asked = (ROOT / "envs/requirements.in").read_text(encoding="utf-8").splitlines()
    assert {line.split("==")[0].lower() for line in asked if line and not line.startswith("#")} <= set(lock)
    assert "datasets" in lock and lock["torch"][0][1] > 20, "a file for each system and Python"
    for name in ("requirements.txt", "cuda.txt", "kernels.txt", "torch-cpu.txt"):
        assert all(hashes > 0 for versions in locked(name).values() for _, hashes in versions), name
    assert not {name for name in lock if name.startswith(("nvidia", "cuda", "triton"))}
    assert locked("kernels.txt")["triton"][0][0] == locked("cuda.txt")["triton"][0][0]
    assert locked("torch-cpu.txt")["torch"][0][0] == lock["torch"][0][0]


@pytest.mark.parametrize(
    ("system", "processor", "macos", "said"),
    [
        ("Linux", "x86_64", "", None),
        ("Linux", "aarch64", "", None),
        ("Darwin", "arm64", "15.1", None),
        ("Darwin", "x86_64", "15.1", "this machine is Darwin on x86_64; expected Linux on x86_64 or aarch64"),
        ("Darwin", "arm64", "14.7", "macOS is 14.7; expected 15 or newer"),
        ("Windows", "AMD64", "", "this machine is Windows on AMD64"),
    ],
)
def test_a_machine_that_the_lock_does_not_fit_is_named_in_a_line(monkeypatch, system, processor, macos, said):
    checked = runpy.run_path(str(ROOT / "envs/machine.py"))
    monkeypatch.setattr("platform.system", lambda: system)
    monkeypatch.setattr("platform.machine", lambda: processor)
    monkeypatch.setattr("platform.mac_ver", lambda: (macos, ("", "", ""), ""))
    problem = checked["problem"]()
    assert problem is None if said is None else said in problem
