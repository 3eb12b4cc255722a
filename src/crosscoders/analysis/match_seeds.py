"""Stage match_seeds: for every latent of one training the latent of each other seed most like it, and what both span."""

from __future__ import annotations

import numpy as np
import torch
import xarray as xr

from crosscoders import artifacts, stage
from crosscoders.analysis.sections import MatchSeedsSection
from crosscoders.analysis.subspaces import Written, compare, to_dataset
from crosscoders.crosscoder.files import from_dataset

CHUNK = 4096


def match(
    decoder: torch.Tensor, other: torch.Tensor, alive: np.ndarray, other_alive: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Largest cosine of each alive latent with an alive latent of another training, and that latent.

    Parameters
    ----------
    decoder, other : (m, D), (m', D)
        Decoder vectors of all sources side by side.

    Returns
    -------
    cosine : (m,)
        NaN for latents that are not alive.
    latent : (m,)
        −1 for latents that are not alive.
    """
    cosine, latent = np.full(len(decoder), np.nan), np.full(len(decoder), -1)
    chosen, candidates = np.flatnonzero(alive), np.flatnonzero(other_alive)
    if not len(candidates):
        return cosine, latent
    directions = torch.nn.functional.normalize(other[candidates], dim=1)
    for start in range(0, len(chosen), CHUNK):
        rows = chosen[start : start + CHUNK]
        best = (torch.nn.functional.normalize(decoder[rows], dim=1) @ directions.T).max(dim=1)
        cosine[rows], latent[rows] = best.values.numpy(), candidates[best.indices.numpy()]
    return cosine, latent


def subspace_overlaps(mine: int, written: dict[int, list[Written]], sources: list[str]) -> xr.Dataset:
    """Overlaps of what ranked latents of one training span in every source with what those of each other seed span."""
    pairs = [
        None if seed == mine else [compare(one, two, mine) for one, two in zip(written[mine], others, strict=True)]
        for seed, others in written.items()
    ]
    some = next(pair for pair in pairs if pair)
    nothing = [tuple(np.full_like(values, np.nan) for values in one) for one in some]
    parts = [[one[part] for one in pair or nothing] for part in (0, 1) for pair in pairs]
    overlaps, nulls = np.stack(parts[: len(pairs)]), np.stack(parts[len(pairs) :])
    return to_dataset(overlaps, nulls, sources)


def main(arguments) -> None:
    """Match one training with all others of its crosscoder."""
    section: MatchSeedsSection = arguments.settings
    torch.set_grad_enabled(False)
    decoders, alive, written, sources = {}, {}, {}, []
    for seed, crosscoder, latents in zip(section.seeds, arguments.crosscoders, arguments.latents, strict=True):
        coder, known = from_dataset(artifacts.read(crosscoder)), artifacts.read(latents)[["density", "relative_norm"]]
        decoders[seed], alive[seed], sources = coder.decoder, known["density"].values > 0, coder.sources
        written[seed] = [Written.of(coder.decoder[:, columns], known) for columns in coder.columns]
    mine = section.seed
    empty = np.full(len(decoders[mine]), np.nan), np.full(len(decoders[mine]), -1)
    matches = [
        match(decoders[mine], decoders[seed], alive[mine], alive[seed]) if seed != mine else empty
        for seed in section.seeds
    ]
    v, dims = artifacts.variable, ("other_seed", "latent")
    dataset = xr.Dataset(
        {
            "matched_cosine": v(
                dims,
                np.stack([cosine for cosine, _ in matches]),
                "largest decoder cosine with a latent of another seed",
            ),
            "matched_latent": v(
                dims, np.stack([latent for _, latent in matches]), "that latent, -1 where there is none"
            ),
        },
        coords={"other_seed": section.seeds},
        attrs=section.provenance() | {"title": "latents matched across seeds"},
    )
    if len(written) > 1:
        dataset = dataset.merge(subspace_overlaps(mine, written, sources))
    artifacts.write(dataset, arguments.output)
    median = [f"{np.nanmedian(cosine):.2f}" for cosine, latent in matches if (latent >= 0).any()]
    stage.say(f"match_seeds: median cosine {', '.join(median)}")


if __name__ == "__main__":
    stage.run(main, stage.parser(MatchSeedsSection, __doc__, "output", lists=("crosscoders", "latents")).parse_args())
