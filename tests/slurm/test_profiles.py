"""Profiles for clusters where there is no cluster, or one that is made up of commands."""

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from tests import preloaded
from tests.project import ENVIRONMENT, ROOT, SMOKE, small_study
from tests.slurm.profiles import commands, profile

from crosscoders.errors import UserError
from crosscoders.workflow import slurm
from crosscoders.workflow.slurm_cluster import cluster, gpus, minutes
from crosscoders.workflow.slurm_jobs import NEVER
from snakemake_logger_plugin_study import failed_elsewhere


@pytest.fixture
def bare(tmp_path):
    """Variables of a machine without Slurm's commands, whatever this one has."""
    (tmp_path / "bin").mkdir()
    for name in ("which", "bash", "sh", "env", "git", "uname", "cat", "getconf"):
        if shutil.which(name):
            (tmp_path / "bin" / name).symlink_to(shutil.which(name))
    kept = {
        name: value for name, value in ENVIRONMENT.items() if not name.startswith(("SLURM", "SBATCH", "CROSSCODERS"))
    }
    return kept | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{tmp_path / 'bin'}"}


@pytest.fixture
def made_up(tmp_path, monkeypatch, bare):
    """Make up a cluster: the variables with which its commands are found, here and in other processes."""

    def make(**facts) -> dict[str, str]:
        folder = commands(tmp_path / "slurm", **facts)
        variables = bare | {"PATH": f"{folder}{os.pathsep}{bare['PATH']}"}
        monkeypatch.setenv("PATH", variables["PATH"])
        return variables

    cluster.cache_clear()
    yield make
    cluster.cache_clear()


# -- no cluster --------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_dry_run_of_the_slurm_profile_needs_no_slurm(bare):
    done = preloaded.snakemake(ROOT, ["-n", "--quiet", "rules", "--workflow-profile", "slurm", *SMOKE], bare)
    assert done.returncode == 0 and "This was a dry-run" in done.stdout + done.stderr, done.stderr
    said = profile("slurm", bare)
    assert "slurm-status-command" not in said and "train_crosscoder=8" in said["set-threads"]


@pytest.mark.slow
def test_a_run_where_there_is_no_slurm_is_a_line(bare, tmp_path):
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(small_study("small"), sort_keys=False))
    arguments = ["-s", f"{ROOT}/Snakefile", "-d", str(tmp_path), "--workflow-profile", "slurm"]
    done = preloaded.snakemake(ROOT, [*arguments, "--configfile", f"{tmp_path}/small.yaml"], bare)
    said = done.stdout + done.stderr
    assert done.returncode != 0 and "Traceback" not in said
    assert "error: Slurm: there is no command scontrol here; expected a login node of a cluster" in said


