"""The crosscoder: a list of latent blocks over several sources, as plain tensors, and a plain reference of its loss.

Notation: T tokens, m latents, S sources of widths d_s, D = Σ d_s. Sources stand side by side in the columns, so the
encoder and the decoder are both (m, D), a row per latent.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch

from crosscoders.crosscoder.penalties import PENALTIES
from crosscoders.errors import UserError
from crosscoders.kernels import matmul
from crosscoders.study.blocks import ACTIVATIONS, Selection, group_sizes, groups
from crosscoders.study.settings.crosscoders import CrosscoderSettings

DRAWN_ROWS = 4096
"""Rows of initial weights that are drawn at a time where a process needs a part of them."""


@dataclass
class Crosscoder:
    """Weights of a crosscoder and what its blocks may read and write.

    Attributes
    ----------
    encoder, decoder : (m, D)
        Rows are latents; entries outside a block's `reads` and `writes` are exactly 0.
    encoder_bias : (m,), decoder_bias : (D,)
    sources, widths
        Names and widths of the sources, in column order.
    reads, writes : (m, S) bool
    tied : (m,) bool
        Latents whose decoder is one direction for all sources.
    penalty : (m,)
        Factor on the sparsity penalty.
    activation, k
        How pre-activations become a code, and how many latents per token are kept.
    threshold : float or (m,)
        Score above which a latent is on at inference, unless its rank within the token decides.
    log_threshold : (m,), optional
        Logarithm of the scores above which latents are on, where they are learned.
    block : (m,), optional
        Number of the block of every latent, ascending; known while training.
    nested : bool
        Whether every prefix of the list of blocks reconstructs on its own while training.
    rank_weight : (m,), optional
        What activations are multiplied by where latents are ranked, in place of N_j = Σ_s n_{j,s}; of crosscoders trained
        elsewhere that rank otherwise.
    """

    encoder: torch.Tensor
    encoder_bias: torch.Tensor
    decoder: torch.Tensor
    decoder_bias: torch.Tensor
    sources: list[str]
    widths: list[int]
    reads: torch.Tensor
    writes: torch.Tensor
    tied: torch.Tensor
    penalty: torch.Tensor
    activation: str
    k: int | None
    threshold: float | torch.Tensor = 0.0
    log_threshold: torch.Tensor | None = None
    block: torch.Tensor | None = None
    nested: bool = False
    rank_weight: torch.Tensor | None = None

    @property
    def selection(self) -> Selection:
        """How active latents are chosen."""
        return ACTIVATIONS[self.activation]

    @property
    def latents(self) -> int:
        """Number of latents m."""
        return self.encoder.shape[0]

    @property
    def columns(self) -> list[slice]:
        """Columns of each source."""
        edges = np.cumsum([0, *self.widths]).tolist()
        return [slice(a, b) for a, b in zip(edges, edges[1:], strict=False)]

    @property
    def parameters(self) -> list[torch.Tensor]:
        """Encoder, encoder bias, decoder, decoder bias, and the thresholds' logarithms where they are learned."""
        parameters = [self.encoder, self.encoder_bias, self.decoder, self.decoder_bias]
        return parameters if self.log_threshold is None else [*parameters, self.log_threshold]

    @property
    def latent_axes(self) -> list[int | None]:
        """The axis of every one of `parameters` along which latents lie."""
        return [0, 0, 0, None, 0][: len(self.parameters)]

    @property
    def parts(self) -> list[Crosscoder]:
        """The crosscoder itself; of a `separate.Separate`, which a step trains part by part, there are several."""
        return [self]

    @property
    def on_above(self) -> float | torch.Tensor:
        """Score above which a latent is on, one number or (m,)."""
        return self.threshold if self.log_threshold is None else self.log_threshold.exp()

    def to(self, device: str) -> Crosscoder:
        """A copy on another device, `cpu` or `cuda`."""
        moved = {name: value.to(device) for name, value in vars(self).items() if isinstance(value, torch.Tensor)}
        return replace(self, **moved)

    def over_latents(self, change: Callable[[torch.Tensor, int], torch.Tensor]) -> Crosscoder:
        """A copy with other latents: `change` gets every tensor of latents and the axis along which they lie."""
        names = (
            "encoder",
            "encoder_bias",
            "decoder",
            "reads",
            "writes",
            "tied",
            "penalty",
            "log_threshold",
            "block",
            "rank_weight",
        )
        rows = {name: getattr(self, name) for name in names} | {"threshold": self.threshold}
        changed = {name: change(rows, 0) for name, rows in rows.items() if isinstance(rows, torch.Tensor)}
        return replace(self, **changed, decoder_bias=self.decoder_bias.cpu())

    def decoder_norms(self) -> torch.Tensor:
        """n_{j,s} = ‖W_dec,j^s‖₂, (m, S)."""
        if len(set(self.widths)) == 1:  # all sources at once
            return torch.linalg.vector_norm(self.decoder.reshape(self.latents, len(self.widths), -1), dim=2)
        return torch.stack([self.decoder[:, c].norm(dim=1) for c in self.columns], dim=1)

    def score_weights(self) -> torch.Tensor:
        """What activations are multiplied by for their scores, (m,): N_j = Σ_s n_{j,s}, unless latents are ranked otherwise."""
        return self.decoder_norms().sum(1) if self.rank_weight is None else self.rank_weight

    def preactivations(self, x: torch.Tensor) -> torch.Tensor:
        """P = Σ_s W_enc^s x_s + b_enc, (T, m), of normalised activations (T, D)."""
        return matmul.linear(x, self.encoder, self.encoder_bias)

    def encode(self, x: torch.Tensor) -> torch.Tensor:
        """Code at inference, (T, m), not negative; a latent's score is its activation times its `score_weights`."""
        f = self.preactivations(x).relu()
        score = f * self.score_weights()
        if self.selection.ranked_over == "token":
            return keep_largest(f, score, self.k)
        return f * (score > self.on_above)

    def decode(self, f: torch.Tensor) -> torch.Tensor:
        """Reconstruction x̂ = W_dec f + b_dec, (T, D)."""
        return matmul.linear(f, self.decoder.T, self.decoder_bias)

    def forbidden(self, allowed: torch.Tensor) -> list[tuple[torch.Tensor, slice]]:
        """Pairs (latents, columns) whose weights must stay 0, from `reads` or `writes`."""
        masked = [(~allowed[:, s], columns) for s, columns in enumerate(self.columns)]
        return [(latents, columns) for latents, columns in masked if latents.any()]

    @property
    def block_rows(self) -> list[slice]:
        """The latents of every block, of those that this process has."""
        edges = [0, *torch.bincount(self.block).cumsum(0).tolist()]
        return [slice(a, b) for a, b in zip(edges, edges[1:], strict=False)]

    @property
    def levels(self) -> list[slice]:
        """Groups of latents whose prefixes reconstruct: the blocks where they are nested, else all latents as one."""
        return self.block_rows if self.nested else [slice(0, self.latents)]

    @property
    def unconstrained(self) -> bool:
        """Whether every latent may read and write every source, in a direction of its own in each."""
        return bool(self.reads.all() and self.writes.all() and not self.tied.any())

    def constrain(self, encoder: torch.Tensor, decoder: torch.Tensor) -> None:
        """Project a pair of (m, D) tensors, weights or gradients, in place onto what the blocks allow.

        Forbidden entries become 0; the parts of a tied decoder become their sum, which for gradients is the
        derivative with respect to the one shared direction.
        """
        for latents, columns in self.forbidden(self.reads):
            encoder[latents, columns] = 0
        for latents, columns in self.forbidden(self.writes):
            decoder[latents, columns] = 0
        if self.tied.any():
            parts = decoder[self.tied].view(int(self.tied.sum()), len(self.widths), -1)
            shared = parts.sum(1, keepdim=True) * self.writes[self.tied].unsqueeze(-1)
            decoder[self.tied] = shared.flatten(1)


