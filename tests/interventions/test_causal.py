"""Causal patching: what must reproduce the chat model does, what explains the difference closes the gap."""

import copy

import numpy as np
import pytest
import torch
import transformers
import xarray as xr
from tests.architectures import CONFIGS

from crosscoders.crosscoder import crosscoder
from crosscoders.data.chats import ROLES
from crosscoders.interventions import causal, generate_responses, patching
from crosscoders.language_models import anatomy, hooks
from crosscoders.study.settings.analysis import Bootstrap

WIDTH, LAYER, SINK, STOP = 32, 1, 0, 63


@pytest.fixture(scope="module")
def pair():
    """Two models that differ in the layers up to the compared one."""
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=64,
        hidden_size=WIDTH,
        intermediate_size=48,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        initializer_range=0.2,
    )
    base = transformers.AutoModelForCausalLM.from_config(config).eval()
    chat = copy.deepcopy(base)
    with torch.no_grad():
        for layer in chat.model.layers[: LAYER + 1]:
            layer.mlp.down_proj.weight += 0.2 * torch.randn_like(layer.mlp.down_proj.weight)
    return {"base": base, "chat": chat}


@pytest.fixture(scope="module")
def conversations():
    generator = np.random.default_rng(0)
    user, template = ROLES.index("user"), ROLES.index("template")
    prompts = [
        (generator.integers(1, 60, n).tolist(), [template] + [user] * (n - 2) + [template]) for n in (5, 9, 7, 6)
    ]
    answers = [[*generator.integers(1, 60, n).tolist(), STOP] for n in (12, 4, 10, 15)]
    return generate_responses.to_dataset(prompts, answers, STOP).assign_attrs(sink_token_id=SINK)


@pytest.fixture
def coder(member):
    """A crosscoder that sees chat's activation and adds the direction of one latent to chat alone."""
    options = member("relu", penalty="l1_of_norms", latents=24)
    found = crosscoder.create(options, ["base", "chat"], [WIDTH, WIDTH], 3)
    generator = torch.Generator().manual_seed(1)
    found.decoder = 0.3 * torch.randn(24, 2 * WIDTH, generator=generator)
    found.threshold = 0.1
    return found


def run(pair, conversations, coder, named=None, sink_norm=np.inf):
    normalisation = xr.Dataset(
        {"scale": ("source", [1.5, 0.7])} | {f"mean_{name}": (f"width_{name}", np.full(WIDTH, 0.1)) for name in pair},
        coords={"source": ["base", "chat"]},
    )
    scale = causal.Scale(normalisation, ["base", "chat"])
    masks = {name: torch.tensor([j in members for j in range(24)]) for name, members in (named or {}).items()}
    axes = torch.linalg.qr(torch.randn(WIDTH, WIDTH, generator=torch.Generator().manual_seed(5))).Q.T
    where, constant = causal.directions(coder, scale, "base", "chat")
    patches = causal.Patches(where, constant, masks, torch.zeros(WIDTH), {1: axes[:1], WIDTH: axes})
    norms = {"base": sink_norm, "chat": sink_norm}
    reader = causal.Reader(pair["base"], pair["chat"], ["base", "chat"], LAYER, coder, scale, norms)
    return causal.measure(reader, conversations, patches, 40, "")


def chat_divergence(pair, other, conversations) -> np.ndarray:
    """KL of another model from the chat model on every response token, one conversation at a time."""
    found = []
    for _, one in conversations.groupby("document"):
        rows = torch.tensor([[SINK, *one["token_id"].values.tolist()]])
        with torch.no_grad():
            p, q = (torch.log_softmax(model(input_ids=rows).logits[0, :-1], -1) for model in (pair["chat"], other))
        divergence = (p.exp() * (p - q)).sum(-1).numpy()
        found.append(divergence[one["response_place"].values >= 0])
    return np.concatenate(found)


def test_the_ends_of_the_scale(pair, conversations, coder):
    """Everything patched is the chat model; nothing patched is base's lower half under chat's upper half."""
    found = run(pair, conversations, coder)
    assert found["all and error"].max() < 1e-6
    assert found["none"].min() > 0
    hybrid = copy.deepcopy(pair["chat"])
    for i in range(LAYER + 1):
        hybrid.model.layers[i] = pair["base"].model.layers[i]
    np.testing.assert_allclose(found["none"], chat_divergence(pair, hybrid, conversations), rtol=1e-3, atol=1e-6)


