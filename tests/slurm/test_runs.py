"""Studies on a real Slurm of one node without accounting, through profiles/slurm as users name it."""

import json
import os
import subprocess
import time
from pathlib import Path

import pytest
import yaml
from tests.project import copy, environment, small_study
from tests.slurm import cluster
from tests.slurm.profiles import profile

from crosscoders.workflow.slurm_jobs import Watch

LONG = os.environ.get("FAULTS") == "long"
SOON = ("--latency-wait", "10", "--slurm-init-seconds-before-status-checks", "1")
TRIAL = "results/small/planted/pair/batchtopk/seed-0.nc"
STUDY = ("--configfile", "studies/small.yaml")
LATE = ("collate_trials", "notebook_pair", "html", "report", "index", "manifest")
GROUPED = ("--groups", *(f"{rule}=late" for rule in LATE))
"""Short jobs in one job of Slurm, since Snakemake looks at jobs every ten seconds or less often."""


def with_small_study(folder: Path) -> Path:
    """A copy of the project with a study that takes seconds."""
    copy(folder)
    (folder / "studies/small.yaml").write_text(yaml.safe_dump(small_study("small"), sort_keys=False))
    return folder


@pytest.fixture
def project(slurm, tmp_path):
    return with_small_study(tmp_path / "project")


def begun(project: Path, slurm: dict, *arguments: str, **variables: str) -> subprocess.Popen:
    """A run on Slurm that goes on beside the test."""
    command = ["snakemake", *arguments, "--workflow-profile", "slurm", *SOON]
    own = environment(project)
    shared = {name: own[name] for name in ("PYTHONPATH", "HF_HUB_OFFLINE")} | {"OMP_NUM_THREADS": "1"}
    output = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(command, cwd=project, env=slurm | shared | variables, **output)


def ended(run: subprocess.Popen) -> str:
    """All that a run printed."""
    printed, _ = run.communicate(timeout=5400 if LONG else 600)
    assert "Traceback" not in printed, printed
    return printed


def artifacts(project: Path, study: str) -> dict:
    """The checksums of a study's files."""
    return json.loads((project / f"results/{study}/manifest.json").read_text())["artifacts"]


def asked(slurm: dict, *command: str) -> str:
    """What a Slurm command prints."""
    return subprocess.run(command, env=slurm, check=True, capture_output=True, text=True).stdout


def started(slurm: dict, project: Path, log: str) -> str:
    """The number of the one job that runs, once it has begun its log."""
    last = time.monotonic() + 60
    while time.monotonic() < last:
        running = asked(slurm, "squeue", "-h", "--states=RUNNING", "-o", "%i").split()
        if running and (project / log).exists():
            return running[0]
        time.sleep(0.05)
    raise AssertionError("no job started within a minute")


@pytest.mark.slow
def test_a_study_whose_training_is_cancelled_is_finished_by_the_same_command_as_on_one_machine(
    slurm, project, tmp_path
):
    local = with_small_study(tmp_path / "local")
    with (tmp_path / "local.txt").open("w") as printed:
        command = ["snakemake", "--cores", "1", *STUDY]
        beside = subprocess.Popen(command, cwd=local, env=environment(local), stdout=printed, stderr=subprocess.STDOUT)
        first = begun(project, slurm, *STUDY, "--retries", "0")
        asked(slurm, "scancel", started(slurm, project, "results/small/logs/trial/pair/batchtopk/seed-0.log"))
        printed = ended(first)
        assert first.returncode != 0 and "error: rule trial: SLURM-job" in printed and "CANCELLED" in printed, printed
        assert not (project / TRIAL).exists()
        second = begun(project, slurm, *STUDY, *GROUPED)
        printed = ended(second)
        assert second.returncode == 0 and "start here: results/small/index.html" in printed, printed
        assert beside.wait() == 0, (tmp_path / "local.txt").read_text()
    assert artifacts(project, "small") == artifacts(local, "small")


@pytest.mark.slow
def test_a_job_over_its_memory_gets_more_and_a_job_of_two_gpus_starts_once(slurm, project):
    """The first attempt has 100 MB, the second 800; both have two GPUs."""
    resources = ("--set-resources", "trial:mem_mb=100*8**(attempt-1)", "trial:gpu=2")
    run = begun(project, slurm, TRIAL, *STUDY, *resources, "--slurm-keep-successful-logs")
    printed = ended(run)
    assert run.returncode == 0, printed
    assert "error: rule trial: SLURM-job" in printed and "exceeded memory limit" in printed
    submitted = [line.split() for line in printed.splitlines() if " has been submitted with SLURM jobid " in line]
    jobs = [words[words.index("jobid") + 1] for words in submitted]
    assert len(jobs) == 2, printed
    shown = asked(slurm, "scontrol", "show", "job", jobs[1])
    assert "NumTasks=1 " in shown and "TresPerJob=gres:gpu:2" in shown and "JobState=COMPLETED" in shown
    (log,) = project.glob(f".snakemake/slurm_logs/rule_trial/*/{jobs[1]}.log")
    assert log.read_text().count("trial pair/batchtopk/seed-0: L0 ") == 1


