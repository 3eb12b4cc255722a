"""A graph of SAE latents before and after a crosscoder or a control collapses it, at one variance explained."""

from __future__ import annotations

import numpy as np
import torch
import xarray as xr
from scipy.sparse import csr_array

from crosscoders import artifacts
from crosscoders.analysis import bootstrap
from crosscoders.crosscoder.crosscoder import Crosscoder
from crosscoders.crosscoder.encode import decode_sparse, encode_sparse
from crosscoders.interventions import collapse
from crosscoders.interventions.collapse import Layer
from crosscoders.kernels import sparse_code
from crosscoders.study.settings.analysis import Bootstrap
from crosscoders.study.settings.comparisons import Circuits

BATCH = 2048
PER_TOKEN = ("nodes", "edges", "identity", "attribution")
THRESHOLD_STEPS = 12
"""Steps of the bisection that raises a threshold."""
HIGHEST = 8.0
"""Highest raised threshold that is tried, as a multiple of the median score."""


def active(coder: Crosscoder, x: torch.Tensor) -> csr_array:
    """The code at inference of normalised activations, (tokens, D), as a sparse (tokens, m)."""
    parts = [encode_sparse(coder, rows).dense() for rows in x.split(BATCH)]
    code = sparse_code.of_dense(torch.cat(parts))
    return csr_array((code.values.numpy(), code.latents.numpy(), code.offsets.numpy()), shape=code.size)


def above(coder: Crosscoder, code: csr_array, threshold: float) -> csr_array:
    """The entries whose score exceeds a threshold."""
    norms = coder.decoder_norms().sum(1).numpy()
    kept = code.copy()
    kept.data = np.where(kept.data * norms[kept.indices] > threshold, kept.data, 0)
    kept.eliminate_zeros()
    return kept


def explained(coder: Crosscoder, code: csr_array, x: torch.Tensor) -> np.ndarray:
    """Fraction of variance explained of every source."""
    offsets, latents = (torch.from_numpy(part.astype(np.int64)) for part in (code.indptr, code.indices))
    pairs = sparse_code.Code(offsets, latents, torch.from_numpy(code.data), code.shape)
    error = (x - decode_sparse(pairs, coder.decoder, coder.decoder_bias)).square().sum(0)
    variance = (x - x.mean(0)).square().sum(0)
    return np.array([1 - float(error[part].sum() / variance[part].sum()) for part in coder.columns])


def lowered(coder: Crosscoder, code: csr_array, x: torch.Tensor, wanted: float) -> csr_array:
    """The entries above a raised threshold, at which the mean fraction of variance explained falls to `wanted`.

    Thresholds are only raised: the entries below the fitted one were not trained to be used.
    """
    if explained(coder, code, x).mean() <= wanted:
        return code
    scores = code.data * coder.decoder_norms().sum(1).numpy()[code.indices]
    low, high = float(scores.min()), HIGHEST * float(np.median(scores))
    for _ in range(THRESHOLD_STEPS):
        middle = (low + high) / 2
        better = explained(coder, above(coder, code, middle), x).mean() > wanted
        low, high = (middle, high) if better else (low, middle)
    return above(coder, code, low)


def layers_of(coder: Crosscoder, code: csr_array, scales: np.ndarray) -> list[Layer]:
    """The latents of every source of SAEs, in the unit of raw activations."""
    layers = []
    for s, part in enumerate(coder.columns):
        rows = coder.writes[:, s].numpy()
        encoder, decoder = (weights[rows][:, part].numpy() for weights in (coder.encoder, coder.decoder))
        layers.append(Layer(code[:, np.flatnonzero(rows)].tocsr(), encoder / scales[s], decoder * scales[s]))
    return layers


def collapses(
    layers: list[Layer], coder: Crosscoder, code: csr_array, options: Circuits
) -> dict[str, list[np.ndarray]]:
    """Labels of every way to collapse latents, (m_s,) per source.

    `none` leaves each latent its own node; `crosscoder` and `clustering` collapse by the crosscoder and by chains of
    best partners; `shuffled tokens` collapses by the crosscoder after the tokens of every source are shuffled. All are
    applied to one graph, that of the tokens as they are.
    """
    limits = (options.least_cosine, options.least_correlation)
    decoders = [coder.decoder[:, part].numpy() for part in coder.columns]
    generator = np.random.default_rng(options.seed)
    shuffled = [layer.shuffled(generator) for layer in layers]
    return {
        "none": [np.full(layer.decoder.shape[0], -1) for layer in layers],
        "crosscoder": collapse.by_crosscoder(layers, code, decoders, *limits),
        "clustering": collapse.by_clustering(layers, *limits),
        "shuffled tokens": collapse.by_crosscoder(shuffled, code, decoders, *limits),
    }


