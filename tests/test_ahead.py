"""Batches come in the order of the steps, from any step on, made while others are worked on."""

import threading

import pytest
import torch

from crosscoders.ahead import Ahead


def test_batches_are_made_by_another_thread_before_they_are_asked_for():
    made, here = [], threading.get_ident()

    def make(step):
        assert threading.get_ident() != here
        made.append(step)
        return torch.full((2, 3), float(step))

    with Ahead(make, 9) as batch:
        for step in range(4, 9):  # as after an interruption
            assert (batch(step) == step).all()
            if step == 4:
                batch._ready[6].result()
                assert made == [4, 5, 6]
    assert made == [4, 5, 6, 7, 8]


def test_an_error_is_raised_where_its_batch_is_asked_for_and_nothing_keeps_running():
    def make(step):
        if step == 2:
            raise OSError("shard 7 is damaged")
        return torch.zeros(1)

    with Ahead(make, 100) as batch:
        batch(0), batch(1)
        with pytest.raises(OSError, match="shard 7"):
            batch(2)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("feed")]
