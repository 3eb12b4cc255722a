"""The crosscoder: a list of latent blocks over several sources, as plain tensors; and the plain reference of its loss.

Notation: T tokens, m latents, S sources of widths d_s, D = Σ d_s. Sources stand side by side in the columns, so the
encoder and the decoder are both (m, D), a row per latent.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import torch
import xarray as xr

from crosscoders import artifacts
from crosscoders.errors import UserError
from crosscoders.settings import Block, CrosscoderSettings


def block_sizes(latents: int, blocks: dict[str, Block]) -> dict[str, int]:
    """Latents of each block: the shares of `latents`, rounded so that they sum to it (largest remainder)."""
    exact = {name: latents * block.share for name, block in blocks.items()}
    sizes = {name: math.floor(value + 1e-9) for name, value in exact.items()}
    for name in sorted(exact, key=lambda name: sizes[name] - exact[name])[: latents - sum(sizes.values())]:
        sizes[name] += 1
    return sizes


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
    threshold : float
        Score below which a latent is off at inference (batchtopk).
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
    threshold: float = 0.0

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
        """Encoder, encoder bias, decoder, decoder bias."""
        return [self.encoder, self.encoder_bias, self.decoder, self.decoder_bias]

    def to(self, device: str) -> Crosscoder:
        """A copy on another device."""
        moved = {name: value.to(device) for name, value in vars(self).items() if isinstance(value, torch.Tensor)}
        return replace(self, **moved)

    def decoder_norms(self) -> torch.Tensor:
        """n_{j,s} = ‖W_dec,j^s‖₂, (m, S)."""
        return torch.stack([self.decoder[:, c].norm(dim=1) for c in self.columns], dim=1)

    def preactivations(self, x: torch.Tensor) -> torch.Tensor:
        """P = Σ_s W_enc^s x_s + b_enc, (T, m), of normalised activations (T, D)."""
        return torch.addmm(self.encoder_bias, x, self.encoder.T)

    def encode(self, x: torch.Tensor) -> torch.Tensor:
        """Code at inference, (T, m), not negative; a latent's score is f_j Σ_s n_{j,s}."""
        f = self.preactivations(x).relu()
        if self.activation == "batchtopk":
            return f * (f * self.decoder_norms().sum(1) > self.threshold)
        if self.activation == "topk":
            return keep_largest(f, f * self.decoder_norms().sum(1), self.k)
        return f

    def decode(self, f: torch.Tensor) -> torch.Tensor:
        """Reconstruction x̂ = W_dec f + b_dec, (T, D)."""
        return torch.addmm(self.decoder_bias, f, self.decoder)

    def forbidden(self, allowed: torch.Tensor) -> list[tuple[torch.Tensor, slice]]:
        """Pairs (latents, columns) whose weights must stay 0, from `reads` or `writes`."""
        masked = [(~allowed[:, s], columns) for s, columns in enumerate(self.columns)]
        return [(latents, columns) for latents, columns in masked if latents.any()]

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


def create(
    settings: CrosscoderSettings, sources: list[str], widths: list[int], seed: int, dtype: torch.dtype = torch.float32
) -> Crosscoder:
    """A crosscoder at the start of training.

    Every decoder vector has the norm `decoder_norm`, the encoder is its transpose, and where widths are equal all
    sources start from the same direction, so that no source differs by chance.

    Raises
    ------
    UserError
        A tied block over sources of unequal width.
    """
    m, equal = settings.latents, len(set(widths)) == 1
    generator = torch.Generator().manual_seed(seed)
    draws = [
        torch.randn(m, width, generator=generator, dtype=torch.float64) for width in widths[: 1 if equal else None]
    ]
    units = [draw / draw.norm(dim=1, keepdim=True) for draw in draws] * (len(widths) if equal else 1)
    decoder = torch.cat(units, dim=1).mul_(settings.training.decoder_norm).to(dtype)
    reads, writes, tied, penalty = [], [], [], []
    for name, size in block_sizes(m, settings.blocks).items():
        block = settings.blocks[name]
        if block.tied and not equal:
            raise UserError(f"blocks.{name}.tied: sources of unequal width {widths} cannot share a decoder direction")
        for rows, names in ((reads, block.reads), (writes, block.writes)):
            rows += [[names == "all" or source in names for source in sources]] * size
        tied += [block.tied] * size
        penalty += [block.penalty] * size
    found = Crosscoder(
        encoder=decoder.clone(),
        encoder_bias=torch.zeros(m, dtype=dtype),
        decoder=decoder,
        decoder_bias=torch.zeros(sum(widths), dtype=dtype),
        sources=list(sources),
        widths=list(widths),
        reads=torch.tensor(reads),
        writes=torch.tensor(writes),
        tied=torch.tensor(tied),
        penalty=torch.tensor(penalty, dtype=dtype),
        activation=settings.activation.kind,
        k=settings.activation.k,
    )
    for latents, columns in found.forbidden(found.reads):
        found.encoder[latents, columns] = 0
    for latents, columns in found.forbidden(found.writes):
        found.decoder[latents, columns] = 0
    return found


