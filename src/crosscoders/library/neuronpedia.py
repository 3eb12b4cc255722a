"""Test documents as batches of features for Neuronpedia, in the JSON that its dashboards are made from."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import transformers

from crosscoders import storage
from crosscoders.data.tokenizer import load_tokenizer, piece_text
from crosscoders.errors import UserError
from crosscoders.language_models import snapshots
from crosscoders.language_models.unembedding import known_ids, logit_effects
from crosscoders.library.documents import Documents

FEATURES_PER_FILE = 128
EXAMPLES, BARS, LOGITS = 20, 50, 10
LISTS = (
    "neuron_alignment_indices",
    "neuron_alignment_values",
    "neuron_alignment_l1",
    "correlated_neurons_indices",
    "correlated_neurons_l1",
    "correlated_neurons_pearson",
    "correlated_features_indices",
    "correlated_features_l1",
    "correlated_features_pearson",
    "logits_hist_data_bar_heights",
    "logits_hist_data_bar_values",
    "decoder_weights_dist",
    "vector",
)
"""Parts of a feature that we leave empty: they speak of neurons, of heads, and of one source."""
NO_LOGITS: dict[str, list] = {"pos_str": [], "pos_values": [], "neg_str": [], "neg_values": []}
"""Of a latent whose model's unembedding cannot be read."""


def write(documents: Documents, folder: Path) -> None:
    """Write `batch-N.json` files with every latent that fires on test documents.

    Parameters
    ----------
    documents : Documents
    folder : Path

    Raises
    ------
    UserError
        A file of the study is damaged, or the folder cannot be written.
    """
    model_folder = documents.results / "models" / documents.reference
    effects = _effects(documents, model_folder)
    pairs = documents.pairs
    alive = np.unique(pairs.latent)
    edges = np.searchsorted(pairs.latent, [*alive, documents.coder.latents])
    features = [
        _feature(documents, int(j), slice(first, last)) | effects.get(int(j), NO_LOGITS)
        for j, first, last in zip(alive, edges, edges[1:], strict=False)
    ]
    layer = next((source.layer for source in documents.sources.values() if source.model == documents.reference), 0)
    for number, first in enumerate(range(0, len(features), FEATURES_PER_FILE)):
        batch = {
            "model_id": documents.reference,
            "layer": layer,
            "sae_set": f"{documents.results.name}-{documents.name}",
            "sae_id_suffix": documents.label,
            "features": features[first : first + FEATURES_PER_FILE],
        }
        storage.write_json(batch, folder / f"batch-{number}.json")


def _effects(documents: Documents, folder: Path) -> dict[int, dict]:
    """Per latent that fires, the tokens whose logits its direction in the reference model changes most."""
    own = [s for s, name in enumerate(documents.coder.sources) if _model_of(documents, name) == documents.reference]
    if not own:
        return {}
    model: transformers.PreTrainedModel = snapshots.load_model(folder, "cpu", torch.float32)
    tokenizer, alive = load_tokenizer(folder), np.unique(documents.pairs.latent)
    directions = documents.coder.decoder[alive][:, documents.coder.columns[own[-1]]]
    try:
        ids, logits = logit_effects(model, directions, LOGITS, known_ids(tokenizer, model))
    except UserError:
        return {}
    effects = {}
    for row, j in enumerate(alive.tolist()):
        texts = [[piece_text(tokenizer, token) for token in side] for side in ids[:, row].tolist()]
        values = [[round(value, 5) for value in side] for side in logits[:, row].tolist()]
        effects[j] = {"pos_str": texts[0], "pos_values": values[0], "neg_str": texts[1], "neg_values": values[1]}
    return effects


def _model_of(documents: Documents, source: str) -> str | None:
    """The model of a source; a difference has none."""
    return documents.sources[source].model if source in documents.sources else None


def _feature(documents: Documents, latent: int, inside: slice) -> dict:
    """How often and how strongly a latent fires, and the windows in which it fires most."""
    values, tokens = documents.pairs.value[inside], documents.pairs.token[inside]
    heights, edges = np.histogram(values, bins=BARS)
    return {key: [] for key in LISTS} | {
        "feature_index": latent,
        "frac_nonzero": len(values) / documents.tokens.sizes["token"],
        "freq_hist_data_bar_values": np.round((edges[1:] + edges[:-1]) / 2, 5).tolist(),
        "freq_hist_data_bar_heights": heights.tolist(),
        "n_prompts_total": len(documents.spans),
        "n_tokens_in_prompt": documents.rows.shape[1],
        "dataset": f"{documents.results.name}/{documents.setting}/test",
        "activations": _examples(documents, tokens, values),
    }


def _examples(documents: Documents, tokens: np.ndarray, values: np.ndarray) -> list[dict]:
    """The windows with the strongest firings, strongest first, each once."""
    order = np.argsort(-values, kind="stable")
    places = np.sort(np.unique(documents.window[tokens[order]], return_index=True)[1])[:EXAMPLES]
    examples = []
    for at in order[places]:
        span = documents.spans[documents.window[tokens[at]]]
        shown = np.zeros(span.stop - span.start)
        inside = (tokens >= span.start) & (tokens < span.stop)
        shown[tokens[inside] - span.start] = values[inside]
        examples.append(
            {
                "bin_min": -1,
                "bin_max": round(float(values.max()), 5),
                "bin_contains": -1,
                "tokens": documents.tokens["token_text"].values[span].tolist(),
                "values": np.round(shown, 5).tolist(),
                "qualifying_token_index": int(tokens[at] - span.start),
            }
        )
    return examples
