"""Do latents come back in another seed, and in an average of seeds? `averaged_seeds.py STUDY SETTING MEMBER…`.

It reads crosscoders that a study has trained with four seeds or more. An average has the mean of the weights of half of the
seeds, latent by latent, and a threshold that is fitted anew on validation tokens; that means something only where the seeds begin
with the same weights (`training.initial_seed`). Averages of two halves of the seeds, which share no training, are then compared
as two seeds are. A line is printed for single seeds and one for averages, as rows of a table.
"""

from __future__ import annotations

import argparse
import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from crosscoders import artifacts, stage
from crosscoders.activations.dataset import Activations
from crosscoders.activations.shuffle import consecutive
from crosscoders.analysis.match_seeds import match
from crosscoders.analysis.reconstruction import reconstruction
from crosscoders.crosscoder.crosscoder import Crosscoder
from crosscoders.crosscoder.files import from_dataset
from crosscoders.report.null_figures import MATCHED_ABOVE
from crosscoders.study import loading
from crosscoders.training.recipes import fit_threshold

BATCH_TOKENS = 2048


def average(coders: list[Crosscoder], held_out: Activations) -> Crosscoder:
    """The crosscoder whose weights are the means of those of others, with a threshold of its own."""
    names = ("encoder", "encoder_bias", "decoder", "decoder_bias")
    mean = replace(coders[0], **{name: torch.stack([getattr(one, name) for one in coders]).mean(0) for name in names})
    if mean.selection.ranked_over == "batch":
        mean = replace(mean, threshold=fit_threshold(mean, (x for _, x in held_out.batches(BATCH_TOKENS)), mean.k))
    return mean


def measured(coder: Crosscoder, test: Activations) -> tuple[float, float, np.ndarray]:
    """Variance explained (mean of the sources), L0, and which latents fire."""
    sums = reconstruction(coder, test, consecutive(test.metadata["document"].values))
    explained = 1 - sums["error"].sum(0) / sums["variance"].sum(0)
    return float(explained.mean()), float(sums["active"].sum() / sums["tokens"].sum()), sums["fired"] > 0


def come_back(one: Crosscoder, other: Crosscoder, fired: np.ndarray, other_fired: np.ndarray) -> tuple[float, float]:
    """Share of the latents of one training that have one of the other with a cosine above the limit; the median cosine."""
    cosine = match(one.decoder, other.decoder, fired, other_fired)[0][fired]
    return float((cosine > MATCHED_ABOVE).mean()), float(np.median(cosine))


def row(label: str, pairs: list[tuple[Crosscoder, Crosscoder]], test: Activations) -> str:
    """Pairs of trainings as a row of the table: means over the pairs and their range."""
    coders = {id(coder): coder for pair in pairs for coder in pair}  # a training is in several pairs
    figures = {key: measured(coder, test) for key, coder in coders.items()}
    found = []
    for one, other in pairs:
        (fve, l0, fired), (_, _, other_fired) = figures[id(one)], figures[id(other)]
        found.append([fve, l0, 1 - fired.mean(), *come_back(one, other, fired, other_fired)])
    means, low, high = np.mean(found, 0), np.min(found, 0), np.max(found, 0)
    forms = ("{:.3f}", "{:.1f}", "{:.3f}", "{:.1%}", "{:.2f}")
    cells = [
        f"{form.format(mean)} ({form.format(a)} to {form.format(b)})"
        for form, mean, a, b in zip(forms, means, low, high, strict=True)
    ]
    return f"| {label} | {len(pairs)} | " + " | ".join(cells) + " |"


def main() -> None:
    """Print two rows for every member."""
    arguments = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    arguments.add_argument("study")
    arguments.add_argument("setting")
    arguments.add_argument("members", nargs="+")
    given = arguments.parse_args()
    stage.limit_threads(1)
    torch.set_grad_enabled(False)
    study = loading.load(given.study)
    results = Path("results", study.study)
    normalisation = artifacts.read(results / "activations" / given.setting / "normalisation.nc")
    print("| member | pairs | FVE | L0 | silent | have a partner | median cosine |\n|---|---:|---|---|---|---|---|")
    for member in given.members:
        folder = results / "crosscoders" / given.setting / member
        coders = [from_dataset(artifacts.read(folder / f"seed-{seed}.nc")) for seed in study.seeds]
        held_out, test = (
            Activations(
                sorted((results / "activations" / given.setting / split).glob("*.nc")), normalisation, coders[0].sources
            )
            for split in ("validation", "test")
        )
        half = len(coders) // 2
        halves = [chosen for chosen in itertools.combinations(range(2 * half), half) if 0 in chosen]
        others = [[i for i in range(2 * half) if i not in chosen] for chosen in halves]
        averages = [
            tuple(average([coders[i] for i in group], held_out) for group in pair)
            for pair in zip(halves, others, strict=True)
        ]
        print(row(f"{member}, single seeds", list(itertools.combinations(coders, 2)), test), flush=True)
        print(row(f"{member}, averages of {half}", averages, test), flush=True)


if __name__ == "__main__":
    main()
