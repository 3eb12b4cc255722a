"""A plan counts the jobs that Snakemake runs, and says what a study takes before anything runs."""

import collections
import copy
import json
import re
from pathlib import Path

import pytest
import yaml
from tests import preloaded, project

from crosscoders import cli
from crosscoders.errors import UserError
from crosscoders.language_models import fetch_model
from crosscoders.study import loading, surroundings
from crosscoders.workflow import plan
from crosscoders.workflow.costs import estimates, terms

STUDIES = (
    "config.yaml",
    "studies/smoke.yaml",
    "studies/nulls.yaml",
    "studies/nulls-weights.yaml",
    "studies/transfer.yaml",
    "studies/three-models.yaml",
    "studies/layers.yaml",
    "studies/labels.yaml",
    "studies/through-training.yaml",
)


@pytest.fixture(scope="module")
def unmade(tmp_path_factory):
    """A copy of the project in which nothing has been made."""
    return project.copy(tmp_path_factory.mktemp("plan") / "project")


@pytest.fixture
def embedded(monkeypatch):
    monkeypatch.chdir(project.ROOT)
    return copy.deepcopy(loading.read(project.ROOT / "config.yaml"))


@pytest.mark.parametrize("study", STUDIES)
def test_a_plan_counts_the_jobs_that_snakemake_runs(unmade, monkeypatch, study):
    monkeypatch.chdir(unmade)
    by_rule = collections.Counter()
    for rule, count in project.planned(unmade, "--configfile", study).items():
        by_rule["notebook" if rule.startswith("notebook_") else rule.removesuffix("_in_parts")] += count
    del by_rule["all"]
    assert collections.Counter(job.rule for job in plan.jobs(loading.load(study))) == by_rule


def with_extras() -> dict:
    """The smoke study with labels by a model that is no source and by an endpoint, exports, and a tracker."""
    content = loading.read(project.ROOT / "studies/smoke.yaml")
    content["models"]["other"] = content["models"]["base"] | {"seed": 1}
    content["settings"]["base-vs-chat"]["explain"] = {"model": "other"}
    content["settings"]["cross-layer"]["explain"] = {"endpoint": {"model": "large"}}
    content["crosscoders"]["batchtopk"]["exports"] = ["sae-lens", "delphi"]
    content["crosscoders"]["l1"]["training"]["trackers"] = ["tensorboard"]
    return content


def test_what_is_off_by_default_is_planned_where_it_is_asked_for(unmade, monkeypatch):
    monkeypatch.chdir(unmade)
    Path("studies/extras.yaml").write_text(yaml.safe_dump(with_extras()))
    plain = collections.Counter(job.rule for job in plan.jobs(loading.load("studies/smoke.yaml")))
    more = collections.Counter(job.rule for job in plan.jobs(loading.load("studies/extras.yaml"))) - plain
    assert more == {"fetch_model": 1, "explain_latents": 3, "export": 2}
    made = project.planned(unmade, "--configfile", "studies/extras.yaml")
    assert {rule: made[rule] for rule in ("explain_latents", "export", "fetch_model")} == {
        "explain_latents": 3,
        "export": 2,
        "fetch_model": 2,
    }


def test_an_endpoints_address_and_key_are_passed_to_jobs_and_said_nowhere(tmp_path, monkeypatch):
    folder = project.copy(tmp_path / "project")
    (folder / "extras.yaml").write_text(yaml.safe_dump(with_extras()))
    with (folder / "Snakefile").open("a") as file:
        file.write('\n\nprint("passed:", *sorted(workflow.envvars))\n')
    given = {"CROSSCODERS_ENDPOINT": "http://127.0.0.1:9/v1", "OPENAI_API_KEY": "secret-of-the-test"}
    others = ("CROSSCODERS_ENDPOINT_KEY", "OPENAI_BASE_URL")
    environment = {name: value for name, value in project.environment(folder).items() if name not in others} | given
    arguments = ["--cores", "1", "-n", "--configfile", "extras.yaml", "--", "results/smoke/text/wiki.nc"]
    done = preloaded.snakemake(folder, arguments, environment)
    assert done.returncode == 0, done.stderr
    assert "passed: CROSSCODERS_ENDPOINT OPENAI_API_KEY\n" in done.stdout, "those that are set"
    assert "secret-of-the-test" not in done.stdout + done.stderr
    monkeypatch.chdir(folder)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    assert surroundings.endpoint_variables(loading.load("studies/smoke.yaml")) == [], "where no endpoint is asked"


