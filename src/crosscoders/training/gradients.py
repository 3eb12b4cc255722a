"""Loss and gradients of a crosscoder, by hand: over active pairs where the code is sparse, dense where it is not.

They equal those of autograd through :func:`crosscoders.crosscoder.crosscoder.reference_loss`, which the tests check in
float64, plus AuxK. :func:`compute` is one step: it encodes, selects, reconstructs and computes gradients, by a backend
that was chosen once for the training. T tokens, m latents, S sources, D columns.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch

from crosscoders.crosscoder.crosscoder import Crosscoder
from crosscoders.crosscoder.encode import BatchTopK, Preactivations, Whole, ranked_code
from crosscoders.crosscoder.penalties import PENALTIES
from crosscoders.crosscoder.separate import Separate
from crosscoders.kernels.interface import Backend, Gradient, Reconstruction
from crosscoders.kernels.mesh import Alone
from crosscoders.kernels.ranking import nth_largest_of_rows
from crosscoders.kernels.sparse_code import ByLatent, Code, from_flat, parted

AUXILIARY_TOKENS = 4
"""AuxK uses one in so many tokens of a batch, which are enough to give dead latents a direction."""


@dataclass
class Objective:
    """The loss that is minimised at one step."""

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
    all_dead: int = 0
    """How many latents of a part count as dead on all processes; `compute` counts them."""
    alignment: float = 0.0
    """λ_align of the aligned crosscoder."""
    precision: torch.dtype | None = None
    """Precision of the factors of large products, except of those that decide which latents of a sparse code are on."""


@dataclass
class Result:
    """Loss, gradients in the order of `Crosscoder.parameters`, and figures of the code.

    On a process of a mesh, loss, squared error and l0 are its share of the sums that the processes add up.
    """

    loss: float
    gradients: list[Gradient]
    squared_error: torch.Tensor
    """Sum over columns and mean over tokens, per source, (S,)."""
    counts: torch.Tensor
    """Tokens on which each latent fired, (m,)."""
    threshold: float = 0.0
    """Smallest score kept (batchtopk)."""
    l0: float = 0.0
    """Active latents per token; of an aligned crosscoder per token and source."""
    parts: dict[str, float] = field(default_factory=dict)


def compute(
    crosscoder: Crosscoder | Separate, x: torch.Tensor, objective: Objective, selection: BatchTopK, backend: Backend
) -> Result:
    """Loss and gradients of one step.

    Parameters
    ----------
    crosscoder : Crosscoder or Separate
        The parts of a `Separate` are worked on one after the other; ranks are taken over the latents of all of them.
    x : (T, D)
        Normalised activations.
    objective : Objective
    selection : BatchTopK
        Carries the threshold of the last batch.
    backend : Backend
    """
    parts, mesh = crosscoder.parts, backend.mesh
    inputs = [_inputs(part, rows, objective, backend) for part, rows in zip(parts, _split(x, parts), strict=True)]
    paths, threshold = _select(inputs, objective, selection, backend)
    weights = objective.weights.split([sum(part.widths) for part in parts])
    dead, all_dead = _dead_of(parts, objective, mesh)
    results = [
        _compute_part(given, path, replace(objective, weights=w, dead=d, all_dead=count))
        for given, path, w, d, count in zip(inputs, paths, weights, dead, all_dead, strict=True)
    ]
    counts = torch.cat([result.counts for result in results])
    return Result(
        loss=sum(result.loss for result in results),
        gradients=[gradient for result in results for gradient in result.gradients],
        squared_error=torch.cat([result.squared_error for result in results]),
        counts=counts,
        threshold=threshold,
        l0=float(counts.sum()) / (len(x) * mesh.replicas),
    )


def _dead_of(parts: list[Crosscoder], objective: Objective, mesh: Alone) -> tuple[list[torch.Tensor | None], list[int]]:
    """The dead latents of every part, and their number on all processes, where any may be revived."""
    if objective.dead is None or objective.auxiliary_coefficient == 0:
        return [None] * len(parts), [0] * len(parts)
    dead = list(objective.dead.split([part.latents for part in parts]))
    return dead, mesh.add(torch.stack([one.sum() for one in dead]), "figures").tolist()


def stored(gradient: Gradient) -> torch.Tensor:
    """A gradient, (m, D), as a tensor."""
    return gradient if isinstance(gradient, torch.Tensor) else gradient.dense()


@dataclass
class _Part:
    """A crosscoder, or one part of several, with its input at this step.

    x : (T, D of the part); norms : (m, S), its decoder norms.
    """

    crosscoder: Crosscoder
    x: torch.Tensor
    preactivations: Preactivations
    norms: torch.Tensor


def _split(x: torch.Tensor, parts: list[Crosscoder]) -> list[torch.Tensor]:
    """The columns of every part, (T, D of the part)."""
    return [part.contiguous() for part in x.split([sum(part.widths) for part in parts], dim=1)]


def _inputs(part: Crosscoder, x: torch.Tensor, objective: Objective, backend: Backend) -> _Part:
    preactivations = Preactivations(x, part.encoder, part.encoder_bias, backend, objective.precision)
    return _Part(part, x, preactivations, part.decoder_norms())


def _compute_part(given: _Part, path: Path, objective: Objective) -> Result:
    """Loss and gradients of one part, whose code has been chosen."""
    crosscoder = given.crosscoder
    reconstruction = path.reconstruct(crosscoder, given.x, objective.weights)
    result = _backward(given, reconstruction, path, objective)
    squares = (reconstruction.error * reconstruction.at_output).sum(0) / -2
    if path.backend.mesh.rank > 0:  # the processes of a replica have the same error, and the first of them counts it
        squares.zero_()
    result.squared_error = torch.stack([squares[columns].sum() for columns in crosscoder.columns])
    result.loss = float(squares.sum()) + result.parts.get("penalty", 0.0)
    revived = objective.all_dead > 0
    if revived or not crosscoder.unconstrained:
        result.gradients = [stored(gradient) for gradient in result.gradients]
    if revived:
        add_auxiliary(crosscoder, reconstruction.error, given.preactivations, objective, result.gradients)
    if not crosscoder.unconstrained:
        crosscoder.constrain(result.gradients[0], result.gradients[2])
    return result


# -- select ------------------------------------------------------------------------------------------------------------


def _select(
    given: list[_Part], objective: Objective, selection: BatchTopK, backend: Backend
) -> tuple[list[Path], float]:
    """How the codes of all parts are worked with, and the smallest score kept where a batch is ranked."""
    rule, sizes = given[0].crosscoder.selection, [one.crosscoder.latents for one in given]
    norms = [one.norms.sum(1) for one in given]
    if rule.ranked_over:
        parts = [one.preactivations for one in given]
        whole = parts[0] if len(parts) == 1 else _side_by_side(parts)
        code, threshold = ranked_code(rule, whole, torch.cat(norms), objective.k, selection)
        codes = [code] if len(given) == 1 else code.split(sizes)
        return [path_of(one, backend, objective.precision) for one in codes], threshold
    if rule.learns_threshold:
        with_norms = zip(given, norms, strict=True)
        return [_thresholded(one.preactivations, n, one.crosscoder.on_above, objective) for one, n in with_norms], 0.0
    return [_positive(one.preactivations, objective.precision) for one in given], 0.0


def _side_by_side(parts: list[Preactivations]) -> Whole:
    """The pre-activations of several parts side by side, (T, sum of latents)."""
    return Whole(torch.cat([part.whole for part in parts], dim=1), parts[0].mesh)


def path_of(code: Code, backend: Backend, precision: torch.dtype | None = None) -> Path:
    """A code worked with over its active pairs, or densely where it has so many that dense products cost less."""
    if _dense_pays(len(code.values), code.size, backend):
        return DensePath(code.dense(), backend, precision)
    return SparsePath(code, backend, precision)


def _dense_pays(pairs: int, size: tuple[int, int], backend: Backend) -> bool:
    return pairs > backend.dense_above * size[0] * size[1]


def _positive(preactivations: Preactivations, precision: torch.dtype | None) -> Path:
    """The code in which all positive pre-activations are on."""
    backend = preactivations.backend
    pairs = preactivations.few_above(0.0)
    if pairs is None:
        wanted = preactivations.whole > 0
        if _dense_pays(int(wanted.count_nonzero()), preactivations.size, backend):
            return DensePath(preactivations.whole.relu(), backend, precision)
        pairs = preactivations.at(wanted)
    return path_of(from_flat(*pairs, preactivations.size), backend, precision)


def _thresholded(
    preactivations: Preactivations, norms: torch.Tensor, theta: torch.Tensor, objective: Objective
) -> Path:
    """The code above learned thresholds. Pairs just below them are kept with value 0, as thresholds learn from them."""
    bandwidth = objective.bandwidth
    index, values = preactivations.above((theta - bandwidth / 2) / norms.clamp_min(1e-30))
    latents = index % len(norms)
    score = values * norms[latents] - theta[latents]
    code = from_flat(index, values.clamp_min(0) * (score > 0), preactivations.size)
    path = path_of(code, preactivations.backend, objective.precision)
    near = from_flat(index, (score.abs() < bandwidth / 2).to(values.dtype), preactivations.size)
    path.near = near.values if isinstance(path, SparsePath) else near.dense()
    return path


# -- reconstruct and gradients -----------------------------------------------------------------------------------------


class SparsePath:
    """A code worked with over its active pairs.

    Attributes
    ----------
    values : (pairs,)
    counts : (m,)
        Tokens on which each latent is on.
    near : (pairs,), optional
        1 where a score lies near its learned threshold.
    """

    def __init__(self, code: Code, backend: Backend, precision: torch.dtype | None = None):
        self.code, self.backend, self.precision = code, backend, precision
        self.by_latent, self.values = ByLatent(code), code.values
        self.counts = torch.zeros_like(self.by_latent.counts).index_add_(0, code.latents, (code.values > 0).long())
        self.near: torch.Tensor | None = None

    def reconstruct(self, crosscoder: Crosscoder, x: torch.Tensor, weights: torch.Tensor) -> Reconstruction:
        """Error on x, (T, D), and its gradients at the reconstruction and at `values`."""
        decoder = self.backend.rounded(crosscoder.decoder, self.precision)
        return self.backend.reconstruct(self.code, self.by_latent, x, decoder, crosscoder.decoder_bias, weights)

    def active(self, per_latent: torch.Tensor) -> torch.Tensor:
        """Numbers per latent, (m,), looked up for every one of `values`."""
        return per_latent[self.code.latents]

    def weight_gradient(self, values: torch.Tensor, rows: torch.Tensor) -> Gradient:
        """Σ_t value_tj rows_t, (m, D)."""
        return self.backend.weight_gradient(self.by_latent, values, rows)

    def total(self, values: torch.Tensor) -> torch.Tensor:
        """Σ_t value_tj, (m,)."""
        return self.by_latent.total(values)

    def over_copies(self, values: torch.Tensor, count: int) -> torch.Tensor:
        """For every value the sum over all `count` copies of its token and latent, which follow one another."""
        place = self.code.tokens % (self.code.size[0] // count) * self.code.size[1] + self.code.latents
        place, inverse = place.unique(return_inverse=True)
        return values.new_zeros(len(place)).index_add_(0, inverse, values)[inverse]

    def copies(self, values: torch.Tensor, count: int) -> list[tuple[SparsePath, torch.Tensor]]:
        """The path of every copy, and those of `values` that belong to it."""
        ends = self.code.offsets[:: self.code.size[0] // count].tolist()
        codes = zip(parted(self.code, count), ends, ends[1:], strict=False)
        return [(SparsePath(code, self.backend), values[a:b]) for code, a, b in codes]


class DensePath:
    """The same over a dense code; `values` and `near` are (T, m)."""

    def __init__(self, code: torch.Tensor, backend: Backend, precision: torch.dtype | None = None):
        self.values, self.backend, self.precision = code, backend, precision
        self.counts = (code > 0).sum(0)
        self.near: torch.Tensor | None = None

    def reconstruct(self, crosscoder: Crosscoder, x: torch.Tensor, weights: torch.Tensor) -> Reconstruction:
        """Error on x, (T, D), and its gradients at the reconstruction and at `values`."""
        mesh = self.backend.mesh
        rebuilt = mesh.add(self.backend.product(self.values, crosscoder.decoder, self.precision), "reconstruction")
        error = x - rebuilt - crosscoder.decoder_bias
        at_output = error * weights * (-2 / (len(x) * mesh.replicas))
        return Reconstruction(error, at_output, self.backend.product(at_output, crosscoder.decoder.T, self.precision))

    def active(self, per_latent: torch.Tensor) -> torch.Tensor:
        """Numbers per latent, (m,), which broadcast over `values`."""
        return per_latent

    def weight_gradient(self, values: torch.Tensor, rows: torch.Tensor) -> Gradient:
        """Σ_t value_tj rows_t, (m, D)."""
        return self.backend.product(values.T, rows, self.precision)

    def total(self, values: torch.Tensor) -> torch.Tensor:
        """Σ_t value_tj, (m,)."""
        return values.sum(0)

    def over_copies(self, values: torch.Tensor, count: int) -> torch.Tensor:
        """For every value the sum over all `count` copies of its token and latent, which follow one another."""
        return values.view(count, -1, values.shape[1]).sum(0).repeat(count, 1)

    def copies(self, values: torch.Tensor, count: int) -> list[tuple[DensePath, torch.Tensor]]:
        """The path of every copy, and those of `values` that belong to it."""
        parts = zip(self.values.chunk(count), values.chunk(count), strict=True)
        return [(DensePath(code, self.backend), part) for code, part in parts]


Path = SparsePath | DensePath


def _backward(given: _Part, reconstruction: Reconstruction, path: Path, objective: Objective) -> Result:
    """Gradients of reconstruction and penalty, given those at the reconstruction, (T, D), and at the code."""
    crosscoder, x, norms, f = given.crosscoder, given.x, given.norms, path.values
    at_values, parts = reconstruction.at_values, {}
    decoder_gradient = path.weight_gradient(f, reconstruction.at_output)
    if objective.penalty != "none":
        cost = penalise(path, norms, crosscoder.penalty, objective, len(x) * path.backend.mesh.replicas)
        at_values = at_values if cost.at_values is None else at_values + cost.at_values
        decoder_gradient = stored(decoder_gradient)
        for s, columns in enumerate(crosscoder.columns):
            factor = cost.at_norms[:, s, None] / norms[:, s, None].clamp_min(1e-30)
            decoder_gradient[:, columns].addcmul_(crosscoder.decoder[:, columns], factor)
        parts["penalty"] = cost.value
    at_step = at_values
    at_values = at_values * (f > 0)
    gradients = [path.weight_gradient(at_values, x), path.total(at_values), decoder_gradient]
    gradients.append(reconstruction.at_output.sum(0))
    if crosscoder.log_threshold is not None:  # as in crosscoder.StepThreshold, times dθ / d log θ = θ
        theta = crosscoder.on_above
        reached = path.total(at_step * path.near)
        gradients.append(-reached * theta.square() / (norms.sum(1) * objective.bandwidth))
    return Result(0.0, gradients, torch.empty(0), path.counts, parts=parts)


@dataclass
class PenaltyGradient:
    """Value of a penalty, and its gradients at the decoder norms, (m, S), and at the code's values, if any."""

    value: float
    at_norms: torch.Tensor
    at_values: torch.Tensor | None


