"""How latents of one crosscoder change over sources in the order of training: when they emerge, rotate and vanish.

The norm of a latent's decoder vector says how strongly a snapshot uses it (after arXiv 2509.17196; emergence, maintenance and
loss between snapshots are the subject of arXiv 2509.05291, too). A latent is present in a snapshot where its norm is at
least half of its largest. Everything here follows from the decoder.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.stats
import torch

from crosscoders.analysis import bootstrap
from crosscoders.analysis.classification import lives

QUANTILES = (0.25, 0.5, 0.75)
DENSEST = 0.1
"""Share of the latents that counts as those of high density."""


@dataclass
class Presence:
    """Where m latents are present over S snapshots in the order of training.

    Attributes
    ----------
    norm : (m, S)
        Decoder norms, relative to each latent's largest.
    present : (m, S) bool
        Whether the norm is at least half of the largest.
    emerges_at : (m,)
        Index of the first snapshot in which a latent is present.
    vanishes_after : (m,)
        Index of the last snapshot in which it is present; −1 where that is the last of all, so that it never vanishes.
    peak_at : (m,)
        Index of the snapshot of the largest norm.
    """

    norm: np.ndarray
    present: np.ndarray
    emerges_at: np.ndarray
    vanishes_after: np.ndarray
    peak_at: np.ndarray

    @classmethod
    def of(cls, norms: np.ndarray) -> Presence:
        """Presence from decoder norms, (m, S); every latent has a norm above 0 somewhere."""
        present, last = lives(norms), norms.shape[1] - 1
        ends = last - present[:, ::-1].argmax(1)
        return cls(
            norms / norms.max(1, keepdims=True),
            present,
            present.argmax(1),
            np.where(ends < last, ends, -1),
            norms.argmax(1),
        )

    def shares(self) -> dict[str, np.ndarray]:
        """What :func:`shares_of` says of all latents."""
        return shares_of(self.present, np.ones(len(self.present)))


def shares_of(present: np.ndarray, counts: np.ndarray) -> dict[str, np.ndarray]:
    """Shares of latents by where they are present.

    Parameters
    ----------
    present : (patterns, S) bool
        In which snapshots latents are present, in order.
    counts : (patterns,)
        Latents of each pattern.

    Returns
    -------
    {name: (S,) or ()}
        `emerged` and `vanished`: whose first and whose last snapshot is each one, none of which vanishes after the last;
        `present` in each one; `contiguous`: present in every snapshot between the first and the last.
    """
    last = present.shape[1] - 1
    first, ends = present.argmax(1), last - present[:, ::-1].argmax(1)
    emerged, ended = (np.bincount(at, counts, last + 1) for at in (first, ends))
    vanished = np.where(np.arange(last + 1) < last, ended, 0)
    contiguous = counts[present.sum(1) == ends - first + 1].sum()
    sums = {"emerged": emerged, "vanished": vanished, "present": counts @ present, "contiguous": contiguous}
    with np.errstate(invalid="ignore"):
        return {name: np.asarray(value / counts.sum()) for name, value in sums.items()}


def permuted_shares(
    present: np.ndarray, permutations: int, confidence: float, seed: int
) -> dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """The null of :func:`shares_of`: its shares where the snapshots stand in random order.

    Parameters
    ----------
    present : (m, S) bool
    permutations : int
        Random orders, each of all latents together.
    confidence : float
    seed : int

    Returns
    -------
    {name: (mean, low, high)}
        Over the orders, each in the shape of the share.
    """
    patterns, counts = np.unique(present, axis=0, return_counts=True)
    generator = np.random.default_rng(seed)
    drawn = [
        shares_of(patterns[:, generator.permutation(present.shape[1])], counts.astype(float))
        for _ in range(permutations)
    ]
    stacked = {name: np.stack([one[name] for one in drawn]) for name in drawn[0]}
    return {name: (values.mean(0), *bootstrap.interval(values, confidence)) for name, values in stacked.items()}


def wilson(shares: np.ndarray, count: np.ndarray | int, confidence: float) -> tuple[np.ndarray, np.ndarray]:
    """Wilson's interval of shares of `count` latents; NaN where there are none."""
    counts = np.broadcast_to(count, np.shape(shares))
    ends = [
        tuple(scipy.stats.binomtest(round(float(share) * int(total)), int(total)).proportion_ci(confidence, "wilson"))
        if total
        else (np.nan, np.nan)
        for share, total in zip(np.ravel(shares), np.ravel(counts), strict=True)
    ]
    low, high = np.array(ends).T
    return low.reshape(np.shape(shares)), high.reshape(np.shape(shares))


def quantiles(values: np.ndarray, confidence: float) -> np.ndarray:
    """Quantiles of a sample with intervals that hold for any distribution: between two values of the sorted sample.

    Parameters
    ----------
    values : (n,)
    confidence : float

    Returns
    -------
    (3, len(QUANTILES))
        The quantiles, the lower and the upper ends of their intervals; NaN where there is no value.
    """
    if not len(values):
        return np.full((3, len(QUANTILES)), np.nan)
    ordered, count, tail = np.sort(values), len(values), (1 - confidence) / 2
    low = scipy.stats.binom.ppf(tail, count, QUANTILES).astype(int) - 1
    high = scipy.stats.binom.ppf(1 - tail, count, QUANTILES).astype(int)
    estimate = np.quantile(ordered, QUANTILES)
    return np.stack([estimate, ordered[np.clip(low, 0, None)], ordered[np.clip(high, None, count - 1)]])


def cosines(first: torch.Tensor, second: torch.Tensor) -> np.ndarray:
    """Cosine of decoder vectors row by row, (m,); NaN where one of them is 0."""
    norms = first.norm(dim=1) * second.norm(dim=1)
    return torch.where(norms > 0, (first * second).sum(1) / norms, torch.nan).numpy()


def rotation(decoders: list[torch.Tensor], partner: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Cosines of latents' decoder vectors over snapshots.

    Parameters
    ----------
    decoders : per snapshot, (m, D)
        Of equal width, in the order of training.
    partner : (m,), optional
        A latent whose later vector stands in place of each latent's own, which is the null.

    Returns
    -------
    before, final : (m, S)
        Cosine with the snapshot before, NaN in the first; with the last snapshot, NaN in the last.
    """
    later = decoders if partner is None else [decoder[torch.from_numpy(partner)] for decoder in decoders]
    none = np.full(len(decoders[0]), np.nan)
    before = [none, *(cosines(a, b) for a, b in zip(decoders, later[1:], strict=False))]
    final = [*(cosines(decoder, later[-1]) for decoder in decoders[:-1]), none]
    return np.stack(before, axis=1), np.stack(final, axis=1)


def present_in_both(present: np.ndarray, partner: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Whether both vectors behind the cosines of :func:`rotation` are of snapshots with the latent, twice (m, S) bool."""
    later = present if partner is None else present[partner]
    before, final = np.zeros_like(present), np.zeros_like(present)
    before[:, 1:] = present[:, :-1] & later[:, 1:]
    final[:, :-1] = present[:, :-1] & later[:, -1:]
    return before, final


def partners(count: int, seed: int) -> np.ndarray:
    """For each of some latents another one at random, (count,); itself where there is no other."""
    order = np.random.default_rng(seed).permutation(count)
    partner = np.empty(count, int)
    partner[order] = np.roll(order, 1)
    return partner
