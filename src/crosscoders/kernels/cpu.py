"""The backend in C++ (cpu.cpp), compiled once per machine with AVX-512 VNNI or AVX2."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

import torch

from crosscoders.kernels.adam_step import AdamNumbers
from crosscoders.kernels.candidates import rare
from crosscoders.kernels.cpu_candidates import LARGEST_WIDTH, pairs_above
from crosscoders.kernels.cpu_library import NAMES, library
from crosscoders.kernels.interface import Gradient, Pairs, Reconstruction
from crosscoders.kernels.machine import second_cache
from crosscoders.kernels.plain import PlainBackend
from crosscoders.kernels.sparse_code import ByLatent, Code
from crosscoders.kernels.threads import in_parallel

SPARSE_BELOW = {64: 0.02, 32: 0.05}
"""Share of pairs above the threshold up to which finding them in 8 bits costs less than all of them in full; measured.

By the bytes of a register: wide ones multiply in full precision twice as fast.
"""
RECONSTRUCTED_BY_COLUMNS_FROM = {8: 12, 4: 32, 2: 80}
"""Pairs per latent from which working through columns of all latents costs less than gathering rows; measured.

By the registers that hold the columns of one latent: the fewer, the more often every latent is read.
"""


class CompiledBackend(PlainBackend):
    """C++ for what torch does slowly: candidates, sparse reconstruction, weight gradients, Adam."""

    dense_above = 0.14

    @property
    def kernels(self) -> str:
        """Which instructions the kernels are compiled for."""
        return "C++, AVX-512" if library().register_bytes() == 64 else "C++, AVX2"

    def candidates(
        self, x: torch.Tensor, encoder: torch.Tensor, bias: torch.Tensor, threshold: torch.Tensor
    ) -> Pairs | None:
        """Pairs whose pre-activation exceeds the threshold of its latent, (m,); None where all of them cost less."""
        at_most = sparse_below()
        if x.shape[1] > LARGEST_WIDTH or not rare(x, encoder, bias, threshold, at_most):
            return None
        return pairs_above(x, encoder, bias, threshold, at_most)

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
        inputs = [tensor.to(x.dtype).contiguous() for tensor in (x, decoder, bias, weights)]
        chunks = column_chunks(x)
        if chunks.pay(len(code.values), code.size[1], RECONSTRUCTED_BY_COLUMNS_FROM):
            return _reconstruct_by_columns(code, by_latent, chunks, inputs)
        return _reconstruct_by_rows(code, inputs)

    def weight_gradient(self, by_latent: ByLatent, values: torch.Tensor, rows: torch.Tensor) -> Gradient:
        """Σ_t value_tj rows_t, (m, D), of values in the order of the code."""
        m, chunks, rows = len(by_latent.counts), column_chunks(rows), rows.contiguous()
        squares = rows.new_empty(chunks.count, m)
        gradient = ActiveRows(rows.new_empty(m, rows.shape[1]), by_latent.counts > 0, squares)
        pairs = _PairPointers.of(by_latent, values)
        function = getattr(library(), f"weight_gradient_{NAMES[rows.dtype]}")

        def work(chunk: int) -> None:
            outputs = gradient.values.data_ptr(), squares[chunk].data_ptr()
            function(*pairs.pointers, rows.data_ptr(), chunk, rows.shape[1], *outputs, chunks.registers)

        in_parallel(work, chunks.count)
        return gradient if rows.dtype == torch.float32 else gradient.dense()  # Adam is compiled for float32 alone

    def adam_step(
        self,
        weights: torch.Tensor,
        moments: tuple[torch.Tensor, torch.Tensor],
        gradient: Gradient,
        seed: int,
        numbers: AdamNumbers,
    ) -> None:
        """One step of Adam in place on (m, D) weights; both moments are in the weights' precision or in bfloat16."""
        if weights.dtype != torch.float32:
            return super().adam_step(weights, moments, gradient, seed, numbers)
        (m, width), active = weights.shape, None
        if isinstance(gradient, ActiveRows):
            gradient, active = gradient.values, gradient.active
        gradient, given = gradient.contiguous(), (ctypes.c_float * len(numbers))(*numbers)
        narrow = moments[0].dtype == torch.bfloat16
        pointers = [weights.data_ptr(), *(moment.data_ptr() for moment in moments), narrow]
        pointers += [gradient.data_ptr(), None if active is None else active.data_ptr()]
        share = -(-m // torch.get_num_threads())

        def work(part: int) -> None:
            rows = part * share, min((part + 1) * share, m)
            library().adam_float32(*pointers, *rows, width, seed, ctypes.addressof(given))

        in_parallel(work, -(-m // share))
        return None


def sparse_below() -> float:
    """The largest share of pairs above a threshold at which they are looked for in 8 bits, on this processor."""
    return SPARSE_BELOW[library().register_bytes()]


@dataclass
class ActiveRows:
    """A weight gradient, (m, D), of which rows that are not active count as 0 and have not been written.

    Attributes
    ----------
    values : (m, D)
    active : (m,) bool
    squares : (chunks, m)
        Sums of squares of parts of rows, from the kernel that made the gradient.
    """

    values: torch.Tensor
    active: torch.Tensor
    squares: torch.Tensor

    def dense(self) -> torch.Tensor:
        """The gradient as a tensor, (m, D)."""
        return self.values.index_fill_(0, (~self.active).nonzero()[:, 0], 0)

    def squared_norm(self) -> torch.Tensor:
        """The sum of its squares, a scalar."""
        return self.squares.sum(dtype=torch.float64)


def _reconstruct_by_columns(
    code: Code, by_latent: ByLatent, chunks: ColumnChunks, inputs: list[torch.Tensor]
) -> Reconstruction:
    """A reconstruction by groups of columns, one group per thread at a time, latent by latent."""
    x = inputs[0]
    error, gradient = torch.empty_like(x), torch.empty_like(x)
    slopes = x.new_empty(chunks.count, len(code.values))
    pairs, pointers = _PairPointers.of(by_latent, code.values), [tensor.data_ptr() for tensor in inputs]
    function = getattr(library(), f"reconstruct_{NAMES[x.dtype]}")

    def work(chunk: int) -> None:
        outputs = error.data_ptr(), gradient.data_ptr(), slopes[chunk].data_ptr()
        function(*pairs.pointers, *pointers, -2 / len(x), chunk, x.shape[1], *outputs, chunks.registers)

    in_parallel(work, chunks.count)
    at_values = torch.empty_like(code.values)
    at_values[by_latent.order] = slopes.sum(0)
    return Reconstruction(error, gradient, at_values)


def _reconstruct_by_rows(code: Code, inputs: list[torch.Tensor]) -> Reconstruction:
    """A reconstruction token by token; each thread has tokens of its own."""
    x, pairs = inputs[0], [tensor.contiguous() for tensor in (code.offsets, code.latents, code.values)]
    outputs = Reconstruction(torch.empty_like(x), torch.empty_like(x), torch.empty_like(pairs[2]))
    pointers = [tensor.data_ptr() for tensor in (*pairs, *inputs)]
    function = getattr(library(), f"reconstruct_rows_{NAMES[x.dtype]}")
    share = -(-len(x) // torch.get_num_threads())

    def work(part: int) -> None:
        first, last = part * share, min((part + 1) * share, len(x))
        function(*pointers, -2 / len(x), first, last, x.shape[1], *(tensor.data_ptr() for tensor in outputs))

    in_parallel(work, -(-len(x) // share))
    return outputs


@dataclass
class ColumnChunks:
    """Groups of columns that a kernel works on one after the other, and the registers that hold a group."""

    count: int
    registers: int

    def pay(self, pairs: int, latents: int, least: dict[int, float]) -> bool:
        """Whether so many pairs cost less by columns than by rows; `least` gives pairs per latent, by registers."""
        return pairs >= least[self.registers] * latents


def column_chunks(rows: torch.Tensor) -> ColumnChunks:
    """The widest groups of which the columns of all tokens still fit in the second-level cache."""
    tokens, width = rows.shape
    register = library().register_bytes()
    fitting = second_cache() * 3 // 4 // (register * tokens)
    registers = next((r for r in (8, 4) if r <= fitting), 2)
    return ColumnChunks(-(-width * rows.element_size() // (register * registers)), registers)


@dataclass
class _PairPointers:
    """Pairs sorted by latent, as the C++ code takes them; `kept` holds the tensors that the pointers point to."""

    pointers: list[int]
    kept: list[torch.Tensor]

    @classmethod
    def of(cls, by_latent: ByLatent, values: torch.Tensor) -> _PairPointers:
        """Pointers to the pairs of a code whose values are in the order of the code."""
        kept = [by_latent.offsets, by_latent.tokens, values[by_latent.order]]
        sizes = [by_latent.all_tokens, len(by_latent.counts)]
        return cls([tensor.data_ptr() for tensor in kept] + sizes, kept)