@pytest.mark.slow
def test_jobs_that_can_never_start_end_the_run_in_a_line_each(slurm, project):
    resources = [
        "trial:mem_mb=900000",
        "trial:gpu=5",
        "trial:runtime=60",
        "report:slurm_partition=nowhere",
        "html:slurm_account=lab",
    ]
    run = begun(
        project, slurm, *STUDY, "--set-threads", "trial=64", "--set-resources", *resources, SBATCH_PARTITION="short"
    )
    lines = [line for line in ended(run).splitlines() if line.startswith("error: ")]
    assert run.returncode != 0
    assert {
        line.removeprefix("error: rule ") for line in lines if "trial" in line or "report" in line or "html" in line
    } >= {
        f"trial: threads: 64 threads are more than partition 'short' has; expected at most {cluster.CORES}",
        f"trial: mem: 900000 MB of memory are more than partition 'short' has; expected at most {cluster.MEMORY}",
        f"trial: gpu: 5 GPUs are more than partition 'short' has; expected at most {cluster.GPUS}",
        "trial: runtime: 60 minutes are more than partition 'short' has; expected at most 30",
        "report: slurm_partition: 'nowhere' is not known to Slurm; expected one of main, short",
        "html: slurm_account: 'lab' is not known, as the cluster keeps no accounts; expected none",
    }
    assert all(len(line) <= 200 for line in lines)
    assert asked(slurm, "squeue", "-h") == ""


@pytest.mark.slow
def test_a_job_that_slurm_refuses_ends_the_run_in_a_line(slurm, project):
    run = begun(project, slurm, TRIAL, *STUDY, "--retries", "0", "--set-resources", "trial:constraint=nothing_has_it")
    printed = ended(run)
    assert run.returncode != 0
    assert "error: rule trial: Slurm does not take the job: Batch job submission failed: Invalid feature" in printed


def hopeless(slurm: dict) -> str:
    """Submit a job that fails; the option of one that waits for its success."""
    failed = asked(slurm, "sbatch", "--parsable", "--output=/dev/null", "--wrap=false").strip()
    while "JobState=FAILED" not in asked(slurm, "scontrol", "show", "job", failed):
        time.sleep(0.1)
    return f"--dependency=afterok:{failed}"


def test_a_job_that_waits_for_what_never_comes_is_cancelled_with_a_line(slurm, monkeypatch, capfd):
    for name, value in slurm.items():
        monkeypatch.setenv(name, value)
    submit = ["sbatch", "--parsable", "--job-name=mine-1", "--comment=rule_trial_wildcards_small_pair", "--wrap=true"]
    number, other = (asked(slurm, *submit, *more).strip() for more in ([hopeless(slurm)], ["--hold"]))
    while "Reason=None" in asked(slurm, "scontrol", "show", "job", number):
        time.sleep(0.1)
    watch = Watch("mine-", 0.1)
    watch.look()
    assert "JobState=PENDING" in asked(slurm, "scontrol", "show", "job", number), "once may be chance"
    watch.look()
    said = f"error: rule trial: job {number} can never start in partition 'main'; Slurm says DependencyNeverSatisfied; "
    assert said in capfd.readouterr().err
    assert "JobState=CANCELLED" in asked(slurm, "scontrol", "show", "job", number)
    assert "JobState=PENDING" in asked(slurm, "scontrol", "show", "job", other), "its user holds it"
    asked(slurm, "scancel", other)


@pytest.mark.slow
@pytest.mark.skipif(not LONG, reason="takes a minute; FAULTS=long runs it")
def test_a_run_ends_when_its_job_waits_for_what_never_comes(slurm, project):
    option = hopeless(slurm)
    run = begun(project, slurm, TRIAL, *STUDY, "--retries", "0", "--set-resources", f"trial:slurm_extra='{option}'")
    printed = ended(run)
    assert run.returncode != 0 and "Slurm says DependencyNeverSatisfied; it is cancelled" in printed


@pytest.mark.slow
@pytest.mark.skipif(not LONG, reason="takes half an hour; FAULTS=long runs it")
def test_the_smoke_study_has_the_same_bytes_on_slurm(slurm, finished_project, tmp_path):
    project = copy(tmp_path / "project")
    run = begun(project, slurm, "--configfile", "studies/smoke.yaml")
    printed = ended(run)
    assert run.returncode == 0, printed
    assert artifacts(project, "smoke") == artifacts(finished_project, "smoke")


@pytest.mark.parametrize(("variables", "threads"), [({}, cluster.CORES), ({"CROSSCODERS_THREADS": "1"}, 1)], ids=str)
def test_threads_follow_the_node_and_status_comes_from_squeue(slurm, variables, threads):
    """A heavy rule takes 8 threads at most, and the node has fewer; a variable may ask for less still."""
    said = profile("slurm", slurm | variables)
    assert f"train_crosscoder={threads}" in said["set-threads"]
    assert said["slurm-status-command"] == "squeue"
    assert not [entry for entry in said["default-resources"] if entry.startswith("slurm_")], "the cluster knows its own"
