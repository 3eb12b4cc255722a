"""How a chosen code is worked with in a training step: over its active pairs, or by dense products.

T tokens, m latents, D columns. Levels are consecutive groups of latents of which every prefix reconstructs on its own; where
blocks are not nested, there is one.
"""

from __future__ import annotations

import copy

import torch

from crosscoders.crosscoder.crosscoder import Crosscoder
from crosscoders.kernels.interface import Backend, Gradient, Reconstruction
from crosscoders.kernels.sparse_code import ByLatent, Code, from_flat, parted


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

    def arranged(self, code: Code) -> torch.Tensor:
        """Values of another code with the same pairs, in the order of `values`."""
        return code.values

    def rounded(self, decoder: torch.Tensor) -> torch.Tensor:
        """The decoder, (m, D), as :meth:`decoded` and :meth:`value_gradients` take it."""
        return self.backend.rounded(decoder, self.precision)

    def decoded(self, decoder: torch.Tensor, levels: list[slice]) -> torch.Tensor:
        """What the latents of every level write, (levels, T, D), without the bias."""
        nothing = self.values.new_zeros(decoder.shape[1])
        return self.backend.decode(self.code, decoder, nothing).view(len(levels), -1, decoder.shape[1])

    def value_gradients(self, gradient: torch.Tensor, decoder: torch.Tensor, levels: list[slice]) -> torch.Tensor:
        """Gradient at `values`, given one at the reconstruction for the latents of every level, (levels, T, D)."""
        return self.backend.value_gradients(self.code, gradient.flatten(0, 1), decoder)

    def decoder_gradient(self, gradient: torch.Tensor, levels: list[slice]) -> Gradient:
        """Gradient at the decoder, (m, D), given one at the reconstruction for every level, (levels, T, D)."""
        return self.backend.weight_gradient(self.by_latent, self.values, gradient.flatten(0, 1))

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


class NestedPath(SparsePath):
    """A sparse code of latents in levels, as one in which every level has rows of its own: row level · T + token.

    One pass of a kernel then serves all levels, whichever gradient their latents get.
    """

    def __init__(self, code: Code, levels: list[slice], backend: Backend, precision: torch.dtype | None = None):
        (tokens, m), sizes = code.size, torch.tensor([own.stop - own.start for own in levels])
        level = torch.repeat_interleave(torch.arange(len(levels)), sizes).to(code.latents.device)
        place = (level[code.latents] * tokens + code.tokens) * m + code.latents
        place, self.order = place.sort()
        super().__init__(from_flat(place, code.values[self.order], (len(levels) * tokens, m)), backend, precision)
        self._by_token = copy.copy(self.by_latent)
        self._by_token.tokens, self._by_token.all_tokens = self.by_latent.tokens % tokens, tokens

    def arranged(self, code: Code) -> torch.Tensor:
        """Values of another code with the same pairs, in the order of `values`."""
        return code.values[self.order]

    def weight_gradient(self, values: torch.Tensor, rows: torch.Tensor) -> Gradient:
        """Σ_t value_tj rows_t, (m, D), of rows of tokens, (T, D), which are the same for all levels."""
        return self.backend.weight_gradient(self._by_token, values, rows)


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

    def arranged(self, code: Code) -> torch.Tensor:
        """Values of another code, (T, m)."""
        return code.dense()

    def rounded(self, decoder: torch.Tensor) -> torch.Tensor:
        """The decoder itself, (m, D), as products round their factors."""
        return decoder

    def decoded(self, decoder: torch.Tensor, levels: list[slice]) -> torch.Tensor:
        """What the latents of every level write, (levels, T, D), without the bias."""
        return torch.stack([self.backend.product(self.values[:, own], decoder[own], self.precision) for own in levels])

    def value_gradients(self, gradient: torch.Tensor, decoder: torch.Tensor, levels: list[slice]) -> torch.Tensor:
        """Gradient at `values`, given one at the reconstruction for the latents of every level, (levels, T, D)."""
        with_levels = zip(gradient, levels, strict=True)
        return torch.cat([self.backend.product(one, decoder[own].T, self.precision) for one, own in with_levels], dim=1)

    def decoder_gradient(self, gradient: torch.Tensor, levels: list[slice]) -> Gradient:
        """Gradient at the decoder, (m, D), given one at the reconstruction for every level, (levels, T, D)."""
        with_levels = zip(gradient, levels, strict=True)
        return torch.cat([self.backend.product(self.values[:, own].T, one, self.precision) for one, own in with_levels])

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


def path_of(
    code: Code, backend: Backend, precision: torch.dtype | None = None, levels: list[slice] | None = None
) -> Path:
    """A code worked with over its active pairs, or densely where it has so many that dense products cost less.

    Parameters
    ----------
    code : Code
        Of (T, m).
    backend : Backend
    precision : torch.dtype, optional
        To which the factors of products are rounded.
    levels : list of slice, optional
        Groups of latents whose prefixes reconstruct; one where absent.

    Returns
    -------
    Path
    """
    if dense_pays(len(code.values), code.size, backend):
        return DensePath(code.dense(), backend, precision)
    if levels is not None and len(levels) > 1:
        return NestedPath(code, levels, backend, precision)
    return SparsePath(code, backend, precision)


def dense_pays(pairs: int, size: tuple[int, int], backend: Backend) -> bool:
    """Whether dense products cost less than gathered rows for so many active pairs of (T, m)."""
    return pairs > backend.dense_above * size[0] * size[1]
