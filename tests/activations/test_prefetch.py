"""Batches come in the order of the steps, from any step on, made while others are worked on."""

import contextlib
import threading

import numpy as np
import pytest
import torch

from crosscoders.activations import prefetch
from crosscoders.activations.prefetch import SLOTS, Prefetch


class Numbers:
    """Activations that are the numbers of their tokens."""

    stored_width = 3

    def __init__(self):
        self.made, self.here = [], threading.get_ident()

    def rows(self, index):
        if 20 in index:
            raise OSError("shard 7 is damaged")
        assert threading.get_ident() != self.here
        self.made.append(index[0] // 2)
        return torch.from_numpy(index).float()[:, None].expand(-1, 3)

    def stored(self, index, out):
        return out.copy_(self.rows(index))

    def normalise(self, stored):
        return stored.float() / 2


def tokens(step):
    return np.array([2 * step, 2 * step + 1])


def test_batches_are_made_by_another_thread_before_they_are_asked_for():
    data = Numbers()
    with Prefetch(data, tokens, 9, 2) as batch:
        for step in range(4, 9):  # as after an interruption
            assert batch(step)[:, 0].tolist() == [2 * step, 2 * step + 1]
            if step == 4:
                batch._ready[6].result()
                assert data.made == [4, 5, 6]
    assert data.made == [4, 5, 6, 7, 8]


def test_an_error_is_raised_where_its_batch_is_asked_for_and_nothing_keeps_running():
    with Prefetch(Numbers(), tokens, 100, 2) as batch:
        batch(8), batch(9)
        with pytest.raises(OSError, match="shard 7"):
            batch(10)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("feed")]


class Stream:
    """Stands for a stream of a GPU; waiting says how often the event had been recorded by then."""

    def __init__(self, device=None):
        self.waited = []

    def wait_event(self, event):
        self.waited.append((event, event.recorded))


class Event:
    """Stands for an event: what is recorded so far."""

    def __init__(self):
        self.recorded, self.synchronized = 0, []

    def record(self, stream):
        self.recorded += 1

    def synchronize(self):
        self.synchronized.append(self.recorded)


def test_a_buffer_of_the_ring_is_written_after_its_last_batch_was_sent_and_read(monkeypatch):
    computing, first, last = Stream(), 5, 17
    for name, stand_in in {"Stream": Stream, "Event": Event, "stream": contextlib.nullcontext}.items():
        monkeypatch.setattr(torch.cuda, name, stand_in)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: computing)
    data = Numbers()
    data.rows = lambda index: torch.from_numpy(index).float()[:, None].expand(-1, 3)
    with Prefetch(data, tokens, last, 2) as batch:
        batch._ring = ring = prefetch.Ring(data, 2, torch.device("cpu"))
        for step in range(first, last):
            assert batch(step)[:, 0].tolist() == [step, step + 0.5]
    rounds = (last - first) // SLOTS
    for slot in range(SLOTS):
        copied, read = ring._copied[slot], ring._read[slot]
        assert copied.synchronized == list(range(rounds)), "gathered when all batches before had left the pinned buffer"
        assert [n for event, n in ring._copies.waited if event is read] == list(range(1, rounds + 1)), (
            "sent when all were read"
        )
        assert [n for event, n in computing.waited if event is copied] == list(range(1, rounds + 1)), (
            "read when it had come"
        )
