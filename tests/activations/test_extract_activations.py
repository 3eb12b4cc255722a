"""What is stored is what the Hugging Face model computes, for every architecture."""

import numpy as np
import pytest
import torch
import transformers
from tests import architectures
from tests.architectures import CONFIGS

from crosscoders import artifacts
from crosscoders.activations import extraction
from crosscoders.errors import UserError
from crosscoders.language_models import hooks as sites_module
from crosscoders.language_models import windows
from crosscoders.language_models.anatomy import decoder_layers


@pytest.fixture(params=list(CONFIGS))
def model(request):
    torch.manual_seed(0)
    return transformers.AutoModelForCausalLM.from_config(CONFIGS[request.param]).eval()


def test_sites_equal_output_hidden_states(model):
    ids = torch.randint(0, 64, (3, 20))
    with torch.inference_mode():
        states = model(input_ids=ids, output_hidden_states=True).hidden_states
    sites = [(0, "resid_pre"), (0, "resid_post"), (2, "resid_pre"), (2, "resid_post")]
    found = sites_module.forward(model, sites, ids)
    for (layer, hook), values in found.items():
        assert torch.equal(values, states[layer + (hook == "resid_post")]), (layer, hook)


def test_mlp_output_is_what_the_mlp_adds_to_the_residual_stream(model):
    ids = torch.randint(0, 64, (2, 9))
    layer = decoder_layers(model)[1]
    found = sites_module.forward(model, [(1, "resid_pre"), (1, "mlp_out"), (1, "resid_post")], ids)
    before = found[1, "resid_post"] - found[1, "mlp_out"]
    attention = before - found[1, "resid_pre"]
    assert found[1, "mlp_out"].abs().max() > 0
    if not getattr(model.config, "use_parallel_residual", False):
        module = sites_module.mlp_output(layer)
        seen = {}
        handle = module.register_forward_pre_hook(lambda _, args: seen.update(x=args[0]))
        sites_module.forward(model, [(1, "resid_post")], ids)
        handle.remove()
        with torch.inference_mode():
            assert torch.allclose(module(seen["x"]), found[1, "mlp_out"], atol=1e-6)
    assert attention.abs().max() > 0


def test_the_pass_ends_at_the_deepest_site(model):
    ran = []
    for i, layer in enumerate(decoder_layers(model)):
        layer.register_forward_pre_hook(lambda *_, i=i, **__: ran.append(i))
    sites_module.forward(model, [(1, "resid_post"), (0, "resid_post")], torch.zeros(1, 4, dtype=torch.long))
    assert ran == [0, 1]


def test_batching_and_padding_change_nothing_but_rounding(model):
    lengths = [5, 17, 9, 30, 2, 12]
    generator = np.random.default_rng(0)
    ids = generator.integers(1, 64, sum(lengths)).astype(np.int32)
    tokens = architectures.reading(ids, np.concatenate([1 + np.arange(n) for n in lengths]))
    sites = [(1, "resid_post"), (3, "resid_post")]
    quiet = extraction.stage.Progress("", 1)
    together, norms = extraction.extract(model, sites, tokens, 64, quiet)
    for span in windows.windows(tokens.position):
        ids = torch.tensor([[0, *tokens.ids[span].tolist()]])
        alone = sites_module.forward(model, sites, ids)
        for site in sites:
            stored = artifacts.from_bits(together[site][span])
            np.testing.assert_allclose(stored, alone[site][0, 1:].numpy(), rtol=1e-2, atol=1e-3)
            np.testing.assert_allclose(norms[site][span], np.linalg.norm(stored, axis=1), rtol=1e-5)


def test_every_window_is_in_one_batch_under_the_budget():
    spans = [
        slice(a, a + n) for a, n in zip(range(0, 5000, 100), np.random.default_rng(0).integers(1, 90, 50), strict=True)
    ]
    groups = list(windows.batches(spans, 200))
    assert sorted(span.start for group in groups for span in group) == [span.start for span in spans]
    assert all(len(group) * (1 + max(s.stop - s.start for s in group)) <= 200 for group in groups)


@pytest.mark.parametrize("shards", [1, 2, 3, 7])
def test_shards_are_whole_documents_and_cover_everything(shards):
    document = np.repeat(np.arange(40), np.random.default_rng(0).integers(1, 60, 40))
    parts = [extraction.shard_tokens(document, i, shards) for i in range(shards)]
    assert parts[0].start == 0
    assert parts[-1].stop == len(document)
    for a, b in zip(parts, parts[1:], strict=False):
        assert a.stop == b.start
        assert document[a.stop - 1] != document[b.start]


def test_infinite_activations_name_shard_source_and_token():
    with pytest.raises(UserError, match=r"train/000\.nc: source 'chat': activation of token 7 is not finite"):
        extraction.check_finite({"base": np.ones(9), "chat": np.r_[np.ones(7), np.inf, 1]}, "train/000.nc")


def test_an_unknown_architecture_is_one_line():
    model = transformers.AutoModelForCausalLM.from_config(transformers.OpenAIGPTConfig(n_embd=8, n_layer=2, n_head=2))
    model.base_model.h = torch.nn.Sequential(*model.base_model.h)
    with pytest.raises(UserError, match="expected one list of 2 decoder layers, found none"):
        decoder_layers(model)
