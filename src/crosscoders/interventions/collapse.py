"""A graph of SAE latents, in which a shared dictionary makes one node of the latents of one persistent feature.

Every source has an SAE of its own. A latent of one source acts on a latent of the next through the residual stream:
f_i ⟨W_enc,j^{s+1}, W_dec,i^s⟩. Where both stand for the same crosscoder latent the edge is an identity edge: it says
that a feature persists, and disappears when the two nodes are collapsed into one [L24].
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.sparse import csr_array

KEPT_ATTRIBUTION = 0.8
"""Share of the absolute attribution that the counted edges carry."""


@dataclass
class Layer:
    """The latents of one source: code (tokens, m), encoder and decoder (m, width), in one unit for all sources."""

    code: csr_array
    encoder: np.ndarray
    decoder: np.ndarray

    def shuffled(self, generator: np.random.Generator) -> Layer:
        """The same latents with their tokens in random order."""
        return Layer(self.code[generator.permutation(self.code.shape[0])], self.encoder, self.decoder)


# -- latents of one feature --------------------------------------------------------------------------------------------


def cosine(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Cosines between the rows of two matrices; 0 for rows of zeros."""
    units = [x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-30) for x in (a, b)]
    return units[0] @ units[1].T


def correlation(a: csr_array, b: csr_array) -> np.ndarray:
    """Pearson correlation between the columns of two sparse codes on the same tokens; 0 where a column is constant."""
    count = a.shape[0]
    means = [np.asarray(x.mean(axis=0)).ravel() for x in (a, b)]
    spread = [
        np.sqrt(np.maximum(np.asarray(x.multiply(x).mean(axis=0)).ravel() - m**2, 0))
        for x, m in zip((a, b), means, strict=True)
    ]
    covariance = (a.T @ b).toarray() / count - np.outer(*means)
    scale = np.outer(*spread)
    return np.divide(covariance, scale, out=np.zeros_like(covariance), where=scale > 1e-30)


def similar(
    a: csr_array, b: csr_array, directions: tuple[np.ndarray, np.ndarray], least_cosine: float, least_correlation: float
) -> np.ndarray:
    """Cosine of the directions of all pairs that point alike and fire together, 0 for all others, (m_a, m_b)."""
    cosines = cosine(*directions)
    return np.where((cosines >= least_cosine) & (correlation(a, b) >= least_correlation), cosines, 0)


def by_crosscoder(
    layers: list[Layer], code: csr_array, decoders: list[np.ndarray], least_cosine: float, least_correlation: float
) -> list[np.ndarray]:
    """The crosscoder latent that every SAE latent stands for, −1 where there is none: (m_s,) per source.

    `decoders` are the crosscoder's, (m, width) per source.
    """
    labels = []
    for layer, decoder in zip(layers, decoders, strict=True):
        score = similar(layer.code, code, (layer.decoder, decoder), least_cosine, least_correlation)
        labels.append(np.where(score.max(1) > 0, score.argmax(1), -1))
    return labels


def by_clustering(layers: list[Layer], least_cosine: float, least_correlation: float) -> list[np.ndarray]:
    """Chains of SAE latents, made without a crosscoder: the number of every latent's chain, (m_s,) per source.

    Two latents of neighbouring sources are joined where each is the other's best partner; −1 stands for no partner.
    """
    chains = [np.full(layer.decoder.shape[0], -1) for layer in layers]
    count = 0
    for s, (layer, following) in enumerate(zip(layers, layers[1:], strict=False)):
        pair = (layer.decoder, following.decoder)
        score = similar(layer.code, following.code, pair, least_cosine, least_correlation)
        best, back = score.argmax(1), score.argmax(0)
        mutual = np.flatnonzero((score.max(1) > 0) & (back[best] == np.arange(len(best))))
        for i in mutual:
            if chains[s][i] < 0:
                chains[s][i], count = count, count + 1
            chains[s + 1][best[i]] = chains[s][i]
    return chains


def factor(labels: list[np.ndarray]) -> float:
    """SAE latents per node, over nodes that stand for any; NaN where no latent has a node."""
    matched = np.concatenate(labels)
    matched = matched[matched >= 0]
    return len(matched) / len(np.unique(matched)) if len(matched) else np.nan


def matched_share(labels: list[np.ndarray], layers: list[Layer]) -> float:
    """Of the SAE latents that fire, the share that has a node."""
    fires = np.concatenate([np.diff(layer.code.tocsc().indptr) > 0 for layer in layers])
    return float((np.concatenate(labels) >= 0)[fires].mean()) if fires.any() else np.nan


def distinct(labels: list[np.ndarray]) -> list[np.ndarray]:
    """Labels in which every latent without a node is a node of its own."""
    first = 1 + max(int(part.max(initial=-1)) for part in labels)
    nodes = []
    for part in labels:
        alone = part < 0
        nodes.append(np.where(alone, first + np.cumsum(alone) - 1, part))
        first += int(alone.sum())
    return nodes


# -- the graph ---------------------------------------------------------------------------------------------------------


@dataclass
class Edges:
    """Edges between active latents of neighbouring sources, on every token: arrays of one length."""

    token: np.ndarray
    source: np.ndarray
    """Number of the source that the edge leaves."""
    writer: np.ndarray
    reader: np.ndarray
    attribution: np.ndarray


