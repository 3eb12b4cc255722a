"""How fast one core of this machine works, measured in about two seconds: `python -m crosscoders.kernels.rates` prints it as JSON.

It is a process of its own because `crosscoders plan` starts without torch, as Snakemake does.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable

import torch
import transformers

from crosscoders.device import chosen_dtype

TOKENS, WIDTH, WIDE = 1024, 768, 3072
"""A product of the size that language models and crosscoders have here."""
MOVED_BYTES, TIMES = 64 * 2**20, 8


def processor_seconds(run: Callable[[], object]) -> float:
    """Processor time of a call: the least of several, as other processes only add to it."""
    times = []
    for _ in range(TIMES):
        start = time.process_time()
        run()
        times.append(time.process_time() - start)
    return max(min(times), 1e-6)


def measured() -> dict[str, float]:
    """Rates of one core.

    Returns
    -------
    dict
        `forward` and `products`: floating-point operations per second in the arithmetic of language models and in float32;
        `memory`: bytes moved per second; `start`: processor seconds until torch and transformers are loaded.
    """
    transformers.AutoModelForCausalLM  # noqa: B018 transformers loads what is named
    start = time.process_time()  # of this process, which has just loaded them
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    operations, rates = 2 * TOKENS * WIDTH * WIDE, {}
    for name, dtype in (("forward", chosen_dtype("auto", "cpu")), ("products", torch.float32)):
        x, weights = torch.ones(TOKENS, WIDTH, dtype=dtype), torch.ones(WIDE, WIDTH, dtype=dtype)
        rates[name] = operations / processor_seconds(lambda x=x, w=weights: torch.nn.functional.linear(x, w))
    moved, copy = torch.ones(MOVED_BYTES, dtype=torch.uint8), torch.empty(MOVED_BYTES, dtype=torch.uint8)
    rates["memory"] = 2 * MOVED_BYTES / processor_seconds(lambda: copy.copy_(moved))
    return rates | {"start": start}


if __name__ == "__main__":
    print(json.dumps(measured()))
