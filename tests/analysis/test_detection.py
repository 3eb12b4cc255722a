"""Detection of planted tokens: exact AUC and average precision, and planted truth that is found where it is."""

import numpy as np
import pytest
import torch
import xarray as xr

from crosscoders import artifacts
from crosscoders.analysis import bootstrap, detection, detectors
from crosscoders.analysis.classification import Pairs
from crosscoders.analysis.detection import Labels, Method
from crosscoders.data.chats import BEHAVIOURS
from crosscoders.language_models.model_tokens import ModelTokens

TOKENS, DOCUMENTS = 400, 40
DOCUMENT = np.repeat(np.arange(DOCUMENTS), TOKENS // DOCUMENTS)


@pytest.fixture
def generator():
    return np.random.default_rng(0)


def naive(score: np.ndarray, positive: np.ndarray, negative: np.ndarray) -> float:
    """The share of pairs of a positive and a negative token in which the positive one has the higher score."""
    higher = np.subtract.outer(score[positive], score[negative])
    return float((higher > 0).mean() + (higher == 0).mean() / 2)


def naive_precision(score: np.ndarray, positive: np.ndarray) -> float:
    """Mean over positive tokens of the share of positives among all tokens with at least their score."""
    return float(np.mean([positive[score >= level].mean() for level in score[positive]]))


@pytest.fixture
def of(generator) -> Labels:
    behaviour = np.where(np.arange(DOCUMENTS) % 4 == 0, generator.integers(1, 3, DOCUMENTS), 0)[DOCUMENT]
    return Labels(behaviour == 1, behaviour == 0)


def test_auc_and_precision_are_those_of_a_plain_count_also_with_ties_and_resamples(generator, of):
    score = generator.integers(0, 12, TOKENS) * generator.integers(0, 2, TOKENS) + 2.0 * of.positive
    drawn = bootstrap.resamples(DOCUMENTS, 3, 0)
    weights = np.vstack([np.ones((1, DOCUMENTS)), drawn])
    auc, precision = detection.auc_and_precision(score, of, DOCUMENT, weights)
    for row, counts in enumerate(weights.astype(int)):
        repeated = np.repeat(np.arange(TOKENS), counts[DOCUMENT])
        positive, negative = of.positive[repeated], of.negative[repeated]
        assert auc[row] == pytest.approx(naive(score[repeated], positive, negative), abs=1e-12)
        either = positive | negative
        assert precision[row] == pytest.approx(naive_precision(score[repeated][either], positive[either]), abs=1e-12)


def test_the_auc_of_every_latent_follows_from_its_active_pairs(generator, of):
    dense = np.round(generator.random((TOKENS, 7)) * 3, 1) * (generator.random((TOKENS, 7)) < 0.2)
    dense[:, 5] = 0  # silent
    dense[:, 6] = generator.normal(size=TOKENS)  # of both signs, on every token
    token, latent = np.nonzero(dense)
    found = detection.latent_aucs(Pairs(token, latent, dense[token, latent]), of, 7)
    np.testing.assert_allclose(found, [naive(column, of.positive, of.negative) for column in dense.T], atol=1e-12)
    nothing = Labels(np.zeros(TOKENS, bool), of.negative)
    assert np.isnan(detection.latent_aucs(Pairs(token, latent, dense[token, latent]), nothing, 7)).all()


def test_a_latent_that_marks_what_was_planted_is_found_and_random_ones_are_not(generator):
    behaviour = np.where(np.arange(DOCUMENTS) % 4 == 0, 1, 0)[DOCUMENT]
    flags = artifacts.flags("token", behaviour, BEHAVIOURS, "behaviour")
    labels = detection.labels(xr.DataArray(flags))
    assert list(labels) == [*BEHAVIOURS[1:], "any"]
    noise = generator.random((2, TOKENS, 60)) * (generator.random((2, TOKENS, 60)) < 0.1)
    marked = noise.copy()
    marked[:, :, 17] = (behaviour > 0) * (1 + noise[:, :, 17])
    weights = np.vstack([np.ones((1, DOCUMENTS)), bootstrap.resamples(DOCUMENTS, 200, 0)])
    measured = {}
    for name, values in {"marked": marked, "noise": noise}.items():
        pairs = [Pairs(*np.nonzero(part), part[np.nonzero(part)]) for part in values]
        method = Method(*pairs, 60, {"energy": np.r_[17, np.delete(np.arange(60), 17)]})
        measured[name] = detection.measure(method, labels, labels, 1, DOCUMENT, weights)[0]
    place = [list(labels).index(name) for name in ("refusal", "any")]
    energy, chosen = (list(detection.RANKINGS).index(name) for name in ("energy", "labels"))
    assert (measured["marked"][:, [energy, chosen]][..., place] == 1).all()
    low, high = bootstrap.interval(measured["noise"][1:, energy], 0.95)
    assert (low[place] < 0.5).all() and (high[place] > 0.5).all()
    assert np.isnan(measured["marked"][:, :, list(labels).index("persona")]).all(), "no token shows it"
    assert np.isnan(measured["marked"][:, list(detection.RANKINGS).index("nu")]).all(), "a ranking that it lacks"


def test_the_divergence_of_a_token_is_that_of_what_is_predicted_after_it(small_llama):
    position = np.r_[1:8, 1:5]
    ids = np.random.default_rng(1).integers(2, 60, len(position))
    document = np.r_[np.zeros(7, int), np.ones(4, int)]
    tokens = ModelTokens(ids, position, document, np.ones(11, bool), np.arange(11), 1, False)
    assert np.abs(detectors.token_divergence([small_llama, small_llama], tokens, 16)).max() < 1e-6
    other = type(small_llama)(small_llama.config).eval()
    found = detectors.token_divergence([small_llama, other], tokens, 16)
    with torch.inference_mode():
        base, chat = (
            model(torch.tensor([[1, *ids[:7]]])).logits[0].double().log_softmax(-1) for model in (small_llama, other)
        )
    np.testing.assert_allclose(found[:7], (chat.exp() * (chat - base)).sum(-1)[1:].numpy(), rtol=1e-3)
