"""Stage circuit_trial: whether a crosscoder joins what SAEs per source have of one concept, where concepts are known."""

from __future__ import annotations

import numpy as np
import torch
import xarray as xr

from crosscoders import artifacts, collapse, planted, simplification, splicing, stage, training
from crosscoders.order import consecutive
from crosscoders.settings import Circuits, CrosscoderSettings, Planted

PRESENT = 0.5
"""Strength from which a concept counts as present in a source."""


def recalls(
    layers: list[collapse.Layer], labels: dict[str, list], truth: planted.World, threshold: float
) -> xr.Dataset:
    """Share of the planted persistent concepts that every way to collapse latents finds."""
    values = [
        collapse.recall(layers, found, truth.directions, truth.gain >= PRESENT, threshold) for found in labels.values()
    ]
    v = artifacts.variable
    whole, known = np.array(values).T
    return xr.Dataset(
        {
            "recall": v("collapse", whole, "share of persistent concepts that one node holds in all their sources"),
            "recall_of_known": v("collapse", known, "of those for which every source has a latent"),
        }
    )


def main(arguments) -> None:
    """Plant, train a crosscoder and SAEs, collapse, save."""
    section, seed = arguments.settings, arguments.settings["seed"]
    options = Circuits.model_validate(section["circuits"])
    settings = Planted.model_validate(section["planted"])
    torch.set_grad_enabled(False)
    truth = planted.world(settings, list(section["widths"].values()), seed)
    drawn, scales = planted.samples(truth, settings, list(section["widths"]), {}, section["tokens"], seed)
    label = f"circuits {section['setting_name']}/{section['crosscoder_name']}/seed-{seed}"
    coders = {}
    for name in (options.crosscoder, options.saes):
        member = CrosscoderSettings.model_validate(section["members"][name])
        progress = stage.Progress(f"{label} {name}", member.training.steps, "steps")
        report = lambda state, progress=progress: progress.reach(state.step, loss=state.history["loss"][-1])  # noqa: E731
        coders[name] = training.fit(member, drawn["train"], drawn["validation"], seed, report=report).crosscoder
    test = drawn["test"]
    rows = np.flatnonzero(splicing.choose(test.document, options.tokens)[test.document])
    dataset, _, layers, labels = simplification.simplify(
        coders[options.crosscoder],
        coders[options.saes],
        test.rows(rows),
        consecutive(test.document[rows]),
        scales,
        options,
        section["bootstrap"],
    )
    dataset = dataset.merge(recalls(layers, labels, truth, settings.recovered_above))
    dataset.attrs = artifacts.provenance(section["study"], "circuit_trial", section, seed) | {"title": label}
    artifacts.write(dataset, arguments.output)
    recall = float(dataset["recall"].sel(collapse="crosscoder"))
    stage.say(f"{label}: {simplification.summary_line(dataset)}; recall of persistent concepts {recall:.2f}")


if __name__ == "__main__":
    stage.run(main, stage.parser(__doc__, "output").parse_args())
