"""Loss and gradients of a crosscoder, by hand: sparse where the code is sparse, dense where it is not.

Equal to autograd through :func:`crosscoders.crosscoder.reference_loss` (held in float64 by the tests), plus AuxK.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from crosscoders import sparse
from crosscoders.crosscoder import Crosscoder, keep_largest

DENSE_ABOVE = 0.04
"""Density of the code above which dense products are taken instead of gathered rows."""
AUXILIARY_TOKENS = 4
"""AuxK looks at one in so many tokens of a batch: dead latents need a direction, not precision."""


@dataclass
class Objective:
    """What is minimised at one step."""

    weights: torch.Tensor
    """Weight of every column's squared error, (D,)."""
    penalty: str = "none"
    coefficient: float = 0.0
    k: int | None = None
    auxiliary_coefficient: float = 0.0
    dead: torch.Tensor | None = None
    """Latents that count as dead, (m,) bool."""


@dataclass
class Result:
    """Loss, gradients in the order of `Crosscoder.parameters`, and what the code was like."""

    loss: float
    gradients: list[torch.Tensor]
    squared_error: torch.Tensor
    """Sum over columns and mean over tokens, per source, (S,)."""
    counts: torch.Tensor
    """Tokens on which each latent fired, (m,)."""
    threshold: float = 0.0
    """Smallest score kept (batchtopk)."""
    parts: dict[str, float] = field(default_factory=dict)


def compute(crosscoder: Crosscoder, x: torch.Tensor, objective: Objective, selection: sparse.BatchTopK) -> Result:
    """Loss and gradients on normalised activations x, (T, D)."""
    norms = crosscoder.decoder_norms()
    preactivations = crosscoder.preactivations(x)
    threshold = 0.0
    if crosscoder.activation == "batchtopk":
        code, threshold = selection(preactivations, norms.sum(1), objective.k)
    elif crosscoder.activation == "topk":
        kept = keep_largest(preactivations.relu(), preactivations.relu() * norms.sum(1), objective.k)
        code = _as_code(kept)
    else:
        code = _as_code(preactivations.relu())
    passes = _Dense(code) if isinstance(code, torch.Tensor) else _Sparse(code)
    error = x - passes.decode(crosscoder)
    weighted = error * objective.weights
    result = _backward(crosscoder, x, weighted.mul(-2 / len(x)), passes, objective, norms)
    squares = (error * weighted).sum(0) / len(x)
    result.squared_error = torch.stack([squares[columns].sum() for columns in crosscoder.columns])
    result.loss = float(squares.sum()) + result.parts.get("penalty", 0.0)
    result.threshold = threshold
    if objective.auxiliary_coefficient > 0 and objective.dead is not None and bool(objective.dead.any()):
        _add_auxiliary(crosscoder, x, error, preactivations, objective, result.gradients)
    crosscoder.constrain(result.gradients[0], result.gradients[2])
    return result


def _as_code(f: torch.Tensor) -> torch.Tensor | sparse.Code:
    """The code itself where it is dense, its pairs where it is sparse."""
    if int((f > 0).sum()) > DENSE_ABOVE * f.numel():
        return f
    return sparse.of_dense(f)


class _Sparse:
    """Passes over the active pairs."""

    def __init__(self, code: sparse.Code):
        self.code, self.by_latent, self.values = code, sparse.ByLatent(code), code.values
        self.counts = torch.zeros_like(self.by_latent.counts).index_add_(0, code.latents, (code.values > 0).long())

    def decode(self, crosscoder: Crosscoder) -> torch.Tensor:
        return sparse.decode(self.code, crosscoder.decoder, crosscoder.decoder_bias)

    def value_gradients(self, gradient: torch.Tensor, decoder: torch.Tensor) -> torch.Tensor:
        return sparse.value_gradients(self.code, gradient, decoder)

    def active(self, per_latent: torch.Tensor) -> torch.Tensor:
        return per_latent[self.code.latents]

    def weight_gradient(self, values: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        return self.by_latent.weight_gradient(values, rows)

    def total(self, values: torch.Tensor) -> torch.Tensor:
        return self.by_latent.total(values)


class _Dense:
    """The same passes over a (T, m) code."""

    def __init__(self, code: torch.Tensor):
        self.values = code
        self.counts = (code > 0).sum(0)

    def decode(self, crosscoder: Crosscoder) -> torch.Tensor:
        return crosscoder.decode(self.values)

    def value_gradients(self, gradient: torch.Tensor, decoder: torch.Tensor) -> torch.Tensor:
        return gradient @ decoder.T

    def active(self, per_latent: torch.Tensor) -> torch.Tensor:
        return per_latent

    def weight_gradient(self, values: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        return values.T @ rows

    def total(self, values: torch.Tensor) -> torch.Tensor:
        return values.sum(0)


def _backward(
    crosscoder: Crosscoder, x: torch.Tensor, gradient: torch.Tensor, passes, objective: Objective, norms: torch.Tensor
) -> Result:
    """Gradients of reconstruction and penalty, given the gradient at the reconstruction, (T, D)."""
    f = passes.values
    f_gradient = passes.value_gradients(gradient, crosscoder.decoder)
    decoder_gradient = passes.weight_gradient(f, gradient)
    parts = {}
    if objective.penalty != "none":
        rate = objective.coefficient * crosscoder.penalty / len(x)
        use = passes.total(f)
        if objective.penalty == "l1_of_norms":
            size, per_source = norms.sum(1), use * rate
            factor = per_source[:, None] / norms.clamp_min(1e-30)
        else:
            size = norms.pow(2).sum(1).sqrt()
            factor = (use * rate / size.clamp_min(1e-30))[:, None].expand_as(norms)
        f_gradient = f_gradient + passes.active(rate * size)
        for s, columns in enumerate(crosscoder.columns):
            decoder_gradient[:, columns].addcmul_(crosscoder.decoder[:, columns], factor[:, s, None])
        parts["penalty"] = float((use * rate * size).sum())
    f_gradient = f_gradient * (f > 0)
    gradients = [passes.weight_gradient(f_gradient, x), passes.total(f_gradient), decoder_gradient, gradient.sum(0)]
    return Result(0.0, gradients, torch.empty(0), passes.counts, parts=parts)


def _add_auxiliary(
    crosscoder: Crosscoder, x: torch.Tensor, error: torch.Tensor, preactivations: torch.Tensor,
    objective: Objective, gradients: list[torch.Tensor],
) -> None:  # fmt: skip
    """Add the gradient of AuxK in place: dead latents reconstruct the detached error.

    The k_aux = d/2 largest scores among the dead latents of each token (of one token in AUXILIARY_TOKENS).
    """
    chosen = slice(None, None, AUXILIARY_TOKENS)
    dead = objective.dead.nonzero()[:, 0]
    decoder_rows = crosscoder.decoder[dead]
    x, target = x[chosen], error[chosen]
    f = preactivations[chosen][:, dead].relu()
    count = min(len(dead), max(crosscoder.widths) // 2)
    if count < len(dead):
        lowest = f.topk(count, dim=1, sorted=False).values.amin(1, keepdim=True)
        f = f * (f >= lowest)  # ties may keep a few more
    gradient = (target - f @ decoder_rows) * objective.weights * (-2 * objective.auxiliary_coefficient / len(x))
    f_gradient = (gradient @ decoder_rows.T) * (f > 0)
    gradients[0].index_add_(0, dead, f_gradient.T @ x)
    gradients[1].index_add_(0, dead, f_gradient.sum(0))
    gradients[2].index_add_(0, dead, f.T @ gradient)
