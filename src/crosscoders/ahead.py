"""Batches made ready by a thread while the step before them runs; on a GPU they already lie there when asked for."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import torch

BATCHES = 2
"""Batches made ready ahead of the step that runs."""


class Ahead:
    """`make(step)` for rising steps, each computed while earlier ones are worked on; to be closed, as by `with`.

    `make` is a pure function of the step, so starting anywhere gives what never stopping would have given. What it raises is
    raised when its step is asked for.
    """

    def __init__(self, make: Callable[[int], torch.Tensor], steps: int, device: str | torch.device = "cpu"):
        self.make, self.steps, self.device = make, steps, torch.device(device)
        self._copies = None if self.device.type == "cpu" else torch.cuda.Stream(self.device)
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="feed")
        self._ready: dict[int, Future[tuple]] = {}

    def __call__(self, step: int) -> torch.Tensor:
        """The batch of a step, (T, D), on the device."""
        for ahead in range(step, min(step + BATCHES + 1, self.steps)):
            if ahead not in self._ready:
                self._ready[ahead] = self._pool.submit(self._on_device, ahead)
        batch, copied = self._ready.pop(step).result()
        if copied is not None:
            computing = torch.cuda.current_stream(self.device)
            computing.wait_event(copied)
            batch.record_stream(computing)  # its memory holds a later batch only after this one was worked on
        return batch

    def _on_device(self, step: int) -> tuple[torch.Tensor, torch.cuda.Event | None]:
        batch = self.make(step)
        if self._copies is None:
            return batch, None
        with torch.cuda.stream(self._copies):  # beside the step that runs
            return batch.pin_memory().to(self.device, non_blocking=True), self._copies.record_event()

    def __enter__(self) -> Ahead:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)
