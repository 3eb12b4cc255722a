"""The Kubernetes profile with its plugin installed beside the lock, on a cluster that this machine plays."""

import importlib.util
import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
import yaml
from tests.kubernetes import cluster
from tests.project import ENVIRONMENT, ROOT, SMOKE, copy, small_study

from crosscoders.study import loading
from crosscoders.workflow.costs import estimates

TRIAL = "results/small/planted/pair/batchtopk/seed-0.nc"


@pytest.fixture(scope="module")
def plugin(tmp_path_factory):
    """A folder with the packages of envs/kubernetes.txt that the environment lacks; empty where it has all."""
    folder = tmp_path_factory.mktemp("kubernetes")
    if importlib.util.find_spec("snakemake_executor_plugin_kubernetes") is None:
        install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--require-hashes"]
        command = [*install, "--target", str(folder), "-r", str(ROOT / "envs/kubernetes.txt")]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"envs/kubernetes.txt cannot be installed: {done.stderr.strip()[-200:]}")
        have = {entry.name for entry in Path(sysconfig.get_path("purelib")).iterdir()}
        for entry in folder.iterdir():
            if entry.name in have:
                entry.rename(folder.parent / f"had-{entry.name}")  # one copy of each package
    return folder


def begun(project: Path, plugin: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess:
    """Run Snakemake with the profile."""
    path = os.pathsep.join([str(project / "src"), str(plugin)])
    command = ["snakemake", "--workflow-profile", "kubernetes", *arguments]
    given = ENVIRONMENT | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"} | variables
    return subprocess.run(command, cwd=project, env=given, capture_output=True, text=True)


@pytest.mark.slow
@pytest.mark.network
def test_a_study_is_planned_for_kubernetes(plugin):
    done = begun(ROOT, plugin, "-n", "--quiet", "rules", *SMOKE)
    assert done.returncode == 0 and "This was a dry-run" in done.stdout + done.stderr, done.stderr


@pytest.mark.slow
@pytest.mark.network
@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({}, "CROSSCODERS_VOLUME: pods mount none, not "),
        ({"CROSSCODERS_VOLUME": "claim:/"}, "CROSSCODERS_IMAGE: not set; expected an image that envs/Dockerfile made"),
        ({"CROSSCODERS_VOLUME": "claim:/", "CROSSCODERS_IMAGE": "r/c"}, "Kubernetes: no cluster is configured ("),
    ],
    ids=str,
)
def test_what_a_run_in_pods_lacks_is_a_line(plugin, tmp_path, variables, said):
    project = copy(tmp_path / "project")
    (project / "small.yaml").write_text(yaml.safe_dump(small_study("small"), sort_keys=False))
    done = begun(project, plugin, TRIAL, "--configfile", "small.yaml", **variables, KUBECONFIG=str(tmp_path / "none"))
    printed = done.stdout + done.stderr
    (line,) = [line for line in printed.splitlines() if line.startswith("error: ")]
    assert done.returncode != 0 and line.startswith(f"error: {said}") and "Traceback" not in printed


@pytest.mark.slow
@pytest.mark.network
def test_a_training_runs_in_a_pod_on_the_shared_volume(plugin, tmp_path):
    project = copy(tmp_path / "project")
    (project / "small.yaml").write_text(yaml.safe_dump(small_study("small"), sort_keys=False))
    (tmp_path / "pods").mkdir()
    with cluster.started(tmp_path / "pods") as (played, found):
        place = {"CROSSCODERS_VOLUME": f"claim:{tmp_path}", "CROSSCODERS_IMAGE": "registry/crosscoders"}
        done = begun(project, plugin, TRIAL, "--configfile", "small.yaml", **place, **found)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (project / TRIAL).is_file()
    (job,) = played.jobs.values()
    pod = job["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert container["image"] == "registry/crosscoders"
    assert {"name": "claim", "mountPath": str(tmp_path)} in container["volumeMounts"]
    assert container["resources"]["limits"] == container["resources"]["requests"] | {"cpu": "1000m"}
    study = loading.load(project / "small.yaml")
    asked = estimates.megabytes(study, "trial", setting="pair", crosscoder="batchtopk", seed="0")
    assert container["resources"]["limits"]["memory"] == f"{asked}M", "what the rule asks for"
