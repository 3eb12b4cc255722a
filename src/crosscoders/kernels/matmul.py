"""Products of float32 matrices on a CPU: by oneDNN where it is much faster than the BLAS that torch takes.

On processors that are not Intel's, MKL may run at half the rate of oneDNN; elsewhere the two differ by a few percent.
The choice decides the last digits of every result. oneDNN is therefore taken only where it is faster by more than noise
explains, and the measured ratio is kept per processor and version of torch.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from functools import cache

import torch

from crosscoders import storage
from crosscoders.kernels import machine

MUCH_FASTER = 1.4
"""How many times faster oneDNN has to be: ratios of 0.9 to 1 and of 2 have been met, and noise is smaller."""
PROBE = (256, 512, 2048)
"""Tokens, width and latents of a product of a few milliseconds."""
ROUNDS = 5
LARGE = 1 << 26
"""Multiplications from which on the choice matters."""


def name() -> str:
    """The library that multiplies float32 matrices on a CPU."""
    if by_onednn():
        return "oneDNN"
    return "MKL" if torch.backends.mkl.is_available() else "BLAS"


def linear(x: torch.Tensor, weights: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """The product x Wᵀ + b; under autograd always by torch's BLAS.

    Parameters
    ----------
    x : (T, k)
    weights : (n, k)
    bias : (n,), optional

    Returns
    -------
    (T, n)
    """
    large = x.dtype == torch.float32 and x.device.type == "cpu" and len(x) * weights.numel() >= LARGE
    if large and not torch.is_grad_enabled() and by_onednn():
        return _onednn(x, weights, bias)
    return x @ weights.T if bias is None else torch.addmm(bias, x, weights.T)


@cache
def by_onednn() -> bool:
    """Whether oneDNN multiplies much faster than torch's BLAS, measured once per processor and version of torch."""
    if not torch.backends.mkldnn.is_available() or machine.made_by_intel():
        return False
    key = hashlib.sha256(f"{machine.processor()} {torch.__version__}".encode()).hexdigest()[:16]
    kept = machine.cache_folder() / f"products-{key}.json"
    if not kept.exists():
        storage.write_json({"onednn_faster": ratio()}, kept)
    return json.loads(kept.read_text(encoding="utf-8"))["onednn_faster"] > MUCH_FASTER


def ratio() -> float:
    """How many times faster oneDNN is, by the shortest of ROUNDS times each, taken in turns."""
    tokens, width, latents = PROBE
    x, weights = torch.ones(tokens, width), torch.ones(latents, width)
    sides = (lambda: x @ weights.T), (lambda: _onednn(x, weights, None))
    shortest = [min(times) for times in zip(*([_seconds(side) for side in sides] for _ in range(ROUNDS)), strict=True)]
    return round(shortest[0] / shortest[1], 2)


def _onednn(x: torch.Tensor, weights: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    return torch.ops.mkldnn._linear_pointwise(x, weights, bias, "none", [], "")


def _seconds(work: Callable[[], object]) -> float:
    began = time.process_time()  # of this process, so that other processes count little
    work()
    return time.process_time() - began
