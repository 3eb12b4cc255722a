"""How much of the space that latents of one training span is spanned by those of another, though no two latents agree.

The overlap of two spans with orthonormal bases U₁ and U₂, (n, d), is ‖U₁ U₂ᵀ‖²_F / n: 1 where they are one space, n/d on
average for independent isotropic ones. d is the width of a source.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import xarray as xr

from crosscoders import artifacts

SIZES = (8, 32, 128)
"""Latents whose span is compared, n."""
LEANINGS = ("chat", "shared", "base")
"""Which latents are compared: those of the highest relative norm Δ, of Δ nearest to a half, and of the lowest."""
DRAWS = 20
"""Draws of each null."""
LEFT_OUT = 10
"""Parts of the latents that the jackknife leaves out in turn."""
DEPENDENT = 1e-6
"""Share of the largest eigenvalue of the Gram matrix below which a direction counts as spanned already."""
NORMAL = 1.959964
"""Standard deviations of a normal distribution to either end of its central 95%."""


@dataclass
class Written:
    """What the alive latents of one training write to one source.

    Attributes
    ----------
    decoder : (m, d)
        Decoder vectors of all latents.
    alive : (latents,)
        Those that fire.
    norms, relative_norm, density : (latents,)
        Their decoder norms, their Δ, NaN where the training has no contrast, and their shares of test tokens.
    """

    decoder: torch.Tensor
    alive: np.ndarray
    norms: np.ndarray
    relative_norm: np.ndarray
    density: np.ndarray

    @classmethod
    def of(cls, decoder: torch.Tensor, latents: xr.Dataset) -> Written:
        """From decoder vectors of one source, (m, d), and what `classify_latents` wrote."""
        density = latents["density"].values
        alive = np.flatnonzero(density > 0)
        return cls(
            decoder, alive, decoder.norm(dim=1).numpy()[alive], latents["relative_norm"].values[alive], density[alive]
        )

    @property
    def able(self) -> np.ndarray:
        """Places among `alive` of the latents that write the source."""
        return np.flatnonzero(self.norms > 0)

    def directions(self, places: np.ndarray) -> torch.Tensor:
        """Decoder vectors of norm 1 of latents at some places among `alive`, (places, d)."""
        return torch.nn.functional.normalize(self.decoder[torch.from_numpy(self.alive[places])].double(), dim=1)

    def ordered(self, leaning: str) -> np.ndarray:
        """Latents, those first that lean most, (latents,); none where no relative norm is known."""
        if not np.isfinite(self.relative_norm).all():
            return np.empty(0, int)
        key = {"chat": -self.relative_norm, "shared": np.abs(self.relative_norm - 0.5), "base": self.relative_norm}
        return np.argsort(key[leaning], kind="stable")


def basis(rows: torch.Tensor) -> torch.Tensor:
    """An orthonormal basis, (rank, d), of the span of vectors, (n, d)."""
    values, vectors = torch.linalg.eigh(rows @ rows.T)
    kept = values > DEPENDENT * values[-1]
    return (vectors[:, kept] / values[kept].sqrt()).T @ rows


def overlap(first: torch.Tensor, second: torch.Tensor) -> float:
    """‖U₁ U₂ᵀ‖²_F over the smaller rank, of the spans of two sets of vectors, (n, d) each."""
    one, other = basis(first), basis(second)
    return float((one @ other.T).square().sum()) / min(len(one), len(other))


def with_interval(first: torch.Tensor, second: torch.Tensor) -> tuple[float, float, float]:
    """The overlap of two ranked sets of vectors, (n, d) each, with its 95% interval of a jackknife over ranks.

    Each part of the ranks is left out of both sets in turn.
    """
    parts, ranks, value = min(LEFT_OUT, len(first)), torch.arange(len(first)), overlap(first, second)
    without = [overlap(first[ranks % parts != part], second[ranks % parts != part]) for part in range(parts)]
    error = np.sqrt((parts - 1) * np.var(without))
    return value, max(0.0, value - NORMAL * error), min(1.0, value + NORMAL * error)


def drawn(draw: Callable[[], tuple[torch.Tensor, torch.Tensor]]) -> tuple[float, float, float]:
    """Mean overlap of random pairs of sets, and the ends of the central 95% of the draws."""
    values = [overlap(*draw()) for _ in range(DRAWS)]
    return float(np.mean(values)), *(float(end) for end in np.quantile(values, [0.025, 0.975]))


def random_latents(written: Written, size: int, generator: np.random.Generator) -> torch.Tensor:
    """Directions of latents chosen at random among those that write the source, (size, d)."""
    return written.directions(generator.choice(written.able, size, replace=False))


def random_directions(written: Written, size: int, generator: np.random.Generator) -> torch.Tensor:
    """Directions drawn from the covariance of what the latents write, (size, d), were they of equal strength.

    Each is a normal combination of all latents' directions, whose variance is the latent's density.
    """
    able, mixture = written.able, np.zeros((size, len(written.decoder)), np.float32)
    strengths = np.sqrt(written.density[able]) / written.norms[able]
    mixture[:, written.alive[able]] = generator.normal(size=(size, len(able))) * strengths
    return torch.nn.functional.normalize((torch.from_numpy(mixture) @ written.decoder.float()).double(), dim=1)


def compare(mine: Written, other: Written, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Overlaps of the spans of two trainings in one source, and those of the nulls.

    Parameters
    ----------
    mine, other : Written
    seed : int
        Of the draws.

    Returns
    -------
    overlaps : (leanings, sizes, 3)
        Value and ends of its interval; NaN where too few latents are alive, where one of them does not write the source,
        or where the spans would fill more than half of the source.
    nulls : (2, sizes, 3)
        Mean and central 95% of random latents, then of random directions.
    """
    overlaps, nulls = np.full((len(LEANINGS), len(SIZES), 3), np.nan), np.full((2, len(SIZES), 3), np.nan)
    generator, both = np.random.default_rng(seed), (mine, other)
    able = min(len(one.able) for one in both)
    for s, size in enumerate(SIZES):
        if size > able or 2 * size > mine.decoder.shape[1]:
            continue
        for kind, choose in enumerate((random_latents, random_directions)):
            nulls[kind, s] = drawn(lambda choose=choose, size=size: [choose(one, size, generator) for one in both])
        for place, leaning in enumerate(LEANINGS):
            chosen = [one.ordered(leaning)[:size] for one in both]
            if all(
                len(places) == size and (one.norms[places] > 0).all() for one, places in zip(both, chosen, strict=True)
            ):
                first, second = (one.directions(places) for one, places in zip(both, chosen, strict=True))
                overlaps[place, s] = with_interval(first, second)
    return overlaps, nulls


