"""Stage circuits: how much simpler a graph of SAE latents becomes when a crosscoder says which of them are one feature.

The stage measures nodes, edges and identity attribution of the graph of SAEs per source, before and after the
crosscoder collapses its latents. There are two controls: chains made without a crosscoder, and tokens shuffled within
every source. What a collapsed node claims is tested in the model: it is ablated where it begins, and the change of the
logit is compared with what its direction at the last source predicts.
"""

from __future__ import annotations

import numpy as np
import torch
import xarray as xr

from crosscoders import artifacts, stage
from crosscoders.activations import shuffle
from crosscoders.activations.dataset import Activations
from crosscoders.activations.shuffle import consecutive
from crosscoders.analysis import bootstrap
from crosscoders.crosscoder.files import from_dataset
from crosscoders.device import chosen_device, chosen_dtype
from crosscoders.errors import UserError
from crosscoders.interventions import ablate_nodes, simplification
from crosscoders.interventions.ablate_nodes import Graph, Where
from crosscoders.interventions.sections import CircuitsSection
from crosscoders.language_models import snapshots
from crosscoders.study.settings.analysis import Bootstrap


def faithfulness_dataset(changes: dict[str, np.ndarray], options: Bootstrap) -> xr.Dataset:
    """Measured against predicted changes of logits, and their correlation with its interval over documents."""
    documents = int(changes["document"].max(initial=-1)) + 1
    v = artifacts.variable
    dataset = xr.Dataset(
        {
            "measured_change": v(
                "intervention", changes["measured"], "change of the logit when the node is ablated where it begins"
            ),
            "predicted_change": v(
                ("prediction", "intervention"),
                np.stack([changes["predicted"], changes["control"]]),
                "change that a direction at the last source predicts",
            ),
        },
        coords={"prediction": np.array(["same latent", "another latent"], dtype=object)},
    )
    ends = np.full((3, 2), np.nan)
    if documents > 2:
        weights = bootstrap.resamples(documents, options.bootstrap_replicates, options.seed)
        per_sample = np.vstack([np.ones(len(changes["document"])), weights[:, changes["document"]]])
        for p, name in enumerate(("predicted", "control")):
            drawn = ablate_nodes.correlation(changes[name], changes["measured"], per_sample)
            ends[:, p] = drawn[0], *bootstrap.interval(drawn[1:], options.confidence)
    dataset["faithfulness"] = v("prediction", ends[0], "correlation of measured and predicted changes")
    dataset["faithfulness_low"] = v("prediction", ends[1], "lower end of its interval over documents")
    dataset["faithfulness_high"] = v("prediction", ends[2], "upper end of its interval over documents")
    return dataset


def main(arguments) -> None:
    """Measure one crosscoder against the SAEs of its setting."""
    section: CircuitsSection = arguments.settings
    options = section.circuits
    label = f"circuits {section.label}"
    torch.set_grad_enabled(False)
    trained = [artifacts.read(path) for path in (arguments.crosscoder, arguments.saes)]
    coder, saes = map(from_dataset, trained)
    normalisation = artifacts.read(arguments.normalisation)
    data = Activations(arguments.activations, normalisation, coder.sources)
    document = consecutive(data.metadata["document"].values)
    rows = np.flatnonzero(shuffle.spread_documents(document, options.tokens)[document])
    if not len(rows):
        raise UserError(f"circuits.tokens: {options.tokens} holds no whole test document; expected more")
    x, document = data.rows(rows), consecutive(document[rows])
    scales = normalisation["scale"].sel(source=coder.sources).values
    dataset, code, _, labels = simplification.simplify(coder, saes, x, document, scales, options, section.bootstrap)
    device = chosen_device(section.device)
    model = snapshots.load_model(arguments.model.parent, device, chosen_dtype(section.dtype, device))
    sources = [section.sources[name] for name in coder.sources]
    graph = Graph(coder, code, labels["crosscoder"], [(source.layer, source.hook) for source in sources], scales)
    where = Where(data.metadata["token_index"].values[rows], document, artifacts.read(arguments.tokens))
    tested = ablate_nodes.ablate(model, graph, where, options, label)
    dataset = dataset.merge(faithfulness_dataset(tested, section.bootstrap))
    for name, one in zip(("training_tokens", "saes_training_tokens"), trained, strict=True):
        dataset[name] = one["training_tokens"]
    dataset.attrs = section.provenance()
    artifacts.write(dataset.assign_attrs(title=label), arguments.output)
    stage.say(f"{label}: {simplification.summary_line(dataset)}; faithfulness {float(dataset['faithfulness'][0]):.2f}")


if __name__ == "__main__":
    flags = ("crosscoder", "saes", "normalisation", "tokens", "model", "output")
    stage.run(main, stage.parser(CircuitsSection, __doc__, *flags, lists=("activations",)).parse_args())
