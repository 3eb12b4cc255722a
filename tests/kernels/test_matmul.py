"""Whichever library multiplies, the products are the same up to rounding; and the choice is not left to noise."""

import itertools

import pytest
import torch

from crosscoders.crosscoder import crosscoder
from crosscoders.kernels import backends, machine, matmul
from crosscoders.training import loop
from crosscoders.training.recipes import CrosscoderRecipe
from crosscoders.training.state import start


@pytest.fixture
def onednn(monkeypatch):
    """All products of float32 by oneDNN."""
    monkeypatch.setattr(matmul, "by_onednn", lambda: True)
    monkeypatch.setattr(matmul, "LARGE", 0)


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("biased", [False, True])
def test_products_equal_those_in_float64(onednn, transposed, biased):
    generator = torch.Generator().manual_seed(0)
    x, weights, bias = (torch.randn(*size, generator=generator) for size in ((37, 50), (91, 50), (91,)))
    if transposed:
        x, weights = x.T.contiguous().T, weights.T.contiguous().T
    found = matmul.linear(x, weights, bias if biased else None)
    exact = x.double() @ weights.double().T + (bias.double() if biased else 0)
    torch.testing.assert_close(found.double(), exact, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("activation", ["relu", "topk"])
def test_training_takes_the_same_way_with_either(member, monkeypatch, activation):
    options = member(activation, **({"penalty": "l1_of_norms", "coefficient": 0.05} if activation == "relu" else {}))
    found, calls = {}, []
    multiply = matmul._onednn
    monkeypatch.setattr(matmul, "_onednn", lambda *given: calls.append(given) or multiply(*given))
    monkeypatch.setattr(matmul, "LARGE", 0)
    for chosen in (False, True):
        monkeypatch.setattr(matmul, "by_onednn", lambda chosen=chosen: chosen)
        state = start(
            crosscoder.create(options, ["base", "chat"], [32, 32], 0), CrosscoderRecipe(options), backends.plain()
        )
        with torch.no_grad():
            for step in range(8):
                x = torch.randn(64, 64, generator=torch.Generator().manual_seed(step))
                loop.step(state, x)
        assert bool(calls) == chosen
        found[chosen] = state.history["loss"]
    assert found[True] == pytest.approx(found[False], rel=1e-4)


@pytest.mark.parametrize(("ratio", "chosen"), [(0.9, False), (1.2, False), (2.0, True)])
def test_onednn_is_chosen_where_it_is_much_faster_once_and_for_all(tmp_path, monkeypatch, ratio, chosen):
    slowed = itertools.cycle([1, 1, 1, 3, 1, 1])  # one measurement in six is disturbed
    times = itertools.cycle([ratio, 1.0])
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(machine, "made_by_intel", lambda: False)
    monkeypatch.setattr(matmul, "_seconds", lambda work: next(times) * next(slowed))
    assert matmul.by_onednn.__wrapped__() == chosen
    monkeypatch.setattr(matmul, "_seconds", lambda work: pytest.fail("measured again"))
    assert matmul.by_onednn.__wrapped__() == chosen
    monkeypatch.setattr(machine, "processor", lambda: "another")  # the cache may serve several machines
    monkeypatch.setattr(matmul, "_seconds", lambda work: 1.0)
    assert not matmul.by_onednn.__wrapped__()


def test_autograd_and_small_products_are_left_to_torch(monkeypatch):
    monkeypatch.setattr(matmul, "by_onednn", lambda: pytest.fail("asked for nothing"))
    x, weights = torch.randn(512, 512, requires_grad=True), torch.randn(512, 512)
    matmul.linear(x, weights).sum().backward()
    assert x.grad is not None
    with torch.no_grad():
        matmul.linear(x[:4], weights)
        matmul.linear(x.double(), weights.double())