def lacking(folder: Path, plugin: str) -> Path:
    """Installed packages without a plugin."""
    folder.mkdir()
    for entry in Path(sysconfig.get_path("purelib")).iterdir():
        if entry.name != plugin:
            (folder / entry.name).symlink_to(entry)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "executor", "package", "requirements"),
    [
        ("slurm", "slurm", "snakemake-executor-plugin-slurm", "envs/requirements.txt"),
        ("kubernetes", "kubernetes-volume", "snakemake-executor-plugin-kubernetes", "envs/kubernetes.txt"),
    ],
)
def test_a_profile_without_its_executor_is_a_line(tmp_path, name, executor, package, requirements):
    packages = lacking(tmp_path / "packages", package.replace("-", "_"))
    variables = ENVIRONMENT | {"PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(packages)])}
    command = [sys.executable, "-S", "-m", "snakemake", "-n", "--workflow-profile", name, *SMOKE]
    done = subprocess.run(command, cwd=ROOT, env=variables, capture_output=True, text=True)
    lines = [line for line in done.stderr.splitlines() if not line.startswith("Using workflow specific profile")]
    assert done.returncode != 0 and len(lines) == 1, done.stderr
    assert lines[0].startswith(f"error: executor: {executor!r} needs {package}, ")
    assert lines[0].endswith(f"not installed; expected `python -m pip install --no-deps -r {requirements}`")
    assert (ROOT / requirements).is_file()


# -- a cluster with accounting, made up --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("named", "threads", "resources"),
    [
        ({}, 8, ['slurm_account="lab"']),
        (
            {"SBATCH_PARTITION": "gpu", "CROSSCODERS_THREADS": "32"},
            12,
            ['slurm_partition="gpu"', 'slurm_account="lab"'],
        ),
        ({"SBATCH_ACCOUNT": "other"}, 8, ['slurm_account="other"']),
        ({"CROSSCODERS_THREADS": "100"}, 64, ['slurm_account="lab"']),
    ],
    ids=str,
)
def test_the_profile_follows_a_cluster_with_accounting(made_up, named, threads, resources):
    said = profile("slurm", made_up(accounting=True) | named)
    assert said["slurm-status-command"] == "sacct"
    assert [entry for entry in said["default-resources"] if entry.startswith("slurm_")] == resources
    asked = dict(entry.split("=") for entry in said["set-threads"])
    assert set(asked.values()) == {str(threads)} and "train_crosscoder" in asked
    assert ("fine_tune" in asked) == ("CROSSCODERS_THREADS" in named), "else it has those of one machine, and its bytes"


def test_threads_that_are_no_number_are_a_line(made_up, monkeypatch):
    monkeypatch.setenv(slurm.THREADS, "all")
    with pytest.raises(
        SystemExit, match="error: CROSSCODERS_THREADS: 'all' does not fit; expected a number of threads"
    ):
        slurm.threads()


def a_run(**resources) -> SimpleNamespace:
    """A workflow with one job, as far as it is looked at."""
    threads = resources.pop("threads", 1)
    job = SimpleNamespace(rule=SimpleNamespace(name="causal"), threads=threads, resources=resources, is_local=False)
    return SimpleNamespace(
        executor_plugin=SimpleNamespace(name="slurm"),
        executor_settings=SimpleNamespace(jobname_prefix="", init_seconds_before_status_checks=40),
        dag=SimpleNamespace(needrun_jobs=lambda: [job, job]),
    )


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({}, None),
        ({"threads": 64, "mem_mb": 8000}, None),
        ({"slurm_partition": "cpu,gpu", "gpu": 4}, None),
        ({"slurm_account": "lab,other"}, None),
        ({"slurm_partition": "gpu", "runtime": 10**6}, None),
        ({"mem_mb": "<TBD>"}, None),
        ({"clusters": "far", "threads": 1000}, None),
        ({"slurm_account": "nobody"}, "slurm_account: 'nobody' is not one of yours; expected lab, other"),
        (
            {"gres": "gpu:a100:5", "slurm_partition": "gpu"},
            "gpu: 5 GPUs are more than partition 'gpu' has; expected at most 4",
        ),
        ({"runtime": 1441}, "runtime: 1441 minutes are more than partition 'cpu' has; expected at most 1440"),
        ({"mem_mb_per_cpu": 5000, "threads": 4}, "mem: 20000 MB of memory are more than partition 'cpu' has"),
        (
            {"threads": 13, "slurm_partition": "gpu"},
            "threads: 13 threads are more than partition 'gpu' has; expected at most 12",
        ),
        ({"threads": 5, "mem_mb": 9000}, "resources: no node of partition 'cpu' has 5 threads and 9000 MB of memory"),
    ],
    ids=str,
)
def test_a_job_that_can_never_start_is_a_line(made_up, asked, said):
    made_up(accounting=True)
    if said is None:
        slurm.begin(a_run(**asked))
        return
    with pytest.raises(UserError) as problem:
        slurm.begin(a_run(**asked))
    (line,) = str(problem.value).splitlines()
    assert line.startswith(f"rule causal: {said}")


