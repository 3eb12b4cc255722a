"""Causal patching [M25]: how much of the difference between two models' answers a set of latents makes up.

h_S = h_base + Σ_{j∈S} f_j (d_j^chat − d_j^base) takes the place of the chat model's activation at the compared site.
The chat model's upper half turns it into next-token distributions, whose KL divergence from the chat model's own is
measured on its own responses. All quantities here are raw activations of one batch, (batch, position, width).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import transformers

from crosscoders.crosscoder.crosscoder import Crosscoder
from crosscoders.crosscoder.encode import decode_sparse, encode_sparse
from crosscoders.kernels import sparse_code
from crosscoders.language_models.anatomy import replaced_below

SEGMENTS = ("all", "first", "rest")
"""Response tokens: all, the first few, the others."""
FIRST_TOKENS = 9
NEIGHBOURS = 10
"""A control latent is drawn from so many latents, those of most similar frequency and decoder norm."""


@dataclass
class Pair:
    """Activations of both models at the same tokens, and the latents' part in their difference.

    Attributes
    ----------
    base, chat : (batch, position, width)
    code : Code
        Of batch · position tokens; tokens that no crosscoder is trained on have no active latent.
    """

    base: torch.Tensor
    chat: torch.Tensor
    code: sparse_code.Code

    def contribution(self, directions: torch.Tensor, members: torch.Tensor | None = None) -> torch.Tensor:
        """Σ_{j∈S} f_j D_j for directions D, (m, width).

        The set is given as (m,) bool, or as (batch, m) where every row of the batch has one of its own; all latents
        where absent.
        """
        values = self.code.values
        if members is not None and members.ndim == 2:
            values = values * members[self.code.tokens // self.base.shape[1], self.code.latents]
        elif members is not None:
            values = values * members[self.code.latents]
        code = sparse_code.Code(self.code.offsets, self.code.latents, values, self.code.size)
        return decode_sparse(code, directions, directions.new_zeros(directions.shape[1])).view_as(self.base)


@dataclass
class Directions:
    """What a latent adds: (m, width) raw decoder vectors of both models, σ_s d_j^s."""

    base: torch.Tensor
    chat: torch.Tensor

    @property
    def replace(self) -> torch.Tensor:
        """Chat's part in place of base's."""
        return self.chat - self.base


def encode(
    coder: Crosscoder, parts: list[torch.Tensor], means: list[torch.Tensor], scales: list[float], kept: torch.Tensor
) -> sparse_code.Code:
    """Code of raw activations, a tensor (batch, position, width) per source, at `kept`, (batch, position) bool."""
    x = torch.cat([(part - mean) / scale for part, mean, scale in zip(parts, means, scales, strict=True)], dim=-1)
    rows = kept.flatten().nonzero()[:, 0]
    code = encode_sparse(coder, x.flatten(0, 1)[rows].float())
    counts = torch.zeros(kept.numel(), dtype=torch.long).index_put_((rows,), code.offsets.diff())
    offsets = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
    return sparse_code.Code(offsets, code.latents, code.values, (kept.numel(), coder.latents))


# -- sets of latents ---------------------------------------------------------------------------------------------------


def candidates(delta: np.ndarray, alive: np.ndarray, threshold: float, least: int) -> np.ndarray:
    """Chat-only latents, or the `least` most chat-leaning ones where there are fewer; from the highest Δ down."""
    ranked = np.flatnonzero(alive)[np.argsort(-delta[alive], kind="stable")]
    count = max(least, int((delta[ranked] >= threshold).sum()))
    return ranked[:count]


def halves(chosen: np.ndarray, badness: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The better and the worse half of some latents, by a value of each of all latents that is low for good ones."""
    ranked = chosen[np.argsort(badness[chosen], kind="stable")]
    return ranked[: len(ranked) // 2], ranked[len(ranked) // 2 :]


def rank_sum(chosen: np.ndarray, *values: np.ndarray) -> np.ndarray:
    """Sum of a latent's ranks by several values among the chosen ones; NaN ranks last; infinite for all others."""
    ranks = np.full(len(values[0]), np.inf)
    ranks[chosen] = sum(np.argsort(np.argsort(value[chosen], kind="stable")) for value in values)
    return ranks


def matched_sets(
    chosen: np.ndarray, allowed: np.ndarray, density: np.ndarray, norm: np.ndarray, count: int, seed: int
) -> list[np.ndarray]:
    """Random sets of latents as frequent and with decoder norms as large as the chosen ones.

    `allowed`, (m,) bool, says which latents may be drawn; a set holds no latent twice.
    """
    features = np.stack([np.log(np.maximum(density, 1e-12)), np.log(np.maximum(norm, 1e-12))], axis=1)
    pool = np.flatnonzero(allowed)
    features = (features - features[pool].mean(0)) / features[pool].std(0).clip(min=1e-12)
    generator, sets = np.random.default_rng(seed), []
    for _ in range(count):
        free, drawn = np.ones(len(pool), bool), []
        for latent in chosen:
            distance = np.where(free, np.square(features[pool] - features[latent]).sum(1), np.inf)
            near = np.argsort(distance, kind="stable")[: min(NEIGHBOURS, int(free.sum()))]
            if not len(near):
                break
            pick = generator.choice(near)
            free[pick] = False
            drawn.append(pool[pick])
        sets.append(np.array(drawn, int))
    return sets


# -- divergence --------------------------------------------------------------------------------------------------------


@torch.inference_mode()
def log_probabilities(
    model: transformers.PreTrainedModel, layer: int, hidden: torch.Tensor, ids: torch.Tensor, wanted: torch.Tensor
) -> torch.Tensor:
    """Next-token log-probabilities of the upper half on `hidden`, (wanted, vocabulary).

    `wanted`, (batch, position) bool, says which positions are wanted.
    """
    positions = wanted.any(0).nonzero()[:, 0].to(ids.device)  # the head, a third of the cost, runs at these alone
    with replaced_below(model, layer, hidden.to(model.dtype)):
        logits = model(input_ids=ids, use_cache=False, logits_to_keep=positions).logits
    return torch.log_softmax(logits[wanted[:, positions]].float(), dim=-1)


def divergence(reference: torch.Tensor, other: torch.Tensor) -> np.ndarray:
    """KL(p_reference ‖ p_other) in nats, from log-probabilities (tokens, vocabulary)."""
    return (reference.exp() * (reference - other)).sum(-1).clamp_min(0).double().cpu().numpy()


def segments(place: np.ndarray) -> np.ndarray:
    """Which of SEGMENTS a response token falls into by its place in the response, from 0: (segments, tokens) bool."""
    first = place < FIRST_TOKENS
    return np.stack([np.ones_like(first), first, ~first])