def keep_largest(f: torch.Tensor, score: torch.Tensor, k: int) -> torch.Tensor:
    """`f` where `score` is among the k largest of its row, 0 elsewhere; of equal scores the lower index is kept."""
    order = torch.sort(score, dim=1, descending=True, stable=True).indices[:, :k]
    return torch.zeros_like(f).scatter_(1, order, f.gather(1, order))


def keep_largest_of_batch(f: torch.Tensor, score: torch.Tensor, k: int) -> torch.Tensor:
    """`f`, (T, m), where `score` is among the T·k largest of all; of equal scores the earlier token's, or latent's, is kept."""
    return keep_largest(f.reshape(1, -1), score.reshape(1, -1), k * len(f)).view_as(f)


def initial_directions(
    latents: int,
    widths: list[int],
    seed: int,
    norm: float,
    dtype: torch.dtype = torch.float32,
    own: torch.Tensor | None = None,
) -> torch.Tensor:
    """Decoder vectors at the start of training, (m, D), each of the given norm within a source.

    Where widths are equal all sources start from the same direction, so that no source differs by chance. Of a
    dictionary that several processes share, `own` are the latents wanted; they are those that one process would draw.
    """
    equal = len(set(widths)) == 1
    generator = torch.Generator().manual_seed(seed)
    drawn = widths[:1] if equal else widths
    draws = [_drawn(latents, width, generator, own) for width in drawn]
    units = [draw / draw.norm(dim=1, keepdim=True) for draw in draws] * (len(widths) if equal else 1)
    return torch.cat(units, dim=1).mul_(norm).to(dtype)


