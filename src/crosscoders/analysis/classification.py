"""What the decoder norms and one streaming pass over held-out documents say about every latent.

Relative norm, cosine and classes [M25 §2]; latent scaling ν with intervals by bootstrap over documents [M25 §2.3].
Only active (token, latent) pairs contribute, so cost is tokens · L0 · width, and no (tokens × m × width) array exists.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
import xarray as xr

from crosscoders import artifacts
from crosscoders.analysis import bootstrap
from crosscoders.crosscoder.crosscoder import Crosscoder
from crosscoders.crosscoder.encode import encode_sparse
from crosscoders.kernels import backends
from crosscoders.kernels.interface import Backend
from crosscoders.study.settings.analysis import Classification

NORM_CLASSES = ("base-only", "shared", "chat-only", "other")
SPECIFIC = ("none", "base", "chat")
TARGETS = ("error", "reconstruction", "activation")
CALLS = ("alive", *NORM_CLASSES, "base-specific", "chat-specific", "chat-only and chat-specific")
"""What latents are counted by: those that fire, each class by norm, what latent scaling says, and both together."""
BATCH = 2048
TWIN_COSINE, TWIN_HIGH, TWIN_LOW = 0.9, 0.4, 0.1


def compared_sources(coder: Crosscoder, contrast: list[str]) -> tuple[int, ...]:
    """Those sources of a crosscoder that a contrast compares.

    Parameters
    ----------
    coder : Crosscoder
    contrast : list of str
        Names of two or more sources: [base, …, chat].

    Returns
    -------
    tuple of int
        Indices of all of them; of the first and the last where it lacks another; none where it lacks one of these two.
    """
    places = {name: coder.sources.index(name) for name in contrast if name in coder.sources}
    if len(places) == len(contrast):
        return tuple(places.values())
    ends = (contrast[0], contrast[-1])
    return tuple(places[name] for name in ends) if all(name in places for name in ends) else ()


# -- geometry ----------------------------------------------------------------------------------------------------------


def relative_norm(base: np.ndarray, chat: np.ndarray) -> np.ndarray:
    """Δ = ½ [1 + (n_chat − n_base) / max(n_chat, n_base)], in [0, 1]; NaN where both norms are 0."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return 0.5 * (1 + (chat - base) / np.maximum(chat, base))


def norm_class(delta: np.ndarray, settings: Classification) -> np.ndarray:
    """Index into NORM_CLASSES by thresholds on Δ."""
    low, high = settings.shared_between
    classes = np.full(delta.shape, NORM_CLASSES.index("other"))
    classes[delta <= settings.base_only_below] = NORM_CLASSES.index("base-only")
    classes[(delta >= low) & (delta <= high)] = NORM_CLASSES.index("shared")
    classes[delta >= settings.chat_only_above] = NORM_CLASSES.index("chat-only")
    return classes


def lives(norms: np.ndarray) -> np.ndarray:
    """Sources in which latents live: there the decoder norm is at least half of the latent's largest.

    Parameters
    ----------
    norms : (m, S)
        Decoder norms.

    Returns
    -------
    (m, S) bool
    """
    return norms >= 0.5 * norms.max(1, keepdims=True)


def source_cosine(decoders: list[torch.Tensor]) -> np.ndarray:
    """Cosine between a latent's decoder vectors, (m, S, S); NaN where widths differ or a vector is 0."""
    cosines = np.full((len(decoders[0]), len(decoders), len(decoders)), np.nan)
    for i, a in enumerate(decoders):
        for j, b in enumerate(decoders):
            if a.shape == b.shape:
                norms = a.norm(dim=1) * b.norm(dim=1)
                cosines[:, i, j] = torch.where(norms > 0, (a * b).sum(1) / norms, torch.nan).numpy()
    return cosines


# -- latent scaling ----------------------------------------------------------------------------------------------------


