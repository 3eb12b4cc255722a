"""Stage compare_effects: whether shared latents do the same in both models, against the cosine of their decoder vectors.

The measure and its null are those of :mod:`crosscoders.interventions.effects`; the tokens are those of test documents.
"""

from __future__ import annotations

import numpy as np
import torch
import xarray as xr

from crosscoders import artifacts, stage
from crosscoders.activations.dataset import Activations
from crosscoders.activations.shuffle import consecutive
from crosscoders.analysis.classification import Pairs
from crosscoders.crosscoder.crosscoder import Crosscoder
from crosscoders.crosscoder.encode import encode_sparse
from crosscoders.crosscoder.files import from_dataset
from crosscoders.interventions import effects
from crosscoders.interventions.reading import Scale, directions, load_pair
from crosscoders.interventions.sections import CompareEffectsSection
from crosscoders.study.settings.comparisons import Equivalence

BATCH = 2048


def active_pairs(coder: Crosscoder, data: Activations, wanted: np.ndarray) -> Pairs:
    """Active pairs on some tokens of a split, (tokens,) bool, by ascending token."""
    rows, columns = np.flatnonzero(wanted), ([], [], [])
    for first in range(0, len(rows), BATCH):
        part = rows[first : first + BATCH]
        code = encode_sparse(coder, data.rows(part))
        for column, values in zip(columns, (part[code.tokens.numpy()], code.latents, code.values), strict=True):
            column.append(np.asarray(values))
    return Pairs(*(np.concatenate(column) if column else np.empty(0, int) for column in columns))


def comparable(latents: xr.Dataset, settings: Equivalence) -> np.ndarray:
    """Shared latents that are active often enough and have a cosine, (m,) bool."""
    shared = latents["norm_class"].values == artifacts.flag(latents["norm_class"], "shared")
    dense = latents["density"].values >= settings.minimum_density
    return shared & dense & np.isfinite(latents["decoder_cosine"].values)


def main(arguments) -> None:
    """Compare the effects of one crosscoder's shared latents."""
    section: CompareEffectsSection = arguments.settings
    settings, label = section.equivalence, f"compare_effects {section.label}"
    torch.set_grad_enabled(False)
    trained, latents = artifacts.read(arguments.crosscoder), artifacts.read(arguments.latents)
    coder, normalisation = from_dataset(trained), artifacts.read(arguments.normalisation)
    tokens = artifacts.read(arguments.tokens)
    data = Activations(arguments.activations, normalisation, coder.sources)
    document, index = consecutive(data.metadata["document"].values), data.metadata["token_index"].values
    pairs = active_pairs(coder, data, tokens["position"].values[index] <= settings.ablated_before)
    cosine = latents["decoder_cosine"].values
    ablations = effects.draw(pairs, document, comparable(latents, settings), cosine, settings)
    base, chat = section.contrast
    where, _ = directions(coder, Scale(normalisation, coder.sources), base, chat)
    models = load_pair(section, dict(zip(section.models, arguments.models, strict=True)))
    found = effects.compare(models, section.layer, where, ablations, tokens, index, section.batch_tokens, label)
    dataset = effects.to_dataset(
        found, ablations.latent, document[ablations.token], cosine, settings, section.bootstrap
    ).merge(trained[["training_tokens"]])
    artifacts.write(
        dataset.assign_attrs(**section.provenance(), title="effects of latents in both models"), arguments.output
    )
    stage.say(
        f"compare_effects: {dataset.sizes['compared_latent']} latents on {len(ablations.token)} tokens; median correlation "
        f"{float(dataset['effect_correlation'].median()):.2f}, null {float(dataset['effect_null_correlation'].median()):.2f}"
    )


if __name__ == "__main__":
    flags = ("crosscoder", "latents", "normalisation", "tokens", "output")
    stage.run(main, stage.parser(CompareEffectsSection, __doc__, *flags, lists=("activations", "models")).parse_args())
