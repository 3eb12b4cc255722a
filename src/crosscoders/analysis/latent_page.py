"""Stage latent_page: one HTML page per crosscoder that shows its latents; it opens from disk, without a server."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
import xarray as xr

from crosscoders import artifacts, stage, storage
from crosscoders.activations.dataset import Activations
from crosscoders.analysis.classification import NORM_CLASSES, SPECIFIC
from crosscoders.analysis.sections import LatentPageSection
from crosscoders.crosscoder.crosscoder import Crosscoder
from crosscoders.crosscoder.encode import encode_sparse
from crosscoders.crosscoder.files import from_dataset
from crosscoders.data.tokenizer import load_tokenizer, piece_text
from crosscoders.errors import UserError
from crosscoders.language_models import snapshots
from crosscoders.language_models.unembedding import known_ids, promoted
from crosscoders.study.settings.comparisons import Source

BATCH = 2048
BEFORE, AFTER = 16, 6
"""Tokens shown before and after the strongest token of an example."""
LEVELS = 99
"""Activations in examples are whole numbers up to this one, which the strongest token of a latent has."""
MARK = "/*DATA*/"
"""Place in the template that the data take."""


def activations(coder: Crosscoder, data: Activations) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """All active pairs, sorted by latent and then by token of the split: latent, token, value."""
    index, parts = data.metadata["token_index"].values, []
    for chosen, x in data.batches(BATCH):
        code = encode_sparse(coder, x)
        parts.append((code.latents.numpy(), index[chosen][code.tokens.numpy()], code.values.numpy()))
    latent, token, value = (np.concatenate(columns) for columns in zip(*parts, strict=True))
    order = np.lexsort((token, latent))
    return latent[order], token[order], value[order]


def strongest(
    latent: np.ndarray, token: np.ndarray, value: np.ndarray, document: np.ndarray, count: int
) -> dict[int, list[int]]:
    """Of each latent, the tokens of its strongest firings in `count` different documents, strongest first."""
    tokens: dict[int, list[int]] = {}
    edges = np.flatnonzero(np.r_[True, latent[1:] != latent[:-1], True])
    for first, last in zip(edges, edges[1:], strict=False):
        order = first + np.argsort(-value[first:last], kind="stable")
        places = np.sort(np.unique(document[token[order]], return_index=True)[1])[:count]
        tokens[int(latent[first])] = token[order[places]].tolist()
    return tokens


def examples(
    latent: np.ndarray, token: np.ndarray, value: np.ndarray, document: np.ndarray, count: int
) -> dict[int, list[list]]:
    """Per latent, its examples as [first token, place of the strongest, activations of the tokens shown]."""
    keys, tokens = latent.astype(np.int64) * len(document) + token, len(document)
    by_latent: dict[int, list[list]] = {}
    largest = np.zeros(int(latent.max()) + 1)
    np.maximum.at(largest, latent, value)
    for j, places in strongest(latent, token, value, document, count).items():
        by_latent[j] = []
        for at in places:
            shown = np.arange(max(0, at - BEFORE), min(tokens, at + AFTER + 1))
            shown = shown[document[shown] == document[at]]
            where = np.searchsorted(keys, j * tokens + shown).clip(max=len(keys) - 1)
            levels = np.where(keys[where] == j * tokens + shown, np.ceil(LEVELS * (value[where] / largest[j])), 0)
            by_latent[j].append([int(shown[0]), int(at - shown[0]), levels.astype(int).tolist()])
    return by_latent


def columns(latents: xr.Dataset, alive: np.ndarray) -> dict[str, list]:
    """What the table shows of every alive latent; numbers rounded, NaN as null."""

    def numbers(values: np.ndarray, digits: int) -> list:
        rounded = np.round(values.astype(float), digits)
        return [value if np.isfinite(value) else None for value in rounded.tolist()]

    table = {
        "latent": alive.tolist(),
        "class": [NORM_CLASSES[i] for i in latents["norm_class"].values[alive]],
        "specific": [SPECIFIC[i] for i in latents["specific"].values[alive]],
        "delta": numbers(latents["relative_norm"].values[alive], 3),
        "cosine": numbers(latents["decoder_cosine"].values[alive], 3),
        "density": numbers(latents["density"].values[alive], 6),
        "template_share": numbers(latents["template_share"].values[alive], 3),
        "persistence": latents["persistence"].values[alive].tolist(),
        "norms": [numbers(row, 4) for row in latents["decoder_norm"].values[alive]],
    }
    for target in ("error", "reconstruction"):
        name = f"nu_{target}"
        table[name] = numbers(latents[name].values[alive], 3)
        table[f"{name}_interval"] = list(
            zip(*(numbers(latents[f"{name}_{end}"].values[alive], 3) for end in ("low", "high")), strict=True)
        )
    for b, behaviour in enumerate(latents["behaviour"].values if "behaviour" in latents.dims else ()):
        table[f"share_{behaviour}"] = numbers(latents["planted_share"].values[alive, b], 3)
    return table


def unembedded(
    coder: Crosscoder, alive: np.ndarray, sources: dict[str, Source], folders: dict[str, Path], count: int
) -> tuple[dict[str, list], list[str]]:
    """Per source, [promoted, suppressed] of every alive latent as indices into a list of token texts; and that list.

    Of the sources of one model, a latent has tokens at the one where its decoder norm is largest, and empty lists at
    the others. Their weaker directions say less, and the unembedding takes most of the time of a page.
    """
    effects: dict[str, list] = {}
    texts: dict[str, int] = {}
    for model_name, folder in folders.items():
        own = [s for s, name in enumerate(coder.sources) if name in sources and sources[name].model == model_name]
        if not own:
            continue  # the source of an SAE on a difference belongs to no model
        model, tokenizer = snapshots.load_model(folder.parent, "cpu", torch.float32), load_tokenizer(folder.parent)
        strongest = coder.decoder_norms()[alive][:, own].argmax(1).numpy()
        for i, s in enumerate(own):
            rows = np.flatnonzero(strongest == i)
            directions = coder.decoder[alive[rows], coder.columns[s]]
            try:
                both = promoted(model, directions, count, known_ids(tokenizer, model))
            except UserError as error:
                stage.say(f"latent_page: {model_name}: {error}; its page shows no promoted tokens")
                break
            effects[coder.sources[s]] = [[[] for _ in alive] for _ in range(2)]
            for side, tokens in zip(effects[coder.sources[s]], both, strict=True):
                for row, ids in zip(rows, tokens.tolist(), strict=True):
                    side[row] = [texts.setdefault(piece_text(tokenizer, token), len(texts)) for token in ids]
    return effects, list(texts)


def render(template: str, content: dict) -> str:
    """The page: data as JSON in which no text can end the script or begin a tag."""
    text = json.dumps(content, ensure_ascii=False, separators=(",", ":"))
    for character, escape in (
        ("<", "\\u003c"),
        (">", "\\u003e"),
        ("&", "\\u0026"),
        ("\u2028", "\\u2028"),
        ("\u2029", "\\u2029"),
    ):
        text = text.replace(character, escape)
    before, after = template.split(MARK)
    return before + text + after


def main(arguments) -> None:
    """Write the page of one crosscoder."""
    section: LatentPageSection = arguments.settings
    settings = section.page
    torch.set_grad_enabled(False)
    coder = from_dataset(artifacts.read(arguments.crosscoder))
    normalisation, latents = artifacts.read(arguments.normalisation), artifacts.read(arguments.latents)
    tokens = artifacts.read(arguments.tokens)
    data = Activations(arguments.activations, normalisation, coder.sources)
    latent, token, value = activations(coder, data)
    alive = np.unique(latent)
    shown = examples(latent, token, value, tokens["document"].values, settings.examples)
    folders = dict(zip(section.models, arguments.models, strict=True))
    texts, index = np.unique(tokens["token_text"].values.astype(str), return_inverse=True)
    effects, vocabulary = unembedded(coder, alive, section.sources, folders, settings.promoted)
    content = {
        "title": f"{section.study} · {section.setting_name} · {section.crosscoder_name} · seed {section.seed}",
        "sources": coder.sources,
        "columns": columns(latents, alive),
        "examples": [shown[j] for j in alive.tolist()],
        "texts": texts.tolist(),
        "tokens": index.tolist(),
        "effects": effects,
        "vocabulary": vocabulary,
    }
    page = render(arguments.template.read_text(encoding="utf-8"), content)
    storage.write_sealed(page, arguments.output)
    stage.say(f"latent_page: {len(alive):,} latents, {len(page) / 1e6:.1f} MB")


if __name__ == "__main__":
    flags = ("crosscoder", "latents", "normalisation", "tokens", "template", "output")
    stage.run(main, stage.parser(LatentPageSection, __doc__, *flags, lists=("activations", "models")).parse_args())
