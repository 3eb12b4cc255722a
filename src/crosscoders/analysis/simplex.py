"""What the latents of a crosscoder are that compares three sources or more.

Relative norms r_s = n_s / Σ n lie on a simplex. A latent's class is the subset of the sources that it is written to, and
latent scaling compares every source with every other [M25 §2.3, there for two].
"""

from __future__ import annotations

import itertools

import numpy as np
import xarray as xr

from crosscoders import artifacts
from crosscoders.analysis import bootstrap
from crosscoders.analysis.classification import TARGETS, Scaling, centred_interval
from crosscoders.study.contrasts import subset_names
from crosscoders.study.settings.analysis import Classification


def relative_norms(norms: np.ndarray) -> np.ndarray:
    """r_s = n_s / Σ n, which sum to 1; NaN where a latent writes none of the sources.

    Parameters
    ----------
    norms : (m, n)
        Decoder norms.

    Returns
    -------
    (m, n)
    """
    with np.errstate(invalid="ignore"):
        return norms / norms.sum(1, keepdims=True)


def present(norms: np.ndarray, present_above: float) -> np.ndarray:
    """Sources that latents are written to: their norm is at least the share `present_above` of the latent's largest.

    Parameters
    ----------
    norms : (m, n)
        Decoder norms.
    present_above : float

    Returns
    -------
    (m, n) bool
    """
    return (norms >= present_above * norms.max(1, keepdims=True)) & (norms > 0)


def subset_of(members: np.ndarray) -> np.ndarray:
    """Numbers of subsets in the order of :func:`subset_names`, (…), of members (…, n) bool."""
    return members @ (1 << np.arange(members.shape[-1]))


def absent_elsewhere(scaling: Scaling, norms: np.ndarray, members: np.ndarray, settings: Classification) -> np.ndarray:
    """Whether every source outside of a latent's subset lacks what the latent stands for, by latent scaling.

    Both ν from the latent's strongest source to each source outside are below their limits [M25]. Nothing lies outside of
    all sources, so it holds there of every latent.

    Parameters
    ----------
    scaling : Scaling
    norms, members : (m, n)
        Decoder norms, and which sources latents are written to.
    settings : Classification

    Returns
    -------
    (replicates, m) bool
    """
    strongest = norms.argmax(1)
    holds = np.ones(scaling.squares.shape, bool)
    for origin, other in itertools.permutations(range(norms.shape[1]), 2):
        asked = (strongest == origin) & ~members[:, other]
        error, reconstruction = (scaling.nu_between(target, origin, other)[:, asked] for target in TARGETS[:2])
        below = (error < settings.specific_error_below) & (reconstruction < settings.specific_reconstruction_below)
        holds[:, asked] &= below & np.isfinite(error) & np.isfinite(reconstruction)
    return holds


def _counts(names: list[str], number: np.ndarray, alive: np.ndarray, specific: np.ndarray, confidence: float) -> dict:
    """Alive latents of every subset but `none`, and those of them that are specific, with intervals over documents.

    `number`, (m,), is the subset of each latent; `alive` and `specific`, (replicates, m), hold the data first.
    """
    v, inside = artifacts.variable, (number[:, None] == np.arange(1, len(names))).astype(float)
    variables = {}
    for name, chosen, label in (
        ("subset_count", alive, "latents that fire on test documents and are written to exactly these sources"),
        ("subset_specific_count", alive & specific, "of these, latents whose concept all other sources lack"),
    ):
        counts = (chosen.astype(float) @ inside).astype(np.int64)
        low, high = centred_interval(counts, confidence)
        variables[name] = v("subset", counts[0], label)
        variables[f"{name}_low"] = v("subset", low, "lower end of its interval over documents")
        variables[f"{name}_high"] = v("subset", high, "upper end of its interval over documents")
    return variables


def _nu_between_pairs(scaling: Scaling, confidence: float) -> dict[str, xr.Variable]:
    """ν of every latent from every source to every other, for the three targets, with intervals over documents."""
    v, variables, count = artifacts.variable, {}, scaling.sources
    dims = ("latent", "from_source", "to_source")
    for target in TARGETS:
        values = np.full((3, scaling.squares.shape[1], count, count), np.nan)
        for origin, other in itertools.product(range(count), repeat=2):
            nu = scaling.nu_between(target, origin, other)
            nu = np.where(np.isfinite(nu), nu, np.nan)
            values[:, :, origin, other] = nu[0], *bootstrap.interval(nu[1:], confidence)
        label = f"latent scaling of the {target}, β in to_source over β in from_source, whose decoder vector is scaled"
        ends = ("", label), ("_low", "lower end of its interval over documents"), ("_high", "upper end of its interval")
        variables |= {
            f"nu_{target}_pair{end}": v(dims, part, text) for (end, text), part in zip(ends, values, strict=True)
        }
    return variables


def simplex_dataset(
    norms: np.ndarray, sources: list[str], scaling: Scaling, validation: Scaling, settings: Classification
) -> xr.Dataset:
    """Relative norms, subset classes with their counts, and ν between every pair of sources.

    `subset_specific` is fitted on validation documents; ν and the counts are those of the test documents, and a latent
    counts as specific where both agree.

    Parameters
    ----------
    norms : (m, n)
        Decoder norms in the compared sources.
    sources : list of str
        Their names.
    scaling, validation : Scaling
        Sums over test documents with their resamples, and over validation documents, of these sources.
    settings : Classification

    Returns
    -------
    xarray.Dataset
        Over `latent` (m,), `contrast_source`, `from_source` and `to_source` (n,), and `subset` (2^n − 1,).
    """
    v, names = artifacts.variable, subset_names(sources)
    members = present(norms, settings.present_above)
    number, fitted = subset_of(members), absent_elsewhere(validation, norms, members, settings)[0]
    alive = (scaling.squares > 0) & (number > 0)
    holds = fitted & absent_elsewhere(scaling, norms, members, settings)
    variables = {
        "relative_norms": v(("latent", "contrast_source"), relative_norms(norms), "decoder norm over the sum of them"),
        "subset_class": artifacts.flags("latent", number, names, "sources that the latent is written to"),
        "subset_specific": artifacts.flags(
            "latent",
            fitted,
            ("no", "yes"),
            "all other sources lack the concept, by latent scaling on validation documents",
        ),
    }
    variables |= _counts(names, number, alive, holds, settings.confidence)
    variables |= _nu_between_pairs(scaling, settings.confidence)
    labels = dict.fromkeys(("contrast_source", "from_source", "to_source"), sources) | {"subset": names[1:]}
    return xr.Dataset(
        variables,
        coords={
            dim: (dim, np.array(values, dtype=object), {"long_name": dim.replace("_", " ")})
            for dim, values in labels.items()
        },
    )
