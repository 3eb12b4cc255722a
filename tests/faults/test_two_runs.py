"""Two runs at once in one folder: of one study the second ends with a line, two studies do not disturb each other."""

import subprocess
import time
from pathlib import Path

import pytest
import yaml
from tests.project import SMOKE, copy, copy_finished, environment, manifest, planned, small_study, snakemake

from crosscoders import artifacts


def begun(project: Path, *arguments: str) -> subprocess.Popen:
    """A run of Snakemake that goes on beside the test."""
    command = ["snakemake", "--cores", "1", *arguments]
    output = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(command, cwd=project, env=environment(project), **output)


@pytest.mark.slow
def test_a_second_run_of_a_study_ends_with_a_line_and_the_first_goes_on(finished_project, tmp_path):
    project = copy_finished(finished_project, tmp_path / "project")
    (project / "results/smoke/manifest.json").unlink()
    first = begun(project, *SMOKE, "--forcerun", "html")
    claimed = project / ".snakemake/runs/smoke.txt"
    while first.poll() is None and f"process {first.pid} on " not in claimed.read_text():
        time.sleep(0.01)
    second = snakemake(project, *SMOKE, check=False)
    printed, _ = first.communicate()
    assert first.returncode == 0, printed
    said = second.stdout + second.stderr
    assert second.returncode != 0 and "Traceback" not in said
    assert f"error: results/smoke: process {first.pid} on " in said and "makes this study now" in said
    assert planned(project, *SMOKE) == {}
    assert manifest(project)["artifacts"] == manifest(finished_project)["artifacts"]


@pytest.mark.slow
def test_two_studies_are_made_at_once_in_one_folder(tmp_path):
    project = copy(tmp_path / "project")
    for name in ("one", "two"):
        (project / f"studies/{name}.yaml").write_text(yaml.safe_dump(small_study(name), sort_keys=False))
    runs = [begun(project, "--configfile", f"studies/{name}.yaml") for name in ("one", "two")]
    for run in runs:
        printed, _ = run.communicate()
        assert run.returncode == 0, printed
        assert "Traceback" not in printed
    one, two = (artifacts.read(project / f"results/{name}/planted/pair/batchtopk/seed-0.nc") for name in ("one", "two"))
    assert one.equals(two) and one.attrs["study"] == "one" and two.attrs["study"] == "two"
    for name in ("one", "two"):
        assert planned(project, "--configfile", f"studies/{name}.yaml") == {}
        done = subprocess.run(
            ["crosscoders", "verify", f"results/{name}"], cwd=project, env=environment(project), capture_output=True
        )
        assert done.returncode == 0, done.stderr
