"""The backend for a GPU, in kernels of Triton.

The pairs above a threshold are found without storing (T, m) numbers: each pair is one bit. Adam computes the weight
gradient inside of its step, so that no gradient of (m, D) is ever stored. With TRITON_INTERPRET=1 in the environment
the kernels run on a CPU, where the tests hold them to plain torch in float64. Sums are taken in the order of the pairs,
in the precision of the output, so that results do not depend on how programs are scheduled.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from crosscoders.kernels.adam_step import AdamNumbers
from crosscoders.kernels.candidates import rare
from crosscoders.kernels.interface import Gradient, Pairs
from crosscoders.kernels.plain import PlainBackend
from crosscoders.kernels.sparse_code import ByLatent, Code, from_flat

BLOCK = 512
"""Columns that one program works on."""
PAIRS = 8
"""Pairs that one program works on at a time."""
TOKENS, LATENTS, COLUMNS = 128, 256, 64
"""What one program of the encoder's product works on."""
WORDS = 128
"""Words of 32 latents that one program compacts."""
SPARSE_BELOW = 0.02
"""Share of pairs above the threshold up to which finding them in 16 bits costs less than all in full; not measured."""
RATE, EPSILON, BETA1, REST1, BETA2, REST2, INVERSE_CLIP = (tl.constexpr(i) for i in range(len(AdamNumbers._fields)))
"""Places in `AdamNumbers` at which a kernel reads the numbers of a step."""


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
def _value_gradients(out, gradient, weights, offsets, latents, width, PAIRS: tl.constexpr, BLOCK: tl.constexpr):
    token = tl.program_id(0).to(tl.int64)
    last = tl.load(offsets + token + 1)
    for first in range(tl.load(offsets + token), last, PAIRS):
        pair = first + tl.arange(0, PAIRS)
        there = pair < last
        latent = tl.load(latents + pair, mask=there, other=0)
        total = tl.zeros([PAIRS, BLOCK], dtype=out.dtype.element_ty)
        for begin in range(0, width, BLOCK):
            column = begin + tl.arange(0, BLOCK)
            inside = column < width
            wanted = there[:, None] & inside[None, :]
            rows = tl.load(weights + latent[:, None] * width + column[None, :], mask=wanted, other=0.0)
            total += tl.load(gradient + token * width + column, mask=inside, other=0.0)[None, :] * rows
        tl.store(out + pair, tl.sum(total, axis=1), mask=there)


@triton.jit
def _row(sums, latent, column, inside, width, BLOCK: tl.constexpr):
    """Some columns of one latent's weight gradient, Σ value · row; `sums` as `SumOfRows.by_latent` gives them."""
    rows, tokens, values, offsets = sums
    total = tl.zeros([BLOCK], dtype=values.dtype.element_ty)
    for pair in range(tl.load(offsets + latent), tl.load(offsets + latent + 1)):
        row = tl.load(rows + tl.load(tokens + pair) * width + column, mask=inside, other=0.0)
        total += tl.load(values + pair) * row
    return total


@triton.jit
def _weight_gradient(out, sums, width, BLOCK: tl.constexpr):
    latent = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < width
    tl.store(out + latent * width + column, _row(sums, latent, column, inside, width, BLOCK), mask=inside)


@triton.jit
def _squares(out, sums, width, blocks, BLOCK: tl.constexpr):
    latent = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    total = _row(sums, latent, column, column < width, width, BLOCK)
    tl.store(out + latent * blocks + tl.program_id(1), tl.sum(total * total, axis=0))


@triton.jit
def _widened(bits):
    """Numbers in float32, given the 16 bits of bfloat16."""
    return (bits.to(tl.int32) << 16).to(tl.float32, bitcast=True)


@triton.jit
def _narrowed(values, noise):
    """The 16 bits of what :func:`crosscoders.kernels.adam_step.narrowed` returns."""
    bits = values.to(tl.float32).to(tl.int32, bitcast=True) + noise.to(tl.int32)
    return (bits >> 16).to(tl.int16)


@triton.jit
def _chances(place, seed):
    """The random bits of :func:`crosscoders.kernels.adam_step.chances`."""
    word = place.to(tl.uint32) + seed.to(tl.uint32)
    word *= 0x9E3779B1
    word ^= word >> 15
    word *= 0x85EBCA77
    return word ^ (word >> 13)


