"""Steering: a direction that flips an answer flips it and random ones do not; nothing taken out changes nothing."""

import copy

import numpy as np
import pytest
import torch
import xarray as xr

from crosscoders.crosscoder import crosscoder
from crosscoders.crosscoder.encode import encode_sparse
from crosscoders.interventions import reading, steer, steering
from crosscoders.language_models import behaviours, hooks
from crosscoders.study.settings.comparisons import Steering

WIDTH, LATENTS, LAYER, STOP, WRITTEN = 32, 24, 3, 63, 17
SITE = (LAYER, "resid_post")
PROMPTS = [[0, 5, 9, 33], [0, 7, 8], [0, 21, 4, 40, 11, 2, 9]]
SETTINGS = Steering(new_tokens=6, batch_answers=8)


@pytest.fixture
def reader(small_llama, member):
    """Two models, and a crosscoder whose latent 0 writes against what makes them write token 17, at every token.

    Its other latents write less, in random directions.
    """
    chat = copy.deepcopy(small_llama)
    with torch.no_grad():
        chat.model.layers[1].mlp.down_proj.weight *= 1.3
    generator = torch.Generator().manual_seed(0)
    unit = torch.nn.functional.normalize(small_llama.lm_head.weight[WRITTEN].detach(), dim=0)
    coder = crosscoder.create(member("relu", penalty="l1_of_norms", latents=LATENTS), ["base", "chat"], [WIDTH] * 2, 0)
    coder.decoder = 0.02 * torch.randn(LATENTS, 2 * WIDTH, generator=generator)
    coder.decoder[0, WIDTH:] = -40 * unit
    coder.encoder = 0.3 * torch.randn(LATENTS, 2 * WIDTH, generator=generator)
    coder.encoder[0], coder.encoder_bias[0] = 0, 1.0
    normalisation = xr.Dataset(
        {"scale": ("source", [1.0, 1.0])}
        | {f"mean_{name}": (f"w_{name}", np.zeros(WIDTH)) for name in ("base", "chat")},
        coords={"source": ["base", "chat"]},
    )
    scale = reading.Scale(normalisation, ["base", "chat"])
    norms = {"base": np.inf, "chat": np.inf}
    return reading.Reader(small_llama, chat, ["base", "chat"], LAYER, coder, scale, norms)


def given(reader, named, strengths=(1.0,)):
    """Answers by side, set and strength."""
    decoder = reading.directions(reader.coder, reader.scale, "base", "chat")[0].chat
    typical = np.where(np.arange(LATENTS) == 0, -1.0, 1.0)  # so that latent 0 is added against what it writes
    members = {name: np.array(latents, int) for name, latents in named.items()}
    made, norms, unit = steering.interventions(members, typical, decoder, torch.ones(WIDTH), list(strengths))
    answered = steering.answers(reader, decoder, made, PROMPTS, SETTINGS, STOP, "")
    return {(one.side, one.name): answer for one, answer in zip(made, answered, strict=True)}, norms, unit


def test_a_direction_that_flips_the_answer_flips_it_and_random_ones_do_not(reader):
    found, norms, unit = given(reader, {"planted": [0], "random 1": [3, 4, 5], "random 2": [6, 7, 8]})
    flipped = [[WRITTEN] * SETTINGS.new_tokens] * len(PROMPTS)
    assert found["base", "planted"] == flipped
    assert found["chat", "planted"] == flipped
    assert unit == pytest.approx(norms["planted"])
    for name in ("unmodified", "random 1", "random 2", "mean difference"):
        for side in ("base", "chat"):
            assert not any(answer == flipped[0] for answer in found[side, name]), (side, name)


def test_taking_nothing_out_changes_nothing(reader):
    found, _, _ = given(reader, {"nobody": [], "planted": [0]})
    assert found["chat", "nobody"] == found["chat", "unmodified"]