def reference_loss(
    crosscoder: Crosscoder,
    x: torch.Tensor,
    penalty_kind: str,
    coefficient: float,
    weights: torch.Tensor,
    k: int | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The training loss in plain operations, for autograd: what every fast path is tested against.

    Σ_s w_s ‖x_s − x̂_s‖², mean over tokens, plus λ Σ_j penalty_j f_j N_j with N_j = Σ_s n_{j,s} (`l1_of_norms`) or
    √Σ_s n_{j,s}² (`l2_of_norms`) [L24; A25]. BatchTopK keeps the T·k largest scores f_j Σ_s n_{j,s} [B24].

    Returns
    -------
    loss : scalar
    code : (T, m)
    """
    norms = crosscoder.decoder_norms()
    f = crosscoder.preactivations(x).relu()
    score = f * norms.sum(1)
    if crosscoder.activation == "batchtopk":
        f = keep_largest(f.reshape(1, -1), score.reshape(1, -1), k * len(x)).view_as(f)
    elif crosscoder.activation == "topk":
        f = keep_largest(f, score, k)
    error = x - crosscoder.decode(f)
    loss = ((error**2).sum(0) * weights).sum() / len(x)
    if penalty_kind != "none":
        size = norms.sum(1) if penalty_kind == "l1_of_norms" else norms.pow(2).sum(1).sqrt()
        loss = loss + coefficient * (f * size * crosscoder.penalty).sum() / len(x)
    return loss, f


# -- as a dataset ------------------------------------------------------------------------------------------------------


def to_dataset(crosscoder: Crosscoder, normalisation: xr.Dataset) -> xr.Dataset:
    """The crosscoder with the normalisation it needs: everything required to apply it to raw activations."""
    v = artifacts.variable
    dataset = normalisation[["scale", "sink_norm"] + [f"mean_{name}" for name in crosscoder.sources]].copy()
    dataset.attrs = {}
    for name, columns in zip(crosscoder.sources, crosscoder.columns, strict=True):
        width = f"width_{name}"
        dataset[f"encoder_{name}"] = v(("latent", width), crosscoder.encoder[:, columns].numpy(), f"encoder for {name}")
        dataset[f"decoder_{name}"] = v(("latent", width), crosscoder.decoder[:, columns].numpy(), f"decoder for {name}")
        dataset[f"decoder_bias_{name}"] = v(width, crosscoder.decoder_bias[columns].numpy(), f"decoder bias for {name}")
    dataset["encoder_bias"] = v("latent", crosscoder.encoder_bias.numpy(), "encoder bias")
    dataset["threshold"] = v((), np.float64(crosscoder.threshold), "score below which a latent is off at inference")
    dataset["reads"] = v(("latent", "source"), crosscoder.reads.numpy().astype(np.int8), "encoder reads the source")
    dataset["writes"] = v(("latent", "source"), crosscoder.writes.numpy().astype(np.int8), "decoder writes the source")
    dataset["tied"] = v("latent", crosscoder.tied.numpy().astype(np.int8), "one decoder direction for all sources")
    dataset["penalty"] = v("latent", crosscoder.penalty.numpy(), "factor on the sparsity penalty")
    return dataset.assign_attrs(activation=crosscoder.activation, k=crosscoder.k or 0)


def from_dataset(dataset: xr.Dataset) -> Crosscoder:
    """The inverse of :func:`to_dataset`, without the normalisation."""
    sources = [str(name) for name in dataset["source"].values]

    def tensor(name: str) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(dataset[name].values))

    def joined(name: str) -> torch.Tensor:
        return torch.cat([tensor(f"{name}_{source}") for source in sources], dim=-1)

    return Crosscoder(
        encoder=joined("encoder"),
        encoder_bias=tensor("encoder_bias"),
        decoder=joined("decoder"),
        decoder_bias=joined("decoder_bias"),
        sources=sources,
        widths=[dataset.sizes[f"width_{name}"] for name in sources],
        reads=tensor("reads").bool(),
        writes=tensor("writes").bool(),
        tied=tensor("tied").bool(),
        penalty=tensor("penalty"),
        activation=dataset.attrs["activation"],
        k=int(dataset.attrs["k"]) or None,
        threshold=float(dataset["threshold"]),
    )
