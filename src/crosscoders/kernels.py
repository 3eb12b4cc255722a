"""Triton kernels for the sparse passes of a training step on a GPU.

The same passes as in :mod:`crosscoders.sparse`, and Adam with the weight gradient computed inside of it, so that no
gradient of (m, D) is ever stored. With TRITON_INTERPRET=1 in the environment they run on a CPU, where the tests hold them
to the plain passes in float64. Sums are taken in the order of the pairs, in the precision of the output: results do not
depend on how programs are scheduled.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from crosscoders.sparse import ByLatent, Code

BLOCK = 512
"""Columns that one program works on."""


@triton.jit
def _decode(out, weights, bias, offsets, latents, values, width, BLOCK: tl.constexpr):
    token = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < width
    total = tl.load(bias + column, mask=inside, other=0.0)
    for pair in range(tl.load(offsets + token), tl.load(offsets + token + 1)):
        row = tl.load(weights + tl.load(latents + pair) * width + column, mask=inside, other=0.0)
        total += tl.load(values + pair) * row
    tl.store(out + token * width + column, total, mask=inside)


@triton.jit
def _value_gradients(out, gradient, weights, offsets, latents, width, BLOCK: tl.constexpr):
    token = tl.program_id(0).to(tl.int64)
    for pair in range(tl.load(offsets + token), tl.load(offsets + token + 1)):
        latent = tl.load(latents + pair)
        total = tl.zeros([BLOCK], dtype=out.dtype.element_ty)
        for first in range(0, width, BLOCK):
            column = first + tl.arange(0, BLOCK)
            inside = column < width
            row = tl.load(weights + latent * width + column, mask=inside, other=0.0)
            total += tl.load(gradient + token * width + column, mask=inside, other=0.0) * row
        tl.store(out + pair, tl.sum(total, axis=0))


@triton.jit
def _row(rows, tokens, values, first, last, column, inside, width, BLOCK: tl.constexpr):
    """One latent's weight gradient, Σ value · row, in some columns."""
    total = tl.zeros([BLOCK], dtype=values.dtype.element_ty)
    for pair in range(first, last):
        row = tl.load(rows + tl.load(tokens + pair) * width + column, mask=inside, other=0.0)
        total += tl.load(values + pair) * row
    return total


@triton.jit
def _weight_gradient(out, rows, tokens, values, offsets, width, BLOCK: tl.constexpr):
    latent = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < width
    first, last = tl.load(offsets + latent), tl.load(offsets + latent + 1)
    total = _row(rows, tokens, values, first, last, column, inside, width, BLOCK)
    tl.store(out + latent * width + column, total, mask=inside)


@triton.jit
def _squares(out, rows, tokens, values, offsets, width, blocks, BLOCK: tl.constexpr):
    latent = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < width
    first, last = tl.load(offsets + latent), tl.load(offsets + latent + 1)
    total = _row(rows, tokens, values, first, last, column, inside, width, BLOCK)
    tl.store(out + latent * blocks + tl.program_id(1), tl.sum(total * total, axis=0))


@triton.jit
def _adam(weights, mean, square, rows, tokens, values, offsets, options, width, BLOCK: tl.constexpr):
    latent = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < width
    rate, shrink, epsilon = tl.load(options), tl.load(options + 1), tl.load(options + 2)
    beta1, beta2 = tl.load(options + 3), tl.load(options + 4)
    root1, root2 = tl.load(options + 5), tl.load(options + 6)
    first, last = tl.load(offsets + latent), tl.load(offsets + latent + 1)
    gradient = _row(rows, tokens, values, first, last, column, inside, width, BLOCK) / shrink
    place = latent * width + column
    m = beta1 * tl.load(mean + place, mask=inside, other=0.0) + (1 - beta1) * gradient
    v = beta2 * tl.load(square + place, mask=inside, other=0.0) + (1 - beta2) * gradient * gradient
    w = tl.load(weights + place, mask=inside, other=0.0) - rate / root1 * m / (tl.sqrt(v) / root2 + epsilon)
    tl.store(mean + place, m, mask=inside)
    tl.store(square + place, v, mask=inside)
    tl.store(weights + place, w, mask=inside)


def _grid(rows: int, width: int) -> tuple[int, int]:
    return rows, triton.cdiv(width, BLOCK)


def decode(code: Code, weights: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """Σ_j f_j W_j + b, (T, D)."""
    out = torch.empty(code.size[0], weights.shape[1], dtype=weights.dtype, device=weights.device)
    _decode[_grid(*out.shape)](out, weights, bias, code.offsets, code.latents, code.values, out.shape[1], BLOCK=BLOCK)
    return out


def value_gradients(code: Code, gradient: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """⟨gradient_t, W_j⟩ at every active pair, (pairs,)."""
    out = torch.empty_like(code.values)
    _value_gradients[(code.size[0],)](
        out, gradient.contiguous(), weights, code.offsets, code.latents, weights.shape[1], BLOCK=BLOCK
    )
    return out


def weight_gradient(code: ByLatent, values: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """Σ_t value_tj rows_t, (m, D); `values` in the order of the code."""
    out = torch.empty(len(code.counts), rows.shape[1], dtype=rows.dtype, device=rows.device)
    _weight_gradient[_grid(*out.shape)](
        out, rows, code.tokens, values[code.order], code.offsets, out.shape[1], BLOCK=BLOCK
    )
    return out


def squared_norm(code: ByLatent, values: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """Squared norm of a weight gradient that is not stored, a scalar."""
    grid = _grid(len(code.counts), rows.shape[1])
    out = torch.empty(grid, dtype=rows.dtype, device=rows.device)
    _squares[grid](out, rows, code.tokens, values[code.order], code.offsets, rows.shape[1], grid[1], BLOCK=BLOCK)
    return out.sum()


@dataclass
class RowGradient:
    """A weight gradient Σ_t value_tj rows_t, (m, D), as the sum it is; `values` in the order of the code."""

    code: ByLatent
    values: torch.Tensor
    rows: torch.Tensor

    def dense(self) -> torch.Tensor:
        """The gradient, stored."""
        return weight_gradient(self.code, self.values, self.rows)

    def squared_norm(self) -> torch.Tensor:
        """Its squared norm, a scalar."""
        return squared_norm(self.code, self.values, self.rows)


def adam_step(
    weights: torch.Tensor, mean: torch.Tensor, square: torch.Tensor, gradient: RowGradient, step: int, rate: float,
    betas: tuple[float, float], epsilon: float, shrink: float | torch.Tensor,
) -> None:  # fmt: skip
    """One step of Adam in place on (m, D) weights, whose gradient, divided by `shrink`, is never stored.

    `step` counts from 1.
    """
    corrections = [(1 - betas[0] ** step), (1 - betas[1] ** step) ** 0.5]
    options = torch.tensor([rate, 1.0, epsilon, *betas, *corrections], dtype=weights.dtype, device=weights.device)
    options[1] = shrink
    code, values = gradient.code, gradient.values[gradient.code.order]
    _adam[_grid(*weights.shape)](
        weights, mean, square, gradient.rows, code.tokens, values, code.offsets, options, weights.shape[1], BLOCK=BLOCK
    )