def graph_dataset(
    layers: list[Layer], labels: dict[str, list[np.ndarray]], document: np.ndarray, options: Bootstrap
) -> xr.Dataset:
    """Nodes and edges per token and identity share of every collapse, with intervals over documents."""
    documents = int(document.max()) + 1
    weights = bootstrap.resamples(documents, options.bootstrap_replicates, options.seed)
    tokens = np.bincount(document, minlength=documents)[:, None].astype(float)
    graph, sums = collapse.edges(layers), np.empty((documents, len(labels), len(PER_TOKEN)))
    for c, collapsed in enumerate(labels.values()):
        measured = collapse.measure(layers, graph, collapsed)
        for p, name in enumerate(PER_TOKEN):
            sums[:, c, p] = np.bincount(document, measured[name], documents)
    v, dataset = artifacts.variable, xr.Dataset()
    estimates = {
        "nodes_per_token": (sums[..., 0], tokens, "active nodes per token"),
        "edges_per_token": (sums[..., 1], tokens, "edges per token that carry 80% of the attribution"),
        "identity_share": (sums[..., 2], sums[..., 3], "share of the attribution that identity edges carry"),
    }
    for name, (numerator, denominator, label) in estimates.items():
        value, low, high = bootstrap.ratio_interval(
            numerator, np.broadcast_to(denominator, numerator.shape), weights, options.confidence
        )
        dataset[name] = v("collapse", value, label)
        dataset[f"{name}_low"] = v("collapse", low, "lower end of its interval over documents")
        dataset[f"{name}_high"] = v("collapse", high, "upper end of its interval over documents")
    dataset["collapse_factor"] = v(
        "collapse",
        [collapse.factor(collapsed) for collapsed in labels.values()],
        "SAE latents per node that stands for any",
    )
    dataset["matched_share"] = v(
        "collapse",
        [collapse.matched_share(collapsed, layers) for collapsed in labels.values()],
        "share of the firing SAE latents that have a node",
    )
    return dataset.assign_coords(collapse=np.array(list(labels), dtype=object))


def simplify(
    coder: Crosscoder,
    saes: Crosscoder,
    x: torch.Tensor,
    document: np.ndarray,
    scales: np.ndarray,
    options: Circuits,
    resampling: Bootstrap,
) -> tuple[xr.Dataset, csr_array, list[Layer], dict[str, list[np.ndarray]]]:
    """The graph of SAE latents before and after every collapse.

    Of crosscoder and SAEs, the one that explains more has its threshold raised until it explains as much as the other.

    Parameters
    ----------
    coder, saes : Crosscoder
    x, document : (tokens, D), (tokens,)
        Normalised activations, and consecutive document numbers.
    scales : (S,)
        σ_s of every source.
    options, resampling
        How latents are matched, and the bootstrap over documents.

    Returns
    -------
    dataset, code, layers, labels
        Nodes and edges by `collapse`; the crosscoder's code, (tokens, m); the SAEs' latents by source; and the labels
        of every collapse, (m_s,) per source.
    """
    code, sae_code = active(coder, x), active(saes, x)
    reached = min(explained(coder, code, x).mean(), explained(saes, sae_code, x).mean())
    code, sae_code = lowered(coder, code, x, reached), lowered(saes, sae_code, x, reached)
    layers = layers_of(saes, sae_code, scales)
    labels = collapses(layers, coder, code, options)
    dataset, v = graph_dataset(layers, labels, document, resampling), artifacts.variable
    for name, member, one in (("crosscoder", coder, code), ("saes", saes, sae_code)):
        dataset[f"{name}_l0"] = v(
            (), one.nnz / len(document), f"active latents per token at one variance explained: {name}"
        )
        dataset[f"{name}_explained"] = v("source", explained(member, one, x), f"variance explained: {name}")
    dataset["tokens"] = v((), np.int64(len(document)), "test tokens")
    return dataset.assign_coords(source=np.array(coder.sources, dtype=object)), code, layers, labels


def summary_line(dataset: xr.Dataset) -> str:
    """What the crosscoder's collapse does to nodes and edges per token, in words.

    Parameters
    ----------
    dataset : xarray.Dataset
        From :func:`simplify`.

    Returns
    -------
    str
    """
    pairs = (
        dataset[name].sel(collapse=["none", "crosscoder"]).values for name in ("nodes_per_token", "edges_per_token")
    )
    return "; ".join(
        f"{name} {before:.1f} to {after:.1f}" for name, (before, after) in zip(("nodes", "edges"), pairs, strict=True)
    )
