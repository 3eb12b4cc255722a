"""The benchmarks' own sides answer, at a shape that takes no time."""

import pytest
import torch
from benchmarks import race, step, worker


@pytest.mark.parametrize("activation", ["batchtopk", "relu"])
def test_own_sides_take_turns(activation):
    shape = step.PAIR | {"width": 16, "latents": 64, "k": 4, "batch": 32, "activation": activation}
    times, memory = race.race(list(race.OWN), shape, 2)
    assert set(times) == set(race.OWN)
    assert min(times.values()) > 0
    assert min(memory.values()) > 50


def test_rivals_can_be_given_the_faster_product(monkeypatch):
    """Forward and backward, for code that knows nothing of it; gradients are the same up to rounding."""

    def gradients() -> list[torch.Tensor]:
        generator = torch.Generator().manual_seed(0)
        x, encoder, decoder = (torch.randn(*size, generator=generator) for size in ((32, 16), (64, 16), (64, 2, 8)))
        leaves = [encoder.requires_grad_(), decoder.requires_grad_()]
        rebuilt = torch.einsum("tm,msd->tsd", torch.nn.functional.linear(x, encoder, torch.ones(64)).relu(), decoder)
        (x - rebuilt.flatten(1)).square().sum().backward()
        return [leaf.grad for leaf in leaves]

    asked, multiply = [], worker.onednn
    monkeypatch.setattr(worker, "onednn", lambda a, b: asked.append(1) or multiply(a, b))
    plain, library = gradients(), worker.faster_gemm(certainly=True)
    asked.clear()
    try:
        found = gradients()
    finally:
        library._destroy()
    assert len(asked) == 5, "two products forward, three backward"
    for a, b in zip(found, plain, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-3)


def test_a_side_that_cannot_start_says_why():
    with pytest.raises(RuntimeError, match=r"ours: (.|\n)*latents"):
        race.Side("ours", step.PAIR | {"latents": 0})
