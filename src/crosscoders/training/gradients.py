"""Loss and gradients of a crosscoder, by hand: over active pairs where the code is sparse, dense where it is not.

They equal those of autograd through :func:`crosscoders.crosscoder.crosscoder.reference_loss`, which the tests check in
float64, plus AuxK. :func:`compute` is one step: it encodes, selects, reconstructs and computes gradients, by a backend
that was chosen once for the training. T tokens, m latents, S sources, D columns.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch

from crosscoders.crosscoder.crosscoder import Crosscoder, DeltaLoss
from crosscoders.crosscoder.encode import BatchTopK, Preactivations, Whole, ranked_code
from crosscoders.crosscoder.penalties import PENALTIES
from crosscoders.crosscoder.separate import Separate
from crosscoders.kernels.interface import Backend, Gradient
from crosscoders.kernels.mesh import Alone
from crosscoders.kernels.ranking import nth_largest_of_rows
from crosscoders.kernels.sparse_code import Code, beside, from_flat
from crosscoders.training.paths import DensePath, Path, dense_pays, path_of

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
    budgets: list[int] | None = None
    """k of every block, where each ranks its latents apart."""
    delta: DeltaLoss | None = None
    """The loss on the difference of two sources, if any."""


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
    crosscoder: Crosscoder | Separate,
    x: torch.Tensor,
    objective: Objective,
    selections: list[BatchTopK],
    backend: Backend,
) -> Result:
    """Loss and gradients of one step.

    Parameters
    ----------
    crosscoder : Crosscoder or Separate
        The parts of a `Separate` are worked on one after the other; ranks are taken over the latents of all of them.
    x : (T, D)
        Normalised activations.
    objective : Objective
    selections : list of BatchTopK
        One, or one per block where each ranks its latents apart; each carries the threshold of its last batch.
    backend : Backend
    """
    parts, mesh = crosscoder.parts, backend.mesh
    inputs = [_inputs(part, rows, objective, backend) for part, rows in zip(parts, _split(x, parts), strict=True)]
    paths, threshold = _select(inputs, objective, selections, backend)
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
    rebuilt = _rebuild(given, path, objective)
    result, counted = _backward(given, rebuilt, path, objective), path.backend.mesh.rank == 0
    # The processes of a replica have the same error, and the first of them counts it.
    result.squared_error = torch.stack([rebuilt.squares[columns].sum() for columns in crosscoder.columns]) * counted
    result.loss = rebuilt.value * counted + result.parts.get("penalty", 0.0)
    revived = objective.all_dead > 0
    if revived or not crosscoder.unconstrained:
        result.gradients = [stored(gradient) for gradient in result.gradients]
    if revived:
        add_auxiliary(crosscoder, rebuilt.error, given.preactivations, objective, result.gradients)
    if not crosscoder.unconstrained:
        crosscoder.constrain(result.gradients[0], result.gradients[2])
    return result


# -- select ------------------------------------------------------------------------------------------------------------


def _select(
    given: list[_Part], objective: Objective, selections: list[BatchTopK], backend: Backend
) -> tuple[list[Path], float]:
    """How the codes of all parts are worked with, and the smallest score kept where a batch is ranked."""
    rule, sizes = given[0].crosscoder.selection, [one.crosscoder.latents for one in given]
    norms = [one.norms.sum(1) for one in given]
    if objective.budgets:
        code, threshold = _by_block(given[0], norms[0], objective.budgets, selections)
        return [_path(code, given[0].crosscoder, backend, objective)], threshold
    if rule.ranked_over:
        parts = [one.preactivations for one in given]
        whole = parts[0] if len(parts) == 1 else _side_by_side(parts)
        code, threshold = ranked_code(rule, whole, torch.cat(norms), objective.k, selections[0])
        codes = [code] if len(given) == 1 else code.split(sizes)
        with_codes = zip(codes, given, strict=True)
        return [_path(code, one.crosscoder, backend, objective) for code, one in with_codes], threshold
    if rule.learns_threshold:
        with_norms = zip(given, norms, strict=True)
        return [_thresholded(one, n, objective) for one, n in with_norms], 0.0
    return [_positive(one, objective) for one in given], 0.0


def _by_block(given: _Part, norms: torch.Tensor, budgets: list[int], selections: list[BatchTopK]) -> tuple[Code, float]:
    """The code in which every block has its own k, and the smallest score kept, averaged over blocks."""
    codes, thresholds = [], []
    for rows, k, selection in zip(given.crosscoder.block_rows, budgets, selections, strict=True):
        code, threshold = selection(given.preactivations.of(rows), norms[rows], k)
        codes.append(code)
        thresholds.append(threshold)
    return beside(codes), sum(thresholds) / len(thresholds)


def _path(code: Code, crosscoder: Crosscoder, backend: Backend, objective: Objective) -> Path:
    """How a code is worked with."""
    return path_of(code, backend, objective.precision, crosscoder.levels)


def _side_by_side(parts: list[Preactivations]) -> Whole:
    """The pre-activations of several parts side by side, (T, sum of latents)."""
    return Whole(torch.cat([part.whole for part in parts], dim=1), parts[0].mesh)


def _positive(given: _Part, objective: Objective) -> Path:
    """The code in which all positive pre-activations are on."""
    preactivations, backend = given.preactivations, given.preactivations.backend
    pairs = preactivations.few_above(0.0)
    if pairs is None:
        wanted = preactivations.whole > 0
        if dense_pays(int(wanted.count_nonzero()), preactivations.size, backend):
            return DensePath(preactivations.whole.relu(), backend, objective.precision)
        pairs = preactivations.at(wanted)
    return _path(from_flat(*pairs, preactivations.size), given.crosscoder, backend, objective)


def _thresholded(given: _Part, norms: torch.Tensor, objective: Objective) -> Path:
    """The code above learned thresholds. Pairs just below them are kept with value 0, as thresholds learn from them."""
    preactivations, theta, bandwidth = given.preactivations, given.crosscoder.on_above, objective.bandwidth
    index, values = preactivations.above((theta - bandwidth / 2) / norms.clamp_min(1e-30))
    latents = index % len(norms)
    score = values * norms[latents] - theta[latents]
    code = from_flat(index, values.clamp_min(0) * (score > 0), preactivations.size)
    path = _path(code, given.crosscoder, preactivations.backend, objective)
    near = from_flat(index, (score.abs() < bandwidth / 2).to(values.dtype), preactivations.size)
    path.near = path.arranged(near)
    return path


# -- reconstruct and gradients -----------------------------------------------------------------------------------------


@dataclass
class _Rebuilt:
    """A reconstruction, its part of the loss, and the gradients of that part.

    Attributes
    ----------
    error : (T, D)
        x − x̂ of all latents.
    squares : (D,)
        Weighted square of `error`, mean over tokens.
    value : float
        The part of the loss.
    at_output, at_decoder : (T, D), (m, D)
        Gradients at the reconstruction, whose sum over tokens is that at the decoder bias, and at the decoder.
    at_values : (pairs,) or (T, m)
        Gradient at the values of the code.
    """

    error: torch.Tensor
    squares: torch.Tensor
    value: float
    at_output: torch.Tensor
    at_decoder: Gradient
    at_values: torch.Tensor


def _rebuild(given: _Part, path: Path, objective: Objective) -> _Rebuilt:
    """Reconstruction of one part, whose code has been chosen."""
    crosscoder = given.crosscoder
    if crosscoder.nested or objective.delta is not None:
        return _rebuild_prefixes(given, path, objective)
    rebuilt = path.reconstruct(crosscoder, given.x, objective.weights)
    squares = (rebuilt.error * rebuilt.at_output).sum(0) / -2
    at_decoder = path.weight_gradient(path.values, rebuilt.at_output)
    return _Rebuilt(rebuilt.error, squares, float(squares.sum()), rebuilt.at_output, at_decoder, rebuilt.at_values)


def _rebuild_prefixes(given: _Part, path: Path, objective: Objective) -> _Rebuilt:
    """The mean over all prefixes of the levels, with the loss on a difference where there is one.

    Latents of one level take part in the reconstructions of the prefixes that end with it or later, and so their gradient
    is taken at the sum of the gradients of those.
    """
    crosscoder, mesh, levels = given.crosscoder, path.backend.mesh, given.crosscoder.levels
    decoder, count = path.rounded(crosscoder.decoder), len(levels)
    partial = path.decoded(decoder, levels).cumsum(0)
    errors = given.x - mesh.add(partial, "reconstruction") - crosscoder.decoder_bias  # (prefixes, T, D)
    at_prefix, tokens = errors * objective.weights, len(given.x) * mesh.replicas
    if objective.delta is not None:
        objective.delta.add(errors, at_prefix)
    at_prefix *= -2 / (tokens * count)
    value = float((errors * at_prefix).sum()) / -2
    at_level = at_prefix.flip(0).cumsum(0).flip(0)
    return _Rebuilt(
        error=errors[-1],
        squares=errors[-1].square().sum(0) * objective.weights / tokens,
        value=value,
        at_output=at_level[0],
        at_decoder=path.decoder_gradient(at_level, levels),
        at_values=path.value_gradients(at_level, decoder, levels),
    )


def _backward(given: _Part, rebuilt: _Rebuilt, path: Path, objective: Objective) -> Result:
    """Gradients of reconstruction and penalty at all parameters."""
    crosscoder, x, norms, f = given.crosscoder, given.x, given.norms, path.values
    at_values, parts, decoder_gradient = rebuilt.at_values, {}, rebuilt.at_decoder
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
    gradients.append(rebuilt.at_output.sum(0))
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