@pytest.mark.parametrize(
    ("setting", "member", "line"),
    [
        ({}, {}, r"explain.model: None; expected either a model of the study, or endpoint"),
        ({"model": "bass"}, {}, r"explain.model: 'bass' is not defined; known: base, chat, other; did you mean 'base'"),
        (
            {"model": "base"},
            {"exports": ["sparsify"]},
            r"batchtopk.exports: sparsify cannot express 'batchtopk'; it has topk",
        ),
    ],
)
def test_extras_that_cannot_be_made_are_a_line(monkeypatch, setting, member, line):
    monkeypatch.chdir(project.ROOT)
    content = with_extras()
    content["settings"]["base-vs-chat"]["explain"] = setting
    content["crosscoders"]["batchtopk"] |= member
    with pytest.raises(UserError, match=line):
        loading.check(content)


def test_every_rule_has_a_cost():
    rules = set()
    for file in (project.ROOT / "rules").glob("*.smk"):
        rules |= set(re.findall(r"^rule (\w+):", file.read_text(), re.M))
    assert rules | {"notebook"} == set(estimates.RULES)


def test_the_command_line_shows_every_stage_and_the_total(embedded, capsys):
    cli.main(["plan", "config.yaml", "--cores", "2"])
    lines = capsys.readouterr().out.splitlines()
    stages = {line.split()[0] for line in lines[1 : lines.index("")]}
    assert stages == {job.rule for job in plan.jobs(loading.load("config.yaml"))}
    (total,) = [line for line in lines if line.startswith("in all:")]
    assert re.fullmatch(r"in all: \d+ jobs, about \d+ minutes on 2 cores", total)


def put_large(content: dict) -> dict:
    """The embedded study with 100M tokens and 1,048,576 latents."""
    chosen = content["settings"]["base-vs-chat"]
    chosen["tokens"]["train"] = {"wiki": 50_000_000, "chitchat": 50_000_000}
    for name in chosen["crosscoders"]:
        content["crosscoders"][name]["latents"] = 1_048_576
    return content


def test_what_does_not_fit_is_a_warning(embedded, tmp_path, monkeypatch, capsys):
    study = tmp_path / "large.yaml"
    study.write_text(yaml.safe_dump(put_large(embedded)))
    small = plan.Where("h100", 2, memory=8e9, disk=1e9, rates=terms.REFERENCE)
    monkeypatch.setattr(plan.Where, "here", lambda device, cores: small)
    cli.main(["plan", str(study), "--device", "h100"])
    warnings = [line for line in capsys.readouterr().out.splitlines() if line.startswith("warning: ")]
    assert [line.split(":")[1].strip() for line in warnings] == ["disk", "memory", "GPU memory"]
    assert "1 GB are free" in warnings[0]
    assert "this machine has 8 GB" in warnings[1]
    assert "one h100 has 80 GB" in warnings[2]


def test_a_model_without_a_stated_size_is_a_warning(embedded):
    del embedded["models"]["base"]["size"]
    _, problems = plan.account(loading.check(embedded), plan.Where("cpu", 2, 1e15, 1e15, terms.REFERENCE))
    assert [line.split(":")[0] for line in problems] == ["models.base.size", "models.chat.size"]


@pytest.mark.parametrize(
    ("given", "line"),
    [(["--cores", "0"], "--cores: 0; expected a positive number"), (["--device", "z"], "invalid choice")],
)
def test_bad_input_is_one_line(monkeypatch, capsys, given, line):
    monkeypatch.chdir(project.ROOT)
    with pytest.raises(SystemExit) as caught:
        cli.main(["plan", "config.yaml", *given])
    assert line in f"{caught.value}{capsys.readouterr().err}"


