"""Stage latent_page: one HTML page per crosscoder that shows its latents; it opens from disk, without a server."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
import transformers
import xarray as xr

from crosscoders import artifacts, stage, storage
from crosscoders.activations.dataset import Activations
from crosscoders.analysis import latent_examples
from crosscoders.analysis.classification import NORM_CLASSES, SPECIFIC
from crosscoders.analysis.latent_examples import Example, Firings, OwnTokens, Reads, numbers
from crosscoders.analysis.page_files import Parts, Texts, render, signs
from crosscoders.analysis.page_neighbours import neighbours_elsewhere, own_neighbours
from crosscoders.analysis.sections import LatentPageSection
from crosscoders.crosscoder.crosscoder import Crosscoder
from crosscoders.crosscoder.files import from_dataset
from crosscoders.data.tokenizer import load_tokenizer, piece_text
from crosscoders.errors import UserError
from crosscoders.language_models import snapshots
from crosscoders.language_models.unembedding import known_ids, logit_effects


@dataclass(frozen=True)
class Effects:
    """What the decoder vectors of some latents do to the logits of a model.

    Attributes
    ----------
    row : {latent: int}
        Rows of the latents that have their strongest source of the model here.
    ids, logits : (2, rows, count)
        Tokens that each promotes, then those that it suppresses, with the change of their logits.
    text : function
        The text of a token id.
    """

    row: dict[int, int]
    ids: np.ndarray
    logits: np.ndarray
    text: Callable[[int], str]

    def of(self, latent: int, texts: Texts) -> list[list] | None:
        """[promoted, suppressed] of a latent, each a list of [number of the text, change of the logit]."""
        if latent not in self.row:
            return None
        at = self.row[latent]
        return [
            [[texts.number(self.text(token)), round(change, 3)] for token, change in zip(*side, strict=True)]
            for side in zip(self.ids[:, at].tolist(), self.logits[:, at].tolist(), strict=True)
        ]


def piece_texts(tokenizer: transformers.PreTrainedTokenizerBase) -> Callable[[int], str]:
    """The texts of token ids, each made once."""
    return cache(lambda token: piece_text(tokenizer, token))


def unembedded(
    coder: Crosscoder, alive: np.ndarray, sources: dict[str, str], folders: dict[str, Path], count: int
) -> dict[str, Effects]:
    """Per source, what the decoder vectors of alive latents promote and suppress in its model; `sources` name models.

    Of the sources of one model, a latent has tokens at the one where its decoder norm is largest and none at the
    others. Their weaker directions say less, and the unembedding takes most of the time of a page.
    """
    effects: dict[str, Effects] = {}
    for model_name, folder in folders.items():
        own = [s for s, name in enumerate(coder.sources) if sources.get(name) == model_name]
        if not own:
            continue  # the source of an SAE on a difference belongs to no model
        model, tokenizer = snapshots.load_model(folder.parent, "cpu", torch.float32), load_tokenizer(folder.parent)
        known, text = known_ids(tokenizer, model), piece_texts(tokenizer)
        strongest = coder.decoder_norms()[alive][:, own].argmax(1).numpy()
        for i, s in enumerate(own):
            latents = alive[np.flatnonzero(strongest == i)]
            try:
                ids, logits = logit_effects(model, coder.decoder[latents, coder.columns[s]], count, known)
            except UserError as error:
                stage.say(f"latent_page: {model_name}: {error}; its page shows no promoted tokens")
                break
            rows = {latent: row for row, latent in enumerate(latents.tolist())}
            effects[coder.sources[s]] = Effects(rows, ids, logits, text)
    return effects


@dataclass(frozen=True)
class Details:
    """What a page shows of every latent besides the columns of its table.

    Attributes
    ----------
    text : (tokens,)
        Texts of the tokens of the split.
    norms : (m, S)
    effects : {source: Effects}
    near : {latent: list of [latent, cosine]}
    elsewhere : {crosscoder/seed: {latent: list}}
        Latents of other crosscoders that are nearest to one, as :func:`neighbours_elsewhere` gives them.
    reads : Reads
    own : {source: (OwnTokens, function that gives the text of an id)}
        Sources whose model has a tokenizer of its own.
    """

    text: np.ndarray
    norms: np.ndarray
    effects: dict[str, Effects]
    near: dict[int, list]
    elsewhere: dict[str, dict[int, list]]
    reads: Reads
    own: dict[str, tuple[OwnTokens, Callable[[int], str]]]

    def of(self, latent: int, value: np.ndarray, groups: list[list[Example]], texts: Texts) -> dict:
        """The details of one latent."""
        added, levels = self.reads.of(latent, groups)
        effects = {source: effect.of(latent, texts) for source, effect in self.effects.items()}
        shown = [
            [self._example(*both, texts) for both in zip(*group, strict=True)]
            for group in zip(groups, levels, strict=True)
        ]
        return {
            "norms": numbers(self.norms[latent], 4),
            "firings": len(value),
            "largest": float(f"{value.max():.4g}"),
            "added": float(f"{added:.4g}"),
            "bars": latent_examples.histogram(value),
            "effects": {source: sides for source, sides in effects.items() if sides},
            "near": self.near[latent],
            "elsewhere": {name: near[latent] for name, near in self.elsewhere.items()},
            "groups": shown,
        }

    def _example(self, example: Example, added: dict[str, np.ndarray], texts: Texts) -> list:
        """[texts, place of the firing, its activation, levels, {source: [own texts or 0, levels of what it adds]}]."""
        beside = {}
        for source, levels in added.items():
            own, words = 0, levels
            if source in self.own:
                tokens, text = self.own[source]
                ids, words = tokens.beside(example, levels)
                own = [texts.number(text(token)) for token in ids.tolist()]
            beside[source] = [own, signs(words, latent_examples.READ_LEVELS, latent_examples.UNKNOWN)]
        numbered = [texts.number(text) for text in self.text[example.tokens].tolist()]
        return [numbered, example.at, float(f"{example.value:.4g}"), signs(example.levels), beside]

    def searched(self, latent: int, groups: list[list[Example]]) -> str:
        """The text that a search looks through: tokens that the latent promotes, and its strongest example."""
        promoted = [
            effect.text(token)
            for effect in self.effects.values()
            if latent in effect.row
            for token in effect.ids[0, effect.row[latent]].tolist()
        ]
        return "\n".join([" ".join(promoted), *("".join(self.text[one.tokens]) for one in groups[0][:1])])


def columns(latents: xr.Dataset, alive: np.ndarray) -> dict[str, list]:
    """What the table shows of every alive latent; numbers rounded, NaN as null."""
    table = {
        "latent": alive.tolist(),
        "class": [NORM_CLASSES[i] for i in latents["norm_class"].values[alive]],
        "specific": [SPECIFIC[i] for i in latents["specific"].values[alive]],
        "delta": numbers(latents["relative_norm"].values[alive], 3),
        "cosine": numbers(latents["decoder_cosine"].values[alive], 3),
        "density": numbers(latents["density"].values[alive], 6),
        "template_share": numbers(latents["template_share"].values[alive], 3),
        "persistence": latents["persistence"].values[alive].tolist(),
    }
    for target in ("error", "reconstruction"):
        name = f"nu_{target}"
        table[name] = numbers(latents[name].values[alive], 3)
        table[f"{name}_interval"] = list(
            zip(*(numbers(latents[f"{name}_{end}"].values[alive], 3) for end in ("low", "high")), strict=True)
        )
    if "subset_class" in latents:
        names = latents["subset_class"].attrs["flag_meanings"].split()
        table["subset"] = [names[i] for i in latents["subset_class"].values[alive]]
    for b, behaviour in enumerate(latents["behaviour"].values if "behaviour" in latents.dims else ()):
        table[f"share_{behaviour}"] = numbers(latents["planted_share"].values[alive, b], 3)
    return table


def shown_labels(path: Path | None) -> dict[str, object]:
    """What a page says of the labels of its latents; empty where none were written.

    Parameters
    ----------
    path : Path or None
        What the stage explain_latents wrote.

    Returns
    -------
    dict
        `labels` holds the labeller, the latents for which a label was tried, and of those whose label is shown
        {latent: [label, score, its interval, score of another latent's label, its interval]}.
    """
    if path is None:
        return {}
    explained = artifacts.read(path)
    scores = [
        numbers(explained[name + end].values, 3)
        for name in ("score", "shuffled_score")
        for end in ("", "_low", "_high")
    ]
    rows = zip(explained["latent"].values.tolist(), explained["label"].values, *scores, strict=True)
    kept = {
        str(latent): [str(label), own, [low, high], other, [other_low, other_high]]
        for shown, (latent, label, own, low, high, other, other_low, other_high) in zip(
            explained["shown"].values.tolist(), rows, strict=True
        )
        if shown
    }
    return {
        "labels": {
            "labeller": str(explained.attrs["labeller"]),
            "tried": np.sort(explained["latent"].values).tolist(),
            "shown": kept,
        }
    }


def write_details(
    details: Details, shown: Iterator[tuple[int, np.ndarray, list[list[Example]]]], alive: int, parts: Parts
) -> None:
    """Add the details of all latents part by part, and then the texts to search in."""
    progress, searched = stage.Progress("latent_page", alive, "latents"), []
    texts, latents, number = Texts(), [], 0
    for latent, value, groups in shown:
        latents.append(details.of(latent, value, groups, texts))
        searched.append(details.searched(latent, groups))
        progress.update(1)
        if len(latents) == (parts.latents or alive) or len(searched) == alive:
            parts.add(f"details-{number:04d}", {"texts": texts.listed(), "latents": latents})
            texts, latents, number = Texts(), [], number + 1
    parts.add("search", searched)


def gathered(section: LatentPageSection, arguments, coder: Crosscoder, data: Activations, alive: np.ndarray) -> Details:
    """What the details of latents are made from."""
    scale, elsewhere = artifacts.read(arguments.normalisation)["scale"], {}
    files = zip(section.others, arguments.other_crosscoders, arguments.other_latents, strict=True)
    for (name, seed), crosscoder, latents in files:
        elsewhere[f"{name}/{seed}"] = neighbours_elsewhere(coder, scale, alive, crosscoder, latents)
    tokens = artifacts.read(arguments.tokens)
    folders = dict(zip(section.models, arguments.models, strict=True))
    models = {name: source.model for name, source in section.sources.items()}
    own = {}
    for name in section.contrast:
        columns_of_own = OwnTokens.of(tokens, models[name]) if name in models else None
        if columns_of_own is not None:
            own[name] = columns_of_own, piece_texts(load_tokenizer(folders[models[name]].parent))
    read = [name for name in section.contrast if name in coder.sources]
    return Details(
        text=tokens["token_text"].values.astype(object),
        norms=coder.decoder_norms().numpy(),
        effects=unembedded(coder, alive, models, folders, section.page.promoted),
        near=own_neighbours(coder, alive),
        elsewhere=elsewhere,
        reads=Reads(coder, data, read, tokens.sizes["token"]),
        own=own,
    )


def main(arguments) -> None:
    """Write the page of one crosscoder, and the parts beside it where it has some."""
    section: LatentPageSection = arguments.settings
    settings = section.page
    torch.set_grad_enabled(False)
    coder = from_dataset(artifacts.read(arguments.crosscoder))
    normalisation, latents = artifacts.read(arguments.normalisation), artifacts.read(arguments.latents)
    data = Activations(arguments.activations, normalisation, coder.sources)
    firings = Firings.of(coder, data, artifacts.read(arguments.tokens)["document"].values)
    alive, parts = np.unique(firings.latent), Parts(arguments.output, arguments.parts)
    details = gathered(section, arguments, coder, data, alive)
    shown = latent_examples.examples(firings, settings.examples, settings.quantiles)
    write_details(details, shown, len(alive), parts)
    content = {
        "study": section.study,
        "setting": section.setting_name,
        "crosscoder": section.crosscoder_name,
        "seed": section.seed,
        "pages": section.pages,
        "others": section.others,
        "sources": coder.sources,
        "contrast": section.contrast,
        "columns": columns(latents, alive),
        "folder": parts.folder.name if parts.folder else None,
        "latentsPerPart": parts.latents,
        "parts": parts.inline,
    } | shown_labels(arguments.explanations)
    page = render(arguments.template.read_text(encoding="utf-8"), content)
    storage.write_sealed(page, arguments.output)
    stage.say(f"latent_page: {len(alive):,} latents, {len(page) / 1e6:.1f} MB")


if __name__ == "__main__":
    flags = ("crosscoder", "latents", "normalisation", "tokens", "template", "output")
    parser = stage.parser(LatentPageSection, __doc__, *flags, lists=("activations", "models"))
    for flag in ("--other_crosscoders", "--other_latents"):
        parser.add_argument(flag, type=Path, nargs="*", default=[], help="those that this one is compared with")
    parser.add_argument("--explanations", type=Path, help="labels of latents, where the setting asks for them")
    parser.add_argument("--parts", action="store_true", help="details of latents in files in a folder beside the page")
    stage.run(main, parser.parse_args())
