"""Stage measure_similarity: how alike the representations of all sources are, before any crosscoder.

It measures linear CKA, debiased (Kornblith et al. 2019, with the unbiased HSIC of Song et al. 2012), and SVCCA with 99%
of the variance kept (Raghu et al. 2017), from sums over tokens: no tokens × tokens matrix is made. Both say whether
representations agree; a crosscoder says how they differ.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import xarray as xr
from scipy.special import stdtrit

from crosscoders import artifacts, stage
from crosscoders.activations.dataset import Activations
from crosscoders.activations.sections import MeasureSimilaritySection
from crosscoders.activations.shuffle import consecutive

BATCH = 2048
GROUPS = 8
"""Groups of documents, of which the intervals leave out each once (jackknife).

A bootstrap would draw tokens twice, and each of these would be its own neighbour.
"""
KEPT_VARIANCE = 0.99


@dataclass
class Sums:
    """Sums over n tokens of all sources side by side, D columns, S sources; they add up.

    total (D,) Σ x; products (D, D) Σ x xᵀ; norms (S, S) Σ ‖x_s‖²‖x_t‖²; weighted (D, S) Σ x ‖x_t‖²; squares (S,)
    Σ ‖x_s‖².
    """

    tokens: float
    total: np.ndarray
    products: np.ndarray
    norms: np.ndarray
    weighted: np.ndarray
    squares: np.ndarray

    def __add__(self, other: Sums) -> Sums:
        return Sums(*(a + b for a, b in zip(vars(self).values(), vars(other).values(), strict=True)))

    def __sub__(self, other: Sums) -> Sums:
        return Sums(*(a - b for a, b in zip(vars(self).values(), vars(other).values(), strict=True)))


def sums_of(x: np.ndarray, columns: list[slice]) -> Sums:
    """Sums over the rows of x, (tokens, D), float64."""
    lengths = np.stack([np.square(x[:, part]).sum(1) for part in columns], axis=1)
    return Sums(len(x), x.sum(0), x.T @ x, lengths.T @ lengths, x.T @ lengths, lengths.sum(0))


def hsic(sums: Sums, columns: list[slice]) -> np.ndarray:
    """Unbiased HSIC of linear kernels for all pairs of sources, (S, S), times n (n − 3).

    With K̃ the kernel without its diagonal: tr(K̃L̃) + 1ᵀK̃1 1ᵀL̃1 / ((n − 1)(n − 2)) − 2/(n − 2) 1ᵀK̃L̃1.
    """
    n, count = sums.tokens, len(columns)
    estimates = np.empty((count, count))
    whole = np.array([np.square(sums.total[part]).sum() for part in columns]) - sums.squares
    for s, a in enumerate(columns):
        for t, b in enumerate(columns):
            cross = sums.products[a, b]
            trace = np.square(cross).sum() - sums.norms[s, t]
            rows = sums.total[a] @ cross @ sums.total[b] - sums.total[a] @ sums.weighted[a, t]
            rows += sums.norms[s, t] - sums.total[b] @ sums.weighted[b, s]
            estimates[s, t] = trace + whole[s] * whole[t] / ((n - 1) * (n - 2)) - 2 / (n - 2) * rows
    return estimates


def cka(sums: Sums, columns: list[slice]) -> np.ndarray:
    """Debiased linear CKA, (S, S); near 0, and sometimes below, for unrelated sources."""
    covariances = hsic(sums, columns)
    scale = np.sqrt(np.diag(covariances))
    return covariances / np.outer(scale, scale)


def svcca(sums: Sums, columns: list[slice]) -> tuple[np.ndarray, np.ndarray]:
    """Mean canonical correlation of the leading directions, (S, S), and how many directions are kept, (S,)."""
    mean = sums.total / sums.tokens
    covariance = sums.products / sums.tokens - np.outer(mean, mean)
    whitened = []
    for part in columns:
        values, vectors = np.linalg.eigh(covariance[part, part])
        values, vectors = values[::-1], vectors[:, ::-1]
        kept = 1 + int(np.searchsorted(np.cumsum(values), KEPT_VARIANCE * values.sum()))
        whitened.append(vectors[:, :kept] / np.sqrt(values[:kept]))
    correlations = np.empty((len(columns), len(columns)))
    for s, a in enumerate(columns):
        for t, b in enumerate(columns):
            inner = whitened[s].T @ covariance[a, b] @ whitened[t]
            correlations[s, t] = np.linalg.svd(inner, compute_uv=False).clip(max=1).mean()
    return correlations, np.array([part.shape[1] for part in whitened])


def jackknife(parts: list[Sums], measure, confidence: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A measure of all parts together and both ends of its interval, from leaving out each part once."""
    whole = sum(parts[1:], parts[0])
    estimate = measure(whole)
    left_out = np.stack([measure(whole - part) for part in parts])
    count = len(parts)
    error = np.sqrt((count - 1) / count * np.square(left_out - left_out.mean(0)).sum(0))
    half = stdtrit(count - 1, 0.5 + confidence / 2) * error
    return estimate, estimate - half, np.minimum(estimate + half, 1.0)