def _pairs(a: csr_array, b: csr_array) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Every pair of an entry of `a` and an entry of `b` on one token: token, place in a's data, place in b's."""
    left, right = np.diff(a.indptr), np.diff(b.indptr)
    per_entry = np.repeat(right, left)
    token = np.repeat(np.repeat(np.arange(a.shape[0]), left), per_entry)
    first = np.repeat(np.arange(a.nnz), per_entry)
    within = np.arange(len(token)) - np.repeat(np.cumsum(per_entry) - per_entry, per_entry)
    return token, first, b.indptr[token] + within


def edges(layers: list[Layer]) -> Edges:
    """Attribution f_i ⟨W_enc,j^{s+1}, W_dec,i^s⟩ between all active latents of neighbouring sources."""
    parts = []
    for s, (layer, following) in enumerate(zip(layers, layers[1:], strict=False)):
        weight = layer.decoder @ following.encoder.T
        token, first, second = _pairs(layer.code, following.code)
        writer, reader = layer.code.indices[first], following.code.indices[second]
        value = layer.code.data[first] * weight[writer, reader]
        parts.append((token, np.full(len(token), s), writer, reader, value))
    return Edges(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def _needed(token: np.ndarray, size: np.ndarray, free: np.ndarray) -> np.ndarray:
    """How many of a token's largest edges carry, with what is free, KEPT_ATTRIBUTION of the token's total, (tokens,).

    `token` (edges,) ascends; `size` (edges,) is absolute attribution; `free` (tokens,) what costs no edge.
    """
    counts = np.zeros(len(free), np.int64)
    ends = np.searchsorted(token, np.arange(len(free) + 1))
    for t, (first, last) in enumerate(zip(ends, ends[1:], strict=False)):
        carried = np.cumsum(np.r_[free[t], np.sort(size[first:last])[::-1]])  # by none, the largest, the two largest
        counts[t] = np.count_nonzero(carried[:-1] < (KEPT_ATTRIBUTION - 1e-9) * carried[-1])
    return counts


def measure(layers: list[Layer], graph: Edges, labels: list[np.ndarray]) -> dict[str, np.ndarray]:
    """Nodes, edges and identity attribution of every token, with latents of one label collapsed into one node.

    Returns
    -------
    dict of (tokens,)
        `nodes`: different nodes that are active. `edges`: edges needed to carry KEPT_ATTRIBUTION of the absolute
        attribution, where parallel edges are one and identity edges cost none. `identity` and `attribution`: absolute
        attribution of identity edges, and of all.
    """
    tokens, named = layers[0].code.shape[0], distinct(labels)
    count = 1 + max(int(part.max(initial=0)) for part in named)
    active = [
        np.repeat(np.arange(tokens, dtype=np.int64), np.diff(layer.code.indptr)) * count + part[layer.code.indices]
        for layer, part in zip(layers, named, strict=True)
    ]
    nodes = np.bincount(np.unique(np.concatenate(active)) // count, minlength=tokens)
    edge = np.arange(len(graph.token))
    writer, reader = np.empty(len(edge), np.int64), np.empty(len(edge), np.int64)
    for s in range(len(layers) - 1):
        here = graph.source == s
        writer[here], reader[here] = named[s][graph.writer[here]], named[s + 1][graph.reader[here]]
    size, same = np.abs(graph.attribution), writer == reader
    identity = np.bincount(graph.token[same], size[same], tokens)
    key = (graph.token[~same].astype(np.int64) * count + writer[~same]) * count + reader[~same]
    merged, place = np.unique(key, return_inverse=True)
    joined = np.abs(np.bincount(place, graph.attribution[~same], len(merged)))
    return {
        "nodes": nodes,
        "edges": _needed(merged // count**2, joined, identity),
        "identity": identity,
        "attribution": np.bincount(graph.token, size, tokens),
    }


# -- the known answer --------------------------------------------------------------------------------------------------


def recall(
    layers: list[Layer], labels: list[np.ndarray], directions: list[np.ndarray], present: np.ndarray, threshold: float
) -> tuple[float, float]:
    """Share of planted persistent concepts that one node holds in every source in which they live.

    A concept is persistent if it is present in two sources or more. An SAE latent stands for it where their directions
    have an absolute cosine above `threshold`.

    Parameters
    ----------
    layers, labels
        SAE latents, and the node of each, (m_s,) per source; −1 where it has none.
    directions : per source, (concepts, width)
    present : (concepts, S) bool
    threshold : float

    Returns
    -------
    recall, recall_of_known : float
        Of all persistent concepts, and of those for which every source has a latent that stands for it.
    """
    alike = [np.abs(cosine(known, layer.decoder)) > threshold for known, layer in zip(directions, layers, strict=True)]
    held, known = [], []
    for concept in np.flatnonzero(present.sum(1) > 1):
        standing = [labels[s][alike[s][concept]] for s in np.flatnonzero(present[concept])]
        known.append(all(len(part) > 0 for part in standing))
        nodes = [set(part[part >= 0].tolist()) for part in standing]
        held.append(bool(set.intersection(*nodes)))
    held, known = np.array(held), np.array(known)
    return float(held.mean()), float(held[known].mean()) if known.any() else np.nan
