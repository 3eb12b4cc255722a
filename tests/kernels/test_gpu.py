"""Triton kernels equal the plain passes in float64; interpreted on a CPU (conftest.py), compiled where a GPU is found."""

import dataclasses
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
from crosscoders.crosscoder import aligned, crosscoder
from crosscoders.kernels import backends, gpu, sparse_code
from crosscoders.kernels.adam_step import adam_numbers, seed
from crosscoders.kernels.gpu import SumOfRows
from crosscoders.kernels.plain import PlainBackend
from crosscoders.study.settings.crosscoders import Activation, AlignedSettings
from crosscoders.training import loop
from crosscoders.training.adam import Adam
from crosscoders.training.recipes import AlignedRecipe, CrosscoderRecipe
from crosscoders.training.state import start

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
triton = backends.triton
EXACT = {"rtol": 1e-13, "atol": 1e-13}


def drawn(seed: int, tokens: int, latents: int, width: int, k: int):
    """A code of about k pairs per token, in which tokens and latents without a pair occur, and matrices to pass over."""
    generator = torch.Generator().manual_seed(seed)
    scores = torch.rand(tokens, latents, generator=generator, dtype=torch.float64)
    scores[0], scores[:, 0] = 0, 0
    index = (scores > 1 - k / latents).flatten().nonzero()[:, 0]
    code = sparse_code.from_flat(index, scores.flatten()[index], (tokens, latents))
    code = sparse_code.Code(code.offsets.to(DEVICE), code.latents.to(DEVICE), code.values.to(DEVICE), code.size)
    rows, weights, bias = (
        torch.randn(*shape, generator=generator, dtype=torch.float64).to(DEVICE)
        for shape in ((tokens, width), (latents, width), (width,))
    )
    return code, rows, weights, bias


@settings(max_examples=8, deadline=None)
@given(
    st.integers(0, 10**6), st.integers(2, 12), st.integers(2, 30), st.sampled_from([1, 7, 512, 700]), st.integers(1, 6)
)
def test_kernels_equal_the_plain_ones(seed, tokens, latents, width, k):
    code, rows, weights, bias = drawn(seed, tokens, latents, width, min(k, latents))
    dense, by_latent = code.dense(), sparse_code.ByLatent(code)
    torch.testing.assert_close(triton().decode(code, weights, bias), dense @ weights + bias, **EXACT)
    inner = (rows @ weights.T)[code.tokens, code.latents]
    torch.testing.assert_close(triton().value_gradients(code, rows, weights), inner, **EXACT)
    gradient = dense.T @ rows
    torch.testing.assert_close(triton().weight_gradient(by_latent, code.values, rows).dense(), gradient, **EXACT)
    torch.testing.assert_close(
        triton().weight_gradient(by_latent, code.values, rows).squared_norm(), gradient.square().sum(), **EXACT
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("tokens", "latents", "width"), [(20, 70, 30), (3, 40, 65), (16, 32, 16)])
def test_candidate_pairs_are_those_of_the_whole_product(monkeypatch, dtype, tokens, latents, width):
    """Several blocks and words, the last ones not full; floors near the values, so that rounding would move many."""
    for name, size in (("TOKENS", 16), ("LATENTS", 32), ("COLUMNS", 16), ("WORDS", 2), ("BLOCK", 32)):
        monkeypatch.setattr(gpu, name, size)
    _, x, encoder, _ = drawn(tokens, tokens, latents, width, 3)
    x, encoder, bias = x.to(dtype), encoder.to(dtype), torch.linspace(-1, 1, latents, dtype=dtype, device=DEVICE)
    whole = torch.addmm(bias, x, encoder.T)
    floor = whole.quantile(0.9, dim=0) + 1e-4
    index, values = gpu.pairs_above(x, encoder, bias, floor)
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
    found = [gpu.scaled_rows(rows) for rows in (x, encoder)]
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
    by_latent, clip_factors = sparse_code.ByLatent(code), []
    inside = Adam([weights], (0.9, 0.99), triton(), torch.bfloat16 if narrow else None)
    stored, plain = weights.clone(), [torch.zeros_like(weights, dtype=torch.bfloat16) for _ in range(2)]
    moments = [torch.zeros_like(moment) for moment in plain]
    for step in range(1, 11):
        _, rows, _, _ = drawn(step, 12, 8, 600, 3)
        gradient = SumOfRows(by_latent, code.values, rows)
        clip_factors.append(max(1.0, float(gradient.squared_norm().sqrt()) / 5))
        options = seed(0, step), adam_numbers(0.01, clip_factors[-1], step, (0.9, 0.99))
        triton().adam_step(weights, (inside.mean[0], inside.square[0]), gradient, *options)
        if narrow:
            triton().adam_step(stored, moments, gradient.dense(), *options)
            with torch.no_grad():
                backends.plain().adam_step(reference, plain, gradient.dense(), *options)
            continue
        reference.grad = code.dense().T @ rows / clip_factors[-1]
        adam.step()
    torch.testing.assert_close(weights, reference.detach(), rtol=1e-12, atol=1e-12)
    assert max(clip_factors) > 1, "nothing was clipped"
    if narrow:
        torch.testing.assert_close(stored, weights, rtol=1e-12, atol=1e-12)
        for one, other, third in zip(plain, moments, (inside.mean[0], inside.square[0]), strict=True):
            assert torch.equal(one, other)
            assert torch.equal(one, third)


