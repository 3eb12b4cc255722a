"""Prefetching: a thread makes batches while earlier steps run, and copies them to the GPU where one computes."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Protocol

import numpy as np
import torch

BATCHES = 2
"""Batches that are prefetched."""
SLOTS = BATCHES + 1
"""Buffers of a ring: one for every prefetched batch, and one for the batch in use."""


class Rows(Protocol):
    """Activations from which batches are made, as :class:`crosscoders.activations.dataset.Activations`."""

    def rows(self, index: np.ndarray) -> torch.Tensor:
        """Normalised activations, (T, D)."""


class Stored(Rows, Protocol):
    """Activations that a GPU can take as they are stored."""

    stored_width: int

    def stored(self, index: np.ndarray, out: torch.Tensor) -> torch.Tensor:
        """`out`, (T, stored_width), bfloat16, filled."""

    def normalise(self, stored: torch.Tensor) -> torch.Tensor:
        """Normalised activations, (T, D), of stored ones, (T, stored_width)."""


class Ring:
    """Stored batches on a GPU, in buffers that are used in turn.

    A batch is gathered into pinned memory, copied on a stream of its own, and normalised on the GPU when it is asked
    for. Half of the bytes of a float32 batch are gathered and sent. Events keep a buffer from being written while it is
    read.
    """

    def __init__(self, data: Stored, tokens: int, device: torch.device):
        self.data, self.device = data, device
        size, pinned = (tokens, data.stored_width), device.type == "cuda"
        self._host = [torch.empty(size, dtype=torch.bfloat16, pin_memory=pinned) for _ in range(SLOTS)]
        self._buffers = [torch.empty(size, dtype=torch.bfloat16, device=device) for _ in range(SLOTS)]
        self._copied, self._read = ([torch.cuda.Event() for _ in range(SLOTS)] for _ in range(2))
        self._copies = torch.cuda.Stream(device)
        for read in self._read:  # earlier users of this memory may still be reading it
            read.record(torch.cuda.current_stream(device))

    def fill(self, step: int, index: np.ndarray) -> int:
        """Start copying a batch and return its slot. The thread calls this for one step after the other."""
        slot = step % SLOTS
        self._copied[slot].synchronize()  # the pinned buffer's last batch has left it
        self.data.stored(index, self._host[slot])
        with torch.cuda.stream(self._copies):
            self._copies.wait_event(self._read[slot])
            self._buffers[slot].copy_(self._host[slot], non_blocking=True)
            self._copied[slot].record(self._copies)
        return slot

    def take(self, slot: int) -> torch.Tensor:
        """The batch in a slot, normalised, (T, D), float32; the slot is free for the next one."""
        computing = torch.cuda.current_stream(self.device)
        computing.wait_event(self._copied[slot])
        batch = self.data.normalise(self._buffers[slot])
        self._read[slot].record(computing)
        return batch


class Prefetch:
    """Gives the batch of every step, for rising steps, and prefetches the next ones; to be closed, as by `with`.

    An error in making a batch is raised when its step is asked for.

    Parameters
    ----------
    data : Rows, or Stored for a GPU
    index : callable
        Tokens of a step, (T,). It is a pure function, so that a resumed training gets the batches of one never stopped.
    steps : int
        Steps in all.
    tokens : int
        T.
    device : str or torch.device
        Where batches will lie.
    """

    def __init__(
        self,
        data: Rows,
        index: Callable[[int], np.ndarray],
        steps: int,
        tokens: int,
        device: str | torch.device = "cpu",
    ):
        self.data, self.index, self.steps = data, index, steps
        device = torch.device(device)
        self._ring = None if device.type == "cpu" else Ring(data, tokens, device)
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="prefetch")
        self._ready: dict[int, Future] = {}

    def __call__(self, step: int) -> torch.Tensor:
        """The batch of a step, (T, D), on the device."""
        for later in range(step, min(step + SLOTS, self.steps)):
            if later not in self._ready:
                self._ready[later] = self._pool.submit(self._make, later)
        made = self._ready.pop(step).result()
        return made if self._ring is None else self._ring.take(made)

    def _make(self, step: int) -> torch.Tensor | int:
        """A batch, or the slot of the ring in which it will lie."""
        if self._ring is None:
            return self.data.rows(self.index(step))
        return self._ring.fill(step, self.index(step))

    def __enter__(self) -> Prefetch:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)
