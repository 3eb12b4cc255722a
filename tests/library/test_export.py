"""`crosscoders export`: crosscoders and test documents of a study in other tools' files."""

import asyncio
import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from tests import project
from tests.formats.test_formats import ckkissane_folder, portable, raw

import crosscoders
from crosscoders import artifacts, cli, storage
from crosscoders.data.tokenizer import load_tokenizer
from crosscoders.formats import recognise
from crosscoders.library import commands
from crosscoders.library.sections import ExportSection

FEATURE = [
    "feature_index",
    "neuron_alignment_indices",
    "neuron_alignment_values",
    "neuron_alignment_l1",
    "correlated_neurons_indices",
    "correlated_neurons_l1",
    "correlated_neurons_pearson",
    "correlated_features_indices",
    "correlated_features_l1",
    "correlated_features_pearson",
    "neg_str",
    "neg_values",
    "pos_str",
    "pos_values",
    "frac_nonzero",
    "freq_hist_data_bar_values",
    "freq_hist_data_bar_heights",
    "logits_hist_data_bar_heights",
    "logits_hist_data_bar_values",
    "n_prompts_total",
    "n_tokens_in_prompt",
    "dataset",
    "decoder_weights_dist",
    "activations",
    "vector",
]
"""What SAEDashboard, which makes Neuronpedia's files, writes of a feature."""


def export(*arguments) -> None:
    cli.main(["export", *map(str, arguments)])


def line(capsys, *arguments) -> str:
    """The one line of a refused export."""
    with pytest.raises(SystemExit) as error:
        export(*arguments)
    text = str(error.value.code)
    assert text.startswith("error: ") and len(text.splitlines()) == 1
    return text


def test_the_command_starts_without_torch_and_knows_every_format():
    code = "import sys; import crosscoders.cli; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=project.ENVIRONMENT)
    assert done.stdout == "False\n", done.stderr
    assert sorted(commands.CROSSCODERS) == sorted(recognise.WRITTEN)


@pytest.mark.parametrize("format_name", commands.CROSSCODERS)
def test_a_crosscoder_goes_out_and_comes_back(member, tmp_path, monkeypatch, capsys, format_name):
    monkeypatch.chdir(tmp_path)
    made = portable(member, "topk" if format_name == "sparsify" else "batchtopk")
    recognise.write(made, "study", "netcdf")
    export("study/crosscoder.nc", "--format", format_name)
    folder = tmp_path / "exports/study-crosscoder" / format_name
    if format_name == "crosscoder_learning":
        assert capsys.readouterr().out.startswith(f"exports/study-crosscoder/{format_name}: written")
    coder, activations = crosscoders.load(folder), raw(made)
    assert coder.portable.origin in (format_name, "netcdf")
    for name, value in made.decode(made.encode(activations)).items():
        torch.testing.assert_close(coder.reconstruct(activations)[name], value, rtol=1e-4, atol=1e-3)


def test_the_dictionary_of_one_source_goes_out(member, tmp_path):
    made = portable(member, "batchtopk", blocks={"sae": {"share": 1.0, "reads": "each", "writes": "each"}})
    recognise.write(made, tmp_path / "study", "netcdf")
    export(tmp_path / "study", "--format", "sae-lens", "--source", "chat", "--output", tmp_path / "chat")
    coder, activations = crosscoders.load(tmp_path / "chat"), raw(made)
    assert (coder.sources, coder.latents) == (["chat"], 12)
    expected = made.decode(made.encode(activations))["chat"]
    found = coder.reconstruct({"chat": activations["chat"]})["chat"]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-3)


def test_a_peers_crosscoder_goes_to_another_peer(tmp_path):
    folder = ckkissane_folder(tmp_path / "peer")
    scales = "base=0.2758961,chat=0.2442285"
    export(folder, "--format", "crosscoder_learning", "--input-scale", scales, "--output", tmp_path / "fork")
    activations = {name: torch.randn(50, 12) * 4 for name in ("base", "chat")}
    ours = crosscoders.load(folder, input_scale={"base": 0.2758961, "chat": 0.2442285})
    torch.testing.assert_close(crosscoders.load(tmp_path / "fork").encode(activations), ours.encode(activations))


def test_what_cannot_be_exported_is_one_line(member, tmp_path, capsys):
    recognise.write(portable(member, "relu"), tmp_path / "study", "netcdf")
    given = [tmp_path / "study/crosscoder.nc", "--output", tmp_path / "out", "--format"]
    assert "sparsify cannot express the activation 'relu'" in line(capsys, *given, "sparsify")
    assert "'chat' has no dictionary of its own" in line(capsys, *given, "sae-lens", "--source", "chat")
    assert "source: 'other'; expected one of base, chat" in line(capsys, *given, "sae-lens", "--source", "other")
    assert "expected a crosscoder of a study, as results/" in line(capsys, *given, "delphi")
    assert "delphi takes a crosscoder of a study as it is" in line(capsys, *given, "delphi", "--sources", "a,b")
    assert "no such folder" in line(capsys, tmp_path / "nowhere", *given[1:], "sae-lens")
    assert not (tmp_path / "out").exists()
    (tmp_path / "out").mkdir()
    (tmp_path / "out/mine.txt").touch()
    assert "is there already and not empty" in line(capsys, *given, "sae-lens")


# -- test documents ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(finished_project):
    return finished_project / "results/smoke/crosscoders/base-vs-chat/batchtopk/seed-0.nc"


