"""A backend for dictionaries that lie in main memory: it copies a block of latents at a time to the device.

It encodes, decodes and computes the sums of evaluation and latent scaling; no training step uses it. Of more latents than
one block has, neither weights nor pre-activations are on the device at once. What it takes and returns lies in main memory.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from crosscoders.kernels.interface import Backend, Pairs
from crosscoders.kernels.sparse_code import Code, flatnonzero, from_flat

ROWS = 1 << 17
"""Latents of a block."""


class StreamedBackend:
    """Encoding and decoding by blocks of latents.

    Parameters
    ----------
    local : Backend
        What computes on the device.
    device : str
        `cpu` or `cuda`.
    rows : int
        Latents of a block.
    """

    def __init__(self, local: Backend, device: str, rows: int = ROWS):
        self.local, self.device, self.rows_at_once = local, device, rows
        self._kept: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def __getattr__(self, name: str):
        """Whatever does not depend on where latents lie."""
        return getattr(self.local, name)

    def _blocks(self, latents: int) -> Iterator[slice]:
        for first in range(0, latents, self.rows_at_once):
            yield slice(first, min(first + self.rows_at_once, latents))

    def _rows(self, weights: torch.Tensor, block: slice) -> torch.Tensor:
        """The rows of a block on the device; weights that are one block stay there."""
        if block.stop - block.start < len(weights):
            return weights[block].to(self.device)
        if id(weights) not in self._kept:
            self._kept[id(weights)] = weights, weights.to(self.device)  # with the original, whose number stays its own
        return self._kept[id(weights)][1]

    def _preactivations(
        self, x: torch.Tensor, encoder: torch.Tensor, bias: torch.Tensor
    ) -> Iterator[tuple[slice, torch.Tensor]]:
        """The pre-activations of one block of latents after the other, (T, rows), on the device."""
        x = x.to(self.device)
        for block in self._blocks(len(encoder)):
            yield block, self.local.linear(x, self._rows(encoder, block), bias[block].to(self.device))

    def candidates(self, x: torch.Tensor, encoder: torch.Tensor, bias: torch.Tensor, threshold: torch.Tensor) -> Pairs:
        """Pairs whose pre-activation exceeds the threshold of its latent, (m,)."""
        parts = []
        for block, values in self._preactivations(x, encoder, bias):
            inside = flatnonzero(values > threshold[block].to(self.device))
            rows = values.shape[1]
            place = torch.div(inside, rows, rounding_mode="floor") * len(encoder) + block.start + inside % rows
            parts.append((place.cpu(), values.reshape(-1)[inside].cpu()))
        return _ascending(*(torch.cat(column) for column in zip(*parts, strict=True)))

    def largest_of_tokens(
        self, x: torch.Tensor, encoder: torch.Tensor, bias: torch.Tensor, norms: torch.Tensor, k: int
    ) -> Pairs:
        """The positive pairs among the k largest scores f_j N_j of every token; of ties the lower latent is kept."""
        best = score = x.new_empty(len(x), 0).to(self.device)
        latents = torch.empty(len(x), 0, dtype=torch.int64, device=self.device)
        for block, values in self._preactivations(x, encoder, bias):
            f = values.relu()
            numbers = torch.arange(block.start, block.stop, device=self.device).expand_as(f)
            score = torch.cat([score, f * norms[block].to(self.device)], dim=1)
            score, order = (column[:, :k] for column in score.sort(dim=1, descending=True, stable=True))
            best = torch.cat([best, f], dim=1).gather(1, order)
            latents = torch.cat([latents, numbers], dim=1).gather(1, order)
        place = latents + torch.arange(len(x), device=self.device)[:, None] * len(encoder)
        positive = best > 0
        return _ascending(place[positive].cpu(), best[positive].cpu())

    def decode(self, code: Code, decoder: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        """The reconstruction Σ_j f_j W_j + b, (T, D)."""
        total = bias.to(self.device).repeat(code.size[0], 1)
        for _, part, rows in self._parts(code, decoder):
            total += self.local.decode(part, rows, torch.zeros_like(total[0]))
        return total.cpu()

    def value_gradients(self, code: Code, gradient: torch.Tensor, decoder: torch.Tensor) -> torch.Tensor:
        """⟨gradient_t, W_j⟩ at every pair, (pairs,)."""
        out, gradient = torch.empty_like(code.values), gradient.to(self.device)
        for inside, part, rows in self._parts(code, decoder):
            out[inside] = self.local.value_gradients(part, gradient, rows).cpu()
        return out

    def _parts(self, code: Code, decoder: torch.Tensor) -> Iterator[tuple[torch.Tensor, Code, torch.Tensor]]:
        """The pairs of every block that has any: where they stand, their code on the device, and the block's rows."""
        tokens = code.tokens
        for block in self._blocks(code.size[1]):
            inside = flatnonzero((code.latents >= block.start) & (code.latents < block.stop))
            if len(inside):
                rows, size = self._rows(decoder, block), (code.size[0], block.stop - block.start)
                index = tokens[inside] * size[1] + code.latents[inside] - block.start
                yield inside, from_flat(index.to(self.device), code.values[inside].to(self.device), size), rows


def _ascending(index: torch.Tensor, values: torch.Tensor) -> Pairs:
    """Pairs in the order of their flat indices."""
    order = index.argsort()
    return Pairs(index[order], values[order])