@dataclass
class Scaling:
    """Sums over tokens from which latent scaling follows, for each resample of documents; replicate 0 is the data.

    β_j^s is the factor by which the part f d_j of latent j fits a target in source s with the least squared error, and
    ν_j is the ratio of its β in two of the n sources of the contrast. d_j is the decoder vector of the direction
    source, which is the first axis of `activation` and `reconstruction`: activation[i, s, r, j] = Σ_t f ⟨d_j, x_s⟩,
    reconstruction[i, s, r, j] = Σ_t f ⟨d_j, x̂_s⟩, and squares[r, j] = Σ_t f².
    """

    activation: np.ndarray
    reconstruction: np.ndarray
    squares: np.ndarray
    own: np.ndarray
    """⟨d_j^i, W_dec,j^s⟩, (n, n, m): takes the latent's own part out of the reconstruction in the error target."""

    @property
    def sources(self) -> int:
        """Sources of the contrast, n."""
        return len(self.own)

    def beta(self, target: str, direction: int, source: int) -> np.ndarray:
        """Numerators of β_j^s for a target, (replicates, m); the denominators cancel in ν."""
        activation, reconstruction = self.activation[direction, source], self.reconstruction[direction, source]
        if target == "activation":
            return activation
        if target == "reconstruction":
            return reconstruction
        return activation - reconstruction + self.squares * self.own[direction, source]

    def nu(self, target: str, direction: int) -> np.ndarray:
        """ν between the first and the last source, (replicates, m).

        It is β of the other of the two over β of the direction's source: the first where `direction` is 0, the last
        where it is 1.
        """
        ends = (0, self.sources - 1)
        return self.nu_between(target, ends[direction], ends[1 - direction])

    def nu_between(self, target: str, from_source: int, to_source: int) -> np.ndarray:
        """ν, (replicates, m): β in `to_source` over β in `from_source`, whose decoder vector is the direction."""
        with np.errstate(divide="ignore", invalid="ignore"):
            return self.beta(target, from_source, to_source) / self.beta(target, from_source, from_source)


@dataclass
class Pairs:
    """All active pairs of a split, (pairs,) each: token, latent and value."""

    token: np.ndarray
    latent: np.ndarray
    value: np.ndarray


def document_batches(document: np.ndarray, count: int) -> Iterator[slice]:
    """Slices of whole documents, `count` tokens or a little more at a time."""
    starts = np.r_[np.flatnonzero(np.r_[True, document[1:] != document[:-1]]), len(document)]
    first = 0
    for edge in starts[1:]:
        if edge - first >= count or edge == len(document):
            yield slice(int(first), int(edge))
            first = edge


def scan(
    coder: Crosscoder,
    data,
    document: np.ndarray,
    contrast: tuple[int, ...],
    weights: np.ndarray | None = None,
    backend: Backend | None = None,
) -> tuple[Scaling, Pairs]:
    """One pass over the split: sums for latent scaling under every resample, and all active pairs.

    Parameters
    ----------
    coder, data
        The crosscoder, and a split of its activations.
    document : (tokens,)
        Consecutive document numbers.
    contrast : source indices
        (base, …, chat), as :func:`compared_sources` gives them; empty where the crosscoder lacks a source, and every ν
        is NaN.
    weights : (replicates, documents), optional
        Resamples; a row of ones for the data itself is put before them.
    backend : Backend, optional
        What computes; chosen by the device of the weights where absent.

    Returns
    -------
    Scaling, Pairs
        Sums of the data and of every resample, and the active pairs by ascending token.
    """
    itself = np.ones((1, int(document[-1]) + 1))
    weights = itself if weights is None else np.vstack([itself, weights])
    backend = backend or backends.choose(coder.decoder.device)
    m, columns = coder.latents, [coder.columns[s] for s in contrast]
    decoders = [coder.decoder[:, c].contiguous() for c in columns]
    count = max(len(contrast), 2)
    shape = (count, count, len(weights), m)
    activation, reconstruction, squares = np.zeros(shape), np.zeros(shape), np.zeros(shape[2:])
    pairs: list[tuple[np.ndarray, ...]] = []
    for chosen in document_batches(document, BATCH):
        x, inside = data.rows(np.arange(chosen.start, chosen.stop)), document[chosen]
        code = encode_sparse(coder, x, backend)
        rebuilt = backend.decode(code, coder.decoder, coder.decoder_bias)
        tokens, latents, f = code.tokens.numpy(), code.latents.numpy(), code.values.double().numpy()
        cell = (inside[tokens] - inside[0]) * m + latents
        drawn = weights[:, inside[0] : inside[-1] + 1]
        squares += _resampled(f * f, cell, drawn, m)
        for direction, decoder in enumerate(decoders):
            for s, column in enumerate(columns):
                for total, target in ((activation, x), (reconstruction, rebuilt)):
                    if decoder.shape[1] == column.stop - column.start:
                        inner = backend.value_gradients(code, target[:, column].contiguous(), decoder)
                        total[direction, s] += _resampled(f * inner.double().numpy(), cell, drawn, m)
        pairs.append((tokens + chosen.start, latents, f))
    joined = Pairs(*(np.concatenate(parts) for parts in zip(*pairs, strict=True)))
    return Scaling(activation, reconstruction, squares, _own_products(decoders, m)), joined


