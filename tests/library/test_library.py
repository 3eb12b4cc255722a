"""The library: what a notebook does with crosscoders, studies and models, through `import crosscoders` alone."""

import copy
import dataclasses
import inspect
import subprocess
import sys

import numpy as np
import pytest
import torch
import transformers
import xarray as xr
from tests import project
from tests.formats.test_formats import portable, raw

import crosscoders
from crosscoders import artifacts
from crosscoders.errors import UserError
from crosscoders.formats import recognise
from crosscoders.library.loaded import Loaded
from crosscoders.report.stacking import stack

SOURCES = ("base", "chat")


def test_the_package_is_imported_at_once_and_without_torch():
    code = """
import sys, time
began = time.perf_counter()
import crosscoders
seconds = time.perf_counter() - began
assert {"load", "open_study", "attach"} <= set(dir(crosscoders))
assert not {"torch", "xarray", "transformers", "numpy"} & set(sys.modules), "a heavy library was imported"
assert seconds < 0.5, seconds
assert callable(crosscoders.load) and "torch" in sys.modules
try:
    crosscoders.nothing
except AttributeError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=project.ENVIRONMENT)
    assert done.stdout == "module 'crosscoders' has no attribute 'nothing'\n", done.stderr


def test_the_package_says_that_it_is_typed():
    assert (project.ROOT / "src/crosscoders/py.typed").exists()
    for function in (crosscoders.load, crosscoders.open_study, crosscoders.attach):
        assert "return" in inspect.get_annotations(function)


# -- crosscoders -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("format_name", ["netcdf", "crosscoder_learning", "sae-lens"])
def test_a_loaded_crosscoder_reads_and_writes_raw_activations(member, tmp_path, format_name):
    made = portable(member, "batchtopk")
    recognise.write(made, tmp_path, format_name)
    coder, activations = crosscoders.load(tmp_path), raw(made)
    expected = made.encode(activations)
    code = coder.encode({name: value.reshape(4, 50, -1).numpy() for name, value in activations.items()})
    assert code.shape == (4, 50, coder.latents)
    torch.testing.assert_close(code.flatten(0, 1), expected, rtol=1e-4, atol=1e-4)
    rebuilt = coder.reconstruct({name: value.reshape(4, 50, -1) for name, value in activations.items()})
    for name, value in made.decode(expected).items():
        torch.testing.assert_close(rebuilt[name].flatten(0, 1), value, rtol=1e-4, atol=1e-3)
    one = torch.zeros(coder.latents)
    written = {name: value - coder.decode(one)[name] for name, value in coder.decode(one + torch.eye(24)[3]).items()}
    for name in SOURCES:
        torch.testing.assert_close(written[name], coder.directions(name)[3], rtol=1e-3, atol=1e-4)
    assert "24 latents" in repr(coder) and format_name in repr(coder)
    assert all(f"<td>{name}</td>" in coder._repr_html_() for name in SOURCES)
    again = crosscoders.load(_saved(coder, tmp_path / "again"))
    torch.testing.assert_close(again.encode(activations), coder.encode(activations))


def _saved(coder: Loaded, folder):
    coder.save(folder, "netcdf")
    return folder / "crosscoder.nc"


def test_what_does_not_fit_is_one_line(member):
    coder, x = Loaded(portable(member, "relu")), torch.zeros(2, 12)
    for wrong, line in (
        ({"base": x}, "activations of base; expected base, chat"),
        ({"base": x, "chat": x, "other": x}, "activations of base, chat, other; expected base, chat"),
        ({"base": x, "chat": x[:, :3]}, "activations of shapes base (2, 12), chat (2, 3); expected (…, 12) for chat"),
        ({"base": x, "chat": x[:1]}, "activations of shapes base (2, 12), chat (1, 12); expected"),
    ):
        with pytest.raises(UserError) as error:
            coder.encode(wrong)
        assert str(error.value).startswith(line)
    with pytest.raises(UserError, match=r"a code of shape \(3,\); expected \(…, 24\)"):
        coder.decode(torch.zeros(3))
    with pytest.raises(UserError, match="format 'onnx'; expected one of crosscoder_learning"):
        coder.save("nowhere", "onnx")


# -- studies -----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_study_is_a_tree_that_holds_what_its_files_hold(finished_project):
    folder = finished_project / "results/smoke"
    study = crosscoders.open_study(folder)
    assert study.attrs["study"] == "smoke"
    files = {name: folder / f"latents/cross-layer/{name}/seed-0.nc" for name in ("l1", "saes")}
    expected = stack({(name, 0): artifacts.read(path) for name, path in files.items()})
    node = study["cross-layer/latents"]
    xr.testing.assert_equal(node.to_dataset()[list(expected.data_vars)].load(), expected)
    one = artifacts.read(files["l1"])
    chosen = study["cross-layer/latents"].nu_error.sel(crosscoder="l1", seed=0)[: one.sizes["latent"]]
    np.testing.assert_array_equal(chosen, one["nu_error"])
    np.testing.assert_array_equal(
        node["decoder_norm"].isel(crosscoder=[1, 0], seed=0, latent=slice(3, 40, 5), source=[2, 0]).values,
        expected["decoder_norm"].isel(crosscoder=[1, 0], seed=0, latent=slice(3, 40, 5), source=[2, 0]).values,
    )
    for place, file in {
        "base-vs-chat/summary": "summary/base-vs-chat.nc",
        "base-vs-chat/tokens/test": "tokens/base-vs-chat/test.nc",
        "base-vs-chat/normalisation": "activations/base-vs-chat/normalisation.nc",
        "behaviours/chat": "behaviours/chat.nc",
    }.items():
        xr.testing.assert_equal(study[place].to_dataset(inherit=False).load(), artifacts.read(folder / file))
    assert study["base-vs-chat/history"]["l0"].dims == ("crosscoder", "seed", "step")
    assert study["base-vs-chat/aligned_evaluation"].sizes["aligned"] == 1


def test_values_are_read_when_they_are_asked_for_and_damage_is_found_then(member, tmp_path):
    for name, latents in (("small", 24), ("wide", 30)):
        dataset = portable(member, "batchtopk").to_dataset().drop_vars("tied").isel(latent=slice(0, latents))
        artifacts.write(dataset.assign_attrs(study="s"), tmp_path / f"crosscoders/pair/{name}/seed-3.nc")
    study = crosscoders.open_study(tmp_path)
    damaged = tmp_path / "crosscoders/pair/wide/seed-3.nc"
    content = bytearray(damaged.read_bytes())
    content[-500] ^= 1
    damaged.write_bytes(content)
    biases = study["pair/crosscoders"].encoder_bias
    assert biases.sel(crosscoder="small").shape == (1, 24)
    assert np.isfinite(biases.sel(crosscoder="small").values).all()
    with pytest.raises(UserError, match=r"wide/seed-3\.nc: corrupt"):
        _ = biases.sel(crosscoder="wide").values
    with pytest.raises(UserError, match="no such folder"):
        crosscoders.open_study(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="holds no results"):
        crosscoders.open_study(tmp_path / "empty")


# -- models ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def pair(member, small_llama):
    """Base and chat, and a crosscoder in the units of their activations."""
    base, made = copy.deepcopy(small_llama), portable(member, "relu", width=32)
    with torch.no_grad():
        for parameter in base.parameters():
            parameter += 0.02 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
    made.mean, made.scale = [0 * mean for mean in made.mean], torch.full((2,), 2.0, dtype=torch.float64)
    return base, small_llama, Loaded(made)


IDS = torch.randint(2, 60, (3, 9), generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def hidden(model, ids: torch.Tensor, after: int = 1) -> torch.Tensor:
    """The residual stream after a layer, as the next one reads it."""
    found = []
    handle = model.model.layers[after + 1].register_forward_pre_hook(lambda _, given: found.append(given[0]))
    model(input_ids=ids)
    handle.remove()
    return found[-1]


def test_codes_of_a_forward_pass_and_what_ablation_and_steering_change(pair):
    base, chat, coder = pair
    before = {"base": hidden(base, IDS), "chat": hidden(chat, IDS)}
    code, direction = coder.encode(before), coder.directions("chat")
    with crosscoders.attach(chat, coder, "chat", 1, others={"base": base}) as attached:
        torch.testing.assert_close(hidden(chat, IDS), before["chat"])
        torch.testing.assert_close(attached.code, code, rtol=1e-4, atol=1e-5)
        attached.ablate([2, 7])
        attached.ablate(9)
        expected = before["chat"] - code[..., [2, 7, 9]] @ direction[[2, 7, 9]]
        assert (expected - before["chat"]).abs().max() > 0.1
        torch.testing.assert_close(hidden(chat, IDS), expected, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(attached.code, code, rtol=1e-4, atol=1e-5)
        attached.steer(4, 1.5)
        torch.testing.assert_close(hidden(chat, IDS), expected + 1.5 * direction[4], rtol=1e-4, atol=1e-4)
        attached.clear()
        torch.testing.assert_close(hidden(chat, IDS), before["chat"])
    attached.ablate(3)
    torch.testing.assert_close(hidden(chat, IDS), before["chat"])
    assert not chat._forward_pre_hooks


def test_generation_is_changed_alike_with_and_without_a_cache(pair):
    base, chat, coder = pair
    options = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    texts = {}
    for cached in (True, False):
        with crosscoders.attach(chat, coder, "chat", 1, others={"base": base}) as attached:
            attached.steer(4, 30.0)
            texts[cached] = chat.generate(IDS, use_cache=cached, **options)
            assert attached.code.shape[1] == (1 if cached else IDS.shape[1] + 5)
    assert torch.equal(texts[True], texts[False])
    assert not torch.equal(texts[True], chat.generate(IDS, **options))


def test_layers_of_one_model_and_sinks(pair):
    _, chat, coder = pair
    limit = torch.tensor([torch.inf, 0.9 * hidden(chat, IDS).norm(dim=-1).max()])
    coder.portable = dataclasses.replace(coder.portable, sink_norm=limit)
    first, second = hidden(chat, IDS, 0), hidden(chat, IDS, 1)
    code = coder.encode({"base": first, "chat": second})
    sinks = second.norm(dim=-1) > limit[1]
    assert 0 < sinks.sum() < sinks.numel()
    with crosscoders.attach(chat, coder, layer={"base": 0, "chat": 1}) as attached:
        attached.ablate(range(coder.latents))
        changed = hidden(chat, IDS, 0)
        torch.testing.assert_close(attached.code, code * ~sinks[..., None], rtol=1e-4, atol=1e-5)
    written = (code * ~sinks[..., None]) @ coder.directions("base")
    torch.testing.assert_close(changed, first - written, rtol=1e-4, atol=1e-4)
    assert written.abs().max() > 0.1


def test_attaching_to_what_does_not_fit_is_one_line(pair):
    base, chat, coder = pair
    narrow = transformers.LlamaConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2, vocab_size=8
    )
    for given, line in (
        ({"source": "chat", "layer": 1}, "given chat at layer 1, hook 'resid_post'; expected sources base, chat"),
        ({"layer": {"base": 0, "chat": 9}}, "layer 9 of chat; expected 0 to 3"),
        ({"layer": {"base": 0, "chat": 1, "third": 2}}, "expected sources base, chat"),
        ({"layer": {"base": 0, "chat": 1}, "hook": "attn"}, "hook 'attn'; expected"),
        (
            {"source": "chat", "layer": 1, "others": {"base": transformers.LlamaForCausalLM(narrow)}},
            "base has the width 32, but the model's is 16",
        ),
    ):
        with pytest.raises(UserError, match=line), crosscoders.attach(chat, coder, **given):
            pass
    with crosscoders.attach(chat, coder, "chat", 1, others={"base": base}) as attached:
        with pytest.raises(UserError, match="latent 24; expected 0 to 23"):
            attached.ablate(24)
        with pytest.raises(UserError, match="no input_ids"):
            chat(inputs_embeds=torch.zeros(1, 2, 32))