def _drawn(latents: int, width: int, generator: torch.Generator, own: torch.Tensor | None) -> torch.Tensor:
    """Rows of a standard normal matrix, (latents, width); of many rows only the wanted ones are held at a time.

    Torch draws sixteen numbers at a time, so blocks of a multiple of sixteen rows continue the same sequence.
    """
    if own is None:
        return torch.randn(latents, width, generator=generator, dtype=torch.float64)
    edges = [*range(0, max(latents - DRAWN_ROWS, 0) + 1, DRAWN_ROWS), latents]  # the last block is not a short one
    parts = []
    for first, end in zip(edges, edges[1:], strict=False):
        block = torch.randn(end - first, width, generator=generator, dtype=torch.float64)
        parts.append(block[own[(own >= first) & (own < end)] - first])
    return torch.cat(parts)


def create(
    settings: CrosscoderSettings,
    sources: list[str],
    widths: list[int],
    seed: int,
    dtype: torch.dtype = torch.float32,
    own: torch.Tensor | None = None,
) -> Crosscoder:
    """A crosscoder at the start of training.

    Every decoder vector has the norm `decoder_norm` (:func:`initial_directions`), and the encoder is its transpose.

    Parameters
    ----------
    settings : CrosscoderSettings
    sources : list of str
    widths : list of int
        d_s of every source.
    seed : int
    dtype : torch.dtype
    own : (latents of this process,), optional
        The latents wanted, ascending; all where absent.

    Returns
    -------
    Crosscoder
        On the CPU.

    Raises
    ------
    UserError
        A tied block over sources of unequal width, or a loss on their difference.
    """
    activation, of = settings.activation, settings.delta.of if settings.delta else []
    if len({widths[sources.index(name)] for name in of}) > 1:
        raise UserError(f"delta.of: {of}, but the sources {sources} have widths {widths}; expected equal widths")
    decoder = initial_directions(settings.latents, widths, seed, settings.training.decoder_norm, dtype, own)
    m, masks = len(decoder), block_masks(settings, sources, widths)
    if own is not None:
        masks = {name: values[own] for name, values in masks.items()}
    crosscoder = Crosscoder(
        encoder=decoder.clone(),
        encoder_bias=torch.zeros(m, dtype=dtype),
        decoder=decoder,
        decoder_bias=torch.zeros(sum(widths), dtype=dtype),
        sources=list(sources),
        widths=list(widths),
        **(masks | {"penalty": masks["penalty"].to(dtype)}),
        activation=activation.kind,
        k=activation.k,
        nested=settings.nested is not None,
    )
    if crosscoder.selection.learns_threshold:
        crosscoder.log_threshold = torch.full((m,), math.log(activation.initial_threshold), dtype=dtype)
    _clear_forbidden(crosscoder)
    return crosscoder


