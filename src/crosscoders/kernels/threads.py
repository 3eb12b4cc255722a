"""Work in compiled code by several threads; the library releases Python's lock while it computes."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

Result = TypeVar("Result")


def in_parallel(work: Callable[[int], Result], count: int) -> list[Result]:
    """work(0), …, work(count − 1), by as many threads as torch uses; the results in order."""
    threads = min(torch.get_num_threads(), count)
    if threads == 1:
        return [work(i) for i in range(count)]
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(work, range(count)))
