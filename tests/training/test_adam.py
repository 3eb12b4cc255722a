"""Adam with moments in 32 or in 16 bits."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from crosscoders.kernels import backends
from crosscoders.kernels.adam_step import adam_numbers, chances, narrowed, seed
from crosscoders.kernels.cpu import ActiveRows
from crosscoders.kernels.cpu_library import library
from crosscoders.training.adam import Adam


def gradients(steps: int, *shapes: tuple[int, ...]) -> list[list[torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    return [[torch.randn(*shape, generator=generator) for shape in shapes] for _ in range(steps)]


def test_moments_in_32_bits_are_those_of_torch():
    """Twenty steps on gradients divided by a number that changes."""
    shapes = (40, 33), (40,)
    own = [torch.ones(*shape) for shape in shapes]
    reference = [weights.clone().requires_grad_() for weights in own]
    adam, fast = torch.optim.Adam(reference, betas=(0.9, 0.99)), Adam(own, (0.9, 0.99), backends.choose())
    for step, found in enumerate(gradients(20, *shapes)):
        for weights, gradient in zip(reference, found, strict=True):
            weights.grad = gradient / (1 + step)
        adam.param_groups[0]["lr"] = 0.01 / (1 + step)
        adam.step()
        fast.step(own, found, 0.01 / (1 + step), 1.0 + step)
    for a, b in zip(own, reference, strict=True):
        torch.testing.assert_close(a, b.detach(), rtol=1e-5, atol=1e-6)


@settings(max_examples=50, deadline=None)
@given(
    st.floats(-(2.0**100), 2.0**100, width=32).filter(lambda value: value == 0 or abs(value) > 1e-30),
    st.integers(0, 10**6),
)
def test_rounding_by_chance_is_to_a_neighbour_and_right_on_average(value, step):
    values = torch.full((4096,), value)
    word = chances(4096, seed(0, step))
    for noise in (word & 0xFFFF, word >> 16):
        found = narrowed(values, noise).float()
        resolution = abs(value) / 128
        assert (found - value).abs().max() <= resolution
        assert len(found.unique()) <= 2
        assert float(found.double().mean()) == pytest.approx(value, abs=5 * 0.5 * resolution / 64)
        exact = found[0].expand(4096)
        assert torch.equal(narrowed(exact, noise).float(), exact), "what bfloat16 can hold stays"


def test_a_second_moment_in_16_bits_goes_on_growing(backend):
    """One thousandth of the gradient's square is added at a time: less than such a number resolves."""
    weights = [torch.zeros(50, 40)]
    adam = Adam(weights, (0.9, 0.999), backend, torch.bfloat16)
    assert adam.square[0].dtype == torch.bfloat16
    for _ in range(1000):
        adam.step(weights, [torch.ones(50, 40)], 1e-3, 1.0)
    assert float(adam.square[0].float().mean()) == pytest.approx(1 - 0.999**1000, rel=0.01)
    assert float(weights[0].mean()) == pytest.approx(-1.0, rel=0.01), "steps of one learning rate each"


@pytest.mark.skipif(library() is None, reason="needs g++ and a processor with AVX2")
@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_the_compiled_step_is_the_plain_one(threads, precision):
    """Rows that fill no register, a third of them without a gradient; gradients are divided by 7."""
    fast, plain = torch.ones(37, 41), torch.ones(37, 41)
    moments = [[torch.zeros(37, 41, dtype=precision) for _ in range(2)] for _ in range(2)]
    torch.set_num_threads(threads)
    for step, (gradient,) in enumerate(gradients(20, (37, 41))):
        options = seed(3, step), adam_numbers(0.01, 7.0, step + 1, (0.9, 0.99))
        active = torch.arange(37) % 3 != step % 3
        written = torch.where(active[:, None], gradient, torch.nan)
        backends.compiled().adam_step(fast, moments[0], ActiveRows(written, active, torch.zeros(1)), *options)
        backends.plain().adam_step(plain, moments[1], gradient * active[:, None], *options)
    torch.testing.assert_close(fast, plain, rtol=0, atol=1e-5)
    for a, b in zip(*moments, strict=True):
        torch.testing.assert_close(a.float(), b.float(), rtol=2**-6 if precision == torch.bfloat16 else 1e-5, atol=1e-6)
        if precision == torch.bfloat16:
            assert (a == b).float().mean() > 0.99, "sums in another order may fall on the other side"