@pytest.mark.parametrize(
    ("facts", "said"),
    [
        ({"age": 60}, "Slurm: MinJobAge: 60 s are too few where no accounting is kept; expected at least 240"),
        (
            {"default": False},
            "rule causal: slurm_partition: none is named and the cluster has no default; expected one of cpu, gpu",
        ),
    ],
    ids=str,
)
def test_a_cluster_that_cannot_be_used_is_a_line(made_up, facts, said):
    made_up(accounting=False, **facts)
    with pytest.raises(UserError) as problem:
        slurm.begin(a_run())
    (line,) = str(problem.value).splitlines()
    assert line.startswith(said)


@pytest.mark.parametrize(
    ("time", "expected"),
    [("UNLIMITED", None), ("30:00", 30), ("00:30:00", 30), ("2-00:00:00", 2880), ("1-12", 2160), ("01:02:03", 62)],
)
def test_time_limits_are_read(time, expected):
    assert minutes(time) == expected


@pytest.mark.parametrize(
    ("gres", "expected"),
    [
        ("(null)", 0),
        ("gpu:2", 2),
        ("gpu:a100:4(S:0-1),gpu:t4:1", 5),
        ("gpu", 1),
        ("shard:8", 0),
        ("gpu:a(IDX:0,1):2", 2),
    ],
)
def test_gpus_are_counted(gres, expected):
    assert gpus(gres) == expected


@pytest.mark.parametrize(
    ("reason", "never"),
    [
        ("PartitionTimeLimit", True),
        ("QOSMaxCpuPerJobLimit", True),
        ("QOSMinGRES", False),
        ("AssocMaxWallDurationPerJobLimit", True),
        ("AssocMaxJobsLimit", False),
        ("AssocGrpCpuLimit", False),
        ("QOSMaxCpuPerUserLimit", False),
        ("InvalidAccount", True),
        ("Resources", False),
        ("Priority", False),
        ("JobHeldUser", False),
        ("PartitionDown", False),
        ("PartitionNodeLimit", False),
        ("ReqNodeNotAvail, UnavailableNodes:n1", False),
    ],
)
def test_only_waiting_for_what_never_comes_is_an_error(reason, never):
    assert bool(NEVER.match(reason)) == never


# -- what is said of a job that failed ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("message", "log", "expected"),
    [
        (
            "SLURM sbatch failed. The error message was 'sbatch: error: Batch job submission failed:\nNo such account'.\n"
            "    sbatch call:\n        sbatch --parsable",
            "",
            ["error: rule causal: Slurm does not take the job: Batch job submission failed: No such account"],
        ),
        (
            "SLURM-job '7' failed, SLURM status is: 'TIMEOUT'. Detailed failure reason unavailable (status command is not "
            "'sacct').For further error details see the cluster/cloud log",
            "step 3\nerror: device: 'cuda' is not available\nslurmstepd-n1: error: *** JOB 7 CANCELLED DUE TO TIME LIMIT ***\n",
            [
                "error: rule causal: SLURM-job '7' failed, SLURM status is: 'TIMEOUT'",
                "  device: 'cuda' is not available",
                "  *** JOB 7 CANCELLED DUE TO TIME LIMIT ***",
            ],
        ),
        (
            "SLURM-job '7' failed, SLURM status is: 'NODE_FAIL'. Reason: Unknown.For further error details",
            "step 3\n",
            [
                "error: rule causal: SLURM-job '7' failed, SLURM status is: 'NODE_FAIL'. Reason: Unknown",
                "  its logs: {log}",
            ],
        ),
    ],
    ids=["refused", "ended", "silent"],
)
def test_a_job_that_failed_elsewhere_is_a_line_and_what_it_said_last(tmp_path, message, log, expected):
    path = tmp_path / "job.log"
    path.write_text(log)
    lines = failed_elsewhere("causal", message, [str(path), str(tmp_path / "missing.log")])
    assert lines == [line.format(log=f"{path}, {tmp_path / 'missing.log'}") for line in expected]