def grouped_sums(data: Activations, columns: list[slice]) -> list[Sums]:
    """Sums of GROUPS groups of documents, to which documents are dealt out in turn."""
    document = consecutive(data.metadata["document"].values)
    parts: list[Sums] = []
    for group in range(min(GROUPS, int(document[-1]) + 1)):
        rows = np.flatnonzero(document % GROUPS == group)
        pieces = [
            sums_of(data.rows(rows[i : i + BATCH]).numpy().astype(np.float64), columns)
            for i in range(0, len(rows), BATCH)
        ]
        parts.append(sum(pieces[1:], pieces[0]))
    return parts


def to_dataset(sources: list[str], parts: list[Sums], columns: list[slice], confidence: float) -> xr.Dataset:
    """Both measures with their intervals."""
    v, dims = artifacts.variable, ("source", "other_source")
    dataset = xr.Dataset()
    for name, label, measure in (
        ("cka", "linear CKA, debiased", lambda sums: cka(sums, columns)),
        ("svcca", "mean canonical correlation, 99% of the variance kept", lambda sums: svcca(sums, columns)[0]),
    ):
        estimate, low, high = jackknife(parts, measure, confidence)
        dataset[name] = v(dims, estimate, label)
        dataset[f"{name}_low"] = v(dims, low, "lower end of its interval over documents (jackknife)")
        dataset[f"{name}_high"] = v(dims, high, "upper end of its interval over documents (jackknife)")
    kept = svcca(sum(parts[1:], parts[0]), columns)[1]
    dataset["svcca_directions"] = v("source", kept, "directions that hold 99% of the variance")
    names = np.array(sources, dtype=object)
    return dataset.assign_coords(source=names, other_source=names)


def main(arguments) -> None:
    """Measure one setting on its test documents."""
    section: MeasureSimilaritySection = arguments.settings
    data = Activations(arguments.activations, artifacts.read(arguments.normalisation))
    edges = np.cumsum([0, *data.widths]).tolist()
    columns = [slice(a, b) for a, b in zip(edges, edges[1:], strict=False)]
    dataset = to_dataset(data.sources, grouped_sums(data, columns), columns, section.confidence)
    dataset.attrs = section.provenance()
    artifacts.write(
        dataset.assign_attrs(title=f"similarity of the sources of {section.setting_name}"), arguments.output
    )
    stage.say(f"measure_similarity: CKA of {data.sources[0]} and {data.sources[-1]} {float(dataset['cka'][0, -1]):.3f}")


if __name__ == "__main__":
    flags = ("normalisation", "output")
    stage.run(main, stage.parser(MeasureSimilaritySection, __doc__, *flags, lists=("activations",)).parse_args())