@triton.jit(do_not_specialize=["seed"])
def _adam(weights, moments, gradient, numbers, seed, width, KIND: tl.constexpr, BLOCK: tl.constexpr):
    """A step of Adam. KIND says whether the gradient is stored, or a sum of rows, and whether moments have 16 bits."""
    latent = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < width
    mean, square = moments
    rate, epsilon = tl.load(numbers + RATE), tl.load(numbers + EPSILON)
    beta1, rest1 = tl.load(numbers + BETA1), tl.load(numbers + REST1)
    beta2, rest2 = tl.load(numbers + BETA2), tl.load(numbers + REST2)
    inverse_clip = tl.load(numbers + INVERSE_CLIP)
    place = latent * width + column
    if KIND[0]:
        step = tl.load(gradient + place, mask=inside, other=0.0) * inverse_clip
    else:
        step = _row(gradient, latent, column, inside, width, BLOCK) * inverse_clip
    m, v = tl.load(mean + place, mask=inside, other=0), tl.load(square + place, mask=inside, other=0)
    if KIND[1]:
        m, v = _widened(m), _widened(v)
    m = beta1 * m + rest1 * step
    v = beta2 * v + rest2 * step * step
    w = tl.load(weights + place, mask=inside, other=0.0) - rate * (m / (tl.sqrt(v) + epsilon))
    tl.store(weights + place, w, mask=inside)
    if KIND[1]:
        word = _chances(place, seed)
        m, v = _narrowed(m, word & 0xFFFF), _narrowed(v, word >> 16)
    tl.store(mean + place, m, mask=inside)
    tl.store(square + place, v, mask=inside)


@triton.jit
def _rounded(out, step, norm, rest, rows, width, BLOCK: tl.constexpr):
    """A row as float16 numbers times a `step`, its norm, and the norm of what rounding cut off."""
    row = tl.program_id(0).to(tl.int64)
    top, squares, cut = tl.zeros([BLOCK], tl.float32), tl.zeros([BLOCK], tl.float32), tl.zeros([BLOCK], tl.float32)
    for begin in range(0, width, BLOCK):
        column = begin + tl.arange(0, BLOCK)
        value = tl.load(rows + row * width + column, mask=column < width, other=0.0).to(tl.float32)
        top = tl.maximum(top, tl.abs(value))
        squares += value * value
    largest = tl.max(top, axis=0)
    unit = tl.where(largest > 0, largest, 1.0) / 16384.0
    for begin in range(0, width, BLOCK):
        column = begin + tl.arange(0, BLOCK)
        inside = column < width
        value = tl.load(rows + row * width + column, mask=inside, other=0.0).to(tl.float32)
        short = (value / unit).to(tl.float16)
        difference = value - short.to(tl.float32) * unit
        cut += difference * difference
        tl.store(out + row * width + column, short, mask=inside)
    length = tl.sqrt(tl.sum(squares, axis=0))
    tl.store(step + row, unit)
    tl.store(norm + row, length)
    tl.store(rest + row, tl.sqrt(tl.sum(cut, axis=0)) + 1e-6 * length)  # and what 32-bit arithmetic rounds off


@triton.jit
def _product(x, encoder, sizes, TOKENS: tl.constexpr, LATENTS: tl.constexpr, COLUMNS: tl.constexpr):
    """Products of TOKENS rows of x with LATENTS rows of the encoder."""
    token = tl.program_id(0) * TOKENS + tl.arange(0, TOKENS)
    latent = tl.program_id(1) * LATENTS + tl.arange(0, LATENTS)
    tokens, latents, width = sizes
    column = tl.arange(0, COLUMNS)
    left_at = x + token.to(tl.int64)[:, None] * width + column[None, :]
    right_at = encoder + latent.to(tl.int64)[None, :] * width + column[:, None]
    product = tl.zeros([TOKENS, LATENTS], dtype=tl.float32)
    for begin in range(0, width, COLUMNS):
        inside = column < width - begin
        left = tl.load(left_at, mask=(token < tokens)[:, None] & inside[None, :], other=0.0)
        right = tl.load(right_at, mask=inside[:, None] & (latent < latents)[None, :], other=0.0)
        product = tl.dot(left, right, product)
        left_at += COLUMNS
        right_at += COLUMNS
    return product


@triton.jit
def _highest(product, x, encoder, slack, token, latent, some, there):
    """The most that a product of rows can be before `scaled_rows` rounded them; see `pairs_above`."""
    _, x_step, x_norm, x_rest = x
    _, step, norm, rest = encoder
    left_norm, left_rest = tl.load(x_norm + token, mask=some, other=0.0), tl.load(x_rest + token, mask=some, other=0.0)
    right_norm, right_rest = (
        tl.load(norm + latent, mask=there, other=0.0),
        tl.load(rest + latent, mask=there, other=0.0),
    )
    left_step, right_step = tl.load(x_step + token, mask=some, other=0.0), tl.load(step + latent, mask=there, other=0.0)
    value = product * left_step[:, None] * right_step[None, :]
    value += (left_rest + slack * left_norm)[:, None] * right_norm[None, :]
    return value + (left_norm + left_rest)[:, None] * right_rest[None, :]


