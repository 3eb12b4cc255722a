"""Loss and gradients of a crosscoder, by hand: sparse where the code is sparse, dense where it is not.

Equal to autograd through :func:`crosscoders.crosscoder.reference_loss` (held in float64 by the tests), plus AuxK.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import torch

from crosscoders import native, sparse
from crosscoders.crosscoder import Crosscoder, keep_largest
from crosscoders.penalties import PENALTIES
from crosscoders.separate import Separate

if TYPE_CHECKING:
    from crosscoders.kernels import RowGradient

DENSE_ABOVE = {"cpu": 0.04, "compiled": 0.14, "cuda": 0.005}
"""Density of the code above which dense products are taken instead of gathered rows, by device.

Measured on a CPU, with torch's passes and with those in C++. On a GPU products are so fast that gathering wins where m / k
exceeds 150 to 260; not measured here.
"""
AUXILIARY_TOKENS = 4
"""AuxK looks at one in so many tokens of a batch: dead latents need a direction, not precision."""


@dataclass
class Objective:
    """What is minimised at one step."""

    weights: torch.Tensor
    """Weight of every column's squared error, (D,)."""
    penalty: str = "none"
    coefficient: float = 0.0
    scale: float = 1.0
    """Scale of a penalty that saturates."""
    k: int | None = None
    bandwidth: float = 1.0
    """Width, in units of the score, of the rectangle through which learned thresholds get their gradient."""
    auxiliary_coefficient: float = 0.0
    dead: torch.Tensor | None = None
    """Latents that count as dead, (m,) bool."""
    precision: torch.dtype | None = None
    """To which factors of large products are rounded, but those that decide which latents of a sparse code are on."""


@dataclass
class Result:
    """Loss, gradients in the order of `Crosscoder.parameters`, and what the code was like."""

    loss: float
    gradients: list[torch.Tensor | native.Gradient | RowGradient]
    squared_error: torch.Tensor
    """Sum over columns and mean over tokens, per source, (S,)."""
    counts: torch.Tensor
    """Tokens on which each latent fired, (m,)."""
    threshold: float = 0.0
    """Smallest score kept (batchtopk)."""
    parts: dict[str, float] = field(default_factory=dict)


def compute(
    crosscoder: Crosscoder | Separate, x: torch.Tensor, objective: Objective, selection: sparse.BatchTopK
) -> Result:
    """Loss and gradients on normalised activations x, (T, D)."""
    parts = crosscoder.parts
    widths, sizes = [sum(part.widths) for part in parts], [part.latents for part in parts]
    inputs = [part.contiguous() for part in x.split(widths, dim=1)]
    norms = [part.decoder_norms() for part in parts]
    preactivations = [
        sparse.Preactivations(p, rows, objective.precision) for p, rows in zip(parts, inputs, strict=True)
    ]
    passes, threshold = _select(parts, preactivations, [n.sum(1) for n in norms], objective, selection)
    weights = objective.weights.split(widths)
    dead = [None] * len(parts) if objective.dead is None else objective.dead.split(sizes)
    results = [
        _compute_part(part, rows, chosen, before, n, replace(objective, weights=w, dead=d))
        for part, rows, chosen, before, n, w, d in zip(parts, inputs, passes, preactivations, norms, weights, dead, strict=True)
    ]  # fmt: skip
    return Result(
        loss=sum(result.loss for result in results),
        gradients=[gradient for result in results for gradient in result.gradients],
        squared_error=torch.cat([result.squared_error for result in results]),
        counts=torch.cat([result.counts for result in results]),
        threshold=threshold,
    )


