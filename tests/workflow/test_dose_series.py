"""A series over doses goes through the rules' own commands to its figure."""

import collections
import re
import runpy
import shlex
import sys

import numpy as np
import pytest
import yaml
from tests import project
from tests.series import small_series

from crosscoders import artifacts
from crosscoders.report import results as report
from crosscoders.study import loading
from crosscoders.workflow import plan

COMMAND = "Shell command: python -m crosscoders "
REPORTED = ("notebook", "html", "report", "index", "manifest")


def commands(output: str) -> list[tuple[str, list[str]]]:
    """The rule and the command of every job that a dry run shows, in its order."""
    found, rule = [], ""
    for line in output.splitlines():
        if match := re.match(r"^(?:local)?rule (\w+):", line):
            rule = match[1]
        elif line.startswith(COMMAND):
            found.append((rule, shlex.split(line.removeprefix(COMMAND))))
    return found


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The folder in which every stage of a small series has run, and its jobs by rule."""
    folder = project.copy(tmp_path_factory.mktemp("series") / "project")
    (folder / "series.yaml").write_text(yaml.safe_dump(small_series("small-series")))
    shown = project.snakemake(folder, "-n", "-p", "--workflow-profile", "none", "--configfile", "series.yaml")
    jobs = commands(shown.stdout + shown.stderr)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for rule, arguments in jobs:
            if not rule.startswith(REPORTED):
                patch.setattr(sys, "argv", ["crosscoders", *arguments])
                runpy.run_module("crosscoders", run_name="__main__", alter_sys=True)
    return folder, collections.Counter("notebook" if rule.startswith("notebook_") else rule for rule, _ in jobs)


def test_a_plan_counts_the_jobs_of_a_series(made):
    folder, jobs = made
    assert collections.Counter(job.rule for job in plan.jobs(loading.load(folder / "series.yaml"))) == jobs
    assert (jobs["fine_tune"], jobs["detect_planted"], jobs["summarise_power"]) == (2, 2, 1)


def test_every_method_is_measured_at_every_dose_and_drawn_with_its_null(made, tmp_path, monkeypatch):
    folder, _ = made
    path = folder / "results/small-series/summary/power.nc"
    summary, shown = artifacts.read(path), []
    assert summary["dose"].values.tolist() == [0, 1]
    methods = {
        "mean-difference",
        "difference-lens",
        "difference-norm",
        "principal-components",
        "token-kl",
        "random-latents",
    }
    assert set(summary["detector"].values) == {"batchtopk", "saes", "difference"} | methods
    whole = summary.sel(behaviour="any")
    assert np.isfinite(whole["auc"].sel(ranking="energy")).sum() == 2 * 8
    assert np.isfinite(whole["auc"].sel(ranking=["nu", "delta"], detector=["batchtopk", "saes"])).all()
    assert (whole["auc_low"] <= whole["auc_high"]).sum() > 0
    assert (summary["positive_documents"].sel(behaviour="backdoor") > 1).all()
    rates = summary["behaviour_rate"].sel(measured_behaviour=["backdoor_with_trigger", "backdoor_without_trigger"])
    assert (rates.dims, rates.notnull().all()) == (("dose", "measured_behaviour"), True)
    monkeypatch.setattr(report, "display", lambda one: shown.append(getattr(one, "data", "")))
    report.Results.open(str(path), str(tmp_path), {"ours-power": "ours-power"}, {}, {}).show("ours-power")
    assert {file.suffix for file in tmp_path.glob("ours-power.*")} == {".png", ".svg"}
    text = "".join(one for one in shown if isinstance(one, str))
    assert all(part in text for part in ("Without labels", "| batchtopk | Δ |", "| rate: persona |"))
    assert not re.search(r"\bnan\b", text)
