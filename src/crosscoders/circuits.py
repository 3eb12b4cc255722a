"""Stage circuits: how much simpler a graph of SAE latents becomes when a crosscoder says which of them are one feature.

Nodes, edges and identity attribution of the graph of SAEs per source, before and after its latents are collapsed by the
crosscoder, beside two controls: chains found without a crosscoder, and tokens shuffled within every source. What a
collapsed node claims is tested in the model: it is ablated where it begins, and the change of the logit is compared with
what its direction at the last source predicts.
"""

from __future__ import annotations

import numpy as np
import torch
import xarray as xr

from crosscoders import artifacts, bootstrap, crosscoder, interventions, models, pick, simplification, splicing, stage
from crosscoders.errors import UserError
from crosscoders.feed import Activations
from crosscoders.order import consecutive
from crosscoders.settings import Circuits, Source


def faithfulness_dataset(found: dict[str, np.ndarray], options: dict) -> xr.Dataset:
    """Measured against predicted changes of logits, and their correlation with its interval over documents."""
    documents = int(found["document"].max(initial=-1)) + 1
    v = artifacts.variable
    dataset = xr.Dataset(
        {
            "measured_change": v("intervention", found["measured"], "change of the logit when the node is ablated where it begins"),
            "predicted_change": v(("prediction", "intervention"), np.stack([found["predicted"], found["control"]]), "change that a direction at the last source predicts"),
        },
        coords={"prediction": np.array(["same latent", "another latent"], dtype=object)},
    )  # fmt: skip
    ends = np.full((3, 2), np.nan)
    if documents > 2:
        weights = bootstrap.resamples(documents, options["bootstrap_replicates"], options["seed"])
        per_sample = np.vstack([np.ones(len(found["document"])), weights[:, found["document"]]])
        for p, name in enumerate(("predicted", "control")):
            drawn = interventions.correlation(found[name], found["measured"], per_sample)
            ends[:, p] = drawn[0], *bootstrap.interval(drawn[1:], options["confidence"])
    dataset["faithfulness"] = v("prediction", ends[0], "correlation of measured and predicted changes")
    dataset["faithfulness_low"] = v("prediction", ends[1], "lower end of its interval over documents")
    dataset["faithfulness_high"] = v("prediction", ends[2], "upper end of its interval over documents")
    return dataset


def main(arguments) -> None:
    """Measure one crosscoder against the SAEs of its setting."""
    section = arguments.settings
    options = Circuits.model_validate(section["circuits"])
    label = f"circuits {section['setting_name']}/{section['crosscoder_name']}/seed-{section['seed']}"
    torch.set_grad_enabled(False)
    coder, saes = (crosscoder.from_dataset(artifacts.read(path)) for path in (arguments.crosscoder, arguments.saes))
    normalisation = artifacts.read(arguments.normalisation)
    data = Activations(arguments.activations, normalisation, coder.sources)
    document = consecutive(data.metadata["document"].values)
    rows = np.flatnonzero(splicing.choose(document, options.tokens)[document])
    if not len(rows):
        raise UserError(f"circuits.tokens: {options.tokens} holds no whole test document; expected more")
    x, document = data.rows(rows), consecutive(document[rows])
    scales = normalisation["scale"].sel(source=coder.sources).values
    dataset, code, _, labels = simplification.simplify(coder, saes, x, document, scales, options, section["bootstrap"])
    device = pick.device(section["device"])
    model = models.load_model(arguments.model.parent, device, pick.dtype(section["dtype"], device))
    sources = [Source.model_validate(section["sources"][name]) for name in coder.sources]
    tested = interventions.ablate(
        model, [(source.layer, source.hook) for source in sources], coder, scales, code, labels["crosscoder"],
        data.metadata["token_index"].values[rows], document, artifacts.read(arguments.tokens), options, label,
    )  # fmt: skip
    dataset = dataset.merge(faithfulness_dataset(tested, section["bootstrap"]))
    dataset.attrs = artifacts.provenance(section["study"], "circuits", section, section["seed"])
    artifacts.write(dataset.assign_attrs(title=label), arguments.output)
    stage.say(f"{label}: {simplification.summary_line(dataset)}; faithfulness {float(dataset['faithfulness'][0]):.2f}")


if __name__ == "__main__":
    flags = ("crosscoder", "saes", "normalisation", "tokens", "model", "output")
    stage.run(main, stage.parser(__doc__, *flags, lists=("activations",)).parse_args())