def _compute_part(
    crosscoder: Crosscoder, x: torch.Tensor, passes, preactivations: sparse.Preactivations, norms: torch.Tensor,
    objective: Objective,
) -> Result:  # fmt: skip
    """Loss and gradients of one part, its code chosen."""
    error, gradient, f_gradient = passes.reconstruct(crosscoder, x, objective.weights)
    result = _backward(crosscoder, x, gradient, f_gradient, passes, objective, norms)
    squares = (error * gradient).sum(0) / -2
    result.squared_error = torch.stack([squares[columns].sum() for columns in crosscoder.columns])
    result.loss = float(squares.sum()) + result.parts.get("penalty", 0.0)
    revived = objective.auxiliary_coefficient > 0 and objective.dead is not None and bool(objective.dead.any())
    if revived or not crosscoder.unconstrained:
        result.gradients = [stored(gradient) for gradient in result.gradients]
    if revived:
        _add_auxiliary(crosscoder, x, error, preactivations, objective, result.gradients)
    if not crosscoder.unconstrained:
        crosscoder.constrain(result.gradients[0], result.gradients[2])
    return result


def stored(gradient: torch.Tensor | native.Gradient | RowGradient) -> torch.Tensor:
    """A gradient as a tensor."""
    return gradient if isinstance(gradient, torch.Tensor) else gradient.dense()


def _select(
    parts: list[Crosscoder], preactivations: list[sparse.Preactivations], norms: list[torch.Tensor],
    objective: Objective, selection: sparse.BatchTopK,
) -> tuple[list[_Sparse | _Dense], float]:  # fmt: skip
    """The codes of all parts, ready for the passes over them, and the smallest score kept where a batch is ranked.

    Ranks are taken over the latents of all parts together.
    """
    rule, sizes, precision = parts[0].selection, [part.latents for part in parts], objective.precision
    if rule.ranked_over == "batch":
        if len(parts) == 1:
            code, threshold = selection(preactivations[0], norms[0], objective.k)
            return [passes_over(code, precision)], threshold
        code, threshold = selection(
            sparse.Whole(torch.cat([p.whole for p in preactivations], dim=1)), torch.cat(norms), objective.k
        )
        return [passes_over(one, precision) for one in code.split(sizes)], threshold
    if rule.learns_threshold:
        found = zip(parts, preactivations, norms, strict=True)
        return [_thresholded(p, n, part.on_above, objective) for part, p, n in found], 0.0
    if rule.ranked_over == "token":
        whole = torch.cat([p.whole.relu() for p in preactivations], dim=1)
        codes = keep_largest(whole, whole * torch.cat(norms), objective.k).split(sizes, dim=1)
        return [passes_over(sparse.of_dense(f), precision) for f in codes], 0.0
    return [_positive(p, precision) for p in preactivations], 0.0


def _dense_pays(pairs: int, size: tuple[int, int], like: torch.Tensor) -> bool:
    """Whether dense products cost less than passes over so many pairs of a (T, m) code."""
    return pairs > DENSE_ABOVE["compiled" if sparse.compiled(like) else like.device.type] * size[0] * size[1]


def passes_over(code: sparse.Code, precision: torch.dtype | None = None) -> _Sparse | _Dense:
    """Passes over a code."""
    dense = _dense_pays(len(code.values), code.size, code.values)
    return _Dense(code.dense(), precision) if dense else _Sparse(code, precision)


def _positive(preactivations: sparse.Preactivations, precision: torch.dtype | None) -> _Sparse | _Dense:
    """Passes over all positive pre-activations."""
    found = preactivations.few_above(0.0)
    if found is None:
        wanted = preactivations.whole > 0
        if _dense_pays(int(wanted.count_nonzero()), preactivations.size, preactivations.whole):
            return _Dense(preactivations.whole.relu(), precision)
        found = preactivations.at(wanted)
    return passes_over(sparse.from_flat(*found, preactivations.size), precision)


