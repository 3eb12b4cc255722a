"""A published crosscoder in a study: what it gives there, and which ones are refused."""

import collections
import json
import shutil
import subprocess
import sys
from argparse import Namespace

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
import xarray as xr
import yaml
from tests import project
from tests.formats.test_formats import change_tensors

import crosscoders
from crosscoders import artifacts, cli
from crosscoders.analysis import match_seeds
from crosscoders.analysis.sections import LatentPageSection, MatchSeedsSection
from crosscoders.errors import UserError
from crosscoders.formats import crosscoder_learning
from crosscoders.report import collate, comparison, figures
from crosscoders.report.registry import BY_ID
from crosscoders.report.results import Results
from crosscoders.report.results import _function as results_function
from crosscoders.report.sections import CollateSection
from crosscoders.study import loading
from crosscoders.study.queries import trainings
from crosscoders.workflow import plan, sections

UNKNOWN = ("training_tokens", "training_flops", "l0_training", "penalty_coefficient", "threshold_training")
"""What only the training of a crosscoder knows."""


def second(folder, path: str = "peer", **changes):
    """A file that makes a second study of the smoke study, whose pair is read by a published crosscoder alone."""
    settings = {"base-vs-chat": {"crosscoders": ["theirs"]}, "again": {"crosscoders": ["theirs"]}}
    content = {"study": "second", "settings": settings}
    content["crosscoders"] = {"theirs": {"kind": "published", "path": path} | changes}
    (folder / "second.yaml").write_text(yaml.safe_dump(content))
    return "--configfile", "studies/smoke.yaml", "second.yaml"


@pytest.fixture(scope="module")
def exported(finished_project, tmp_path_factory):
    """A copy of the finished study, under another name, with its crosscoder exported as a peer publishes one."""
    folder = project.copy_finished(finished_project, tmp_path_factory.mktemp("published") / "project")
    path = folder / "results/smoke/crosscoders/base-vs-chat/batchtopk/seed-0.nc"
    cli.main(["export", str(path), "--format", "crosscoder_learning", "--output", str(folder / "peer")])
    (folder / "results/smoke").rename(folder / "results/second")
    return folder


@pytest.mark.slow
def test_a_study_of_a_published_crosscoder_finds_what_the_study_that_trained_it_found(exported):
    options = second(exported)
    planned = project.planned(exported, *options)
    assert planned.pop("import_crosscoder") == 1
    assert "train_crosscoder" not in planned and "train_aligned" not in planned
    done = project.snakemake(exported, *options)
    assert "import_crosscoder base-vs-chat/theirs/seed-0: crosscoder_learning; FVE on validation" in done.stderr
    results = exported / "results/second"
    for place in ("latents/base-vs-chat", "latents/again", "evaluation/base-vs-chat", "causal/base-vs-chat"):
        trained, read = (artifacts.read(results / f"{place}/{name}/seed-0.nc") for name in ("batchtopk", "theirs"))
        assert set(trained.variables) == set(read.variables)
        xr.testing.assert_allclose(
            trained.drop_vars(UNKNOWN, errors="ignore"), read.drop_vars(UNKNOWN, errors="ignore")
        )
    evaluation = artifacts.read(results / "evaluation/base-vs-chat/theirs/seed-0.nc")
    assert int(evaluation["training_tokens"]) == -1 and np.isnan(evaluation["training_flops"])
    assert (results / "latents/base-vs-chat/theirs/seed-0.html").exists()
    summary = artifacts.read(results / "summary/base-vs-chat.nc")
    assert "training_l0" not in summary and list(summary["crosscoder"].values) == ["theirs"]
    notebook = (results / "notebooks/model_diffing-base-vs-chat.ipynb").read_text()
    assert "All crosscoders of this setting were trained elsewhere" in notebook
    assert project.planned(exported, *options) == {}
    study = crosscoders.open_study(results)
    assert study["base-vs-chat/crosscoders"].encoder_base.sel(crosscoder="theirs").isnull().sum() == 0