@pytest.mark.slow
def test_delphi_gets_every_activation_on_test_documents(trained, tmp_path):
    export(trained, "--format", "delphi", "--output", tmp_path / "cache")
    (module,) = (tmp_path / "cache").iterdir()
    config = json.loads((module / "config.json").read_text())
    cache = load_file(module / "0_127.safetensors")
    results = trained.parents[3]
    tokens = artifacts.read(results / "tokens/base-vs-chat/test.nc")
    assert config["ctx_len"] == cache["tokens"].shape[1] == 256
    row, column, latent = cache["locations"].astype(int).T
    assert (np.diff(latent) >= 0).all()
    # Every window stands after a sink, one window after the other.
    first = tokens["position"].values == 1
    at, flat = np.arange(len(first)) + np.cumsum(first), cache["tokens"].reshape(-1)
    np.testing.assert_array_equal(flat[at], tokens["token_id"].values)
    assert (np.delete(flat, at) == tokens.attrs["sink_token_id"]).all()
    assert first.sum() <= len(flat) - len(at) < first.sum() + 256
    evaluation = artifacts.read(results / "evaluation/base-vs-chat/batchtopk/seed-0.nc")
    assert len(latent) == round(float(evaluation["l0"] * evaluation["tokens"]))
    coder, shard = crosscoders.load(trained), artifacts.read(results / "activations/base-vs-chat/test/000.nc")
    code = coder.encode({name: artifacts.from_bits(shard[name].values) for name in ("base", "chat")})
    index = np.searchsorted(at, row * 256 + column)
    assert (at[index] == row * 256 + column).all()
    np.testing.assert_allclose(cache["activations"], code[index, latent], rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_delphi_itself_reads_the_cache(trained, tmp_path):
    """Its own reader finds every latent with its examples and the texts around them."""
    delphi = pytest.importorskip("delphi.latents", reason="needs the package eai-delphi", exc_type=ImportError)
    from delphi.config import ConstructorConfig, SamplerConfig

    export(trained, "--format", "delphi", "--output", tmp_path / "cache")
    (module,) = (tmp_path / "cache").iterdir()
    found = delphi.LatentDataset(
        tmp_path / "cache",
        SamplerConfig(n_examples_train=2, n_examples_test=2),
        ConstructorConfig(min_examples=4, n_non_activating=2, non_activating_source="random"),
        tokenizer=load_tokenizer(trained.parents[3] / "models/base"),
    )
    cache = load_file(module / "0_127.safetensors")
    largest = {
        j: cache["activations"][cache["locations"][:, 2] == j].max() for j in np.unique(cache["locations"][:, 2])
    }

    async def records() -> list:
        return [record async for record in found]

    read = asyncio.run(records())
    assert len(read) > 10
    for record in read:
        strongest = max(float(example.activations.max()) for example in record.examples)
        assert strongest == pytest.approx(largest[record.latent.latent_index], rel=1e-3)
        assert {tuple(example.tokens.shape) for example in record.examples} == {(32,)}


@pytest.mark.slow
def test_neuronpedia_gets_a_feature_for_every_latent_that_fires(trained, tmp_path):
    export(trained, "--format", "neuronpedia", "--output", tmp_path / "np")
    batch = json.loads((tmp_path / "np/batch-0.json").read_text())
    latents = artifacts.read(trained.parents[3] / "latents/base-vs-chat/batchtopk/seed-0.nc")
    density = latents["density"].values
    assert sorted(batch) == ["features", "layer", "model_id", "sae_id_suffix", "sae_set"]
    assert (batch["model_id"], batch["layer"]) == ("chat", 1)
    assert [feature["feature_index"] for feature in batch["features"]] == np.flatnonzero(density > 0).tolist()
    for feature in batch["features"]:
        assert sorted(feature) == sorted(FEATURE)
        assert sum(feature["freq_hist_data_bar_heights"]) == round(feature["frac_nonzero"] * 2500)
        strongest = [max(example["values"]) for example in feature["activations"]]
        assert strongest == sorted(strongest, reverse=True)
        first = feature["activations"][0]
        assert first["values"][first["qualifying_token_index"]] == first["bin_max"] == strongest[0] > 0
        assert len(first["tokens"]) == len(first["values"])
        assert len(feature["pos_str"]) == len(feature["neg_values"]) == 10
        assert feature["pos_values"][0] >= feature["pos_values"][-1] >= feature["neg_values"][0]


@pytest.mark.slow
def test_a_studys_export_is_what_the_command_writes_and_is_listed(trained, tmp_path):
    names = {"study": "smoke", "setting_name": "base-vs-chat", "crosscoder_name": "batchtopk", "seed": 0}
    section = ExportSection(**names, format_name="sae-lens")
    folder, listed = tmp_path / "made/sae-lens", tmp_path / "made/sae-lens.json"
    command = [sys.executable, "-m", "crosscoders", "library.export", "--settings", section.to_json()]
    command += ["--crosscoder", str(trained), "--folder", str(folder), "--output", str(listed)]
    subprocess.run(command, check=True, capture_output=True)
    export(trained, "--format", "sae-lens", "--output", tmp_path / "command")
    written = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert written == {path.name: path.read_bytes() for path in (tmp_path / "command").iterdir()}
    assert storage.read_json(listed)["files"] == {name: storage.sha256(folder / name) for name in written}