def test_answers_side_by_side_are_those_of_one_prompt_at_a_time_without_a_cache(reader):
    """Padding, caches and the base model that reads along leave no trace."""
    members = torch.zeros(LATENTS, dtype=torch.bool)
    members[[0, 3, 4, 5, 9]] = True
    found, _, _ = given(reader, {"some": [0, 3, 4, 5, 9]})
    coder = reader.coder
    for prompt, answer in zip(PROMPTS, found["chat", "some"], strict=True):
        ids = torch.tensor([prompt])
        for written in answer:
            raw = [hooks.forward(model, [SITE], ids)[SITE][0] for model in (reader.base, reader.chat)]
            code = encode_sparse(coder, torch.cat(raw, dim=1)).dense()
            taken = (code * members) @ coder.decoder[:, WIDTH:]
            with torch.inference_mode(), hooks.attached(reader.chat, [SITE], lambda _, h, taken=taken: h - taken):
                assert int(reader.chat(input_ids=ids).logits[0, -1].argmax()) == written
            ids = torch.cat([ids, torch.tensor([[written]])], dim=1)


def test_an_answer_is_not_fluent_above_the_unmodified_models_own_losses(reader):
    found, _, _ = given(reader, {"planted": [0], "random 1": [3]})
    made = [steering.Intervention(side, name, np.nan, None, None) for side, name in found]
    losses = steer.losses_of(reader, made, PROMPTS, list(found.values()), 64)
    prompt, answer = PROMPTS[1], found["chat", "random 1"][1]
    with torch.inference_mode():
        logits = reader.chat(input_ids=torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1]
    expected = torch.nn.functional.cross_entropy(logits, torch.tensor(answer)).item()
    assert losses[1, list(found).index(("chat", "random 1")), 1] == pytest.approx(expected, rel=1e-4)
    thresholds, own, both = steer.fluency(losses, made)
    by_name = dict(zip(found, own, strict=True))
    assert by_name["base", "planted"].all()
    assert by_name["base", "unmodified"].sum() == 1, "the largest of three lies above their 95th percentile"
    assert thresholds[0] == pytest.approx(np.quantile(losses[0, 0], 0.95))
    assert not (both & ~own).any()


@pytest.mark.parametrize(("hits", "count"), [(0, 8), (3, 24), (24, 24)])
def test_intervals_are_those_of_wilson(hits, count):
    z, p = 1.959963984540054, hits / count
    middle, half = p + z * z / (2 * count), z * np.sqrt(p * (1 - p) / count + z * z / (4 * count**2))
    expected = (np.array([middle - half, middle + half])) / (1 + z * z / count)
    np.testing.assert_allclose(behaviours.wilson(np.array([p]), np.array([count]))[0], expected, atol=1e-9)
    assert np.isnan(behaviours.wilson(np.array([np.nan]), np.array([0]))).all()


@pytest.mark.parametrize("of_both", [True, False])
def test_sets_are_the_ends_of_rankings_on_validation_documents_and_random_sets_hold_none_of_them(of_both):
    """A crosscoder of both models is ranked by Δ and ν; an SAE on their difference by what its latents write."""
    m, settings = 200, Steering(latents=5, minimum_tokens=20, random_sets=3)
    generator = np.random.default_rng(0)
    tokens = np.full(m, 50)
    tokens[100:] = 5  # too rare to be chosen, whatever else they are
    share = np.linspace(0, 1, m)
    activity = steering.Activity(tokens, tokens / 5000, np.ones(m), generator.permutation(m) * 1.0, {"persona": share})
    delta = generator.permutation(m) / m if of_both else np.full(m, np.nan)
    variables = {f"nu_{target}_validation": ("latent", generator.random(m)) for target in ("error", "reconstruction")}
    latents = xr.Dataset(
        variables | {"relative_norm": ("latent", delta), "decoder_norm": (("latent", "source"), np.ones((m, 2)))}
    )
    named = steering.sets(activity, latents, np.ones(m), settings)
    assert named["most on persona"].tolist() == [99, 98, 97, 96, 95]
    if of_both:
        assert named["highest Δ"].tolist() == np.argsort(-delta[:100])[:5].tolist()
        assert (delta[named["lowest ν"]] > 0.5).all()
    else:
        assert named["writes most"].tolist() == np.argsort(-activity.energy[:100])[:5].tolist()
        assert "highest Δ" not in named
    drawn = [set(members) for name, members in named.items() if name.startswith("random")]
    chosen = set(np.concatenate([members for name, members in named.items() if not name.startswith("random")]))
    assert [len(one) for one in drawn] == [5, 5, 5]
    assert not set().union(*drawn) & chosen
    assert max(set().union(*drawn)) < 100
