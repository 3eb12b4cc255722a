"""Loss and gradients of the aligned crosscoder, by hand and over active pairs alone.

They equal those of autograd through :func:`crosscoders.crosscoder.aligned.reference_loss`, which the tests check in
float64. The codes of all S sources are worked with together, as one code of S·T tokens.
"""

from __future__ import annotations

import torch

from crosscoders.crosscoder.aligned import Aligned
from crosscoders.crosscoder.encode import BatchTopK, Preactivations, Whole, ranked_code
from crosscoders.kernels.interface import Backend, Gradient, Reconstruction
from crosscoders.kernels.sparse_code import Code, from_flat, joined
from crosscoders.study.blocks import Selection
from crosscoders.training.gradients import Objective, Result, penalise, stored
from crosscoders.training.paths import Path, path_of


def compute(
    coder: Aligned, x: torch.Tensor, objective: Objective, selections: list[BatchTopK], backend: Backend
) -> Result:
    """Loss and gradients of one step, in the order of `Aligned.parameters`.

    Parameters
    ----------
    coder : Aligned
    x : (T, D)
        Normalised activations.
    objective : Objective
        Its `alignment` is λ_align.
    selections : list of BatchTopK
        One per source, or one where all have the same support; each carries the threshold of its last batch.
    backend : Backend
    """
    mesh, sources, norms = backend.mesh, len(coder.sources), coder.decoder_norms()
    tokens = len(x) * mesh.replicas
    parts = [part.contiguous() for part in x.split(coder.widths, dim=1)]
    inputs = zip(parts, coder.encoders, coder.encoder_bias, strict=True)
    preactivations = [Preactivations(*given, backend) for given in inputs]
    choose = common_codes if coder.global_support else source_codes
    codes, threshold = choose(coder.selection, preactivations, norms.sum(1), objective.k, selections)
    path = path_of(joined(codes), backend)
    # `reconstruct` takes the mean over S·T tokens; the loss is a mean over T, hence the weights S.
    reconstruction = path.reconstruct(coder, x.repeat(sources, 1), torch.full_like(x[0], sources))
    value, at_values, at_norms = _alignment(path, norms, objective.alignment, tokens, sources)
    own_errors = _own_errors(coder, reconstruction.error, tokens)
    if mesh.rank == 0:  # the processes of a replica have the same error, and the first of them counts it
        value += float(reconstruction.error.square().sum()) / tokens
    else:
        own_errors.zero_()
    at_values = reconstruction.at_values + at_values
    if objective.penalty != "none":
        cost = penalise(path, norms, torch.ones_like(norms[:, 0]), objective, tokens)
        value, at_norms = value + cost.value, at_norms + cost.at_norms
        at_values = at_values if cost.at_values is None else at_values + cost.at_values
    return Result(
        loss=value,
        gradients=_gradients(coder, parts, path, reconstruction, (at_values, at_norms)),
        squared_error=own_errors,
        counts=path.counts,
        threshold=threshold,
        l0=float(path.counts.sum()) / (sources * tokens),
    )


def source_codes(
    rule: Selection,
    preactivations: list[Preactivations],
    norms: torch.Tensor,
    k: int | None,
    selections: list[BatchTopK],
) -> tuple[list[Code], float]:
    """The code of every source while training, and the smallest score kept, averaged over sources.

    Parameters
    ----------
    rule : Selection
        Over tokens or batches, from which it takes ranks, or over neither.
    preactivations : per source, (T, m)
    norms : (m,)
        N_j = Σ_s n_{j,s}.
    k : int
        Latents per token and source.
    selections : per source
    """
    codes, thresholds = [], []
    for one, selection in zip(preactivations, selections, strict=True):
        if rule.ranked_over:
            code, threshold = ranked_code(rule, one, norms, k, selection)
        else:
            code, threshold = from_flat(*one.above(0.0), one.size), 0.0
        codes.append(code)
        thresholds.append(threshold)
    return codes, sum(thresholds) / len(thresholds)


def common_codes(
    rule: Selection, preactivations: list[Preactivations], norms: torch.Tensor, k: int, selections: list[BatchTopK]
) -> tuple[list[Code], float]:
    """The codes of all sources over one support, and the smallest sum of scores kept (Global TopK, arXiv 2507.06265).

    Parameters
    ----------
    rule : Selection
        Over tokens or batches, from which it takes ranks of the scores summed over sources.
    preactivations : per source, (T, m)
    norms : (m,)
        N_j = Σ_s n_{j,s}.
    k : int
        Latents per token, the same for all sources.
    selections : list of one BatchTopK
    """
    rectified, mesh = [one.whole.relu() for one in preactivations], preactivations[0].mesh
    common, threshold = ranked_code(rule, Whole(torch.stack(rectified).sum(0), mesh), norms, k, selections[0])
    index, codes = common.tokens * common.size[1] + common.latents, []
    for f in rectified:
        values = f.reshape(-1)[index]
        on = values > 0
        codes.append(from_flat(index[on], values[on], common.size))
    return codes, threshold


def _alignment(
    path: Path, norms: torch.Tensor, alignment: float, tokens: int, sources: int
) -> tuple[float, torch.Tensor, torch.Tensor]:
    """Value of the alignment term, and its gradients at the values of the code and at the decoder norms, (m, S)."""
    contribution = path.values * path.active(norms.sum(1))
    gap = sources * contribution - path.over_copies(contribution, sources)  # Σ_t (z^s − z^t) N
    slope = 2 * alignment / tokens * gap
    value = alignment * float((contribution * gap).sum()) / tokens
    at_norms = path.total(path.values * slope)[:, None].expand_as(norms)
    return value, slope * path.active(norms.sum(1)), at_norms


def _gradients(
    coder: Aligned,
    parts: list[torch.Tensor],
    path: Path,
    reconstruction: Reconstruction,
    at: tuple[torch.Tensor, torch.Tensor],
) -> list[Gradient]:
    """Gradients of all parameters, given those at the code's values and at the decoder norms, (m, S)."""
    (at_values, at_norms), norms, f = at, coder.decoder_norms(), path.values
    decoder_gradient = stored(path.weight_gradient(f, reconstruction.at_output))
    by_source = zip(coder.decoder.split(coder.widths, dim=1), decoder_gradient.split(coder.widths, dim=1), strict=True)
    for s, (decoder, its_gradient) in enumerate(by_source):
        its_gradient.addcmul_(decoder, (at_norms[:, s] / norms[:, s].clamp_min(1e-30))[:, None])
    at_encoders, at_biases = [], []
    for x, (own, values) in zip(parts, path.copies(at_values * (f > 0), len(parts)), strict=True):
        at_encoders.append(own.weight_gradient(values, x))
        at_biases.append(own.total(values))
    return [*at_encoders, torch.stack(at_biases), decoder_gradient, reconstruction.at_output.sum(0)]


def _own_errors(coder: Aligned, error: torch.Tensor, tokens: int) -> torch.Tensor:
    """Squared error of every source rebuilt from its own code, summed over columns and averaged over tokens, (S,)."""
    edges = torch.tensor([0, *coder.widths]).cumsum(0).tolist()
    parts = error.chunk(len(coder.widths))
    blocks = [part[:, edges[s] : edges[s + 1]] for s, part in enumerate(parts)]
    return torch.stack([block.square().sum() / tokens for block in blocks])
