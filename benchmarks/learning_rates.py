"""The learning rate of every member of a study, tuned with the same effort: `learning_rates.py STUDY SETTING MEMBER…`.

Each member is trained at each rate on the activations that the study has extracted (`results/STUDY/activations/SETTING`), and
judged on the validation split. Nothing of the test split is read. A line is printed for each training, as a row of a table.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch

from crosscoders import artifacts, stage
from crosscoders.activations.dataset import Activations
from crosscoders.activations.sections import NullChange
from crosscoders.activations.shuffle import consecutive
from crosscoders.analysis import evaluate_aligned
from crosscoders.analysis.reconstruction import reconstruction
from crosscoders.study import loading
from crosscoders.study.blocks import crosscoder_sources
from crosscoders.study.queries import comparisons
from crosscoders.study.settings.study import Study
from crosscoders.training import loop
from crosscoders.training.recipes import AlignedRecipe, CrosscoderRecipe

RATES = (1.5e-3, 3e-3, 6e-3, 1.2e-2)


def splits(study: Study, setting: str, member: str) -> list[Activations]:
    """The training and the validation split that a member of a setting sees."""
    data = comparisons.data_setting(study, setting)
    folder = Path("results", study.study, "activations", data)
    normalisation = artifacts.read(folder / "normalisation.nc")
    chosen, null = study.settings[data], NullChange.of(study, setting)
    trained = study.crosscoders.get(member)  # an aligned crosscoder has all sources of the models
    models = [name for name, source in chosen.sources.items() if source.kind != "difference"]
    sources = crosscoder_sources(chosen, trained) if trained else models
    return [
        Activations(sorted((folder / name).glob("*.nc")), normalisation, sources, null)
        for name in ("train", "validation")
    ]


def row(study: Study, setting: str, member: str, rate: float, seed: int) -> str:
    """Train one member at one rate; what it explains of the validation split, as a row of a table."""
    settings = study.crosscoders.get(member) or study.aligned[member]
    training = settings.training.model_copy(update={"learning_rate": rate})
    kind = CrosscoderRecipe if member in study.crosscoders else AlignedRecipe
    recipe = kind(settings.model_copy(update={"training": training}))
    train, held_out = splits(study, setting, member)
    coder = loop.fit(recipe, train, held_out, seed).crosscoder
    document = consecutive(held_out.metadata["document"].values)
    if kind is AlignedRecipe:  # what the code of each source explains of that source; nothing is known of dead latents
        sums = evaluate_aligned.evaluate(coder, held_out, document)
        error, dead = np.diagonal(sums["error"].sum(0)), np.nan
        active = sums["active"].sum() / len(coder.sources)
    else:
        sums = reconstruction(coder, held_out, document)
        error, dead, active = sums["error"].sum(0), (sums["fired"] == 0).mean(), sums["active"].sum()
    explained = 1 - error / sums["variance"].sum(0).ravel()
    figures = [*explained, explained.mean(), active / sums["tokens"].sum(), dead]
    tokens = training.steps * training.batch_tokens
    named = f"| {setting} | {member} | {tokens:,} | {rate:g} | "
    return (
        named + " ".join(f"{value:.3f}" for value in figures[:-3]) + "".join(f" | {x:.3f}" for x in figures[-3:]) + " |"
    )


def main() -> None:
    """Print a row for every member and rate."""
    arguments = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    arguments.add_argument("study")
    arguments.add_argument("setting")
    arguments.add_argument("members", nargs="+")
    arguments.add_argument("--rates", nargs="+", type=float, default=RATES)
    arguments.add_argument("--seed", type=int, default=0)
    given = arguments.parse_args()
    stage.limit_threads(1)
    stage.reuse_memory()
    torch.set_grad_enabled(False)
    study = loading.load(given.study)
    print(
        "| setting | member | tokens | learning rate | FVE of each source | mean | L0 | dead |\n|---|---|---:|---:|---|---:|---:|---:|"
    )
    for member in given.members:
        for rate in given.rates:
            print(row(study, given.setting, member, rate, given.seed), flush=True)


if __name__ == "__main__":
    main()