def test_training_curves_of_a_setting_that_trains_some_of_its_crosscoders(tmp_path):
    path = tmp_path / "results/x/crosscoders/pair/ours/seed-3.history.nc"
    artifacts.write(xr.Dataset({"l0": artifacts.variable("step", np.arange(4.0), "L0")}), path)
    curves = collate.training_curves([path], Namespace(crosscoders=["theirs", "ours"], seeds=[3]))
    assert list(curves["crosscoder"].values) == ["theirs", "ours"] and curves["seed"].values.tolist() == [3]
    np.testing.assert_array_equal(curves["training_l0"].sel(seed=3), [[np.nan] * 4, [0, 1, 2, 3]])


OVER_SEEDS = (
    "training",
    "evaluation",
    "l24-relative-norm",
    "m25-delta-histogram",
    "m25-nu-threshold-counts",
    "m25-kl-bars",
    "ours-steering",
    "ours-cosine-vs-causal",
    "ours-planted-enrichment",
    "ours-similarity",
    "ours-compare",
)
"""Figures and sentences that show every seed."""


def mixed(seeds: list[int], path: str, **crosscoders) -> dict:
    """The smoke study whose pair is read by a crosscoder that it trains and by a published one."""
    content = loading.read(project.ROOT / "studies/smoke.yaml") | {"seeds": seeds}
    content["crosscoders"]["theirs"] = {"kind": "published", "path": path}
    content["settings"]["base-vs-chat"]["crosscoders"] = ["batchtopk", "theirs"]
    return loading.merge(content, crosscoders)


def test_a_study_of_several_seeds_reads_a_published_crosscoder_once(tmp_path, monkeypatch):
    folder = project.copy(tmp_path / "project")
    monkeypatch.chdir(folder)
    (folder / "peer.nc").write_bytes(b"0" * 1000)
    (folder / "mixed.yaml").write_text(yaml.safe_dump(mixed([1, 0], "peer.nc")))
    study = loading.load("mixed.yaml")
    jobs = [job for job in plan.jobs(study) if dict(job.wildcards).get("crosscoder") == "theirs"]
    assert {dict(job.wildcards)["seed"] for job in jobs} == {"0"}
    assert {job.rule for job in jobs} > {"import_crosscoder", "evaluate", "classify_latents", "causal", "latent_page"}
    made = project.planned(folder, "--configfile", "mixed.yaml")
    planned = collections.Counter(job.rule for job in plan.jobs(study))
    for rule in ("import_crosscoder", "match_seeds", "evaluate", "causal", "steer", "compare_effects", "latent_page"):
        assert made[rule] == planned[rule], rule
    compared = LatentPageSection.of(study, "base-vs-chat", "batchtopk", "1").others
    assert compared == [("batchtopk", 0), ("theirs", 0)]
    assert LatentPageSection.of(study, "base-vs-chat", "theirs", "0").others == [("batchtopk", 0)]


def summarised(results, folder, seeds: list[int], names: list[str]) -> Results:
    """What a notebook draws from, of files of a finished study; the published crosscoder has those of `batchtopk`."""
    content = mixed(seeds, str(results))
    for setting in ("base-vs-chat", "again"):
        content["settings"][setting]["crosscoders"] = names
    study = loading.check(content)
    section = CollateSection.of(study, "base-vs-chat").model_copy(update={"aligned": [], "seeds": seeds})

    def each(stage: str, suffix: str = "nc", trained_only: bool = False) -> list:
        paths = []
        for name, seed in trainings.with_seeds(study, names):
            if name != "theirs" or not trained_only:
                paths.append(folder / stage / name / f"seed-{seed}.{suffix}")
                paths[-1].parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(results / f"{stage}/base-vs-chat/batchtopk/seed-0.{suffix}", paths[-1])
        return paths

    given = {name: each(name) for name in ("latents", "causal", "steering", "effects")}
    stability = []
    for name, seed in trainings.repeated(study, "base-vs-chat"):
        matching = MatchSeedsSection.of(study, "base-vs-chat", name, str(seed))
        stability.append(folder / "stability" / name / f"seed-{seed}.nc")
        coders = each("crosscoders", trained_only=True)
        latents = [path for path in given["latents"] if path.parent.name == name]
        match_seeds.main(Namespace(settings=matching, crosscoders=coders, latents=latents, output=stability[-1]))
    files = {"evaluations": each("evaluation"), "histories": each("crosscoders", "history.nc", True), **given}
    files |= {"normalisation": results / "activations/base-vs-chat/normalisation.nc", "stability": stability}
    files |= {"tokens": results / "tokens/base-vs-chat/test.nc", "similarity": results / "similarity/base-vs-chat.nc"}
    files |= {"aligned": [], "circuits": [], "explanations": [], "traces": [], "behaviours": None, "divergence": None}
    collate.main(Namespace(settings=section, output=folder / "summary.nc", **files))
    return Results.open(str(folder / "summary.nc"), str(folder), {}, {}, {})


