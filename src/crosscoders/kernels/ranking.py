"""The largest scores of all processes together, exactly, by sums of a few kilobytes.

Scores are not negative, so that their order is that of their bits read as integers. A digit of eight bits at a time, all
processes count how many of their scores have each value of the digit; the sum of these counts says which value the
wanted score has. After four digits of float32 (eight of float64) its bits are known.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import accumulate

import torch

from crosscoders.kernels.mesh import Alone

DIGIT = 8
"""Bits that one round settles: a round sends 2⁸ counts of 8 bytes."""
INTEGER = {torch.float32: torch.int32, torch.float64: torch.int64}
PLACES = 62
"""Bits of a place: token · m + latent."""


def largest_together(
    scores: torch.Tensor, places: Callable[[], torch.Tensor], count: int, mesh: Alone
) -> tuple[torch.Tensor, float]:
    """Mask of those of the `count` largest scores that this process holds, ties broken by the lower place.

    Parameters
    ----------
    scores : (candidates,)
        Not negative.
    places : function
        Where each score stands in the whole batch, (candidates,) int64, as token · m + latent of the whole dictionary;
        called where scores tie.
    count : int
        Scores to keep, of all processes together; they have that many.
    mesh : Mesh

    Returns
    -------
    keep : (candidates,) bool
    threshold : float
        The smallest score kept by any process.
    """
    if count == 0:
        return torch.zeros_like(scores, dtype=torch.bool), 0.0
    bits = scores.view(INTEGER[scores.dtype])
    value, above, tied = _nth_largest(bits, torch.finfo(scores.dtype).bits, count, mesh)
    keep, ties = bits > value, bits == value
    if tied > count - above:
        reversed_places = (1 << PLACES) - 1 - places()[ties]
        last, *_ = _nth_largest(reversed_places, PLACES, count - above, mesh)
        ties[ties.clone()] = reversed_places >= last
    return keep | ties, float(torch.tensor(value, dtype=bits.dtype).view(scores.dtype))


def _nth_largest(values: torch.Tensor, bits: int, count: int, mesh: Alone) -> tuple[int, int, int]:
    """The `count`-th largest of all processes' integers of so many bits, how many are larger, and how many are equal."""
    value, left, equal = 0, count, 0
    for shift in reversed(range(0, bits, DIGIT)):
        digits = (values >> shift) & ((1 << DIGIT) - 1)
        counts = mesh.add_all(torch.bincount(digits, minlength=1 << DIGIT), "selection")
        from_top = list(accumulate(reversed(counts.tolist())))
        place = next(i for i, total in enumerate(from_top) if total >= left)
        digit = (1 << DIGIT) - 1 - place
        equal = from_top[place] - (from_top[place - 1] if place else 0)
        left -= from_top[place] - equal
        values, value = values[digits == digit], value << DIGIT | digit
    return value, count - left, equal


def nth_largest_of_rows(scores: torch.Tensor, count: int, mesh: Alone, purpose: str) -> torch.Tensor:
    """The `count`-th largest score of every token over all latent shards.

    Parameters
    ----------
    scores : (T, m of the process)
        Not negative.
    count : int
        At most the latents of all shards.
    mesh : Mesh
    purpose : str
        Under which the mesh counts what is sent.

    Returns
    -------
    (T, 1)
    """
    top = scores if mesh.alone else _largest_of_shards(scores, count, mesh, purpose)
    return top.topk(count, dim=1, sorted=False).values.amin(1, keepdim=True)


def _largest_of_shards(scores: torch.Tensor, count: int, mesh: Alone, purpose: str) -> torch.Tensor:
    """The `count` largest scores of every token and shard, (T, ranks · count); −1 where a shard has fewer."""
    own, held = scores.new_full((len(scores), count), -1.0), min(count, scores.shape[1])
    own[:, :held] = scores.topk(held, dim=1, sorted=False).values
    return mesh.columns(own, purpose)


def keep_largest_together(f: torch.Tensor, score: torch.Tensor, k: int, mesh: Alone) -> torch.Tensor:
    """`f` where `score` is among the k largest of its token over all shards, else 0; of ties the lower latent is kept.

    Parameters
    ----------
    f, score : (T, m of the process)
        Not negative.
    k : int
    mesh : Mesh

    Returns
    -------
    (T, m of the process)
    """
    top = _largest_of_shards(score, k + 1, mesh, "selection")  # one more, to see whether ties are left out
    threshold = top.topk(k, dim=1, sorted=False).values.amin(1, keepdim=True)
    keep = (score >= threshold) & (score > 0)
    crowded = (((top >= threshold) & (top > 0)).sum(1) > k).nonzero()[:, 0]
    if len(crowded):  # the same on all shards
        some, limit = score[crowded], threshold[crowded]
        left = k - (top[crowded] > limit).sum(1, keepdim=True)
        keep[crowded] = (some > limit) | _first_ties(some == limit, left, mesh)
    return f * keep


def _first_ties(ties: torch.Tensor, left: torch.Tensor, mesh: Alone) -> torch.Tensor:
    """Of every token's ties, (T, m of the process), the first `left`, (T, 1), in the order of all latents."""
    sizes = mesh.columns(torch.full((1, 1), ties.shape[1], device=ties.device), "ties")[0].tolist()
    widest = max(sizes)
    places = mesh.own.to(ties.device).expand_as(ties)
    held = torch.full((len(ties), widest), mesh.latents, device=ties.device)
    held[:, : ties.shape[1]] = torch.where(ties, places, mesh.latents)
    ordered = mesh.columns(held, "ties").sort(dim=1).values
    return ties & (places <= ordered.gather(1, left - 1))
