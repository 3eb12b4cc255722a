"""Causal equivalence: a model has the effects of its copy; another unembedding of one direction is found, and only it."""

import copy

import numpy as np
import pytest
import torch
import xarray as xr

from crosscoders.analysis.classification import Pairs
from crosscoders.interventions import effects
from crosscoders.interventions.patching import Directions
from crosscoders.study.settings.analysis import Bootstrap
from crosscoders.study.settings.comparisons import Equivalence

WIDTH, LATENTS, LAYER, TOKENS, WINDOW = 32, 20, 3, 160, 10
OPTIONS = Bootstrap(bootstrap_replicates=40, confidence=0.95)
SETTINGS = Equivalence(latents=LATENTS, tokens_per_latent=4)
TEXT = xr.Dataset(
    {
        "token_id": ("token", np.random.default_rng(0).integers(1, 60, TOKENS)),
        "position": ("token", np.tile(np.arange(1, WINDOW + 1), TOKENS // WINDOW)),
    },
    attrs={"sink_token_id": 0},
)
DOCUMENT = np.arange(TOKENS) // WINDOW


@pytest.fixture
def ablations():
    """Every latent is active on every token."""
    token, latent = (part.ravel() for part in np.meshgrid(np.arange(TOKENS), np.arange(LATENTS), indexing="ij"))
    pairs = Pairs(token, latent, np.full(len(token), 2.0))
    cosine = np.linspace(0.5, 1, LATENTS)
    return effects.draw(pairs, DOCUMENT, np.ones(LATENTS, bool), cosine, SETTINGS), cosine


def compared(models, decoder, ablations):
    where = Directions(decoder, decoder)
    return effects.compare(models, LAYER, where, ablations, TEXT, np.arange(TOKENS), 64, "")


def test_no_token_is_drawn_twice_and_no_document_twice_for_one_latent(ablations):
    drawn, _ = ablations
    assert len(set(drawn.token)) == len(drawn.token) == LATENTS * SETTINGS.tokens_per_latent
    pairs = list(zip(drawn.latent, DOCUMENT[drawn.token], strict=True))
    assert len(set(pairs)) == len(pairs)
    assert (drawn.latent != drawn.other).all()
    spread = effects.evenly_spaced(np.arange(100), np.linspace(0, 1, 100), 5)
    assert spread.tolist() == [0, 25, 50, 74, 99]


def test_two_copies_of_one_model_have_the_same_effects(small_llama, ablations):
    decoder = torch.randn(LATENTS, WIDTH, generator=torch.Generator().manual_seed(0))
    found = compared((small_llama, copy.deepcopy(small_llama)), decoder, ablations[0])
    np.testing.assert_allclose(found["correlation"], 1, atol=1e-12)
    np.testing.assert_array_equal(found["norm_base"], found["norm_chat"])
    assert abs(found["null"]).max() < 0.95
    dataset = effects.to_dataset(
        found, ablations[0].latent, DOCUMENT[ablations[0].token], ablations[1], SETTINGS, OPTIONS
    )
    assert dataset["effect_latent"].values.tolist() == list(range(LATENTS))
    assert dataset["effect_other_role_share"] == 0
    np.testing.assert_allclose(dataset["effect_correlation_low"], 1, atol=1e-9)


def test_an_effect_is_the_change_of_the_models_own_logits(small_llama, ablations):
    decoder, drawn = torch.randn(LATENTS, WIDTH, generator=torch.Generator().manual_seed(0)), ablations[0]
    found, token = compared((small_llama, small_llama), decoder, drawn), drawn.token[3]
    first = token - TEXT["position"].values[token] + 1
    ids = torch.tensor([[0, *TEXT["token_id"].values[first : token + 1]]])

    def logits(part):
        handle = small_llama.model.layers[LAYER].register_forward_hook(lambda _, __, h: h - part)
        with torch.inference_mode():
            given = small_llama(input_ids=ids).logits[0, -1]
        handle.remove()
        return given

    change = logits(drawn.value[3] * decoder[drawn.latent[3]]) - logits(0 * decoder[0])
    assert found["norm_base"][3] == pytest.approx(float((change - change.mean()).norm()), rel=1e-4)


def test_a_latent_whose_direction_is_unembedded_otherwise_is_found(small_llama, ablations):
    """The chat model's unembedding is permuted along the direction of the last latent alone; the others are orthogonal to it."""
    decoder = torch.linalg.qr(torch.randn(WIDTH, WIDTH, generator=torch.Generator().manual_seed(0))).Q[:LATENTS]
    chat = copy.deepcopy(small_llama)
    with torch.no_grad():
        along = chat.lm_head.weight @ decoder[-1]
        order, other = along.argsort(), torch.empty_like(along)
        other[order] = along[order.flip(0)]
        chat.lm_head.weight += torch.outer(other - along, decoder[-1])
    drawn, cosine = ablations
    found = compared((small_llama, chat), decoder, drawn)
    dataset = effects.to_dataset(found, drawn.latent, DOCUMENT[drawn.token], cosine, SETTINGS, OPTIONS)
    correlations = dataset["effect_correlation"].values
    assert correlations[:-1].min() > 0.9
    assert correlations[-1] < dataset["effect_null_limit"]
    assert dataset["effect_same_direction"] == 4, "of cosines from 0.5 to 1"
    assert dataset["effect_other_role_share"] == 0.25
    assert dataset["effect_correlation_high"][-1] < dataset["effect_correlation_low"][:-1].min()