def test_no_figure_shows_a_seed_that_a_published_crosscoder_has_not(finished_project, tmp_path):
    results = finished_project / "results/smoke"
    alone = summarised(results, tmp_path / "alone", [0], ["theirs"])
    both = summarised(results, tmp_path / "both", [0, 1], ["batchtopk", "theirs"])
    assert both.summary["seed"].values.tolist() == [0, 1] and figures.seeds(both.summary, "theirs") == [0]
    words = 0
    for figure in [BY_ID[name] for name in OVER_SEEDS]:
        given = both._given(figure)
        plt.close(results_function(figure.draw)(*given))
        if figure.words:
            said = [
                [
                    line
                    for line in one.sentences(figure.id).splitlines()
                    if "**theirs" in line or line.startswith("| theirs")
                ]
                for one in (alone, both)
            ]
            assert said[0] == said[1], figure.id
            words += len(said[0])
    assert words >= 8
    sentences = both.sentences("ours-stability")
    assert "**batchtopk**: 100% of alive latents" in sentences
    assert "**theirs** is one training, so that nothing can be said of other seeds." in sentences
    table = comparison.table(both.summary)
    assert len(table["theirs"]["fve"]) == 1 and len(table["batchtopk"]["fve"]) == 2
    with pytest.raises(figures.NothingToDraw, match="trains no crosscoder with more than one seed"):
        alone.sentences("ours-stability")


def import_alone(folder, setting="base-vs-chat", **changes) -> subprocess.CompletedProcess:
    """Run the stage on the files of a finished study."""
    options = second(folder, **changes)
    paths = [str(folder / path) for path in options[1:]]
    study = loading.load(*paths)
    section = sections.section(study, "import_crosscoder", setting=setting, crosscoder="theirs", seed="0")
    activations = folder / "results/second/activations" / setting
    command = [sys.executable, "-m", "crosscoders", "analysis.import_crosscoder", "--settings", section]
    command += ["--validation", str(activations / "validation/000.nc")]
    command += ["--normalisation", str(activations / "normalisation.nc"), "--threads", "1"]
    command += ["--output", str(folder / "out.nc"), "--units", str(folder / "units.nc")]
    return subprocess.run(command, cwd=folder, env=project.environment(folder), capture_output=True, text=True)


def refusal(folder, **changes) -> str:
    done = import_alone(folder, **changes)
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert done.returncode == 1 and len(lines) == 1 and "Traceback" not in done.stderr, done.stderr
    assert not (folder / "out.nc").exists()
    return lines[0]


