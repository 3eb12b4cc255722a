"""The workflow as a user runs it: everything is made, nothing is made twice, a kill costs nothing, damage is named."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import xarray as xr
import yaml
from tests.project import ENVIRONMENT, ROOT, SMOKE, copy_finished, planned, snakemake

from crosscoders import artifacts
from crosscoders.report.registry import expected_figures
from crosscoders.study import loading
from crosscoders.study.queries import comparisons


@pytest.fixture(scope="module")
def project(finished_project, tmp_path_factory):
    """A finished smoke study that tests may edit."""
    return copy_finished(finished_project, tmp_path_factory.mktemp("workflow") / "project")


@pytest.fixture(scope="module")
def results(project):
    return project / "results" / "smoke"


CONTRACT = {
    "tokens/base-vs-chat/test.nc": ({"token", "document_id"}, {"token_id", "document", "position", "role", "corpus"}),
    "activations/base-vs-chat/train/001.nc": ({"token"}, {"base", "chat", "role"}),
    "activations/base-vs-chat/normalisation.nc": ({"source"}, {"scale", "mean_base", "mean_chat", "sink_norm"}),
    "crosscoders/base-vs-chat/batchtopk/seed-0.nc": (
        {"latent", "source"},
        {
            "encoder_base",
            "encoder_chat",
            "decoder_base",
            "decoder_chat",
            "encoder_bias",
            "decoder_bias_base",
            "threshold",
            "scale",
            "mean_base",
        },
    ),
    "crosscoders/cross-layer/l1/seed-0.history.nc": ({"step"}, {"loss", "l0", "dead_fraction", "learning_rate"}),
    "latents/base-vs-chat/batchtopk/seed-0.nc": (
        {"latent", "source"},
        {
            "decoder_norm",
            "relative_norm",
            "decoder_cosine",
            "norm_class",
            "density",
            "template_share",
            "specific",
            "planted_share",
        }
        | {
            f"nu_{t}{s}"
            for t in ("error", "reconstruction", "activation")
            for s in ("", "_low", "_high", "_validation")
        }
        | {"called", "called_low", "called_high"},
    ),
    "evaluation/cross-layer/l1/seed-0.nc": (
        {"source"},
        {
            "fraction_variance_explained",
            "l0",
            "l0_training",
            "dead_fraction",
            "loss",
            "training_flops",
            "dictionary_size",
        },
    ),
    "circuits/cross-layer/l1/seed-0.nc": (
        {"collapse", "source", "intervention"},
        {
            "nodes_per_token",
            "edges_per_token_high",
            "identity_share",
            "collapse_factor",
            "faithfulness",
            "saes_explained",
        },
    ),
    "circuits/pair/batchtopk/seed-0.nc": ({"collapse"}, {"recall", "recall_of_known", "matched_share"}),
    "aligned/base-vs-chat/aligned/seed-0.nc": ({"source", "latent"}, {"encoder_base", "decoder_chat", "threshold"}),
    "aligned_evaluation/base-vs-chat/aligned/seed-0.nc": (
        {"source", "other_source"},
        {"aligned_fraction_variance_explained", "aligned_overlap", "aligned_l0_low"},
    ),
    "responses/base-vs-chat.nc": ({"token", "document_id"}, {"token_id", "role", "response_place", "answer"}),
    "causal/base-vs-chat/batchtopk/seed-0.nc": (
        {"condition", "segment"},
        {"divergence", "divergence_low", "gap_closed", "gap_closed_high", "segment_tokens"},
    ),
    "steering/base-vs-chat/batchtopk/seed-0.nc": (
        {"intervention", "steered_behaviour", "latent_set", "prompt"},
        {"steering_rate", "steering_rate_low", "steering_not_fluent_high", "steering_loss", "set_latents", "answer"},
    ),
    "effects/base-vs-chat/batchtopk/seed-0.nc": (
        {"compared_latent"},
        {"effect_latent", "effect_correlation_low", "effect_null_correlation", "effect_other_role_share_high"},
    ),
    "similarity/cross-layer.nc": ({"source", "other_source"}, {"cka", "cka_low", "svcca", "svcca_directions"}),
    "ablations/base-vs-chat.nc": ({"document", "source", "ablation"}, {"cross_entropy", "tokens"}),
    "evaluation/base-vs-chat/batchtopk/seed-0.nc": (
        {"source", "ablation"},
        {"cross_entropy_recovered", "cross_entropy_recovered_low", "cross_entropy"},
    ),
    "planted/pair/batchtopk/seed-0.nc": (
        {"planted_class", "rule", "concept"},
        {"recovered", "recall", "precision", "false_positive_rate", "called", "l0"},
    ),
    "summary/pair.nc": ({"crosscoder", "seed", "rule"}, {"recall", "false_positive_rate"}),
    "summary/null-permuted-tokens.nc": ({"crosscoder", "seed", "latent"}, {"relative_norm", "specific"}),
    "summary/base-vs-chat.nc": ({"crosscoder", "seed", "latent"}, {"relative_norm", "behaviour_rate", "training_loss"}),
}
"""File, the dimensions and the variables that it has at least."""


def test_the_contract_of_files_dimensions_and_variables(results):
    for name, (dims, variables) in CONTRACT.items():
        with xr.open_dataset(results / name, mask_and_scale=False) as dataset:
            assert dims <= set(dataset.sizes), name
            assert variables <= set(dataset.variables), (name, variables - set(dataset.variables))
            assert {"study", "stage", "settings", "commit", "versions", "title"} <= set(dataset.attrs), name
            for variable in dataset.data_vars.values():
                assert "long_name" in variable.attrs, (name, variable.name)
    with xr.open_dataset(results / "tokens/base-vs-chat/test.nc", mask_and_scale=False) as tokens:
        assert tokens["role"].attrs["flag_meanings"] == "text system user assistant template"
    with xr.open_dataset(results / "latents/cross-layer/l1/seed-0.nc", mask_and_scale=False) as found:
        assert found["specific"].attrs["flag_meanings"] == "none base chat"
    assert (results / "models/chat/model.safetensors").is_file()
    assert json.loads((results / "models/chat/provenance.json").read_text())["licence"]


def test_figures_notebooks_and_report_are_there(project, results, monkeypatch):
    monkeypatch.chdir(project)
    study = loading.load("studies/smoke.yaml")
    names = {
        name for setting in comparisons.drawn_settings(study) for name in expected_figures(study, setting).values()
    }
    assert names == {path.stem for path in (results / "figures").glob("*.png")}
    assert {
        "ours-nulls",
        "ours-aligned-base-vs-chat",
        "d26-planted",
        "ours-circuits",
        "ours-confusion",
        "m25-delta-histogram",
        "l24-drift",
    } <= names
    for stem in names:
        assert (results / "figures" / f"{stem}.png").stat().st_size > 5000
        assert b"<svg" in (results / "figures" / f"{stem}.svg").read_bytes()[:2000]
    for page in (results / "report.html", *(results / "notebooks").glob("*.html")):
        assert page.stat().st_size > 10_000
    assert set(study.settings) == {path.stem for path in (results / "summary").glob("*.nc")}


def test_a_transfer_to_the_setting_itself_measures_the_same(results):
    """Crosscoders of `base-vs-chat` measured on the activations they were trained on: another path, equal numbers."""
    for stage, name in (("evaluation", "batchtopk"), ("latents", "batchtopk"), ("aligned_evaluation", "aligned")):
        direct, transferred = (
            xr.open_dataset(results / stage / setting / name / "seed-0.nc", mask_and_scale=False)
            for setting in ("base-vs-chat", "again")
        )
        spliced = [name for name in direct.variables if name not in transferred.variables]
        xr.testing.assert_equal(direct.drop_vars(spliced, errors="ignore"), transferred)
    assert not (results / "crosscoders" / "again").exists(), "nothing is trained"


def test_steering_has_its_controls_and_effects_are_those_of_shared_latents(results):
    with xr.open_dataset(results / "steering/base-vs-chat/batchtopk/seed-0.nc") as steered:
        assert {"unmodified", "unmodified, ablated", "mean difference, ablated"} <= set(steered["intervention"].values)
        chosen, drawn = set(), set()
        for name, members in zip(steered["latent_set"].values, steered["set_latents"].values.tolist(), strict=True):
            (drawn if name.startswith("random") else chosen).update(set(members) - {-1})
        assert chosen and drawn and not chosen & drawn
        rate, low, high = (steered[f"steering_rate{end}"] for end in ("", "_low", "_high"))
        assert ((low <= rate + 1e-9) & (rate <= high + 1e-9)).all()
        assert (steered["steering_loss"] > 0).all()
    with (
        xr.open_dataset(results / "effects/base-vs-chat/batchtopk/seed-0.nc") as effects,
        xr.open_dataset(results / "latents/base-vs-chat/batchtopk/seed-0.nc", mask_and_scale=False) as latents,
    ):
        compared = latents.isel(latent=effects["effect_latent"].values)
        assert (compared["norm_class"] == artifacts.flag(latents["norm_class"], "shared")).all()
        assert effects["effect_cosine"].values.tolist() == sorted(compared["decoder_cosine"].values.tolist())
        assert (abs(effects["effect_correlation"]) <= 1).all()


def test_splits_share_no_document(results):
    for setting in ("cross-layer", "base-vs-chat"):
        keys = []
        for split in ("train", "validation", "test"):
            with xr.open_dataset(results / f"tokens/{setting}/{split}.nc") as dataset:
                keys.append(set(dataset["key"].values.tolist()))
        assert not (keys[0] & keys[1] or keys[0] & keys[2] or keys[1] & keys[2])


def test_a_finished_study_has_nothing_to_do(project):
    assert planned(project, *SMOKE) == {}


def test_touching_a_source_file_reruns_nothing(project):
    (project / "src/crosscoders/analysis/classify_latents.py").touch()
    assert planned(project, *SMOKE) == {}


def test_a_file_from_the_future_reruns_nothing(project, results):
    """A clock may be wrong; what counts is the content, also of files that are not small."""
    for name in ("activations/cross-layer/train/000.nc", "summary/base-vs-chat.nc", "models/base/provenance.json"):
        path = results / name
        stamp, then = path.stat(), time.time() + 3e7
        os.utime(path, (then, then))
        try:
            assert planned(project, *SMOKE) == {}, name
        finally:
            os.utime(path, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    assert (results / "activations/cross-layer/train/000.nc").stat().st_size > 1e6


def test_editing_the_classification_retrains_nothing(project):
    path = project / "src/crosscoders/analysis/classify_latents.py"
    original = path.read_text()
    path.write_text(original + "\n# edited\n")
    try:
        jobs = planned(project, *SMOKE)
    finally:
        path.write_text(original)
    assert jobs["classify_latents"] == 5
    assert not {"train_crosscoder", "extract_activations", "evaluate", "fine_tune", "tokenize"} & set(jobs)


def test_changing_k_of_one_crosscoder_reruns_it_and_what_hangs_on_it(project):
    content = loading.read(project / "studies/smoke.yaml")
    content["crosscoders"]["batchtopk"]["activation"]["k"] = 9
    path = project / "changed.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    jobs = planned(project, "--configfile", "changed.yaml")
    assert jobs["train_crosscoder"] == 2, "the pair and its null"
    assert jobs["evaluate"] == jobs["classify_latents"] == 3, "and the transfer"
    assert jobs["trial"] == jobs["causal"] == jobs["latent_page"] == 1
    assert jobs["steer"] == jobs["compare_effects"] == 1
    assert not {"extract_activations", "fit_normalisation", "fine_tune", "tokenize", "fetch_model"} & set(jobs)


def test_a_setting_given_on_the_command_line_is_read_like_the_file(project):
    assert planned(project, *SMOKE, "--config", "seeds=[0, 1]")["train_crosscoder"] == 4
    done = snakemake(project, "-n", *SMOKE, "--config", "device=gpu", check=False)
    assert "device: 'gpu' is not one of auto, cpu, cuda" in done.stdout + done.stderr


def verified(project: Path) -> list[str]:
    """What `crosscoders verify` says is wrong."""
    command = [sys.executable, "-m", "crosscoders.cli", "verify", "results/smoke"]
    done = subprocess.run(command, cwd=project, capture_output=True, text=True)
    assert done.returncode == int(bool(done.stderr))
    return done.stderr.splitlines()


def test_a_training_gets_the_threads_that_its_settings_ask_for(project):
    content = loading.read(project / "studies/smoke.yaml") | {"study": "threads"}
    member = content["crosscoders"]["batchtopk"]
    member["training"] = member["training"] | {"threads": 2}
    (project / "threads.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    done = snakemake(project, "-n", "--printshellcmds", "--quiet", "host", "--configfile", "threads.yaml")
    trainings = [line for line in done.stdout.splitlines() if "training.train_crosscoder" in line]
    assert {"--threads 2" in line for line in trainings if "/batchtopk/" in line} == {True}
    assert {"--threads 2" in line for line in trainings if "/batchtopk/" not in line} == {False}


def test_every_file_of_a_finished_study_is_verified(project, results):
    assert verified(project) == []
    kinds = [
        "models/*/*.safetensors",
        "models/*/tokenizer.json",
        "text/*.nc",
        "activations/*/*/*.nc",
        "crosscoders/*/*/*.nc",
    ]
    kinds += [
        "figures/*.png",
        "figures/*.svg",
        "latents/*/*/*.html",
        "notebooks/*.ipynb",
        "notebooks/*.html",
        "report.html",
    ]
    for kind in kinds:
        path = sorted(results.glob(kind))[0]
        content, name, stamp = path.read_bytes(), path.relative_to(project), path.stat()
        try:
            path.write_bytes(content[: len(content) // 2])
            assert verified(project) == [f"error: {name}: changed"]
            path.unlink()
            assert verified(project) == [f"error: {name}: missing"]
        finally:
            path.write_bytes(content)
            os.utime(path, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    (results / "figures/extra.png").write_bytes(b"")
    assert verified(project) == ["error: results/smoke/figures/extra.png: not in the manifest"]
    (results / "figures/extra.png").unlink()
    assert verified(project) == []


def test_a_manifest_that_cannot_be_trusted_is_a_line(project, results):
    path = results / "manifest.json"
    content, stamp = path.read_text(), path.stat()
    try:
        for damaged in (content[:-100], content.replace("0", "1", 1), "[]", "{}"):
            path.write_text(damaged)
            (line,) = verified(project)
            assert line.startswith("error: results/smoke/manifest.json: missing or not as it was written")
        path.unlink()
        (line,) = verified(project)
        assert line.startswith("error: results/smoke/manifest.json: missing")
    finally:
        path.write_text(content)
        os.utime(path, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))


def test_a_finished_study_has_nothing_to_do_however_it_is_named(project, tmp_path):
    shutil.copy(project / "studies/smoke.yaml", tmp_path / "copy.yaml")
    for file in (str(project / "studies/smoke.yaml"), "./studies/../studies/smoke.yaml", str(tmp_path / "copy.yaml")):
        assert planned(project, "--configfile", file) == {}
    assert planned(project, *SMOKE, "--config", "seeds=[0]") == {}


def test_a_flipped_bit_stops_the_stage_that_reads_it_and_is_named(project, results):
    victim, reader = results / "latents/cross-layer/l1/seed-0.nc", results / "summary/cross-layer.nc"
    content, kept = victim.read_bytes(), reader.read_bytes()
    damaged = bytearray(content)
    damaged[len(damaged) // 3] ^= 4
    stamp = victim.stat()
    try:
        victim.write_bytes(damaged)
        os.utime(victim, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
        reader.unlink()
        done = snakemake(project, "results/smoke/summary/cross-layer.nc", *SMOKE, check=False)
        assert done.returncode != 0
        assert "latents/cross-layer/l1/seed-0.nc: corrupt" in done.stderr
        assert "report.collate failed; the reason stands above." in done.stderr
        assert "Traceback" not in done.stderr and "python -m crosscoders" not in done.stderr
        assert verified(project) == [
            "error: results/smoke/latents/cross-layer/l1/seed-0.nc: changed",
            "error: results/smoke/summary/cross-layer.nc: missing",
        ]
    finally:
        victim.write_bytes(content)
        os.utime(victim, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
        reader.write_bytes(kept)


@pytest.mark.parametrize(
    ("file", "reason"), [("absent.yaml", "No such file"), ("src", "Is a directory"), ("latin.yaml", "not UTF-8")]
)
@pytest.mark.parametrize("profile", ["profiles/default", "profiles/slurm"])
def test_a_study_file_that_cannot_be_read_is_a_line(project, file, reason, profile):
    (project / "latin.yaml").write_bytes("study: café".encode("latin-1"))
    done = snakemake(project, "-n", "--workflow-profile", profile, "--configfile", file, check=False)
    assert done.returncode != 0
    output = done.stdout + done.stderr
    (line,) = (line for line in output.splitlines() if line.startswith("error: "))
    assert reason in line and "expected a study file" in line
    assert "Traceback" not in output and 'File "' not in output


def test_config_errors_are_lines_before_any_job(project):
    content = loading.read(project / "studies/smoke.yaml")
    content["crosscoders"]["l1"]["latents"] = 0
    content["seeds"] = [True]
    (project / "bad.yaml").write_text(yaml.safe_dump(content))
    done = snakemake(project, "--configfile", "bad.yaml", check=False)
    output = done.stdout + done.stderr
    assert done.returncode != 0
    assert "bad.yaml: crosscoders.l1.latents: 0 does not fit" in output
    assert "bad.yaml: seeds.0: True does not fit" in output
    assert "Traceback" not in output


@pytest.mark.parametrize("name", sorted(path.name for path in (ROOT / "studies").glob("*.yaml")))
def test_every_study_can_be_planned(project, name):
    if name != "smoke.yaml":
        assert {"train_crosscoder", "import_crosscoder", "trial"} & set(
            planned(project, "--configfile", f"studies/{name}")
        )


def test_the_slurm_profile_plans_the_default_study(project):
    done = snakemake(project, "-n", "--workflow-profile", "profiles/slurm", "--jobs", "4", "--quiet", "rules")
    assert "train_crosscoder" in done.stdout + done.stderr


@pytest.mark.parametrize(
    "command",
    [
        ["snakemake", "--lint", *SMOKE],
        ["snakefmt", "--check", "Snakefile", "rules"],
        ["ruff", "check", "."],
        ["ruff", "format", "--check", "."],
        ["lint-imports"],
    ],
    ids=lambda command: " ".join(command[:2]),
)
def test_style(command):
    done = subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
