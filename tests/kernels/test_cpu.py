"""Passes in C++ equal the plain ones; skipped where they cannot be compiled."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from crosscoders.kernels import cpu, cpu_library, sparse_code
from crosscoders.kernels.backends import compiled
from crosscoders.kernels.cpu_library import library

pytestmark = [
    pytest.mark.skipif(library() is None, reason="needs g++ and a processor with AVX2"),
    pytest.mark.usefixtures("small_problems"),
]


def drawn(seed: int, tokens: int, width: int, latents: int, dtype=torch.float64):
    """Activations with columns of very different sizes, as models have them, an encoder, biases."""
    generator = torch.Generator().manual_seed(seed)
    sizes = torch.randn(width, generator=generator, dtype=torch.float64).mul(1.5).exp()
    x = torch.randn(tokens, width, generator=generator, dtype=torch.float64) * sizes
    encoder = torch.randn(latents, width, generator=generator, dtype=torch.float64)
    bias = torch.randn(latents, generator=generator, dtype=torch.float64)
    return x.to(dtype), encoder.to(dtype), bias.to(dtype)


@pytest.mark.parametrize("kind", ["equal", "signs", "zero_or_one", "one_spike"])
def test_rows_that_fill_the_steps_neither_overflow_nor_are_lost(kind):
    """Sums as large as they can be, errors that could all point the same way, latents that look like tokens."""
    generator = torch.Generator().manual_seed(0)
    x = torch.ones(40, 1152)
    if kind == "signs":
        x = torch.randint(2, x.shape, generator=generator) * 2.0 - 1
    elif kind == "zero_or_one":
        x = (torch.rand(x.shape, generator=generator) < 0.3).float()
    elif kind == "one_spike":
        x = 0.3 * x
        x[torch.arange(40), torch.randint(1152, (40,), generator=generator)] = 100.0
    encoder = torch.cat([x, -x, torch.randn(300, 1152, generator=generator)])
    whole = x @ encoder.T
    for floor in (0.999 * whole.diagonal().min(), whole.diagonal().mean() / 2):
        floors = floor.expand(len(encoder)).contiguous()
        index, values = compiled().candidates(x, encoder, torch.zeros(len(encoder)), floors)
        np.testing.assert_array_equal(index.numpy(), np.flatnonzero(whole > floor))
        torch.testing.assert_close(values, whole.flatten()[index], rtol=1e-5, atol=1e-5)


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 10**6),
    st.integers(1, 40),
    st.sampled_from([1, 3, 16, 63, 64, 65, 200]),
    st.integers(1, 300),
    st.floats(0.001, 0.45),
    st.integers(1, 3),
    st.sampled_from([0.0, 1.0, 1e6]),
)
def test_candidate_pairs_are_those_of_the_whole_product(seed, tokens, width, latents, share, threads, offset):
    x, encoder, bias = drawn(seed, tokens, width, latents)
    bias = offset * bias
    whole = torch.addmm(bias, x, encoder.T)
    aside = 1e-9 * whole.abs().max()  # a floor on a value would leave it to rounding which is above
    floor = whole.quantile(1 - share) + 0.1 * bias + aside
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        found = compiled().candidates(x, encoder, bias, floor)
    finally:
        torch.set_num_threads(before)
    wanted = np.flatnonzero((whole > floor).numpy())
    if found is None:  # many more than expected lie above
        assert len(wanted) > 0.2 * whole.numel()
        return
    index, values = found
    np.testing.assert_array_equal(index.numpy(), wanted)
    torch.testing.assert_close(values, whole.flatten()[index], rtol=1e-12, atol=1e-12)


def test_one_compilation_serves_all_jobs_and_a_foreign_file_is_not_taken(tmp_path, monkeypatch):
    """Two jobs that start at once leave one complete file; another source or processor asks for another."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    compiler = cpu_library.compiler()
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(lambda _: cpu_library.built(compiler, "a"), range(2))
    assert first == second
    assert [path.name for path in (tmp_path / "crosscoders").iterdir()] == ["kernels-a.so"]
    cpu_library.opened(first)
    before = first.stat().st_mtime_ns
    assert cpu_library.built(compiler, "a").stat().st_mtime_ns == before
    assert cpu_library.built(compiler, "b") != first


@pytest.mark.parametrize("tokens", [50, 2000, 4000])
def test_kernels_by_columns_are_those_by_rows_however_many_tokens(monkeypatch, tokens):
    """With many tokens fewer columns fit in the cache: every number of registers is taken."""
    x, decoder, bias = drawn(0, tokens, 77, 40)
    generator = torch.Generator().manual_seed(1)
    dense = torch.rand(tokens, 40, generator=generator, dtype=torch.float64)
    dense[:, [0, 7, 39]] = 0  # latents without a pair
    code = sparse_code.of_dense(dense * (dense > 0.9))
    by_latent, weights = sparse_code.ByLatent(code), torch.rand(77, generator=generator, dtype=torch.float64)
    monkeypatch.setattr(cpu, "second_cache", lambda: library().register_bytes() << 14)
    assert cpu.column_chunks(x).registers == {50: 8, 2000: 4, 4000: 2}[tokens]
    found = []
    for least in (0, 10**9):
        monkeypatch.setattr(cpu, "RECONSTRUCTED_BY_COLUMNS_FROM", dict.fromkeys((8, 4, 2), least))
        found.append(compiled().reconstruct(code, by_latent, x, decoder, bias[:1].expand(77), weights))
    error = x - code.dense() @ decoder - bias[0]
    gradient = -2 / tokens * weights * error
    expected = error, gradient, (gradient @ decoder.T)[code.tokens, code.latents]
    for way in found:
        for a, b in zip(way, expected, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-12)
    expected = code.dense().T @ x
    torch.testing.assert_close(compiled().weight_gradient(by_latent, code.values, x), expected, rtol=1e-11, atol=1e-11)
    short = sparse_code.Code(code.offsets, code.latents, code.values.float(), code.size)
    by_columns = compiled().weight_gradient(sparse_code.ByLatent(short), short.values, x.float())
    by_columns.values[~by_columns.active] = torch.nan  # they need not have been written
    assert float(by_columns.squared_norm()) == pytest.approx(float(expected.square().sum()), rel=1e-5)
    scale = float(expected.abs().max())
    torch.testing.assert_close(by_columns.dense().double(), expected, rtol=1e-4, atol=1e-6 * scale)