@triton.jit
def _candidates(out, x, encoder, bias, threshold, sizes, slack, BLOCKS: tl.constexpr):
    """A bit for every pre-activation that may exceed its threshold, and the number of bits of every token and block.

    `x` and `encoder` are as `scaled_rows` returns them, `sizes` are (T, m, D), and BLOCKS (TOKENS, LATENTS, COLUMNS).
    """
    TOKENS: tl.constexpr = BLOCKS[0]
    LATENTS: tl.constexpr = BLOCKS[1]
    words, counts = out
    token = tl.program_id(0) * TOKENS + tl.arange(0, TOKENS)
    latent = tl.program_id(1) * LATENTS + tl.arange(0, LATENTS)
    some, there = token < sizes[0], latent < sizes[1]
    product = _product(x[0], encoder[0], sizes, TOKENS, LATENTS, BLOCKS[2])
    value = _highest(product, x, encoder, slack, token, latent, some, there)
    value += tl.load(bias + latent, mask=there, other=0.0)[None, :]
    above = (value > tl.load(threshold + latent, mask=there, other=float("inf"))[None, :]).to(tl.int32)
    block = token.to(tl.int64) * tl.num_programs(1) + tl.program_id(1)
    tl.store(counts + block, tl.sum(above, axis=1), mask=some)
    bits = tl.reshape(above, [TOKENS, LATENTS // 32, 32]) << tl.arange(0, 32)[None, None, :]
    word = block[:, None] * (LATENTS // 32) + tl.arange(0, LATENTS // 32)[None, :]
    tl.store(words + word, tl.sum(bits, axis=2), mask=some[:, None])


@triton.jit
def _compact(out, words, begins, latents, stride, WORDS: tl.constexpr):
    """The latents whose bits are set in WORDS words of one token, written from the place that `begins` holds."""
    token, part = tl.program_id(0).to(tl.int64), tl.program_id(1)
    word = part * WORDS + tl.arange(0, WORDS)
    bits = tl.load(words + token * stride + word, mask=word < stride, other=0)
    on = tl.reshape((bits[:, None] >> tl.arange(0, 32)[None, :]) & 1, [WORDS * 32])
    place = tl.load(begins + token * tl.num_programs(1) + part) + tl.cumsum(on, axis=0) - on
    latent = part * WORDS * 32 + tl.arange(0, WORDS * 32)
    tl.store(out + place, token * latents + latent, mask=on == 1)


class TritonBackend(PlainBackend):
    """Triton's kernels for sparse codes, and torch's own products of matrices."""

    kernels = "Triton"
    products = "cuBLAS"
    dense_above = 0.005
    """Products are so fast on a GPU that gathering pays only where m / k exceeds 150 to 260; not measured here."""

    def candidates(
        self, x: torch.Tensor, encoder: torch.Tensor, bias: torch.Tensor, threshold: torch.Tensor
    ) -> Pairs | None:
        """Pairs whose pre-activation exceeds the threshold of its latent, (m,); None where all of them cost less."""
        if not rare(x, encoder, bias, threshold, SPARSE_BELOW):
            return None
        return pairs_above(x, encoder, bias, threshold)

    def decode(self, code: Code, decoder: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        """The reconstruction Σ_j f_j W_j + b, (T, D)."""
        out = torch.empty(code.size[0], decoder.shape[1], dtype=bias.dtype, device=decoder.device)
        pairs = code.offsets, code.latents, code.values
        _decode[_grid(*out.shape)](out, decoder, bias, *pairs, out.shape[1], BLOCK=BLOCK)
        return out

    def value_gradients(self, code: Code, gradient: torch.Tensor, decoder: torch.Tensor) -> torch.Tensor:
        """⟨gradient_t, W_j⟩ at every pair, (pairs,)."""
        out, width = torch.empty_like(code.values), decoder.shape[1]
        inputs = gradient.contiguous(), decoder, code.offsets, code.latents
        _value_gradients[(code.size[0],)](out, *inputs, width, PAIRS=PAIRS, BLOCK=BLOCK)
        return out

    def rounded(self, matrix: torch.Tensor, precision: torch.dtype | None) -> torch.Tensor:
        """A matrix, (m, D), in a precision, which the kernels read as it is."""
        return matrix if precision is None else matrix.to(precision)

    def weight_gradient(self, by_latent: ByLatent, values: torch.Tensor, rows: torch.Tensor) -> Gradient:
        """Σ_t value_tj rows_t, (m, D), of values in the order of the code; Adam computes it."""
        return SumOfRows(by_latent, values, rows)

    def adam_step(
        self,
        weights: torch.Tensor,
        moments: tuple[torch.Tensor, torch.Tensor],
        gradient: Gradient,
        seed: int,
        numbers: AdamNumbers,
    ) -> None:
        """One step of Adam in place on (m, D) weights; both moments are in the weights' precision or in bfloat16."""
        narrow, stored = moments[0].dtype == torch.bfloat16, isinstance(gradient, torch.Tensor)
        if narrow:
            moments = tuple(moment.view(torch.int16) for moment in moments)
        sums = gradient.contiguous() if stored else gradient.by_latent()
        given = torch.tensor(numbers, dtype=weights.dtype, device=weights.device)
        signed = seed - (seed >> 31 << 32)
        inputs = weights, tuple(moments), sums, given, signed, weights.shape[1]
        _adam[_grid(*weights.shape)](*inputs, KIND=(stored, narrow), BLOCK=BLOCK)


@dataclass
class SumOfRows:
    """A weight gradient Σ_t value_tj rows_t, (m, D), that is not computed yet; `values`, (pairs,), follow the code."""

    code: ByLatent
    values: torch.Tensor
    rows: torch.Tensor

    def by_latent(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """Rows, and for pairs sorted by latent their tokens, values and where latents begin."""
        return self.rows, self.code.tokens, self.values[self.code.order], self.code.offsets

    def dense(self) -> torch.Tensor:
        """The gradient as a tensor, (m, D)."""
        out = self.rows.new_empty(len(self.code.counts), self.rows.shape[1])
        _weight_gradient[_grid(*out.shape)](out, self.by_latent(), out.shape[1], BLOCK=BLOCK)
        return out

    def squared_norm(self) -> torch.Tensor:
        """The sum of its squares, a scalar."""
        width = self.rows.shape[1]
        grid = _grid(len(self.code.counts), width)
        out = self.rows.new_empty(grid)
        _squares[grid](out, self.by_latent(), width, grid[1], BLOCK=BLOCK)
        return out.sum()


def _grid(rows: int, width: int) -> tuple[int, int]:
    return rows, triton.cdiv(width, BLOCK)


def scaled_rows(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Rows in float16, their steps, their norms, and the norms of what rounding cut off."""
    out = torch.empty_like(rows, dtype=torch.float16)
    step, norm, rest = (torch.empty(len(rows), device=rows.device) for _ in range(3))
    _rounded[(len(rows),)](out, step, norm, rest, rows, rows.shape[1], BLOCK=BLOCK)
    return out, step, norm, rest


def pairs_above(x: torch.Tensor, encoder: torch.Tensor, bias: torch.Tensor, threshold: torch.Tensor) -> Pairs:
    """Pairs whose pre-activation exceeds the threshold of its latent.

    Products of rows in float16 tell which may exceed it. Each row is scaled so that its largest number is 2¹⁴; products
    are as fast as in bfloat16, and have three bits more. With x = x̂ + e and w = ŵ + r, x·w = x̂·ŵ + e·w + x̂·r differs
    from x̂·ŵ by no more than ‖e‖‖w‖ + ‖x̂‖‖r‖, and a sum in 32 bits by 2⁻²³ ‖x̂‖‖ŵ‖ for every number added. One bit is
    kept of every token and latent.

    Parameters
    ----------
    x : (T, D)
    encoder : (m, D)
    bias, threshold : (m,)
    """
    (tokens, width), m = x.shape, len(encoder)
    grid = triton.cdiv(tokens, TOKENS), triton.cdiv(m, LATENTS)
    words = torch.empty(tokens, grid[1] * (LATENTS // 32), dtype=torch.int32, device=x.device)
    counts = torch.zeros(tokens, grid[1], dtype=torch.int32, device=x.device)
    lowered = threshold - 1e-6 * (threshold.abs() + bias.abs())  # by what 32 bits round off a bias and a threshold
    rows = scaled_rows(x.contiguous()), scaled_rows(encoder), bias.float(), lowered.float()
    options = {"BLOCKS": (TOKENS, LATENTS, COLUMNS), "num_warps": 8, "num_stages": 3}
    _candidates[grid]((words, counts), *rows, (tokens, m, width), width * 2.0**-23, **options)
    index = _compacted(words, counts, m)
    code = from_flat(index, x.new_zeros(len(index)), (tokens, m))
    values = TritonBackend().value_gradients(code, x, encoder) + bias[code.latents]
    keep = values > threshold[code.latents]
    return Pairs(index[keep], values[keep])


def _compacted(words: torch.Tensor, counts: torch.Tensor, m: int) -> torch.Tensor:
    """Ascending flat indices token · m + latent of set bits; `counts` has their number in every token and block."""
    tokens, stride = words.shape
    parts, blocks = triton.cdiv(stride, WORDS), WORDS * 32 // LATENTS
    ends = counts.flatten().cumsum(0)
    begins = (ends - counts.flatten()).view_as(counts)[:, ::blocks].contiguous()
    out = torch.empty(int(ends[-1]), dtype=torch.int64, device=words.device)
    _compact[(tokens, parts)](out, words, begins, m, stride, WORDS=WORDS)
    return out
