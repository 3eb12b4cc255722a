"""From activations to sparse codes: which latents are on, exactly, without computing more pre-activations than needed.

T tokens, m latents, D columns. The functions take the backend that computes; codes depend on it in their last digits
alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch

from crosscoders.crosscoder.crosscoder import Crosscoder, keep_largest
from crosscoders.kernels import backends
from crosscoders.kernels.interface import Backend, Pairs
from crosscoders.kernels.mesh import ALONE, Alone
from crosscoders.kernels.ranking import keep_largest_together, largest_together
from crosscoders.kernels.sparse_code import Code, flatnonzero, from_flat, of_dense
from crosscoders.study.blocks import Selection

MARGIN = (0.02, 0.1)
"""Least and largest share by which a threshold is lowered to pick the candidates of the next batch."""
ROUNDING = 1e-6
"""Share by which a threshold is lowered when candidates are picked, so that rounding leaves none out."""


class Whole:
    """Pre-activations P, (T, m), all of them computed; T and m are those of one process of a mesh.

    Of a block of latents `first` is the place of the first one among those of the process.
    """

    def __init__(self, values: torch.Tensor, mesh: Alone = ALONE, first: int = 0):
        self.whole, self.mesh, self.first = values, mesh, first
        self.size = tuple(values.shape)

    def above(self, threshold: torch.Tensor | float) -> Pairs:
        """Pairs above a candidate threshold, a number or (m,)."""
        return self.at(self.whole > threshold)

    def at(self, wanted: torch.Tensor) -> Pairs:
        """Pairs where a mask, (T, m), is true."""
        index = flatnonzero(wanted)
        return Pairs(index, self.whole.reshape(-1)[index])


class Preactivations(Whole):
    """Pre-activations P = x W_encᵀ + b, computed where they are asked for.

    Parameters
    ----------
    x : (T, D)
        Normalised activations.
    encoder : (m, D)
    bias : (m,)
    backend : Backend
    precision : torch.dtype, optional
        To which the factors are rounded where all pre-activations are computed.
    first : int
        As in :class:`Whole`.
    """

    def __init__(
        self,
        x: torch.Tensor,
        encoder: torch.Tensor,
        bias: torch.Tensor,
        backend: Backend,
        precision: torch.dtype | None = None,
        first: int = 0,
    ):
        self.x, self.encoder, self.bias, self.backend, self.precision = x, encoder, bias, backend, precision
        self.first = first
        self.size, self.mesh = (len(x), len(encoder)), backend.mesh

    @cached_property
    def whole(self) -> torch.Tensor:
        """All of them, (T, m)."""
        if self.precision is None:
            return self.backend.linear(self.x, self.encoder, self.bias)
        return self.backend.product(self.x, self.encoder.T, self.precision).add_(self.bias)

    def few_above(self, threshold: torch.Tensor | float) -> Pairs | None:
        """Pairs above a candidate threshold, a number or (m,); None where all have been computed or should be."""
        if "whole" in vars(self):
            return None
        per_latent = torch.as_tensor(threshold, dtype=self.x.dtype, device=self.x.device).expand(self.size[1])
        return self.backend.candidates(self.x, self.encoder, self.bias, per_latent)

    def above(self, threshold: torch.Tensor | float) -> Pairs:
        """Pairs above a candidate threshold, a number or (m,)."""
        pairs = self.few_above(threshold)
        return super().above(threshold) if pairs is None else pairs

    def of(self, latents: slice) -> Preactivations:
        """Those of some latents."""
        weights = self.encoder[latents], self.bias[latents]
        return Preactivations(self.x, *weights, self.backend, self.precision, latents.start)

    def some(self, tokens: slice, latents: torch.Tensor) -> torch.Tensor:
        """Pre-activations of some tokens and latents, (tokens, latents)."""
        if "whole" in vars(self):
            return self.whole[tokens][:, latents]
        return torch.addmm(self.bias[latents], self.x[tokens], self.encoder[latents].T)


@dataclass
class BatchTopK:
    """Keeps the T·k largest scores f_j Σ_s n_{j,s} of a batch [B24].

    The last batch's threshold, lowered by a margin, picks a few candidates among which the selection is exact; where
    they turn out too few, all positive pre-activations are candidates. The margin is three times the threshold's last
    change, or nine tenths of what it was before.
    """

    carried: float = 0.0
    margin: float = MARGIN[1]
    fallbacks: int = 0

    def __call__(self, preactivations: Whole, norms: torch.Tensor, k: int) -> tuple[Code, float]:
        """Code of (T, m) pre-activations and the smallest score kept; `norms`, (m,), are N_j = Σ_s n_{j,s}.

        The scores of all processes of a mesh are ranked together.
        """
        (tokens, m), mesh = preactivations.size, preactivations.mesh
        index, values = preactivations.above((1 - self.margin) * self.carried / norms.clamp_min(1e-30))
        wanted, found = k * tokens * mesh.replicas, mesh.count(len(index), "selection")
        if found < wanted and self.carried > 0:
            self.fallbacks += 1
            index, values = preactivations.above(0.0)
            found = mesh.count(len(index), "selection")
        keep, threshold = _largest(index, values * norms[index % m], min(wanted, found), preactivations)
        if self.carried > 0:
            change = abs(threshold / self.carried - 1)
            self.margin = min(max(MARGIN[0], 3 * change, 0.9 * self.margin), MARGIN[1])
        self.carried = threshold
        return from_flat(index[keep], values[keep], (tokens, m)), threshold


def _largest(
    index: torch.Tensor, scores: torch.Tensor, count: int, preactivations: Whole
) -> tuple[torch.Tensor, float]:
    """Mask of this process's scores, at flat indices, among the `count` largest of all, and the smallest score kept."""
    (tokens, m), mesh, first = preactivations.size, preactivations.mesh, preactivations.first
    if mesh.alone:
        return largest(scores, count)

    def places() -> torch.Tensor:
        return (index // m + mesh.tokens_before(tokens)) * mesh.latents + mesh.own.to(index.device)[index % m + first]

    return largest_together(scores, places, count, mesh)


def largest(scores: torch.Tensor, count: int) -> tuple[torch.Tensor, float]:
    """Mask of the `count` largest scores, ties broken by the lower index, and the smallest score kept."""
    if count >= len(scores):
        return torch.ones_like(scores, dtype=torch.bool), float(scores.min()) if len(scores) else 0.0
    threshold = scores.kthvalue(len(scores) - count + 1).values
    keep = scores > threshold
    keep[flatnonzero(scores == threshold)[: count - int(keep.sum())]] = True
    return keep, float(threshold)


def ranked_by_token(preactivations: Whole, norms: torch.Tensor, k: int) -> torch.Tensor:
    """The dense code, (T, m), of the k largest scores of every token; `norms`, (m,), are N_j."""
    f, mesh = preactivations.whole.relu(), preactivations.mesh
    return keep_largest(f, f * norms, k) if mesh.alone else keep_largest_together(f, f * norms, k, mesh)


def ranked_code(
    rule: Selection, preactivations: Whole, norms: torch.Tensor, k: int, selection: BatchTopK
) -> tuple[Code, float]:
    """The code of a ranked activation while training, and the smallest score kept where a batch is ranked.

    Parameters
    ----------
    rule : Selection
        Over what ranks are taken.
    preactivations : Whole
        (T, m).
    norms : (m,)
        N_j = Σ_s n_{j,s}.
    k : int
        Latents per token.
    selection : BatchTopK
        Carries the threshold of the last batch.

    Returns
    -------
    code : Code
        Of (T, m).
    threshold : float
        The smallest score kept; 0 where tokens are ranked.
    """
    if rule.ranked_over == "batch":
        return selection(preactivations, norms, k)
    return of_dense(ranked_by_token(preactivations, norms, k)), 0.0


def encode_sparse(crosscoder: Crosscoder, x: torch.Tensor, backend: Backend | None = None) -> Code:
    """The code of :meth:`Crosscoder.encode`, sparse.

    Parameters
    ----------
    crosscoder : Crosscoder
    x : (T, D)
        Normalised activations.
    backend : Backend, optional
        What computes; chosen by the device of `x` where absent.

    Returns
    -------
    Code
        Of T tokens and m latents.
    """
    backend = backend or backends.choose(x.device)
    if crosscoder.selection.ranked_over == "token" and backend.rows_at_once is None:
        return of_dense(crosscoder.encode(x))
    norms, limit = crosscoder.score_weights(), crosscoder.on_above
    if crosscoder.selection.ranked_over == "token":
        weights = crosscoder.encoder, crosscoder.encoder_bias
        return from_flat(*backend.largest_of_tokens(x, *weights, norms, crosscoder.k), (len(x), crosscoder.latents))
    lowest = limit / norms.clamp_min(1e-30)
    preactivations = Preactivations(x, crosscoder.encoder, crosscoder.encoder_bias, backend)
    index, values = preactivations.above((lowest - ROUNDING * lowest.abs()).clamp_min(0.0))
    latents = index % crosscoder.latents
    keep = values * norms[latents] > (limit[latents] if isinstance(limit, torch.Tensor) else limit)
    return from_flat(index[keep], values[keep], (len(x), crosscoder.latents))


def decode_sparse(code: Code, decoder: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """The reconstruction Σ_j f_j W_j + b of a sparse code.

    Parameters
    ----------
    code : Code
        Of (T, m).
    decoder : (m, D)
    bias : (D,)

    Returns
    -------
    (T, D)
    """
    return backends.choose(decoder.device).decode(code, decoder, bias)
