"""What is planted is there, and judging it is right for crosscoders whose answer is known."""

import numpy as np
import pytest
import torch

from crosscoders.analysis import bootstrap, classification
from crosscoders.crosscoder import crosscoder
from crosscoders.planted import concepts
from crosscoders.study.settings.comparisons import Planted

OPTIONS = Planted(
    concepts={"shared": 12, "base-only": 6, "chat-only": 6, "shrunk": 6, "rotated": 6, "decoupled": 6}, rate=0.05
)
WIDTHS = {"base": 96, "chat": 96}


@pytest.fixture(scope="module")
def truth():
    return concepts.world(OPTIONS, WIDTHS, 0)


def test_concepts_fire_at_their_rate_and_write_what_their_class_says(truth):
    (base, chat), active, document = concepts.draw(truth, OPTIONS, 20_000, [0, 1])
    assert active.mean() == pytest.approx(OPTIONS.rate, rel=0.1)
    assert len(np.unique(document)) == 20_000 // OPTIONS.document_tokens
    inner = [
        (x - offset) @ np.linalg.pinv(u)
        for x, offset, u in zip((base, chat), truth.offsets, truth.directions, strict=True)
    ]
    strength = [np.array([values[on, c].mean() for c, on in enumerate(active.T)]) for values in inner]
    for name, (in_base, in_chat) in {
        "shared": (1, 1),
        "base-only": (1, 0),
        "chat-only": (0, 1),
        "shrunk": (OPTIONS.shrink, 1),
        "rotated": (1, 1),
        "decoupled": (0.85, 0.85),
    }.items():
        np.testing.assert_allclose(strength[0][truth.is_class(name)], in_base, atol=0.06)
        np.testing.assert_allclose(strength[1][truth.is_class(name)], in_chat, atol=0.06)
    both = [values[:, truth.is_class("decoupled")] > 0.25 for values in inner]
    assert (both[0] & both[1]).sum() / (both[0] | both[1]).sum() == pytest.approx(OPTIONS.overlap, abs=0.03)
    cosine = (truth.directions[0] * truth.directions[1]).sum(1)
    assert (cosine[~truth.is_class("rotated")] > 0.9).all(), "drift turns directions a little"
    assert (np.abs(cosine[truth.is_class("rotated")]) < 0.5).all()
    same_topic = np.corrcoef(active[:, :8:8].ravel(), active[:, 8:16:8].ravel())[0, 1]
    assert same_topic > 0.03, "concepts of one topic fire together"


def test_spans_are_contiguous_and_drawn_from_the_seed():
    options = Planted(concepts={"spanning": 40}, rate=0.05)
    first, again, other = (concepts.world(options, {f"layer-{i}": 16 for i in range(5)}, seed) for seed in (0, 0, 1))
    layers = np.arange(5)
    assert ((first.gain > 0) == ((layers >= first.first[:, None]) & (layers <= first.last[:, None]))).all()
    assert np.array_equal(first.gain, again.gain)
    assert not np.array_equal(first.gain, other.gain)


def test_a_perfect_dictionary_is_judged_perfect_and_a_false_call_counts(truth):
    decoders = [u * gain[:, None] for u, gain in zip(truth.directions, truth.gain.T, strict=True)]
    cosine, concept = concepts.match(truth, decoders, [0, 1], 0.83)
    assert np.array_equal(concept, np.arange(42))
    names = np.array(concepts.PLANTED_CLASSES)[truth.planted_class]
    right = np.where(np.isin(names, concepts.EXCLUSIVE), names, "shared")
    eager = np.where(names == "shrunk", "chat-only", right)
    found = concepts.judge(truth, cosine, concept, np.ones(42, bool), {"right": right, "eager": eager}, 0.83)
    assert (found["recovered"] == 1).all()
    assert (found["recall"].sel(rule="right") == 1).all()
    assert (found["precision"].sel(rule="right"), found["false_positive_rate"].sel(rule="right")) == (1, 0)
    assert found["recall"].sel(rule="eager", planted_class="shrunk") == 0
    assert found["called"].sel(rule="eager", planted_class="shrunk", call="chat-only") == 1
    assert found["precision"].sel(rule="eager") == pytest.approx(12 / 18)
    assert found["false_positive_rate"].sel(rule="eager") == pytest.approx(6 / 30)
    dead = np.ones(42, bool)
    dead[truth.is_class("rotated")] = False
    assert (
        concepts.judge(truth, cosine, concept, dead, {"right": right}, 0.83)["recovered"].sel(planted_class="rotated")
        == 0
    )


def test_what_a_latent_barely_writes_says_nothing(truth):
    base, chat = truth.directions[0].copy(), np.roll(truth.directions[1], 1, axis=0)
    _, concept = concepts.match(truth, [0.1 * base, chat], [0, 1], 0.83)
    shared = np.flatnonzero(truth.is_class("shared"))
    assert np.array_equal(concept[shared[1:]], shared[:-1]), "the strong side decides"


def test_intervals_over_documents_cover_the_truth_of_nu():
    """200 planted replicates: ν of the activation of a concept that base has at 0.4 of its strength, in bursty documents."""
    coder = crosscoder.Crosscoder(
        encoder=torch.tensor([[0.0, 0.0, 1.0, 0.0]], dtype=torch.float64),
        encoder_bias=torch.zeros(1, dtype=torch.float64),
        decoder=torch.tensor([[0.4, 0.0, 1.0, 0.0]], dtype=torch.float64),
        decoder_bias=torch.zeros(4, dtype=torch.float64),
        sources=["base", "chat"],
        widths=[2, 2],
        reads=torch.ones(1, 2, dtype=torch.bool),
        writes=torch.ones(1, 2, dtype=torch.bool),
        tied=torch.zeros(1, dtype=torch.bool),
        penalty=torch.ones(1),
        activation="relu",
        k=None,
    )
    covered, document = 0, np.repeat(np.arange(80), 12)
    for replicate in range(200):
        generator = np.random.default_rng(replicate)
        burst = generator.gamma(0.7, size=80)[document]
        f = (generator.uniform(size=960) < 0.3) * burst * generator.uniform(0.5, 1.5, 960)
        ratio = 0.4 + 0.3 * generator.normal(size=80)[document]  # documents differ in what base makes of the concept
        x = np.stack([ratio * f + 0.1 * generator.normal(size=960), np.zeros(960), f, np.zeros(960)], axis=1)
        data = concepts.Sample(torch.from_numpy(x), ["base", "chat"], [2, 2], document, np.zeros((960, 1), bool))
        scaling, _ = classification.scan(coder, data, document, (0, 1), bootstrap.resamples(80, 200, replicate))
        low, high = bootstrap.interval(scaling.nu("activation", 1)[1:], 0.95)
        covered += low[0] <= 0.4 <= high[0]
    assert 180 <= covered <= 198