@pytest.mark.slow
def test_crosscoders_of_other_units_layers_and_shapes_are_refused_in_one_line(exported, monkeypatch):
    monkeypatch.chdir(exported)
    shutil.copytree(exported / "peer", exported / "scaled", dirs_exist_ok=True)
    change_tensors(exported / "scaled", activation_global_scale=torch.tensor([20.0, 0.004]))
    line = refusal(exported, path="scaled")
    assert line.startswith("error: crosscoders.theirs: explains less than nothing of the variance on validation tokens")
    assert ", chat -" in line
    assert "input_scale" in line
    line = refusal(exported, setting="cross-layer")
    assert "expected 2, as many as its files have" in line
    (exported / "scaled/config.json").unlink()
    assert "holds the files of no known format" in refusal(exported, path="scaled")
    done = import_alone(exported, path="results/second/crosscoders/base-vs-chat/batchtopk/seed-0.nc")
    assert done.returncode == 0, done.stderr
    assert json.loads(artifacts.read(exported / "out.nc").attrs["settings"])["crosscoder"]["kind"] == "published"
    (exported / "out.nc").unlink()


def test_names_of_sources_in_the_files_decide_their_order(tmp_path, member):
    from tests.formats.test_formats import portable

    from crosscoders.analysis.import_crosscoder import named

    found = portable(member, "relu", ["chat", "base"])
    crosscoder_learning.write(found, tmp_path)
    read = crosscoder_learning.read(tmp_path)
    assert named(read, ["base", "chat"], "here").crosscoder.sources == ["chat", "base"]
    assert named(read, ["first", "last"], "here").crosscoder.sources == ["first", "last"]
    with pytest.raises(UserError, match=r"^here\.sources: one; expected 2, as many as its files have$"):
        named(read, ["one"], "here")


# -- study files -------------------------------------------------------------------------------------------------------


def problems(changes: dict, **published) -> str:
    """What the checks say of the smoke study with a published crosscoder."""
    content = loading.read(project.ROOT / "studies/smoke.yaml")
    content["crosscoders"]["theirs"] = {"kind": "published"} | published
    for setting in ("base-vs-chat", "again"):
        content["settings"][setting]["crosscoders"] = ["theirs"]
    with pytest.raises(UserError) as error:
        loading.check(loading.merge(content, changes), "study.yaml")
    return str(error.value)


def test_mistakes_in_a_published_crosscoder_are_one_line_each(tmp_path):
    here, wanted = str(tmp_path), "crosscoders.theirs"
    assert problems({}) == f"study.yaml: {wanted}.path: None; expected either path, or repo and revision"
    assert "path: '/nowhere' does not exist" in problems({}, path="/nowhere")
    assert f"{wanted}.revision: None; expected a commit hash where repo is given" in problems({}, repo="a/b")
    assert "branches and tags are not pinned" in problems({}, repo="a/b", revision="main")
    assert f"{wanted}.folder: 'x'; expected a repo where folder is given" in problems({}, path=here, folder="x")
    assert "leaves the repo" in problems({}, repo="a/b", revision="0" * 40, folder="../x")
    assert f"{wanted}.latents: unknown setting" in problems({}, path=here, latents=3)
    assert "sources: 'other' is not defined; known: base, chat" in problems({}, path=here, sources=["base", "other"])
    null = {"settings": {"null-permuted-tokens": {"crosscoders": ["theirs"]}}}
    assert "expected ones that are trained on the changed activations" in problems(null, path=here)
    planted = {"settings": {"pair": {"crosscoders": ["theirs", "saes"]}}}
    assert "expected ones that are trained on the planted concepts" in problems(planted, path=here)
    circuits = {"settings": {"cross-layer": {"crosscoders": ["theirs", "saes"], "circuits": {"crosscoder": "theirs"}}}}
    assert "circuits.crosscoder: 'theirs' is published" in problems(circuits, path=here)
    kind = {"crosscoders": {"l1": {"kind": "publised"}}}
    assert "crosscoders.l1.kind: 'publised' is not one of trained, published" in problems(kind, path=here)


def test_studies_that_train_all_their_crosscoders_say_what_they_said():
    content = loading.read(project.ROOT / "studies/smoke.yaml")
    plain = loading.check(content).model_dump(mode="json")
    assert all("kind" not in one for one in plain["crosscoders"].values())
    content["crosscoders"]["l1"]["kind"] = "trained"
    assert loading.check(content).model_dump(mode="json") == plain
