"""Rooflines on one thread: the least time of some work at the rates of this machine, and what bounds it."""

from __future__ import annotations

import torch

from benchmarks.sides import take_turns

ADAM_BYTES = 28
"""Bytes per weight that Adam moves: weight, gradient and moments read; weight and moments written."""
NARROW = 4
"""Products in 8 bits that take the time of one in 32 bits."""


def rates() -> tuple[float, float]:
    """Multiplications of float32 per millisecond in a product, and bytes per millisecond in a fused Adam."""
    torch.set_num_threads(1)
    x, weights = torch.randn(1024, 1152), torch.randn(8192, 1152)
    leaf = torch.randn(8192, 1152, requires_grad=True)
    leaf.grad = torch.randn_like(leaf)
    adam = torch.optim.Adam([leaf], fused=True)
    seconds = take_turns({"product": lambda: x @ weights.T, "adam": adam.step}, 6)
    product, step = (1000 * seconds[name] for name in ("product", "adam"))
    return x.numel() * len(weights) / product, ADAM_BYTES * leaf.numel() / step


def bound_of(**milliseconds: float) -> dict[str, float | str]:
    """The time of the parts of some work, one after the other, and the name of the longest part."""
    return {"roofline": sum(milliseconds.values()), "bound": max(milliseconds, key=milliseconds.__getitem__)}
