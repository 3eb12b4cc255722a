"""A copy of the project in a folder of its own, the commands a user gives there, and one finished study for all tests."""

import fcntl
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

from tests import preloaded

from crosscoders.study import loading

ROOT = Path(__file__).parents[1]
COPIED = (
    "Snakefile",
    "Makefile",
    "config.yaml",
    "rules",
    "src",
    "notebooks",
    "studies",
    "profiles",
    "report",
    "envs",
    "pyproject.toml",
)
ENVIRONMENT = os.environ | {
    "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    "HF_HUB_OFFLINE": "1",
}
SMOKE = ("--configfile", "studies/smoke.yaml")


def copy(folder: Path) -> Path:
    """A copy of the project that a test may edit; its own sources are the ones that run, compiled as they are here."""
    folder.mkdir()
    for name in COPIED:
        source = ROOT / name
        ignore = shutil.ignore_patterns("*.egg-info", "*.pyc.*")  # the latter are being written
        shutil.copytree(source, folder / name, ignore=ignore) if source.is_dir() else shutil.copy(source, folder / name)
    return folder


def environment(folder: Path) -> dict[str, str]:
    """The variables of a process that runs the sources of a copy."""
    return ENVIRONMENT | {"PYTHONPATH": str(folder / "src")}


def snakemake(folder: Path, *arguments: str, check: bool = True) -> subprocess.CompletedProcess:
    """Run Snakemake in a copy of the project."""
    done = preloaded.snakemake(folder, ["--cores", "2", *arguments], environment(folder))
    assert not check or done.returncode == 0, (done.stdout + done.stderr)[-6000:]
    return done


def planned(folder: Path, *arguments: str) -> dict[str, int]:
    """Jobs that a dry run would start, by rule."""
    done = snakemake(folder, "-n", "--quiet", "rules", *arguments)
    lines = (done.stdout + done.stderr).splitlines()
    if any("Nothing to be done" in line for line in lines):
        return {}
    start = next(i for i, line in enumerate(lines) if line.startswith("---"))
    jobs = {}
    for line in lines[start + 1 :]:
        if not line.strip() or line.startswith("total"):
            break
        name, count = line.split()
        jobs[name] = int(count)
    return jobs


def manifest(folder: Path) -> dict:
    """The manifest of the smoke study in a copy of the project."""
    return json.loads((folder / "results/smoke/manifest.json").read_text())


def finished(shared: Path) -> Path:
    """The finished smoke study, made once in a folder that all processes of a test run share; no test may edit it."""
    shared.mkdir(exist_ok=True)
    with open(shared / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        folder, mark = shared / "project", shared / "finished"
        if not mark.exists():
            shutil.rmtree(folder, ignore_errors=True)
            began = time.monotonic()
            done = snakemake(copy(folder), *SMOKE)
            print(f"smoke study: {time.monotonic() - began:.0f} s")
            assert "start here: results/smoke/index.html" in done.stdout + done.stderr
            mark.touch()
    return folder


def copy_finished(folder: Path, target: Path) -> Path:
    """A copy of a finished study, with all times, that a test may edit."""
    subprocess.run(["cp", "-a", str(folder), str(target)], check=True)
    return target


def small_study(name: str) -> dict:
    """The planted setting of the smoke study alone, which takes seconds, as a study of its own."""
    content = loading.read(ROOT / "studies/smoke.yaml")
    pair = {key: value for key, value in content["settings"]["pair"].items() if key != "circuits"}
    study = {"study": name, "settings": {"pair": pair | {"crosscoders": ["batchtopk"]}}}
    study["crosscoders"] = {"batchtopk": content["crosscoders"]["batchtopk"]}
    return study | {key: content[key] for key in ("device", "seeds", "classification")}