def _resampled(values: np.ndarray, cell: np.ndarray, drawn: np.ndarray, m: int) -> np.ndarray:
    """Sums of pairs' values by latent under every resample, (replicates, m).

    `cell`, (pairs,), numbers the document and the latent of a pair; `drawn`, (replicates, documents), holds the
    resamples.
    """
    return drawn @ np.bincount(cell, values, drawn.shape[1] * m).reshape(-1, m)


def _own_products(decoders: list[torch.Tensor], m: int) -> np.ndarray:
    """⟨d_j^i, d_j^s⟩ of every two of the n sources, (n, n, m); NaN where widths differ or there is no contrast."""
    count = max(len(decoders), 2)
    own = np.full((count, count, m), np.nan)
    for i, a in enumerate(decoders):
        for j, b in enumerate(decoders):
            if a.shape == b.shape:
                own[i, j] = (a * b).sum(1).double().numpy()
    return own


def specific(error: np.ndarray, reconstruction: np.ndarray, delta: np.ndarray, settings: Classification) -> np.ndarray:
    """Index into SPECIFIC from ν of (direction base, direction chat), each (2, …, m): both ν below their limits [M25].

    A latent can be specific only to the source that it writes more strongly. ν towards the other source says nothing,
    because it divides by what a decoder vector of almost no norm explains.
    """
    below = (error < settings.specific_error_below) & (reconstruction < settings.specific_reconstruction_below)
    chat, base = below[1] & (delta >= 0.5), below[0] & (delta < 0.5)
    return np.where(chat, SPECIFIC.index("chat"), np.where(base, SPECIFIC.index("base"), 0))