def penalise(
    path: Path, norms: torch.Tensor, factors: torch.Tensor, objective: Objective, tokens: int
) -> PenaltyGradient:
    """λ Σ_j π_j g(f_j N_j), mean over tokens (:mod:`crosscoders.crosscoder.penalties`).

    Parameters
    ----------
    path : SparsePath or DensePath
    norms : (m, S)
        Decoder norms.
    factors : (m,)
        π_j.
    objective : Objective
    tokens : int
        Tokens over which the mean is taken, of all processes.
    """
    penalty, rate = PENALTIES[objective.penalty], objective.coefficient * factors / tokens
    size = penalty.join(norms)
    contribution = path.values * path.active(size)
    slope = penalty.slope(contribution, objective.scale)
    at_norms = (path.total(path.values * slope) * rate)[:, None] * penalty.share(norms)
    at_values = path.active(rate * size) * slope if penalty.penalises_code else None
    value = float((path.total(penalty.value(contribution, objective.scale)) * rate).sum())
    return PenaltyGradient(value, at_norms, at_values)


def add_auxiliary(
    crosscoder: Crosscoder,
    error: torch.Tensor,
    preactivations: Preactivations,
    objective: Objective,
    gradients: list[torch.Tensor],
) -> None:
    """Add the gradient of AuxK in place: dead latents reconstruct the detached error, (T, D).

    The k_aux = d/2 largest scores among the dead latents of each token (of one token in AUXILIARY_TOKENS).
    """
    mesh, tokens = preactivations.mesh, preactivations.size[0]
    chosen = slice(-mesh.tokens_before(tokens) % AUXILIARY_TOKENS, None, AUXILIARY_TOKENS)
    dead = objective.dead.nonzero()[:, 0]
    decoder_rows = crosscoder.decoder[dead]
    x, target = preactivations.x[chosen], error[chosen]
    f = preactivations.some(chosen, dead).relu()
    count = min(objective.all_dead, max(crosscoder.widths) // 2)
    if count < objective.all_dead:
        f = f * (f >= nth_largest_of_rows(f, count, mesh, "auxiliary"))  # ties may keep a few more
    rebuilt, all_chosen = mesh.add(f @ decoder_rows, "auxiliary"), -(-tokens * mesh.replicas // AUXILIARY_TOKENS)
    gradient = (target - rebuilt) * objective.weights * (-2 * objective.auxiliary_coefficient / all_chosen)
    f_gradient = (gradient @ decoder_rows.T) * (f > 0)
    gradients[0].index_add_(0, dead, f_gradient.T @ x)
    gradients[1].index_add_(0, dead, f_gradient.sum(0))
    gradients[2].index_add_(0, dead, f.T @ gradient)