def _clear_forbidden(crosscoder: Crosscoder) -> None:
    """Set the weights that the blocks do not allow to 0, in place."""
    for latents, columns in crosscoder.forbidden(crosscoder.reads):
        crosscoder.encoder[latents, columns] = 0
    for latents, columns in crosscoder.forbidden(crosscoder.writes):
        crosscoder.decoder[latents, columns] = 0


def block_masks(settings: CrosscoderSettings, sources: list[str], widths: list[int]) -> dict[str, torch.Tensor]:
    """What every latent gets from its block.

    `reads` and `writes`, (m, S) bool, `tied`, (m,) bool, the number of the `block`, (m,), and `penalty`, (m,).

    Raises
    ------
    UserError
        A tied block over sources of unequal width.
    """
    reads, writes, tied, penalty, number = [], [], [], [], []
    parts, names = groups(settings.blocks, sources), [*settings.blocks]
    for part, size in zip(parts, group_sizes(settings.latents, [part.share for part in parts]), strict=True):
        block = settings.blocks[part.block]
        if block.tied and len(set(widths)) > 1:
            raise UserError(f"blocks.{part.block}.tied: sources of widths {widths} cannot share a decoder direction")
        reads += [part.reads] * size
        writes += [part.writes] * size
        tied += [block.tied] * size
        penalty += [block.penalty] * size
        number += [names.index(part.block)] * size
    masks = {"reads": reads, "writes": writes, "tied": tied, "block": number}
    return {name: torch.tensor(values) for name, values in masks.items()} | {
        "penalty": torch.tensor(penalty, dtype=torch.float64)
    }


@dataclass(frozen=True)
class DeltaLoss:
    """λ ‖e_a − e_b‖², where e_a and e_b are the errors of two sources of equal width."""

    coefficient: float
    first: slice
    second: slice

    def add(self, error: torch.Tensor, gradient: torch.Tensor) -> None:
        """Add half of the negative gradient at the reconstruction in place; both are (…, D)."""
        difference = self.coefficient * (error[..., self.first] - error[..., self.second])
        gradient[..., self.first] += difference
        gradient[..., self.second] -= difference


class StepThreshold(torch.autograd.Function):
    """f · 1[score > θ], whose gradient reaches θ through a rectangle around the step.

    A latent at its threshold is worth f = θ / N_j, so ∂f/∂θ is −θ / (N_j ε) within ε/2 of the step and 0 elsewhere
    (Rajamanoharan et al. 2024, Eq. 11, for scores in place of pre-activations).
    """

    @staticmethod
    def forward(ctx, f, score, norms, theta, bandwidth):  # noqa: D102
        ctx.save_for_backward(score, norms, theta)
        ctx.bandwidth = bandwidth
        return f.relu() * (score > theta)

    @staticmethod
    def backward(ctx, gradient):  # noqa: D102
        score, norms, theta = ctx.saved_tensors
        near = (score - theta).abs() < ctx.bandwidth / 2
        return gradient * (score > theta), None, None, -(gradient * near).sum(0) * theta / (norms * ctx.bandwidth), None