def to_dataset(overlaps: np.ndarray, nulls: np.ndarray, sources: list[str]) -> xr.Dataset:
    """Overlaps of one training with others, (other seeds, sources, leanings, sizes, 3), and nulls, with 2 for leanings."""
    v, dataset, dims = artifacts.variable, xr.Dataset(), ("other_seed", "source")
    label = "overlap with the span of equally many latents of another seed"
    named = {"subspace_overlap": (overlaps, (*dims, "leaning", "subspace_size"), label, "its jackknife interval")}
    for kind, name in enumerate(("random_latents", "random_directions")):
        text = f"the same of {name.replace('_', ' ')}, mean of draws"
        values = nulls[:, :, kind], (*dims, "subspace_size"), text, "the central 95% of draws"
        named[f"subspace_{name}"] = values
    for name, (values, own, text, ends) in named.items():
        dataset[name] = v(own, values[..., 0], text)
        dataset[f"{name}_low"] = v(own, values[..., 1], f"lower end of {ends}")
        dataset[f"{name}_high"] = v(own, values[..., 2], f"upper end of {ends}")
    return dataset.assign_coords(
        source=("source", np.array(sources, dtype=object), {"long_name": "source"}),
        leaning=("leaning", np.array(LEANINGS, dtype=object), {"long_name": "relative norm of the latents"}),
        subspace_size=("subspace_size", np.array(SIZES, np.int64), {"long_name": "latents that span"}),
    )
