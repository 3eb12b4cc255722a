"""The backend in plain torch: it runs anywhere, and the other backends are tested against it."""

from __future__ import annotations

import torch

from crosscoders.kernels import matmul
from crosscoders.kernels.adam_step import AdamNumbers, chances, narrowed
from crosscoders.kernels.interface import Gradient, Pairs, Reconstruction
from crosscoders.kernels.mesh import ALONE
from crosscoders.kernels.sparse_code import ByLatent, Code, weighted_rows


class PlainBackend:
    """Every method of :class:`crosscoders.kernels.interface.Backend` in operations of torch."""

    mesh = ALONE
    rows_at_once = None
    kernels = "torch"
    dense_above = 0.04

    @property
    def products(self) -> str:
        """The library that multiplies float32 matrices."""
        return matmul.name()

    def linear(self, x: torch.Tensor, weights: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        """The product x Wᵀ + b, (T, n), of (T, k), (n, k) and (n,)."""
        return matmul.linear(x, weights, bias)

    def product(self, a: torch.Tensor, b: torch.Tensor, precision: torch.dtype | None) -> torch.Tensor:
        """The product a b, (T, n), of (T, k) and (k, n), rounded to a precision beforehand where one is given."""
        return self.linear(a, b.T) if precision is None else (a.to(precision) @ b.to(precision)).to(a.dtype)

    def candidates(
        self, x: torch.Tensor, encoder: torch.Tensor, bias: torch.Tensor, threshold: torch.Tensor
    ) -> Pairs | None:
        """None, as torch has no product that costs less than all pre-activations."""

    def decode(self, code: Code, decoder: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        """The reconstruction Σ_j f_j W_j + b, (T, D)."""
        return weighted_rows(code.latents, code.offsets, code.values, decoder).add_(bias)

    def value_gradients(self, code: Code, gradient: torch.Tensor, decoder: torch.Tensor) -> torch.Tensor:
        """⟨gradient_t, W_j⟩ at every pair, (pairs,)."""
        empty = torch.zeros_like(code.values)
        pattern = torch.sparse_csr_tensor(code.offsets, code.latents, empty, code.size, check_invariants=False)
        return torch.sparse.sampled_addmm(pattern, gradient, decoder.T, beta=0.0).values()

    def reconstruct(
        self,
        code: Code,
        by_latent: ByLatent,
        x: torch.Tensor,
        decoder: torch.Tensor,
        bias: torch.Tensor,
        weights: torch.Tensor,
    ) -> Reconstruction:
        """The error on x, (T, D), weighted by column, (D,), and its gradients."""
        error = x - self.decode(code, decoder, bias)
        at_output = error * weights * (-2 / len(x))
        return Reconstruction(error, at_output, self.value_gradients(code, at_output, decoder))

    def rounded(self, matrix: torch.Tensor, precision: torch.dtype | None) -> torch.Tensor:
        """A matrix, (m, D), whose numbers are rounded to a precision, in its own type."""
        return matrix if precision is None else matrix.to(precision).to(matrix.dtype)

    def weight_gradient(self, by_latent: ByLatent, values: torch.Tensor, rows: torch.Tensor) -> Gradient:
        """Σ_t value_tj rows_t, (m, D), of values in the order of the code."""
        return weighted_rows(by_latent.tokens, by_latent.offsets, values[by_latent.order], rows)

    def adam_step(
        self,
        weights: torch.Tensor,
        moments: tuple[torch.Tensor, torch.Tensor],
        gradient: torch.Tensor,
        seed: int,
        numbers: AdamNumbers,
    ) -> None:
        """One step of Adam in place on (m, D) weights; both moments are in the weights' precision or in bfloat16."""
        gradient = gradient * numbers.inverse_clip
        mean, square = moments
        m = mean.to(weights.dtype).mul_(numbers.beta1).add_(gradient, alpha=numbers.rest1)
        v = square.to(weights.dtype).mul_(numbers.beta2).addcmul_(gradient, gradient, value=numbers.rest2)
        weights.addcdiv_(m, v.sqrt().add_(numbers.epsilon), value=-numbers.rate)
        if mean.dtype == torch.bfloat16:
            noise = chances(weights.numel(), seed, weights.device).view_as(weights)
            m, v = narrowed(m, noise & 0xFFFF), narrowed(v, noise >> 16)
        mean.copy_(m)
        square.copy_(v)