def counted(monkeypatch) -> set[str]:
    """The names of the backend's own methods that are called from here on."""
    called = set()
    for name in ("adam_step", "reconstruct", "weight_gradient"):
        function = getattr(gpu.TritonBackend, name)
        monkeypatch.setattr(gpu.TritonBackend, name, lambda *given, n=name, f=function: (called.add(n), f(*given))[1])
    found = gpu.pairs_above
    monkeypatch.setattr(gpu, "pairs_above", lambda *given: (called.add("pairs_above"), found(*given))[1])
    return called


def trained(recipe, coder, backend, steps: int = 8) -> tuple[list[torch.Tensor], list[float]]:
    """Parameters and losses of a few float64 steps on a device."""
    state = start(coder, recipe, backend)
    generator = torch.Generator().manual_seed(1)
    for _ in range(steps):
        loop.step(state, torch.randn(16, 18, generator=generator, dtype=torch.float64).to(DEVICE))
    return coder.parameters, state.history["loss"]


def assert_same(plain, fast) -> None:
    assert plain[1] == pytest.approx(fast[1], rel=1e-9)
    for a, b in zip(plain[0], fast[0], strict=True):
        torch.testing.assert_close(b, a, rtol=1e-9, atol=1e-9)


@pytest.mark.usefixtures("small_problems")
@pytest.mark.parametrize(
    ("activation", "penalty", "auxiliary"),
    [("batchtopk", "none", 0.0), ("batchtopk", "none", 0.03), ("relu", "l1_of_norms", 0.0)],
)
def test_a_training_is_the_same_with_and_without_kernels(member, monkeypatch, activation, penalty, auxiliary):
    """Latents die in the one with AuxK, so that stored and unstored gradients take turns."""
    torch.set_grad_enabled(False)
    for kind in (PlainBackend, gpu.TritonBackend):  # dense products would use no kernel
        monkeypatch.setattr(kind, "dense_above", 1.0)
    monkeypatch.setattr(gpu, "SPARSE_BELOW", 0.5)
    called = counted(monkeypatch)
    options = member(
        activation, penalty=penalty, latents=40, k=3, steps=8, auxiliary_coefficient=auxiliary, dead_tokens=40
    )
    found = []
    for backend in (backends.plain(), triton()):
        coder = crosscoder.create(options, ["base", "chat"], [9, 9], 0, torch.float64).to(DEVICE)
        coder.encoder_bias[:20] = -0.5 if auxiliary else 0
        found.append(trained(CrosscoderRecipe(options), coder, backend))
    assert called == {"adam_step", "reconstruct", "weight_gradient", "pairs_above"}
    assert_same(*found)


@pytest.mark.usefixtures("small_problems")
def test_nested_blocks_and_a_loss_on_a_difference_are_the_same_with_and_without_kernels(member, monkeypatch):
    torch.set_grad_enabled(False)
    for kind in (PlainBackend, gpu.TritonBackend):
        monkeypatch.setattr(kind, "dense_above", 1.0)
    monkeypatch.setattr(gpu, "SPARSE_BELOW", 0.5)
    called = counted(monkeypatch)
    blocks = {"first": {"share": 0.4, "k": 1}, "rest": {"share": 0.6, "k": 2}}
    loss = {"nested": ["first", "rest"], "delta": {"of": ["chat", "base"]}}
    options = member(latents=40, k=3, steps=6, blocks=blocks, loss=loss, auxiliary_coefficient=0.0)
    found = []
    for backend in (backends.plain(), triton()):
        coder = crosscoder.create(options, ["base", "chat"], [9, 9], 0, torch.float64).to(DEVICE)
        found.append(trained(CrosscoderRecipe(options), coder, backend, steps=2))
    assert called >= {"adam_step", "weight_gradient", "pairs_above"}
    assert_same(*found)


@pytest.mark.usefixtures("small_problems")
def test_an_aligned_training_is_the_same_with_and_without_kernels(member, monkeypatch):
    torch.set_grad_enabled(False)
    for kind in (PlainBackend, gpu.TritonBackend):
        monkeypatch.setattr(kind, "dense_above", 1.0)
    monkeypatch.setattr(gpu, "SPARSE_BELOW", 0.5)
    called, training = counted(monkeypatch), member(steps=8).training
    options = AlignedSettings(
        latents=40, activation=Activation(kind="batchtopk", k=3), alignment=0.3, training=training
    )
    found = []
    for backend in (backends.plain(), triton()):
        coder = aligned.create(options, ["base", "chat"], [9, 9], 0)
        coder = dataclasses.replace(
            coder,
            encoders=[one.double() for one in coder.encoders],
            encoder_bias=coder.encoder_bias.double(),
            decoder=coder.decoder.double(),
            decoder_bias=coder.decoder_bias.double(),
        ).to(DEVICE)
        found.append(trained(AlignedRecipe(options), coder, backend))
    assert called == {"adam_step", "reconstruct", "weight_gradient", "pairs_above"}
    assert_same(*found)


@pytest.mark.parametrize("capability", [80, 90], ids=["A100", "H100"])
def test_kernels_compile_for_a_gpu_that_is_not_there(capability):
    """As they are called in a step, in both precisions; the encoder's product on tensor cores, next to nothing spilled."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, str(Path(__file__).with_name("compile_kernels.py")), str(capability)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout)
    launched = {name for name, value in vars(gpu).items() if hasattr(value, "arg_names")}
    inlined = {"_row", "_product", "_highest", "_widened", "_narrowed", "_chances"}
    assert set(found) == launched - inlined
    assert found["_candidates"]["tensor_cores"]
    assert max(kernel["spilled"] for kernel in found.values()) <= 64
