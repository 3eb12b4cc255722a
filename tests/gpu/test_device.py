"""Training on a GPU computes what it computes on the CPU."""

import pytest
import torch

from crosscoders.crosscoder import crosscoder
from crosscoders.training import loop

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


@pytest.mark.parametrize(("activation", "penalty"), [("batchtopk", "none"), ("topk", "none"), ("relu", "l1_of_norms")])
def test_steps_equal_those_on_the_cpu_in_float64(member, activation, penalty):
    options = member(activation, penalty=penalty, coefficient=0.05)
    found = {}
    for device in ("cpu", "cuda"):
        coder = crosscoder.create(options, ["base", "chat"], [32, 32], 0, torch.float64).to(device)
        state = loop.start(coder, options)
        weights = torch.ones(64, dtype=torch.float64, device=device)
        for step in range(20):
            x = torch.randn(64, 64, generator=torch.Generator().manual_seed(step), dtype=torch.float64)
            loop.step(state, x, options, weights)
        found[device] = [parameter.cpu() for parameter in coder.parameters]
    for a, b in zip(found["cpu"], found["cuda"], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-10)
