"""Synthetic sources with known concepts: the truth against which crosscoders are judged [L24, M25, D26].

A concept fires on some tokens and writes one direction into each source. In a pair of models, `shared` concepts write
into both, `base-only` and `chat-only` concepts into one. `shrunk` concepts write faintly into base, `rotated` ones
along unrelated directions, and `decoupled` ones on contexts that overlap only in part. In a stack of layers, `spanning`
concepts live from a first to a last layer while their direction drifts. In three sources or more, concepts of a subset write
into its sources alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
import scipy.linalg
import torch
import xarray as xr

from crosscoders import artifacts
from crosscoders.study.settings.comparisons import Planted

PLANTED_CLASSES = ("shared", "base-only", "chat-only", "shrunk", "rotated", "decoupled", "spanning")
EXCLUSIVE = ("base-only", "chat-only")
PRESENT = 0.5
"""Strength from which a concept counts as present in a source."""
CALLS = ("base-only", "chat-only", "neither")


@dataclass
class World:
    """What is planted.

    Attributes
    ----------
    planted_class : (concepts,)
        Index into `classes`.
    gain : (concepts, S)
        Strength of a concept in a source.
    directions : per source, (concepts, width)
        Unit vectors.
    offsets : per source, (width,)
    first, last : (concepts,)
        First and last source in which a concept lives.
    classes : tuple of str
        PLANTED_CLASSES, then the subsets of sources in which concepts live.
    """

    planted_class: np.ndarray
    gain: np.ndarray
    directions: list[np.ndarray]
    offsets: list[np.ndarray]
    first: np.ndarray
    last: np.ndarray
    classes: tuple[str, ...] = PLANTED_CLASSES

    def is_class(self, *names: str) -> np.ndarray:
        """Concepts of the given classes, (concepts,) bool."""
        return np.isin(self.planted_class, [self.classes.index(name) for name in names])


def unit(values: np.ndarray) -> np.ndarray:
    """Rows scaled to norm 1."""
    return values / np.linalg.norm(values, axis=-1, keepdims=True)


def rotation(generator: np.random.Generator, width: int, angle: float) -> np.ndarray:
    """An orthogonal map that turns a typical vector by about `angle` (radians)."""
    draw = generator.normal(size=(width, width))
    return scipy.linalg.expm((draw - draw.T) * angle / np.sqrt(2 * width))


def world(settings: Planted, widths: dict[str, int], seed: int) -> World:
    """Draw the directions, gains and spans of all concepts.

    Each source's space is an affine map of the one before: a rotation by `drift`, and an offset of norm 1.

    Parameters
    ----------
    settings : Planted
    widths : {source: width}
        In order.
    seed : int
    """
    generator = np.random.default_rng([seed, 0])
    classes, labels = (*PLANTED_CLASSES, *settings.subsets), list(widths)
    planted = (settings.concepts | settings.subsets).items()
    planted_class = np.array([classes.index(name) for name, count in planted for _ in range(count)])
    concepts, sources, widths = len(planted_class), len(widths), list(widths.values())
    directions = [unit(generator.normal(size=(concepts, widths[0])))]
    for before, width in zip(widths, widths[1:], strict=False):
        if width == before:
            directions.append(directions[-1] @ rotation(generator, width, settings.drift))
        else:
            directions.append(unit(directions[-1] @ generator.normal(size=(before, width))))
    truth = World(
        planted_class,
        np.ones((concepts, sources)),
        directions,
        [],
        np.zeros(concepts, int),
        np.full(concepts, sources - 1),
        classes,
    )
    rotated = truth.is_class("rotated")
    directions[-1][rotated] = unit(generator.normal(size=(int(rotated.sum()), widths[-1])))
    truth.gain[truth.is_class("base-only"), 1:] = 0
    truth.gain[truth.is_class("chat-only"), 0] = 0
    truth.gain[truth.is_class("shrunk"), 0] = settings.shrink
    for subset in settings.subsets:
        truth.gain[truth.is_class(subset)] = np.isin(labels, subset.split("+"))
    spanning = np.flatnonzero(truth.is_class("spanning"))
    ends = np.sort(generator.integers(0, sources, size=(len(spanning), 2)), axis=1)
    truth.first[spanning], truth.last[spanning] = ends.T
    layer = np.arange(sources)
    truth.gain[spanning] = (layer >= ends[:, :1]) & (layer <= ends[:, 1:])
    truth.offsets = [unit(generator.normal(size=width)) for width in widths]
    return truth


@dataclass
class Sample:
    """Normalised activations in memory, with what :class:`crosscoders.activations.Activations` offers to a training.

    Attributes
    ----------
    x : (tokens, D)
    document : (tokens,)
    active : (tokens, concepts) bool
        Concepts that fire, in any source.
    """

    x: torch.Tensor
    sources: list[str]
    widths: list[int]
    document: np.ndarray
    active: np.ndarray

    def __len__(self) -> int:
        return len(self.x)

    def rows(self, index: np.ndarray) -> torch.Tensor:
        """Chosen tokens."""
        return self.x[torch.from_numpy(np.asarray(index))]

    def batches(self, count: int) -> Iterator[tuple[slice, torch.Tensor]]:
        """All tokens in order, `count` at a time."""
        for start in range(0, len(self), count):
            chosen = slice(start, min(start + count, len(self)))
            yield chosen, self.x[chosen]

    def only(self, sources: list[str]) -> Sample:
        """The same tokens with some of the sources."""
        edges = np.cumsum([0, *self.widths])
        chosen = [self.sources.index(name) for name in sources]
        x = torch.cat([self.x[:, edges[i] : edges[i + 1]] for i in chosen], dim=1)
        return Sample(x, sources, [self.widths[i] for i in chosen], self.document, self.active)


def draw(
    truth: World, settings: Planted, tokens: int, seed: list[int]
) -> tuple[list[np.ndarray], np.ndarray, np.ndarray]:
    """Draw raw activations.

    A concept fires where a Gaussian, partly common to the concepts of its topic in a document, exceeds the quantile of
    its rate; strengths are uniform on [½, 3⁄2]; of a decoupled concept's occurrences, a share `overlap` shows in both
    sources and the rest in one of them.

    Returns
    -------
    activations : per source, (tokens, width)
    active : (tokens, concepts) bool
    document : (tokens,)
    """
    generator = np.random.default_rng(seed)
    concepts = len(truth.planted_class)
    document = np.arange(tokens) // settings.document_tokens
    topic = np.arange(concepts) % settings.topics
    common = generator.normal(size=(document[-1] + 1, settings.topics)).astype(np.float32)
    score = np.sqrt(settings.topic_share) * common[document][:, topic]
    score += np.sqrt(1 - settings.topic_share) * generator.normal(size=(tokens, concepts)).astype(np.float32)
    active = score > NormalDist().inv_cdf(1 - settings.rate)
    strength = active * generator.uniform(0.5, 1.5, size=active.shape).astype(np.float32)
    alone = generator.uniform(size=active.shape).astype(np.float32)
    activations = []
    for s, (directions, offset) in enumerate(zip(truth.directions, truth.offsets, strict=True)):
        present = strength * truth.gain[:, s].astype(np.float32)
        if truth.is_class("decoupled").any():
            lost = (alone > settings.overlap) & ((alone > (1 + settings.overlap) / 2) == (s == 0))
            present = np.where(lost & truth.is_class("decoupled"), 0, present)
        noise = generator.normal(scale=settings.noise, size=(tokens, len(offset)))
        activations.append(present @ directions + offset + noise)
    return activations, active, document


def samples(
    truth: World,
    settings: Planted,
    sources: list[str],
    differences: dict[str, list[str]],
    tokens: dict[str, int],
    seed: int,
) -> tuple[dict[str, Sample], np.ndarray]:
    """Normalised samples of every split and the scales; statistics are those of the first split, `train`."""
    by_split, statistics = {}, []
    for number, (split, count) in enumerate(tokens.items()):
        raw, active, document = draw(truth, settings, count, [seed, 1, number])
        for minuend, subtrahend in differences.values():
            raw.append(raw[sources.index(minuend)] - raw[sources.index(subtrahend)])
        if not statistics:
            statistics = [(part.mean(0), np.sqrt(part.var(0).mean())) for part in raw]
        normalised = [(part - mean) / scale for part, (mean, scale) in zip(raw, statistics, strict=True)]
        x = torch.from_numpy(np.concatenate(normalised, axis=1).astype(np.float32))
        names = [*sources, *differences]
        by_split[split] = Sample(x, names, [part.shape[1] for part in raw], document, active)
    return by_split, np.array([scale for _, scale in statistics])


# -- judging -----------------------------------------------------------------------------------------------------------


def match(
    truth: World, decoders: list[np.ndarray], known: list[int], threshold: float
) -> tuple[np.ndarray, np.ndarray]:
    """Cosine of every concept with every latent, and the concept that each latent stands for.

    A concept is compared where it lives at half strength or more, a latent where its decoder norm is at least half its
    largest: weaker decoder vectors say nothing about the concept.

    Parameters
    ----------
    truth : World
    decoders : per source, (m, width)
    known : list of int
        Indices of those sources among the planted ones.
    threshold : float

    Returns
    -------
    cosine : (concepts, m)
    concept : (m,)
        Index of the best concept, −1 where none exceeds `threshold` in absolute cosine.
    """
    norms = np.stack([np.linalg.norm(decoder, axis=1) for decoder in decoders], axis=1)
    counts = norms >= 0.5 * norms.max(axis=1, keepdims=True)
    cosine = np.zeros((len(truth.planted_class), len(norms)))
    for i, (s, decoder) in enumerate(zip(known, decoders, strict=True)):
        here = np.abs(truth.directions[s] @ (decoder / np.maximum(norms[:, i : i + 1], 1e-30)).T)
        here[truth.gain[:, s] < 0.5] = 0
        cosine = np.maximum(cosine, here * (counts[:, i] & (norms[:, i] > 0)))
    best = cosine.argmax(0)
    return cosine, np.where(cosine.max(0) > threshold, best, -1)


def judge(
    truth: World,
    cosine: np.ndarray,
    concept: np.ndarray,
    alive: np.ndarray,
    predicted: dict[str, np.ndarray],
    threshold: float,
) -> xr.Dataset:
    """Recall, precision, false positives and confusion of one member.

    Parameters
    ----------
    truth, cosine, concept
        What was planted, and what :func:`match` returns for it.
    alive : (m,) bool
    threshold : float
        Absolute cosine above which a latent stands for a concept.
    predicted : rule → (m,) of class names
        What each rule calls every latent: `base-only`, `chat-only`, or anything else.

    Returns
    -------
    xarray.Dataset
        Over `planted_class`: `recovered`, the share of concepts with an alive latent above the threshold. Over `rule`,
        too: `recall`, the share of concepts whose best latent is called right (exclusive classes by their name, all
        others by not being called exclusive); `called` (planted × called), shares of a class's recovered concepts.
        Over `rule`: `precision` of exclusive calls and `false_positive_rate`, the share of alive latents that stand for
        a concept of both sources and are called exclusive.
    """
    names = [name for name in truth.classes if truth.is_class(name).any()]
    alive_cosine = np.where(alive, cosine, 0)
    best, recovered = alive_cosine.argmax(1), alive_cosine.max(1) > threshold
    rules = [_rule(truth, labels, best, recovered, alive, concept) for labels in predicted.values()]
    per_class = [recovered[truth.is_class(name)].mean() for name in names]
    variables = {"recovered": artifacts.variable("planted_class", per_class, "share of concepts recovered")}
    labels = {"planted_class": names, "rule": list(predicted), "call": CALLS}
    coords = {name: np.array(one, dtype=object) for name, one in labels.items()}
    return xr.Dataset(variables | _rule_variables(rules, len(names)), coords=coords)


def _rule_variables(rules: list[dict], classes: int) -> dict[str, tuple]:
    """The judgements of :func:`_rule` as variables over `rule`, for a number of planted classes."""
    v = artifacts.variable
    recall = np.array([rule["recall"] for rule in rules]).reshape(-1, classes)
    called = np.array([rule["called"] for rule in rules]).reshape(-1, classes, len(CALLS))
    precision, false_positive_rate = (
        np.array([rule[name] for rule in rules]) for name in ("precision", "false_positive_rate")
    )
    return {
        "recall": v(("rule", "planted_class"), recall, "share of concepts recovered and called right"),
        "called": v(("rule", "planted_class", "call"), called, "share of recovered concepts by call"),
        "precision": v("rule", precision, "share of exclusive calls that are right"),
        "false_positive_rate": v(
            "rule", false_positive_rate, "share of latents of common concepts that are called exclusive"
        ),
    }


def _rule(
    truth: World, labels: np.ndarray, best: np.ndarray, recovered: np.ndarray, alive: np.ndarray, concept: np.ndarray
) -> dict[str, object]:
    """What :func:`judge` says of one rule, which calls latents by `labels`, (m,)."""
    names = [name for name in truth.classes if truth.is_class(name).any()]
    exclusive, planted = truth.is_class(*EXCLUSIVE), np.array(truth.classes)[truth.planted_class]
    stands = alive & (concept >= 0)
    common = stands & ~exclusive[np.maximum(concept, 0)]
    call = np.where(np.isin(labels, EXCLUSIVE), labels, "neither")
    right = call[best] == np.where(exclusive, planted, "neither")
    claimed = alive & np.isin(call, EXCLUSIVE)
    true = stands & (np.where(concept >= 0, planted[np.maximum(concept, 0)], "") == call)
    return {
        "recall": [(right & recovered)[truth.is_class(name)].mean() for name in names],
        "called": [[share(call[best] == kind, truth.is_class(name) & recovered) for kind in CALLS] for name in names],
        "precision": share(true, claimed),
        "false_positive_rate": share(np.isin(call, EXCLUSIVE), common),
    }


def share(true: np.ndarray, among: np.ndarray) -> float:
    """Share of the true ones among some; NaN where there are none."""
    return true[among].mean() if among.any() else np.nan