def test_all_components_of_the_difference_close_the_gap_except_at_the_sink(pair, conversations, coder):
    found = run(pair, conversations, coder)
    assert found[f"components {WIDTH}"].mean() < 0.5 * found["none"].mean()
    assert found["components 1"].mean() > found[f"components {WIDTH}"].mean()


def test_latents_are_patched_where_they_fire_and_nowhere_else(pair, conversations, coder):
    sets = {"best half by Δ": [0, 1, 2], "random 1": [], "random 2": list(range(24))}
    found = run(pair, conversations, coder, sets)
    np.testing.assert_allclose(found["random 1"], found["none"], rtol=1e-4, atol=1e-7)
    np.testing.assert_allclose(found["random 2"], found["all"], rtol=1e-3, atol=1e-6)
    assert abs(found["best half by Δ"] - found["none"]).max() > 1e-5
    assert abs(found["best half by Δ, added"] - found["best half by Δ"]).max() > 1e-5
    silent = run(pair, conversations, coder, sets, sink_norm=0.0)
    np.testing.assert_allclose(silent["all"], silent["none"], rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("name", list(CONFIGS))
def test_an_identity_patch_changes_no_logit(name):
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(CONFIGS[name]).eval()
    ids = torch.randint(0, 64, (3, 12))
    hidden = hooks.forward(model, [(2, "resid_post")], ids)[2, "resid_post"]
    with torch.inference_mode():
        expected = model(input_ids=ids).logits
        with anatomy.replaced_below(model, 2, hidden):
            assert torch.equal(model(input_ids=ids).logits, expected)
        assert torch.equal(model(input_ids=ids).logits, expected), "the model is itself again"


def test_divergence_by_segment_is_a_ratio_of_sums(conversations):
    chosen = conversations["response_place"].values >= 0
    document, place = conversations["document"].values[chosen], conversations["response_place"].values[chosen]
    none = np.where(place < 9, 2.0, 1.0)
    found = {"none": none, "all": 0.25 * none}
    options = Bootstrap(bootstrap_replicates=30, confidence=0.95)
    dataset = causal.to_dataset(found, {}, document, place, options)
    assert dataset["divergence"].sel(condition="none").values[1:].tolist() == [2, 1]
    assert dataset["divergence"].sel(condition="none", segment="all").item() == pytest.approx(none.mean())
    np.testing.assert_allclose(dataset["gap_closed"].sel(condition="all"), 0.75)
    assert dataset["segment_tokens"].values.tolist() == [len(place), (place < 9).sum(), (place >= 9).sum()]


def test_control_sets_are_as_frequent_and_as_large_and_leave_the_candidates_out():
    generator = np.random.default_rng(0)
    density, norm = 10 ** generator.uniform(-4, -1, 2000), 10 ** generator.uniform(-1, 1, 2000)
    chosen = np.argsort(-density)[50:80]
    allowed = np.ones(2000, bool)
    allowed[chosen] = False
    drawn = patching.matched_sets(chosen, allowed, density, norm, 5, 0)
    assert len(drawn) == 5
    for one in drawn:
        assert len(set(one)) == len(chosen)
        assert not set(one) & set(chosen)
        np.testing.assert_allclose(np.log10(density[one]), np.log10(density[chosen]), atol=0.5)
        np.testing.assert_allclose(np.log10(norm[one]), np.log10(norm[chosen]), atol=0.5)
    assert any(set(a) != set(b) for a, b in zip(drawn, drawn[1:], strict=False))


def test_halves_by_rank_put_what_is_low_in_both_first():
    delta = np.array([0.95, 0.5, 0.91, 0.93, 0.92, 0.6])
    chosen = patching.candidates(delta, np.array([1, 1, 1, 1, 1, 0], bool), 0.9, 2)
    assert chosen.tolist() == [0, 3, 4, 2]
    error, reconstruction = np.array([0.9, 0, 0.1, np.nan, 0.2, 0]), np.array([0.8, 0, 0.2, 0.9, 0.1, 0])
    better, worse = patching.halves(chosen, patching.rank_sum(chosen, reconstruction, error))
    assert set(better) == {2, 4}
    assert set(worse) == {0, 3}
