"""Stage circuit_trial: whether a crosscoder joins the SAE latents of one concept, where the concepts are known."""

from __future__ import annotations

import numpy as np
import torch
import xarray as xr

from crosscoders import artifacts, stage
from crosscoders.activations import shuffle
from crosscoders.activations.shuffle import consecutive
from crosscoders.interventions import collapse, simplification
from crosscoders.planted import concepts
from crosscoders.planted.sections import CircuitTrialSection
from crosscoders.training import loop
from crosscoders.training.recipes import CrosscoderRecipe


def recalls(
    layers: list[collapse.Layer], labels: dict[str, list], truth: concepts.World, threshold: float
) -> xr.Dataset:
    """Share of the planted persistent concepts that every way to collapse latents finds."""
    values = [
        collapse.recall(layers, collapsed, truth.directions, truth.gain >= concepts.PRESENT, threshold)
        for collapsed in labels.values()
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
    """Plant concepts, train a crosscoder and SAEs, collapse the SAEs' latents, and save the recall of concepts."""
    section, seed = arguments.settings, arguments.settings.seed
    options = section.circuits
    synthetic, settings = section.synthetic, section.synthetic.planted
    torch.set_grad_enabled(False)
    truth = concepts.world(settings, synthetic.widths, seed)
    drawn, scales = concepts.samples(truth, settings, list(synthetic.widths), {}, synthetic.tokens, seed)
    label = f"circuits {section.label}"
    coders = {}
    for name, member in ((options.crosscoder, section.crosscoder), (options.saes, section.saes)):
        progress = stage.Progress(f"{label} {name}", member.training.steps, "steps")
        report = lambda state, progress=progress: progress.reach(state.step, loss=state.history["loss"][-1])  # noqa: E731
        coders[name] = loop.fit(
            CrosscoderRecipe(member), drawn["train"], drawn["validation"], seed, report=report
        ).crosscoder
    test = drawn["test"]
    rows = np.flatnonzero(shuffle.spread_documents(test.document, options.tokens)[test.document])
    dataset, _, layers, labels = simplification.simplify(
        coders[options.crosscoder],
        coders[options.saes],
        test.rows(rows),
        consecutive(test.document[rows]),
        scales,
        options,
        section.bootstrap,
    )
    dataset = dataset.merge(recalls(layers, labels, truth, settings.recovered_above))
    dataset.attrs = section.provenance() | {"title": label}
    artifacts.write(dataset, arguments.output)
    recall = float(dataset["recall"].sel(collapse="crosscoder"))
    stage.say(f"{label}: {simplification.summary_line(dataset)}; recall of persistent concepts {recall:.2f}")


if __name__ == "__main__":
    stage.run(main, stage.parser(CircuitTrialSection, __doc__, "output").parse_args())