def reference_loss(
    crosscoder: Crosscoder,
    x: torch.Tensor,
    penalty_kind: str,
    coefficient: float,
    weights: torch.Tensor,
    k: int | list[int] | None = None,
    scale: float = 1.0,
    bandwidth: float = 1.0,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The training loss in plain operations, for autograd; the tests compare every fast path with it.

    Σ_s w_s ‖x_s − x̂_s‖², mean over tokens and, where blocks are nested, over prefixes of blocks (arXiv 2503.17547), plus a
    penalty of :mod:`crosscoders.crosscoder.penalties` [L24; A25]. BatchTopK keeps the T·k largest scores f_j Σ_s n_{j,s}
    [B24]; of a list, each number is the k of one block. :func:`reference_delta` is a further term.

    Returns
    -------
    loss : scalar
    code : (T, m)
    """
    norms, selection = crosscoder.decoder_norms(), crosscoder.selection
    preactivations = crosscoder.preactivations(x)
    f = preactivations.relu()
    score = f * norms.sum(1)
    if selection.ranked_over == "batch":
        budgets = zip(crosscoder.block_rows, k, strict=True) if isinstance(k, list) else [(slice(None), k)]
        f = torch.cat([keep_largest_of_batch(f[:, rows], score[:, rows], count) for rows, count in budgets], dim=1)
    elif selection.ranked_over == "token":
        f = keep_largest(f, score, k)
    elif selection.learns_threshold:
        size = norms.sum(1).detach()
        f = StepThreshold.apply(preactivations, (preactivations * size).detach(), size, crosscoder.on_above, bandwidth)
    errors = torch.stack([x - rebuilt for rebuilt in prefixes(crosscoder, f)])
    loss = ((errors**2).mean(0).sum(0) * weights).sum() / len(x)
    if penalty_kind != "none":
        penalty = PENALTIES[penalty_kind]
        penalised = f if penalty.penalises_code else f.detach()
        value = penalty.value(penalised * penalty.join(norms), scale)
        loss = loss + coefficient * (value * crosscoder.penalty).sum() / len(x)
    return loss, f


def prefixes(crosscoder: Crosscoder, f: torch.Tensor) -> list[torch.Tensor]:
    """The reconstructions, (T, D), from a code, (T, m), by ever more of the levels; the last one is by all latents."""
    ends = [rows.stop for rows in crosscoder.levels]
    return [f[:, :end] @ crosscoder.decoder[:end] + crosscoder.decoder_bias for end in ends]


def reference_delta(crosscoder: Crosscoder, x: torch.Tensor, f: torch.Tensor, delta: DeltaLoss) -> torch.Tensor:
    """λ ‖e_a − e_b‖² of a code, (T, m), in plain operations, mean over tokens and prefixes; a scalar."""
    errors = torch.stack([x - rebuilt for rebuilt in prefixes(crosscoder, f)])
    difference = errors[..., delta.first] - errors[..., delta.second]
    return delta.coefficient * difference.square().sum(-1).mean()


def equalise_rates(crosscoder: Crosscoder, x: torch.Tensor, l0: float, latents: int | None = None) -> None:
    """Set encoder biases, in place, so that all latents fire equally often over a batch.

    A dense start costs the first hundred steps of a penalised training, in which the penalty silences latents one by
    one.

    Parameters
    ----------
    crosscoder : Crosscoder
    x : (T, D)
        Normalised activations.
    l0 : float
        Latents per token that are to be on.
    latents : int, optional
        Latents of the whole dictionary, where the crosscoder holds a part of them.
    """
    wanted = max(1, round(len(x) * l0 / (latents or crosscoder.latents)))
    crosscoder.encoder_bias.zero_()
    ordered = crosscoder.preactivations(x).topk(wanted + 1, dim=0).values
    crosscoder.encoder_bias.copy_(-(ordered[-2] + ordered[-1]) / 2)
    if crosscoder.log_threshold is not None:  # a latent is on where its score exceeds the threshold, not 0
        crosscoder.encoder_bias += crosscoder.on_above / crosscoder.decoder_norms().sum(1)
