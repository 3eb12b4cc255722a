"""CKA and SVCCA from streamed sums equal the textbook definitions, and their intervals cover."""

import numpy as np
import pytest

from crosscoders.activations import measure_similarity

COLUMNS = [slice(0, 6), slice(6, 15), slice(15, 21)]


def sources(tokens: int, seed: int = 0) -> np.ndarray:
    """Three sources: the second turns and mixes the first, the third has nothing to do with either."""
    generator = np.random.default_rng(seed)
    first = generator.normal(size=(tokens, 6)) * [4, 3, 2, 1, 1, 0.5]
    second = first @ generator.normal(size=(6, 9)) + 0.5 * generator.normal(size=(tokens, 9))
    return np.concatenate([first, second, generator.normal(size=(tokens, 6))], axis=1) + 3


def streamed(x: np.ndarray) -> measure_similarity.Sums:
    parts = [measure_similarity.sums_of(part, COLUMNS) for part in np.array_split(x, 5)]
    return sum(parts[1:], parts[0])


def gram_cka(x: np.ndarray, y: np.ndarray) -> float:
    """The unbiased estimator by its definition, with tokens × tokens matrices."""

    def hsic(k: np.ndarray, m: np.ndarray) -> float:
        n, ones = len(k), np.ones(len(k))
        k, m = k - np.diag(np.diag(k)), m - np.diag(np.diag(m))
        middle = (ones @ k @ ones) * (ones @ m @ ones) / ((n - 1) * (n - 2))
        return (np.trace(k @ m) + middle - 2 / (n - 2) * (ones @ k @ m @ ones)) / (n * (n - 3))

    a, b = x @ x.T, y @ y.T
    return hsic(a, b) / np.sqrt(hsic(a, a) * hsic(b, b))


def direct_svcca(x: np.ndarray, y: np.ndarray) -> float:
    """Singular vectors of each source, then the cosines of the principal angles between them."""
    bases = []
    for part in (x, y):
        u, s, _ = np.linalg.svd(part - part.mean(0), full_matrices=False)
        bases.append(u[:, : 1 + int(np.searchsorted(np.cumsum(s**2), 0.99 * (s**2).sum()))])
    return np.linalg.svd(bases[0].T @ bases[1], compute_uv=False).mean()


def test_streamed_sums_give_the_textbook_values():
    x = sources(150)
    sums = streamed(x)
    cka, (svcca, kept) = measure_similarity.cka(sums, COLUMNS), measure_similarity.svcca(sums, COLUMNS)
    for s, a in enumerate(COLUMNS):
        for t, b in enumerate(COLUMNS):
            assert cka[s, t] == pytest.approx(gram_cka(x[:, a], x[:, b]), abs=1e-6)
            assert svcca[s, t] == pytest.approx(direct_svcca(x[:, a], x[:, b]), abs=1e-6)
    assert kept[0] <= 6


def test_unrelated_sources_are_at_zero_and_a_source_is_itself():
    values = np.stack([measure_similarity.cka(streamed(sources(200, seed)), COLUMNS) for seed in range(20)])
    assert abs(values[:, 0, 2].mean()) < 0.01, "debiased: no similarity out of few tokens"
    np.testing.assert_allclose(values[:, [0, 1, 2], [0, 1, 2]], 1)


def test_rotation_and_scale_of_a_source_change_nothing():
    x = sources(120)
    turned = x.copy()
    turned[:, COLUMNS[0]] = 7 * x[:, COLUMNS[0]] @ np.linalg.qr(np.random.default_rng(3).normal(size=(6, 6))).Q
    for measure in (measure_similarity.cka, lambda sums, columns: measure_similarity.svcca(sums, columns)[0]):
        np.testing.assert_allclose(measure(streamed(turned), COLUMNS), measure(streamed(x), COLUMNS), atol=1e-9)


def test_the_interval_covers_the_value_of_the_population():
    population = sources(40_000, 99)
    truth = measure_similarity.cka(streamed(population), COLUMNS)[0, 1]

    def covers(seed: int) -> bool:
        rows = np.random.default_rng(seed).integers(0, len(population), 400)
        parts = [measure_similarity.sums_of(part, COLUMNS) for part in np.array_split(population[rows], 8)]
        _, low, high = measure_similarity.jackknife(parts, lambda sums: measure_similarity.cka(sums, COLUMNS), 0.95)
        return low[0, 1] <= truth <= high[0, 1]

    assert sum(covers(seed) for seed in range(200)) >= 180
