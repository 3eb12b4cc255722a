"""How fast one core of this machine works while all work: `python -m crosscoders.kernels.rates CORES` prints it as JSON.

It takes some seconds, and is a process of its own because `crosscoders plan` starts without torch, as Snakemake does. Cores that
work at the same time share caches and memory, and often two of them are one core to the arithmetic. A core is therefore measured
while others are busy, as they are in a study.
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import sys
import time
from collections.abc import Callable, Iterator

import torch
import transformers

from crosscoders.device import chosen_dtype

TOKENS, WIDTH, WIDE = 1024, 768, 3072
"""A product of the size that language models and crosscoders have here."""
MOVED_BYTES, TIMES = 64 * 2**20, 8
MOST_BESIDE = 15
"""Most processes that work beside the one that measures; more of them take long to start and change little."""


def processor_seconds(run: Callable[[], object]) -> float:
    """Processor time of a call: the least of several, as other processes only add to it."""
    times = []
    for _ in range(TIMES):
        start = time.process_time()
        run()
        times.append(time.process_time() - start)
    return max(min(times), 1e-6)


def product(dtype: torch.dtype) -> Callable[[], torch.Tensor]:
    """A call that multiplies two matrices of a kind of number."""
    x, weights = torch.ones(TOKENS, WIDTH, dtype=dtype), torch.ones(WIDE, WIDTH, dtype=dtype)
    return lambda: torch.nn.functional.linear(x, weights)


def multiply_for_ever(started: multiprocessing.Barrier) -> None:
    """What a process does beside the one that measures, until it is ended."""
    torch.set_num_threads(1)
    multiply = product(torch.float32)
    multiply()
    started.wait()
    while True:
        multiply()


@contextlib.contextmanager
def busy(others: int) -> Iterator[None]:
    """Keep other cores busy; not where a copy of a process may not use the system's libraries, as on macOS."""
    if others < 1 or sys.platform != "linux":
        yield
        return
    context = multiprocessing.get_context("fork")
    started = context.Barrier(others + 1)
    processes = [context.Process(target=multiply_for_ever, args=(started,), daemon=True) for _ in range(others)]
    for process in processes:
        process.start()
    try:
        started.wait(timeout=60)
        yield
    finally:
        for process in processes:
            process.kill()


def measured(cores: int = 1) -> dict[str, float]:
    """Rates of one core while so many work.

    Parameters
    ----------
    cores : int

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
    alone = processor_seconds(product(torch.float32))
    with busy(min(cores - 1, MOST_BESIDE)):
        for name, dtype in (("forward", chosen_dtype("auto", "cpu")), ("products", torch.float32)):
            rates[name] = operations / processor_seconds(product(dtype))
        moved, copy = torch.ones(MOVED_BYTES, dtype=torch.uint8), torch.empty(MOVED_BYTES, dtype=torch.uint8)
        rates["memory"] = 2 * MOVED_BYTES / processor_seconds(lambda: copy.copy_(moved))
    slower = operations / rates["products"] / alone
    return rates | {"start": start * max(1.0, slower)}


if __name__ == "__main__":
    print(json.dumps(measured(int(sys.argv[1]) if sys.argv[1:] else 1)))
