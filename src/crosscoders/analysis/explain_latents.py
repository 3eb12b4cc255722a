"""Stage explain_latents: short labels of some latents, written by a language model and scored against shuffled labels.

A label is scored by detection: by the label alone, the labeller is asked which of several held-out excerpts the latent fires
in. It fires in half of them, so that the share of right answers is the balanced accuracy. Beside it stands the score of
another latent's label on the same excerpts. A label is shown where the lower end of its own interval exceeds two numbers:
the upper end of the interval of the mean over shuffled labels, and the score of the other label on the same excerpts, which
is high where the excerpts give themselves away.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import scipy.stats
import torch
import xarray as xr

from crosscoders import artifacts, stage
from crosscoders.activations.dataset import Activations
from crosscoders.analysis import bootstrap, excerpts
from crosscoders.analysis.active_pairs import ActivePairs
from crosscoders.analysis.labellers import Found, LocalLabeller, RemoteLabeller, label_of, write_prompt
from crosscoders.analysis.sections import ExplainLatentsSection
from crosscoders.crosscoder.files import from_dataset
from crosscoders.device import chosen_device, chosen_dtype
from crosscoders.errors import UserError
from crosscoders.language_models.endpoint import Endpoint
from crosscoders.study.settings.analysis import Bootstrap
from crosscoders.study.settings.comparisons import Explain

REPLIES = ".replies"
"""Folder, within that of all explanations of a study, in which the replies of endpoints are kept."""


@dataclass
class Material:
    """What K latents are labelled and scored by.

    Attributes
    ----------
    latent, reason : (K,) int
    examples : list of K lists of str
        Marked excerpts, strongest first.
    texts : list of K lists of str
        Held-out excerpts.
    active : list of K lists of bool
        Whether the latent fires in each.
    """

    latent: np.ndarray
    reason: np.ndarray
    examples: list[list[str]]
    texts: list[list[str]]
    active: list[list[bool]]


def material(firings: ActivePairs, latents: xr.Dataset, tokens: xr.Dataset, settings: Explain) -> Material:
    """Choose latents, and the excerpts of each."""
    document = tokens["document"].values
    scoring = excerpts.halves(document, settings.seed)
    allowed = excerpts.eligible(firings, document, scoring, latents.sizes["latent"])
    corpus = excerpts.Corpus(tokens["token_text"].values.astype(object), document, scoring)
    kept: list[tuple] = []
    for latent, reason in zip(*excerpts.choose(latents, allowed, settings.latents, settings.seed), strict=True):
        token, value = firings.of_latent(latent)
        generator = np.random.default_rng([settings.seed, int(latent)])
        texts, active = excerpts.held_out(corpus, token, value, settings.held_out, generator)
        if texts:  # a latent that fires everywhere has no excerpts without it
            kept.append((latent, reason, excerpts.examples(corpus, token, value, settings.examples), texts, active))
    if len(kept) < 2:
        least = excerpts.FEWEST_DOCUMENTS
        raise UserError(
            f"explain: {len(kept)} latents fire in {least} test documents of either half; expected at least two of them, "
            "by more test tokens or a longer training"
        )
    latent, reason, *lists = zip(*kept, strict=True)
    return Material(np.array(latent), np.array(reason), *map(list, lists))


def shuffled(count: int, seed: int) -> np.ndarray:
    """For every latent another one, whose label it gets, (count,) int; each label is given once."""
    order = np.random.default_rng(seed).permutation(count)
    other = np.empty(count, int)
    other[order] = np.roll(order, 1)
    return other


def scores(found: list[Found], active: list[list[bool]], confidence: float) -> np.ndarray:
    """Balanced accuracy and the ends of its Wilson interval, (K, 3).

    As many excerpts hold the feature as do not, so the share of right answers is the balanced accuracy.
    """
    rows = []
    for one, truth in zip(found, active, strict=True):
        right = int((one.said == np.array(truth)).sum())
        ends = scipy.stats.binomtest(right, len(truth)).proportion_ci(confidence, "wilson")
        rows.append((right / len(truth), ends.low, ends.high))
    return np.array(rows)


def mean_score(own: np.ndarray, settings: Bootstrap) -> np.ndarray:
    """The mean of scores over latents, with its bootstrap interval over latents, (3,)."""
    weights = bootstrap.resamples(len(own), settings.bootstrap_replicates, settings.seed)
    low, high = bootstrap.interval(weights @ own / len(own), settings.confidence)
    return np.array([own.mean(), low, high])


def measured(own: list[Found], other: list[Found], active: list[list[bool]], settings: Bootstrap) -> xr.Dataset:
    """Scores of labels and of shuffled labels, and which labels are shown."""
    v, dataset = artifacts.variable, xr.Dataset()
    ends = ("", ""), ("_low", "lower"), ("_high", "upper")
    for name, words, found in (("score", "", own), ("shuffled_score", "another latent's label: ", other)):
        each = scores(found, active, settings.confidence)
        for i, (end, side) in enumerate(ends):
            what = f"{words}balanced accuracy of detection"
            long_name = f"{side} end of the Wilson interval of: {what}" if i else what
            dataset[name + end] = v("explained", each[:, i], long_name)
        for i, (value, (end, side)) in enumerate(zip(mean_score(each[:, 0], settings), ends, strict=True)):
            what = f"{words}mean balanced accuracy over latents"
            dataset[f"mean_{name}{end}"] = v(
                (), value, f"{side} end of the bootstrap interval of: {what}" if i else what
            )
    least = float(dataset["mean_shuffled_score_high"])
    shown, by_chance = (
        dataset[f"{name}_low"].values > np.maximum(least, dataset[other].values)
        for name, other in (("score", "shuffled_score"), ("shuffled_score", "score"))
    )
    rule = "the lower end of its score exceeds the shuffled labels' mean, upper end, and the other label's score"
    dataset["shown"] = artifacts.flags("explained", shown, ("no", "yes"), f"whether the label is shown: {rule}")
    dataset["shuffled_shown"] = artifacts.flags(
        "explained", by_chance, ("no", "yes"), "the same of another latent's label"
    )
    return dataset


def by_group(dataset: xr.Dataset, reason: np.ndarray, settings: Bootstrap) -> xr.Dataset:
    """Mean scores over the latents of every group, with intervals, and how many labels were tried and are shown.

    Parameters
    ----------
    dataset : xarray.Dataset
        From :func:`measured`.
    reason : (K,) int
        What each latent was chosen by.
    settings : Bootstrap

    Returns
    -------
    xarray.Dataset
        Over `label_group`: each of the reasons, then all latents. Means of no latents, and intervals of fewer than two, are NaN.
    """
    v, dim, chosen = artifacts.variable, "label_group", [*(reason == i for i in range(len(excerpts.REASONS)))]
    chosen.append(np.ones(len(reason), bool))
    groups = xr.Dataset(coords={dim: np.array([*excerpts.REASONS, "all"], object)})
    for name, words in (("score", ""), ("shuffled_score", "another latent's label: ")):
        rows = np.full((len(chosen), 3), np.nan)
        for row, inside in zip(rows, chosen, strict=True):
            each = dataset[name].values[inside]
            row[: 3 if len(each) > 1 else len(each)] = mean_score(each, settings) if len(each) > 1 else each
        what = f"{words}mean balanced accuracy over the latents of a group"
        groups[f"labels_{name}"] = v(dim, rows[:, 0], what)
        for i, (end, side) in enumerate((("_low", "lower"), ("_high", "upper")), 1):
            groups[f"labels_{name}{end}"] = v(dim, rows[:, i], f"{side} end of the bootstrap interval of: {what}")
    groups["labels_tried"] = v(dim, np.array([inside.sum() for inside in chosen]), "labels of a group")
    for name, words in (
        ("shown", "labels of a group that are shown"),
        ("shuffled_shown", "the same of shuffled labels"),
    ):
        groups[f"labels_{name}"] = v(dim, np.array([dataset[name].values[inside].sum() for inside in chosen]), words)
    return groups


def padded(rows: list, fill: object, dtype: type | np.dtype) -> np.ndarray:
    """Rows of unequal length as one array."""
    out = np.full((len(rows), max(map(len, rows))), fill, dtype)
    for i, row in enumerate(rows):
        out[i, : len(row)] = row
    return out


def recorded(
    chosen: Material, replies: list[str], own: list[Found], other: list[Found], partner: np.ndarray
) -> xr.Dataset:
    """What was asked and answered."""
    v, two = artifacts.variable, ("explained", "excerpt")
    labels = np.array([label_of(reply) for reply in replies], object)
    dataset = xr.Dataset(
        {
            "latent": v("explained", chosen.latent.astype(np.int32), "index of the latent"),
            "chosen_by": artifacts.flags("explained", chosen.reason, excerpts.REASONS, "what the latent was chosen by"),
            "label": v("explained", labels, "label of the latent"),
            "label_prompt": v(
                "explained", np.array(list(map(write_prompt, chosen.examples)), object), "question of the label"
            ),
            "label_reply": v("explained", np.array(replies, object), "what the labeller wrote"),
            "shuffled_of": v(
                "explained", chosen.latent[partner].astype(np.int32), "latent whose label is scored beside"
            ),
            "excerpt_text": v(two, padded(chosen.texts, "", object), "held-out excerpts"),
            "excerpt_active": v(
                two, padded(chosen.active, -1, np.int8), "1 where the latent fires, -1 where there is none"
            ),
        }
    )
    for name, words, found in (("", "the label", own), ("shuffled_", "another latent's label", other)):
        said = padded([one.said for one in found], -1, np.int8)
        odds = padded([one.log_odds for one in found], np.nan, np.float64)
        texts, understood = [one.reply for one in found], [one.understood for one in found]
        dataset[f"{name}said"] = v(
            two, said, f"1 where the labeller finds the feature by {words}, -1 where there is none"
        )
        dataset[f"{name}log_odds"] = v(two, odds, f"log odds of yes against no by {words}; NaN of an endpoint")
        dataset[f"{name}reply"] = v("explained", np.array(texts, object), f"what an endpoint replied about {words}")
        dataset[f"{name}understood"] = artifacts.flags(
            "explained",
            understood,
            ("no", "yes"),
            f"whether the reply about {words} lists excerpts; else none is found",
        )
    return dataset


def labeller(section: ExplainLatentsSection, model: Path | None, output: Path) -> LocalLabeller | RemoteLabeller:
    """The model that a section asks for."""
    settings = section.explain
    if settings.endpoint is not None:
        replies = output.parents[2] / REPLIES
        return RemoteLabeller(Endpoint(settings.endpoint.model, settings.seed, replies))
    device = chosen_device(section.device)
    return LocalLabeller(model.parent, device, chosen_dtype(section.dtype, device), settings.label_tokens)


def main(arguments) -> None:
    """Label the latents of one crosscoder, score the labels, and save both."""
    section: ExplainLatentsSection = arguments.settings
    settings = section.explain
    torch.set_grad_enabled(False)
    coder = from_dataset(artifacts.read(arguments.crosscoder))
    data = Activations(arguments.activations, artifacts.read(arguments.normalisation), coder.sources)
    latents, tokens = artifacts.read(arguments.latents), artifacts.read(arguments.tokens)
    chosen = material(ActivePairs.of(coder, data), latents, tokens, settings)
    count, asked = len(chosen.latent), labeller(section, arguments.model, arguments.output)
    progress = stage.Progress(f"explain_latents {section.label}", 3 * count, "questions")
    replies = asked.write(chosen.examples, progress.update)
    labels, partner = [label_of(reply) for reply in replies], shuffled(count, settings.seed)
    both = asked.find(labels + [labels[i] for i in partner], chosen.texts * 2, progress.update)
    own, other = both[:count], both[count:]
    scored = measured(own, other, chosen.active, section.bootstrap)
    groups = by_group(scored, chosen.reason, section.bootstrap)
    dataset = xr.merge([recorded(chosen, replies, own, other, partner), scored, groups])
    dataset.attrs = section.provenance(settings.seed) | {"title": "labels of latents", "labeller": asked.name}
    if isinstance(asked, RemoteLabeller):
        dataset.attrs["answered_by"] = ", ".join(sorted(asked.models))
    artifacts.write(dataset, arguments.output)
    _say(dataset, asked)


def _say(dataset: xr.Dataset, asked: LocalLabeller | RemoteLabeller) -> None:
    """What came out, and what readers of it should know."""
    count, shown = dataset.sizes["explained"], int(dataset["shown"].sum())
    means = [float(dataset[name]) for name in ("mean_score", "mean_shuffled_score")]
    stage.say(
        f"explain_latents: {shown} of {count} labels are shown; balanced accuracy {means[0]:.2f}, "
        f"of shuffled labels {means[1]:.2f}"
    )
    lost = sum(int((dataset[name] == 0).sum()) for name in ("understood", "shuffled_understood"))
    if lost:
        stage.say(f"explain_latents: {lost} of {2 * count} replies list no excerpts, and count as finding none")
    if isinstance(asked, LocalLabeller) and asked.shortened:
        stage.say(
            f"explain_latents: {asked.shortened} prompts lost their beginning, as {asked.name} reads {asked.longest} tokens"
        )


if __name__ == "__main__":
    flags = ("crosscoder", "latents", "normalisation", "tokens", "output")
    parser = stage.parser(ExplainLatentsSection, __doc__, *flags, lists=("activations",))
    parser.add_argument("--model", type=Path, help="the model of the study that labels")
    stage.run(main, parser.parse_args())