def _thresholded(
    preactivations: sparse.Preactivations, norms: torch.Tensor, theta: torch.Tensor, objective: Objective
) -> _Sparse | _Dense:
    """The code above learned thresholds; pairs just below them are kept with value 0, as thresholds learn from them."""
    bandwidth = objective.bandwidth
    index, values = preactivations.above((theta - bandwidth / 2) / norms.clamp_min(1e-30))
    latents = index % len(norms)
    score = values * norms[latents] - theta[latents]
    code = sparse.from_flat(index, values.clamp_min(0) * (score > 0), preactivations.size)
    passes = passes_over(code, objective.precision)
    near = sparse.from_flat(index, (score.abs() < bandwidth / 2).to(values.dtype), preactivations.size)
    passes.near = near.values if isinstance(passes, _Sparse) else near.dense()
    return passes


class _Sparse:
    """Passes over the active pairs.

    `reconstruct` gives the error x − x̂, (T, D), and the gradients of its weighted mean square at x̂, (T, D), and at `values`.
    """

    def __init__(self, code: sparse.Code, precision: torch.dtype | None = None):
        self.code, self.by_latent, self.values, self.precision = code, sparse.ByLatent(code), code.values, precision
        self.counts = torch.zeros_like(self.by_latent.counts).index_add_(0, code.latents, (code.values > 0).long())
        self.near: torch.Tensor | None = None

    def reconstruct(self, crosscoder: Crosscoder, x: torch.Tensor, weights: torch.Tensor):
        decoder, bias = crosscoder.decoder, crosscoder.decoder_bias
        if self.precision is not None:
            decoder = decoder.to(self.precision)
            decoder = decoder if sparse.on_gpu(x) else decoder.to(x.dtype)
        if sparse.compiled(x):
            return native.reconstruct(self.code, self.by_latent, x, decoder, bias, weights)
        error = x - sparse.decode(self.code, decoder, bias)
        gradient = error * weights * (-2 / len(x))
        return error, gradient, sparse.value_gradients(self.code, gradient, decoder)

    def active(self, per_latent: torch.Tensor) -> torch.Tensor:
        return per_latent[self.code.latents]

    def weight_gradient(self, values: torch.Tensor, rows: torch.Tensor):
        if sparse.on_gpu(rows):
            from crosscoders.kernels import RowGradient

            return RowGradient(self.by_latent, values, rows)
        if sparse.compiled(rows):
            return native.weight_gradient(self.by_latent, values, rows)
        return self.by_latent.weight_gradient(values, rows)

    def total(self, values: torch.Tensor) -> torch.Tensor:
        return self.by_latent.total(values)

    def over_copies(self, values: torch.Tensor, count: int) -> torch.Tensor:
        """At every value the sum over the same token and latent, where the tokens are so many copies one after the other."""
        place = self.code.tokens % (self.code.size[0] // count) * self.code.size[1] + self.code.latents
        place, inverse = place.unique(return_inverse=True)
        return values.new_zeros(len(place)).index_add_(0, inverse, values)[inverse]

    def copies(self, values: torch.Tensor, count: int) -> list[tuple[_Sparse, torch.Tensor]]:
        """Passes over every copy, and its values."""
        ends = self.code.offsets[:: self.code.size[0] // count].tolist()
        return [
            (_Sparse(code), values[a:b])
            for code, a, b in zip(sparse.parted(self.code, count), ends, ends[1:], strict=False)
        ]


class _Dense:
    """The same passes over a (T, m) code."""

    def __init__(self, code: torch.Tensor, precision: torch.dtype | None = None):
        self.values, self.precision = code, precision
        self.counts = (code > 0).sum(0)
        self.near: torch.Tensor | None = None

    def reconstruct(self, crosscoder: Crosscoder, x: torch.Tensor, weights: torch.Tensor):
        error = x - sparse.product(self.values, crosscoder.decoder, self.precision) - crosscoder.decoder_bias
        gradient = error * weights * (-2 / len(x))
        return error, gradient, sparse.product(gradient, crosscoder.decoder.T, self.precision)

    def active(self, per_latent: torch.Tensor) -> torch.Tensor:
        return per_latent

    def weight_gradient(self, values: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        return sparse.product(values.T, rows, self.precision)

    def total(self, values: torch.Tensor) -> torch.Tensor:
        return values.sum(0)

    def over_copies(self, values: torch.Tensor, count: int) -> torch.Tensor:
        return values.view(count, -1, values.shape[1]).sum(0).repeat(count, 1)

    def copies(self, values: torch.Tensor, count: int) -> list[tuple[_Dense, torch.Tensor]]:
        return [(_Dense(code), part) for code, part in zip(self.values.chunk(count), values.chunk(count), strict=True)]


def _backward(
    crosscoder: Crosscoder, x: torch.Tensor, gradient: torch.Tensor, f_gradient: torch.Tensor, passes,
    objective: Objective, norms: torch.Tensor,
) -> Result:  # fmt: skip
    """Gradients of reconstruction and penalty, given those at the reconstruction, (T, D), and at the code."""
    f = passes.values
    decoder_gradient = passes.weight_gradient(f, gradient)
    parts = {}
    if objective.penalty != "none":
        penalty, rate = PENALTIES[objective.penalty], objective.coefficient * crosscoder.penalty / len(x)
        size = penalty.join(norms)
        contribution = f * passes.active(size)
        slope = penalty.slope(contribution, objective.scale)
        factor = (passes.total(f * slope) * rate)[:, None] * penalty.share(norms) / norms.clamp_min(1e-30)
        if penalty.presses_code:
            f_gradient = f_gradient + passes.active(rate * size) * slope
        decoder_gradient = stored(decoder_gradient)
        for s, columns in enumerate(crosscoder.columns):
            decoder_gradient[:, columns].addcmul_(crosscoder.decoder[:, columns], factor[:, s, None])
        parts["penalty"] = float((passes.total(penalty.value(contribution, objective.scale)) * rate).sum())
    at_step = f_gradient
    f_gradient = f_gradient * (f > 0)
    gradients = [passes.weight_gradient(f_gradient, x), passes.total(f_gradient), decoder_gradient, gradient.sum(0)]
    if crosscoder.log_threshold is not None:  # as in crosscoder.StepThreshold, times dθ / d log θ = θ
        theta = crosscoder.on_above
        reached = passes.total(at_step * passes.near)
        gradients.append(-reached * theta.square() / (norms.sum(1) * objective.bandwidth))
    return Result(0.0, gradients, torch.empty(0), passes.counts, parts=parts)


def _add_auxiliary(
    crosscoder: Crosscoder, x: torch.Tensor, error: torch.Tensor, preactivations: sparse.Preactivations,
    objective: Objective, gradients: list[torch.Tensor],
) -> None:  # fmt: skip
    """Add the gradient of AuxK in place: dead latents reconstruct the detached error.

    The k_aux = d/2 largest scores among the dead latents of each token (of one token in AUXILIARY_TOKENS).
    """
    chosen = slice(None, None, AUXILIARY_TOKENS)
    dead = objective.dead.nonzero()[:, 0]
    decoder_rows = crosscoder.decoder[dead]
    x, target = x[chosen], error[chosen]
    f = preactivations.some(chosen, dead).relu()
    count = min(len(dead), max(crosscoder.widths) // 2)
    if count < len(dead):
        lowest = f.topk(count, dim=1, sorted=False).values.amin(1, keepdim=True)
        f = f * (f >= lowest)  # ties may keep a few more
    gradient = (target - f @ decoder_rows) * objective.weights * (-2 * objective.auxiliary_coefficient / len(x))
    f_gradient = (gradient @ decoder_rows.T) * (f > 0)
    gradients[0].index_add_(0, dead, f_gradient.T @ x)
    gradients[1].index_add_(0, dead, f_gradient.sum(0))
    gradients[2].index_add_(0, dead, f.T @ gradient)
