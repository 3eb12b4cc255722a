"""Loss with activations replaced: nothing changes nothing, and replacing equals running the upper layers by themselves."""

import copy

import numpy as np
import pytest
import torch
import xarray as xr

from crosscoders.activations import shuffle
from crosscoders.analysis import evaluate
from crosscoders.language_models import hooks, splicing
from crosscoders.language_models.windows import windows
from crosscoders.study.settings.analysis import Bootstrap

SINK = 0


@pytest.fixture(scope="module")
def model(small_llama):
    return small_llama


@pytest.fixture(scope="module")
def text():
    lengths = [5, 17, 9, 30, 2, 12]
    ids = np.random.default_rng(0).integers(1, 64, sum(lengths)).astype(np.int32)
    return ids, windows(np.concatenate([1 + np.arange(n) for n in lengths]))


def states(model, layer: int, hook: str, ids: np.ndarray, spans: list[slice]) -> np.ndarray:
    """Raw activations of every token, one window at a time."""
    found = np.empty((len(ids), 32), np.float32)
    for span in spans:
        rows = torch.tensor([[SINK, *ids[span].tolist()]])
        found[span] = hooks.forward(model, [(layer, hook)], rows)[layer, hook][0, 1:].numpy()
    return found


def test_losses_are_those_of_the_model(model, text):
    ids, spans = text
    found = splicing.token_losses(model, ids, spans, SINK, 64, [None])[0]
    for span in spans:
        rows = torch.tensor([[SINK, *ids[span].tolist()]])
        with torch.no_grad():
            expected = model(input_ids=rows, labels=rows).loss.item()
        assert found[span].mean() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("hook", ["resid_pre", "resid_post", "mlp_out"])
def test_a_perfect_reconstruction_changes_no_loss(model, text, hook):
    ids, spans = text
    clean = splicing.token_losses(model, ids, spans, SINK, 64, [None])[0]
    perfect = states(model, 2, hook, ids, spans)
    changes = [((2, hook), perfect), ((0, "resid_post"), states(model, 0, "resid_post", ids, spans)), None]
    for found in splicing.token_losses(model, ids, spans, SINK, 64, changes, np.ones(len(ids), bool)):
        np.testing.assert_allclose(found, clean, rtol=1e-4)
    change = ((2, hook), 0 * perfect)
    (nothing,) = splicing.token_losses(model, ids, spans, SINK, 64, [change], np.zeros(len(ids), bool))
    np.testing.assert_allclose(nothing, clean, rtol=1e-6)


def test_replacing_equals_the_upper_layers_on_the_replaced_states(model, text):
    """An independent way: a model of the upper layers alone, fed with the changed residual stream."""
    ids, spans = text
    replaced = np.random.default_rng(1).random(len(ids)) < 0.6
    other = np.random.default_rng(2).normal(size=(len(ids), 32)).astype(np.float32)
    (found,) = splicing.token_losses(model, ids, spans, SINK, 64, [((1, "resid_post"), other)], replaced)
    upper = copy.deepcopy(model)
    upper.model.layers = upper.model.layers[2:]
    upper.config.num_hidden_layers = upper.model.config.num_hidden_layers = 2
    for layer, index in zip(upper.model.layers, range(2), strict=True):
        layer.self_attn.layer_idx = index
    for span in spans:
        rows = torch.tensor([[SINK, *ids[span].tolist()]])
        with torch.no_grad():
            stream = model(input_ids=rows, output_hidden_states=True).hidden_states[2].clone()
            chosen = np.flatnonzero(replaced[span])
            stream[0, 1 + torch.from_numpy(chosen)] = torch.from_numpy(other[span][chosen])
            logits = upper(inputs_embeds=stream, use_cache=False).logits[0, :-1]
        expected = torch.nn.functional.cross_entropy(logits, rows[0, 1:], reduction="none")
        np.testing.assert_allclose(found[span], expected.numpy(), rtol=1e-4)


def test_chosen_documents_are_spread_and_hold_the_share_asked_for():
    document = np.repeat(np.arange(50), 20)
    chosen = shuffle.spread_documents(document, 200)
    assert chosen.sum() == 10
    assert np.diff(np.flatnonzero(chosen)).tolist() == [5] * 9
    assert shuffle.spread_documents(document, 10**9).all()


def test_recovered_is_a_ratio_of_sums_and_a_difference_has_none():
    clean = np.array([[10.0], [30.0]])
    losses = np.stack([clean, np.array([[50.0], [50]]), np.array([[30.0], [40]])], axis=2)
    ablations = xr.Dataset(
        {"cross_entropy": (("document", "source", "ablation"), losses), "tokens": ("document", [4, 6])},
        coords={"source": ["base"], "ablation": ["clean", "zero", "mean"]},
    )
    spliced = np.array([[13.0, np.nan], [33.0, np.nan]])
    options = Bootstrap(bootstrap_replicates=20, confidence=0.95)
    found = evaluate.splice_dataset(["base", "difference"], spliced, ablations, options)
    assert found["cross_entropy_recovered"].values[0].tolist() == pytest.approx([1 - 6 / 60, 1 - 6 / 30])
    assert found["cross_entropy"].values[0].tolist() == pytest.approx([4, 4.6, 10, 7])
    assert np.isnan(found["cross_entropy_recovered"].values[1]).all()
    assert (found["cross_entropy_recovered_low"][0] <= found["cross_entropy_recovered"][0]).all()
