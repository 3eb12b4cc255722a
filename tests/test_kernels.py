"""Triton kernels equal the plain passes in float64; interpreted on a CPU (conftest.py), compiled where a GPU is found."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("triton", reason="triton is made for Linux")
from crosscoders import crosscoder, gradients, kernels, native, optimizer, sparse, training

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


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("tokens", "latents", "width"), [(20, 70, 30), (3, 40, 65), (16, 32, 16)])
def test_pairs_above_a_floor_are_those_of_the_whole_product(monkeypatch, dtype, tokens, latents, width):
    """Several blocks and words, the last ones not full; floors near the values, so that rounding would move many."""
    for name, size in (("TOKENS", 16), ("LATENTS", 32), ("COLUMNS", 16), ("WORDS", 2), ("BLOCK", 32)):
        monkeypatch.setattr(kernels, name, size)
    _, x, encoder, _ = drawn(tokens, tokens, latents, width, 3)
    x, encoder, bias = x.to(dtype), encoder.to(dtype), torch.linspace(-1, 1, latents, dtype=dtype, device=DEVICE)
    whole = torch.addmm(bias, x, encoder.T)
    floor = whole.quantile(0.9, dim=0) + 1e-4
    index, values = kernels.above(x, encoder, bias, floor)
    assert torch.equal(index, (whole > floor).flatten().nonzero()[:, 0])
    error = 1e-13 if dtype == torch.float64 else 1e-5
    torch.testing.assert_close(values, whole.flatten()[index], rtol=error, atol=error)


def test_what_rounding_may_get_wrong_is_bounded():
    """Rows of very different sizes: the products of rounded rows err by less than the bound, which they come near."""
    _, x, encoder, _ = drawn(1, 12, 16, 40, 3)
    x *= torch.logspace(-6, 3, 12, dtype=torch.float64, device=DEVICE)[:, None]
    x[0], encoder[0] = 0.3, 0.3  # every product errs the same way
    x[0, 0] = encoder[0, 0] = 1
    x[1] = 0
    found = [kernels.rounded(rows) for rows in (x, encoder)]
    a, b = (short.double() * step[:, None] for short, step, _, _ in found)
    (_, _, norm, rest), (_, _, other_norm, other_rest) = found
    error = (x @ encoder.T - a @ b.T).abs()
    bound = rest[:, None] * other_norm + (norm + rest)[:, None] * other_rest
    assert (error <= bound).all()
    assert error[0, 0] > 0.7 * bound[0, 0]
    torch.testing.assert_close(a, x, rtol=2**-11, atol=2**-24 * float(x.abs().max()))


@pytest.mark.parametrize("narrow", [False, True])
def test_adam_with_the_gradient_inside_follows_adam(narrow):
    """Ten clipped steps on the same gradients as torch's Adam, or as the plain one with moments in bfloat16."""
    code, _, weights, _ = drawn(0, 12, 8, 600, 3)
    reference = weights.clone().requires_grad_()
    adam = torch.optim.Adam([reference], lr=0.01, betas=(0.9, 0.99), eps=1e-8)
    by_latent, shrinks = sparse.ByLatent(code), []
    inside = optimizer.Adam([weights], (0.9, 0.99), torch.bfloat16 if narrow else None)
    stored, plain = weights.clone(), [torch.zeros_like(weights, dtype=torch.bfloat16) for _ in range(2)]
    moments = [torch.zeros_like(moment) for moment in plain]
    for step in range(1, 11):
        _, rows, _, _ = drawn(step, 12, 8, 600, 3)
        gradient = kernels.RowGradient(by_latent, code.values, rows)
        shrinks.append(max(1.0, float(gradient.squared_norm().sqrt()) / 5))
        inside.steps += 1
        options = optimizer.seed(0, step), inside.options(0.01, shrinks[-1])
        kernels.adam_step(weights, inside.mean[0], inside.square[0], gradient, *options)
        if narrow:
            kernels.adam_step(stored, *moments, gradient.dense(), *options)
            with torch.no_grad():
                optimizer.plain_step(reference, *plain, gradient.dense(), *options)
            continue
        reference.grad = code.dense().T @ rows / shrinks[-1]
        adam.step()
    torch.testing.assert_close(weights, reference.detach(), rtol=1e-12, atol=1e-12)
    assert max(shrinks) > 1, "nothing was clipped"
    if narrow:
        torch.testing.assert_close(stored, weights, rtol=1e-12, atol=1e-12)
        for one, other, third in zip(plain, moments, (inside.mean[0], inside.square[0]), strict=True):
            assert torch.equal(one, other)
            assert torch.equal(one, third)


@pytest.mark.parametrize(("activation", "penalty", "auxiliary"), [("batchtopk", "none", 0.0), ("batchtopk", "none", 0.03), ("relu", "l1_of_norms", 0.0)])  # fmt: skip
def test_a_training_is_the_same_with_and_without_kernels(member, monkeypatch, activation, penalty, auxiliary):
    """Eight float64 steps; latents die in the one with AuxK, so that stored and unstored gradients take turns."""
    torch.set_grad_enabled(False)
    monkeypatch.setattr(
        gradients, "DENSE_ABOVE", {"cpu": 1.0, "compiled": 1.0, "cuda": 1.0}
    )  # dense passes would use no kernel
    for name, value in (("WORTHWHILE", 0), ("FEW_TOKENS", 1), ("sparse_below", lambda x: 0.5)):
        monkeypatch.setattr(native, name, value)  # small problems go the way of large ones
    called = set()
    for name in ("adam_step", "above"):
        function = getattr(kernels, name)
        monkeypatch.setattr(kernels, name, lambda *given, n=name, f=function: (called.add(n), f(*given))[1])
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
    assert called == {"adam_step", "above"}
    assert found[0][1] == pytest.approx(found[1][1], rel=1e-9)
    for plain, fast in zip(found[0][0], found[1][0], strict=True):
        torch.testing.assert_close(fast, plain, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("capability", [80, 90], ids=["A100", "H100"])
def test_kernels_compile_for_a_gpu_that_is_not_there(capability):
    """As they are called in a step, in both precisions; the encoder's product on tensor cores, next to nothing spilled."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, str(Path(__file__).with_name("compile_kernels.py")), str(capability)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout)
    launched = {name for name, value in vars(kernels).items() if hasattr(value, "arg_names")}
    inlined = {"_row", "_widened", "_narrowed", "_chances"}
    assert set(found) == launched - inlined
    assert found["_candidates"]["tensor_cores"]
    assert max(kernel["spilled"] for kernel in found.values()) <= 64
