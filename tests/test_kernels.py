"""Triton kernels equal the plain passes in float64; interpreted on a CPU (conftest.py), compiled where a GPU is found."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("triton", reason="triton is made for Linux")
from crosscoders import crosscoder, gradients, kernels, sparse, training

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
EXACT = {"rtol": 1e-13, "atol": 1e-13}


def drawn(seed: int, tokens: int, latents: int, width: int, k: int):
    """A code of about k pairs per token, in which tokens and latents without a pair occur, and matrices to pass over."""
    generator = torch.Generator().manual_seed(seed)
    scores = torch.rand(tokens, latents, generator=generator, dtype=torch.float64)
    scores[0], scores[:, 0] = 0, 0
    index = (scores > 1 - k / latents).flatten().nonzero()[:, 0]
    code = sparse.from_flat(index, scores.flatten()[index], (tokens, latents))
    code = sparse.Code(code.offsets.to(DEVICE), code.latents.to(DEVICE), code.values.to(DEVICE), code.size)
    rows, weights, bias = (
        torch.randn(*shape, generator=generator, dtype=torch.float64).to(DEVICE)
        for shape in ((tokens, width), (latents, width), (width,))
    )
    return code, rows, weights, bias


@settings(max_examples=8, deadline=None)
@given(
    st.integers(0, 10**6), st.integers(2, 12), st.integers(2, 30), st.sampled_from([1, 7, 512, 700]), st.integers(1, 6)
)
def test_passes_equal_the_plain_ones(seed, tokens, latents, width, k):
    code, rows, weights, bias = drawn(seed, tokens, latents, width, min(k, latents))
    dense, by_latent = code.dense(), sparse.ByLatent(code)
    torch.testing.assert_close(kernels.decode(code, weights, bias), dense @ weights + bias, **EXACT)
    inner = (rows @ weights.T)[code.tokens, code.latents]
    torch.testing.assert_close(kernels.value_gradients(code, rows, weights), inner, **EXACT)
    gradient = dense.T @ rows
    torch.testing.assert_close(kernels.weight_gradient(by_latent, code.values, rows), gradient, **EXACT)
    torch.testing.assert_close(kernels.squared_norm(by_latent, code.values, rows), gradient.square().sum(), **EXACT)


def test_adam_with_the_gradient_inside_follows_adam():
    """Ten clipped steps on the same gradients as torch's Adam."""
    code, _, weights, _ = drawn(0, 12, 20, 600, 4)
    reference = weights.clone().requires_grad_()
    adam = torch.optim.Adam([reference], lr=0.01, betas=(0.9, 0.99), eps=1e-8)
    mean, square = torch.zeros_like(weights), torch.zeros_like(weights)
    by_latent = sparse.ByLatent(code)
    for step in range(1, 11):
        _, rows, _, _ = drawn(step, 12, 20, 600, 4)
        gradient = kernels.RowGradient(by_latent, code.values, rows)
        shrink = (gradient.squared_norm().sqrt() / 5).clamp_min(1)
        kernels.adam_step(weights, mean, square, gradient, step, 0.01, (0.9, 0.99), 1e-8, shrink)
        reference.grad = code.dense().T @ rows / shrink
        adam.step()
    torch.testing.assert_close(weights, reference.detach(), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("activation", "penalty", "auxiliary"), [("batchtopk", "none", 0.0), ("batchtopk", "none", 0.03), ("relu", "l1_of_norms", 0.0)])  # fmt: skip
def test_a_training_is_the_same_with_and_without_kernels(member, monkeypatch, activation, penalty, auxiliary):
    """Eight float64 steps; latents die in the one with AuxK, so that stored and unstored gradients take turns."""
    torch.set_grad_enabled(False)
    monkeypatch.setattr(
        gradients, "DENSE_ABOVE", {"cpu": 1.0, "compiled": 1.0, "cuda": 1.0}
    )  # dense passes would use no kernel
    unstored = []
    step = kernels.adam_step
    monkeypatch.setattr(kernels, "adam_step", lambda *given: (unstored.append(1), step(*given)))
    options = member(
        activation, penalty=penalty, latents=40, k=3, steps=8, auxiliary_coefficient=auxiliary, dead_tokens=40
    )
    found = []
    for kernels_used in (False, True):
        monkeypatch.setattr(sparse, "on_gpu", lambda _, used=kernels_used: used)
        coder = crosscoder.create(options, ["base", "chat"], [9, 9], 0).to(DEVICE)
        for name in ("encoder", "decoder", "encoder_bias", "decoder_bias"):
            setattr(coder, name, getattr(coder, name).double())
        coder.encoder_bias[:20] = -0.5 if auxiliary else 0
        state, weights = training.start(coder, options), torch.ones(18, dtype=torch.float64, device=DEVICE)
        generator = torch.Generator().manual_seed(1)
        for _ in range(8):
            x = torch.randn(16, 18, generator=generator, dtype=torch.float64).to(DEVICE)
            training.step(state, x, options, weights)
        found.append((coder.parameters, state.history["loss"]))
    assert unstored, "no gradient was computed inside of Adam"
    assert found[0][1] == pytest.approx(found[1][1], rel=1e-9)
    for plain, fast in zip(found[0][0], found[1][0], strict=True):
        torch.testing.assert_close(fast, plain, rtol=1e-9, atol=1e-9)