def test_more_work_costs_more(embedded):
    """Hours, memory and disk grow with tokens, latents and models."""
    where = plan.Where("cpu", 2, 1e15, 1e15, terms.REFERENCE)
    small, large = loading.check(copy.deepcopy(embedded)), loading.check(put_large(embedded))
    assert plan.hours(large, where) > 10 * plan.hours(small, where)
    job = {"setting": "base-vs-chat", "crosscoder": "l1", "seed": "0"}
    assert (
        estimates.cost(large, "train_crosscoder", **job).memory
        > 20 * estimates.cost(small, "train_crosscoder", **job).memory
    )


def test_a_further_try_asks_for_more(embedded):
    study, job = loading.check(embedded), {"setting": "base-vs-chat", "crosscoder": "l1", "seed": "0"}
    asked = [
        (
            estimates.megabytes(study, "train_crosscoder", attempt, **job),
            estimates.minutes(study, "train_crosscoder", attempt, **job),
        )
        for attempt in (1, 2, 3)
    ]
    assert asked == sorted(set(asked))
    assert asked[1][0] >= 2 * asked[0][0] - 1


def test_a_stated_size_that_is_wrong_is_refused(embedded, tmp_path):
    stated = loading.check(embedded).models["base"]
    (tmp_path / "config.json").write_text('{"model_type": "llama", "hidden_size": 576, "vocab_size": 49280}')
    fetch_model.check_size(tmp_path, stated)  # vocabularies are padded
    (tmp_path / "config.json").write_text('{"model_type": "llama", "hidden_size": 32, "vocab_size": 49152}')
    with pytest.raises(UserError, match=r"size.width: 576 is stated; the model has 32"):
        fetch_model.check_size(tmp_path, stated)


MEASURED = json.loads((Path(__file__).parent / "embedded_jobs.json").read_text())
LONG_ENOUGH = 5
"""Seconds that a job must take for Snakemake to see its memory, at which it looks every few seconds."""


def planned_jobs(embedded) -> dict[tuple[str, str], list[terms.Cost]]:
    """Costs of the embedded study's jobs by rule and setting."""
    study, grouped = loading.check(embedded), {}
    for job in plan.jobs(study):
        key = job.rule, dict(job.wildcards).get("setting", "")
        grouped.setdefault(key, []).append(job.cost(study))
    return grouped


def test_memory_is_what_jobs_of_the_embedded_study_took(embedded):
    """Within a factor of 1.5, for every rule and setting whose jobs are long enough to be looked at."""
    computed, seen = planned_jobs(embedded), 0
    for row in MEASURED["jobs"]:
        if row["longest"] >= LONG_ENOUGH:
            memory = max(cost.memory for cost in computed[row["rule"], row["setting"]]) / terms.MB
            assert 1 / 1.5 <= memory / row["memory_mb"] <= 1.5, (row, memory)
            seen += 1
    assert seen >= 25


def test_processor_time_is_what_the_embedded_study_took(embedded):
    """Within a factor of 1.5 for the whole study and within 4 for every stage that took a minute, at the rates of that machine."""
    computed, rates = planned_jobs(embedded), terms.Rates(**MEASURED["rates"])
    took = {(row["rule"], row["setting"]): row["cpu_seconds"] for row in MEASURED["jobs"]}
    needs = {key: sum(cost.seconds(rates) for cost in jobs) for key, jobs in computed.items() if key in took}
    assert 1 / 1.5 <= sum(needs.values()) / sum(took.values()) <= 1.5
    for key, seconds in took.items():
        if seconds >= 60:
            assert 1 / 4 <= needs[key] / seconds <= 4, (key, needs[key], seconds)


def test_rates_of_this_machine_are_measured():
    rates = plan.measured()
    assert min(rates.forward, rates.products) > 1e8
    assert rates.memory > 1e8
    assert rates.start > 0.1
