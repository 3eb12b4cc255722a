"""The benchmarks' own sides answer, at a shape that takes no time."""

import pytest
from benchmarks import race, step


@pytest.mark.parametrize("activation", ["batchtopk", "relu"])
def test_own_sides_take_turns(activation):
    shape = step.PAIR | {"width": 16, "latents": 64, "k": 4, "batch": 32, "activation": activation}
    times, memory = race.race(list(race.OWN), shape, 2)
    assert set(times) == set(race.OWN)
    assert min(times.values()) > 0
    assert min(memory.values()) > 50


def test_a_side_that_cannot_start_says_why():
    with pytest.raises(RuntimeError, match=r"ours: (.|\n)*latents"):
        race.Side("ours", step.PAIR | {"latents": 0})
