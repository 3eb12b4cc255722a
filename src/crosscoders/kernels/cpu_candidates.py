"""Pairs above a threshold on a CPU: a product in 8 bits tells which may exceed it, and only those are computed in full.

The encoder asks which pre-activations exceed a threshold, and most do not. With x = x̂ + e and w = ŵ + r, rows rounded
to whole steps, x·w = x̂·ŵ + e·w + x̂·r. Roundings are independent of what they are multiplied with, so the error has a
standard deviation of at most √((‖e‖‖w‖)² + (‖x̂‖‖r‖)²) / √D. DEVIATIONS of these are allowed for: chance alone exceeds
them once in 10¹⁵ pairs. Where D is small, ‖e‖‖w‖ + ‖x̂‖‖r‖, which no error exceeds, is the narrower bound. Columns are
scaled before rounding, so that no large column decides the steps of all. The pairs are exact, as their values are
compared in full precision.

With AVX-512 VNNI rows have 127 steps to either side. With AVX2 products of two columns and the sums of four such
products are held in 16 bits: latents have 63 steps, and a token has as many as the sizes of its columns allow without
an overflow.
"""

from __future__ import annotations

import numpy as np
import torch

from crosscoders.kernels.candidates import sample
from crosscoders.kernels.cpu_library import NAMES, library
from crosscoders.kernels.interface import Pairs
from crosscoders.kernels.threads import in_parallel

DEVIATIONS = 8.0
"""Standard deviations of the 8-bit product's error by which a candidate may lie below its threshold."""
GROUP = 128
"""Latents that the C++ code works on at a time."""
LARGEST_WIDTH = 1 << 16
"""Columns of which the sum of 8-bit products still fits in 32 bits."""
LINE = 64
"""Rounded rows are padded to a multiple of so many columns."""


def pairs_above(
    x: torch.Tensor, encoder: torch.Tensor, bias: torch.Tensor, threshold: torch.Tensor, at_most: float
) -> Pairs | None:
    """Pairs whose pre-activation exceeds the threshold of its latent.

    Parameters
    ----------
    x : (T, D)
    encoder : (m, D)
    bias, threshold : (m,)
    at_most : float
        Share of all pairs that is expected above their thresholds.

    Returns
    -------
    Pairs or None
        None where more than twice as many as expected are candidates.
    """
    inputs = [tensor.to(x.dtype).contiguous() for tensor in (x, encoder, bias, threshold)]
    (tokens, width), m = x.shape, len(encoder)
    factor = column_factors(*inputs[:2])
    rounded = _quantised(inputs[0], factor)
    capacity = int(2 * at_most * tokens * m)
    deviations = min(DEVIATIONS / width**0.5, 2**0.5)
    scan = getattr(library(), f"scan_{NAMES[x.dtype]}")
    pointers = [tensor.data_ptr() for tensor in (*inputs[1:], factor[1])]
    share = -(-m // (GROUP * torch.get_num_threads())) * GROUP

    def scan_part(part: int) -> tuple[torch.Tensor, torch.Tensor] | None:
        latents = part * share, min((part + 1) * share, m)
        index, values = torch.empty(capacity, dtype=torch.int64), torch.empty(capacity, dtype=x.dtype)
        outputs = index.data_ptr(), values.data_ptr(), capacity
        rows = inputs[0].data_ptr(), *(tensor.data_ptr() for tensor in rounded), tokens
        count = scan(*rows, *pointers, *latents, m, width, deviations, *outputs)
        return None if count < 0 else (index[:count], values[:count])

    parts = in_parallel(scan_part, -(-m // share))
    if any(part is None for part in parts):
        return None
    index, values = (torch.cat(column) for column in zip(*parts, strict=True))
    order = torch.from_numpy(np.argsort(index.numpy()))
    return Pairs(index[order], values[order])


def column_factors(x: torch.Tensor, encoder: torch.Tensor) -> torch.Tensor:
    """Factors, (2, D padded), on the columns of x and of the encoder before rounding, from the sizes in a sample."""
    width = x.shape[1]
    some_tokens, some = sample(x, encoder)
    balance = (encoder[some].float().square().mean(0) / x[some_tokens].float().square().mean(0)).nan_to_num(1.0, 1.0)
    factor = torch.zeros(2, -(-width // LINE) * LINE)
    factor[0, :width] = balance.clamp(1e-12, 1e12).pow(0.25)
    factor[1, :width] = 1 / factor[0, :width]
    return factor


def _quantised(x: torch.Tensor, factor: torch.Tensor) -> list[torch.Tensor]:
    """Rows in 8 bits, the sums of their numbers, their steps, their norms, and the norms of what rounding cut off."""
    tokens, width = x.shape
    rounded = torch.zeros(tokens, factor.shape[1], dtype=torch.int8)
    outputs = [rounded, torch.zeros(tokens, dtype=torch.int32), *torch.zeros(3, tokens)]
    pointers = [tensor.data_ptr() for tensor in outputs]
    quantise = getattr(library(), f"quantise_{NAMES[x.dtype]}")
    quantise(x.data_ptr(), factor[0].data_ptr(), tokens, width, *pointers)
    return outputs