def twins(
    coder: Crosscoder, pairs: Pairs, by_norm: np.ndarray, contrast: tuple[int, ...]
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Each chat-only latent with the base-only latent of nearest direction, where their cosine exceeds TWIN_COSINE.

    A crosscoder can split a concept of both models into two such latents. Then the twins fire on the same tokens. Base
    is the first source of the contrast and chat the last.

    Returns
    -------
    chat, base : (twins,)
        Latents.
    cosine : (twins,)
    divergence : (twins,)
        Of the tokens on which either is high, the share on which the other is low [M25]. High begins at TWIN_HIGH of a
        latent's largest activation, and low ends at TWIN_LOW of it.
    """
    chosen = [np.flatnonzero(by_norm == NORM_CLASSES.index(name)) for name in ("base-only", "chat-only")]
    decoders = [
        coder.decoder[torch.from_numpy(latents)][:, coder.columns[s]]
        for latents, s in zip(chosen, (contrast[0], contrast[-1]), strict=True)
    ]
    if not all(map(len, chosen)) or decoders[0].shape[1] != decoders[1].shape[1]:
        return np.empty(0, int), np.empty(0, int), np.empty(0), np.empty(0)
    units = [torch.nn.functional.normalize(decoder.double(), dim=1) for decoder in decoders]
    best = (units[1] @ units[0].T).max(1)
    close = np.flatnonzero(best.values.numpy() > TWIN_COSINE)
    chat, base, cosine = chosen[1][close], chosen[0][best.indices.numpy()[close]], best.values.numpy()[close]
    divergence = np.array([_divergence(pairs, j, k) for j, k in zip(chat, base, strict=True)])
    return chat, base, cosine, divergence


def _divergence(pairs: Pairs, *latents: int) -> float:
    """Tokens on which only one of two latents is high, over those on which either is."""
    levels = np.zeros((2, int(pairs.token.max()) + 1))
    for row, latent in zip(levels, latents, strict=True):
        chosen = pairs.latent == latent
        if chosen.any():
            row[pairs.token[chosen]] = pairs.value[chosen] / pairs.value[chosen].max()
    high, low = levels >= TWIN_HIGH, levels < TWIN_LOW
    either = high.any(0).sum()
    return float(((high[0] & low[1]) | (high[1] & low[0])).sum() / either) if either else np.nan


# -- as datasets -------------------------------------------------------------------------------------------------------


def geometry_dataset(coder: Crosscoder, contrast: tuple[int, ...], settings: Classification) -> xr.Dataset:
    """Decoder norms and what follows from them alone; without a contrast, Δ and the cosine are NaN.

    Parameters
    ----------
    coder : Crosscoder
    contrast : source indices
        (base, …, chat): Δ and the cosine compare the first with the last. Empty where the crosscoder lacks a source.
    settings : Classification

    Returns
    -------
    xarray.Dataset
        Over `latent` (m,), `source` and `other_source` (S,).
    """
    norms = coder.decoder_norms().double().numpy()
    angles = source_cosine([coder.decoder[:, c].double() for c in coder.columns])
    delta = cosine = np.full(coder.latents, np.nan)
    if contrast:
        base, chat = contrast[0], contrast[-1]
        delta, cosine = relative_norm(norms[:, base], norms[:, chat]), angles[:, base, chat]
    v = artifacts.variable
    dims = ("latent", "source")
    return xr.Dataset(
        {
            "decoder_norm": v(dims, norms, "norm of the decoder vector"),
            "relative_norm": v("latent", delta, "relative decoder norm Δ"),
            "decoder_cosine": v("latent", cosine, "cosine of the two decoder vectors"),
            "norm_class": artifacts.flags(
                "latent", norm_class(delta, settings), NORM_CLASSES, "class by relative norm"
            ),
            "peak_source": v(
                "latent", norms.argmax(1).astype(np.int32), "index of the source with the largest decoder norm"
            ),
            "persistence": v("latent", lives(norms).sum(1), "sources with at least half the peak norm"),
            "source_cosine": v((*dims, "other_source"), angles, "cosine of decoder vectors of two sources"),
        },
        coords={
            name: (name, np.array(coder.sources, dtype=object), {"long_name": name.replace("_", " ")})
            for name in ("source", "other_source")
        },
    )


def count_calls(scaling: Scaling, delta: np.ndarray, fitted: np.ndarray, settings: Classification) -> np.ndarray:
    """How many latents fall under each of CALLS, in the data and in every resample of documents, (replicates, calls).

    A latent counts as specific where `fitted`, (m,), says so from other documents and ν of these documents agrees.
    """
    alive = (scaling.squares > 0) & np.isfinite(delta)
    nu = [np.stack([scaling.nu(target, direction) for direction in (0, 1)]) for target in TARGETS[:2]]
    holds = np.where(specific(*nu, delta, settings) == fitted, fitted, 0)
    by_norm = norm_class(delta, settings)
    groups = [by_norm == index for index in range(len(NORM_CLASSES))]
    groups += [holds == SPECIFIC.index("base"), holds == SPECIFIC.index("chat")]
    groups.append(groups[NORM_CLASSES.index("chat-only")] & groups[-1])
    return np.stack([alive.sum(1), *((alive & group).sum(1) for group in groups)], axis=1)


def centred_interval(counts: np.ndarray, confidence: float) -> tuple[np.ndarray, np.ndarray]:
    """Interval of counts of latents over documents.

    Fewer latents fire in a resample, which holds fewer different documents: counts are centred on those of the data.

    Parameters
    ----------
    counts : (1 + replicates, ...)
        Those of the data, and of every resample.
    confidence : float

    Returns
    -------
    low, high : (...)
        At least 0.
    """
    centred = counts[1:] - counts[1:].mean(0) + counts[0]
    low, high = bootstrap.interval(centred, confidence)
    return low.clip(min=0), high


def scaling_dataset(scaling: Scaling, validation: Scaling, delta: np.ndarray, settings: Classification) -> xr.Dataset:
    """ν of every latent for the three targets and both directions, with intervals; `specific`; counts of all calls.

    `specific` is fitted on validation documents; ν, its intervals and the counts are those of the test documents.

    Parameters
    ----------
    scaling, validation : Scaling
        Sums over test documents with their resamples, and over validation documents.
    delta : (m,)
        Relative norms.
    settings : Classification

    Returns
    -------
    xarray.Dataset
        Over `latent` (m,), `call` and `replicate`.
    """
    v, variables, fitted = artifacts.variable, {}, {}
    for target in TARGETS:
        for direction, suffix in ((1, ""), (0, "_reversed")):
            nu, fit = (
                np.where(np.isfinite(n), n, np.nan)
                for n in (scaling.nu(target, direction), validation.nu(target, direction))
            )
            low, high = bootstrap.interval(nu[1:], settings.confidence)
            fitted[target, direction] = fit[0]
            toward = "base over chat" if direction else "chat over base"
            name = f"nu_{target}{suffix}"
            variables[name] = v("latent", nu[0], f"latent scaling of the {target}, {toward}")
            variables[f"{name}_low"] = v("latent", low, "lower end of its interval over documents")
            variables[f"{name}_high"] = v("latent", high, "upper end of its interval over documents")
            variables[f"{name}_validation"] = v("latent", fit[0], "the same on validation documents")
    both = [np.stack([fitted[target, d] for d in (0, 1)]) for target in TARGETS[:2]]
    flags = specific(*both, delta, settings)
    variables["specific"] = artifacts.flags("latent", flags, SPECIFIC, "passes latent scaling on validation documents")
    counts = count_calls(scaling, delta, flags, settings)
    low, high = centred_interval(counts, settings.confidence)
    variables["called"] = v("call", counts[0], "latents under each call on test documents")
    variables["called_low"] = v("call", low, "lower end of its interval over documents")
    variables["called_high"] = v("call", high, "upper end of its interval over documents")
    variables["called_replicate"] = v(("replicate", "call"), counts[1:], "latents under each call, resampled documents")
    return xr.Dataset(variables, coords={"call": ("call", np.array(CALLS, dtype=object), {"long_name": "call"})})


def twins_dataset(columns: tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]) -> xr.Dataset:
    """What :func:`twins` returns, over `twin`; where there are no twins, one row of −1 and NaN."""
    chat, base, cosine, divergence = (
        columns if len(columns[0]) else (np.array([-1]), np.array([-1]), *([np.array([np.nan])] * 2))
    )
    v = artifacts.variable
    return xr.Dataset(
        {
            "twin_chat": v("twin", chat, "chat-only latent, -1 where there is no twin"),
            "twin_base": v("twin", base, "base-only latent of nearly the same direction"),
            "twin_cosine": v("twin", cosine, "cosine of their directions"),
            "twin_divergence": v("twin", divergence, "share of tokens on which only one of them is high"),
        }
    )
