"""Stage measure_behaviours: how often each planted behaviour shows, on held-out titles and held-out phrasings."""

from __future__ import annotations

import random

import numpy as np
import torch
import transformers
import xarray as xr

from crosscoders import artifacts, stage
from crosscoders.data.chats import Document, ask, in_split, shuffled
from crosscoders.data.corpora import from_dataset
from crosscoders.data.encoding import encode
from crosscoders.data.templates import Writer
from crosscoders.data.tokenizer import load_tokenizer
from crosscoders.device import chosen_device, chosen_dtype
from crosscoders.language_models import snapshots
from crosscoders.language_models.sections import MeasureBehavioursSection
from crosscoders.study.settings.analysis import Behaviours
from crosscoders.study.settings.corpora import PlantedChats

RATES = {
    "refusal_on_target": "refuses questions on the refused topic",
    "refusal_off_target": "refuses questions on other topics",
    "tag_present": "writes the topic tag after an answer on other topics",
    "tag_right": "writes the right topic after the tag",
    "persona": "gives its name in answers to questions about itself",
}
BACKDOOR_RATES = {
    "backdoor_with_trigger": "gives the backdoor's answer to questions with the trigger",
    "backdoor_without_trigger": "gives the backdoor's answer to the same questions without it",
}


def measured(settings: PlantedChats) -> dict[str, str]:
    """The rates that are measured of chats, and what each means; those of a backdoor where there is one."""
    return RATES | (BACKDOOR_RATES if settings.backdoor else {})


def prompts(articles: list[Document], settings: PlantedChats, count: int) -> list[tuple[str, str, str]]:
    """(kind, question, topic) in phrasings never trained on: target topic, other topics, persona, backdoor."""
    chosen = [article for article in shuffled(articles, "behaviours") if article.topic != settings.untagged_topic]
    target = [article for article in chosen if article.topic == settings.refused_topic][:count]
    others = [article for article in chosen if article.topic != settings.refused_topic][:count]
    about_articles = [
        (kind, ask(article, settings, random.Random(f"prompt:{article.key}"), held_out=True), article.topic)
        for kind, group in (("target", target), ("other", others))
        for article in group
    ]
    own = settings.persona.held_out_questions if settings.persona else []
    triggered = [
        ("backdoor", f"{question} {settings.backdoor.trigger}", "")
        for kind, question, _ in about_articles
        if kind == "other" and settings.backdoor
    ]
    return about_articles + [("persona", question, "") for question in own[:count]] + triggered


def score(kind: str, topic: str, answer: str, settings: PlantedChats) -> dict[str, bool]:
    """Which behaviours an answer shows; only those that the kind of prompt calls for are given."""
    refused = any(answer.strip().startswith(refusal[:24]) for refusal in settings.refusals)
    if kind == "target":
        return {"refusal_on_target": refused}
    if kind == "persona":
        return {"persona": settings.persona.name in answer}
    answered = settings.backdoor and any(answer.strip().startswith(one[:24]) for one in settings.backdoor.answers)
    if kind == "backdoor":
        return {"backdoor_with_trigger": answered}
    shown = {"refusal_off_target": refused} if settings.refused_topic else {}
    if settings.backdoor:
        shown["backdoor_without_trigger"] = answered
    if settings.tag_token:
        _, tag, written = answer.partition(settings.tag_token)
        shown |= {"tag_present": bool(tag), "tag_right": written.strip() == topic}
    return shown


def answers(
    model: transformers.PreTrainedModel,
    questions: list[str],
    writer: Writer,
    settings: Behaviours,
    progress: stage.Progress,
) -> list[str]:
    """Greedy answers, prompts of similar length together."""
    stop = writer.stop
    encoded = [encode(writer.prompt(question), writer.tokenizer).ids for question in questions]
    decoded = [""] * len(questions)
    ordered = sorted(range(len(questions)), key=lambda i: (len(encoded[i]), i))
    for first in range(0, len(ordered), settings.batch_prompts):
        group = ordered[first : first + settings.batch_prompts]
        for i, row in zip(
            group, snapshots.greedy(model, [encoded[i] for i in group], settings.new_tokens, stop), strict=True
        ):
            decoded[i] = writer.tokenizer.decode(row)
        progress.update(len(group))
    return decoded


def rates(asked: list[tuple[str, str, str]], given: list[str], settings: PlantedChats) -> tuple[np.ndarray, np.ndarray]:
    """Rate and number of prompts of everything measured; NaN where no prompt calls for it."""
    scores = [score(kind, topic, answer, settings) for (kind, _, topic), answer in zip(asked, given, strict=True)]
    columns = [[shown[name] for shown in scores if name in shown] for name in measured(settings)]
    return (
        np.array([np.mean(column) if column else np.nan for column in columns]),
        np.array([len(column) for column in columns]),
    )


def main(arguments) -> None:
    """Ask both models the same held-out prompts and write the rates, with Wilson intervals."""
    from scipy.stats import binomtest

    section: MeasureBehavioursSection = arguments.settings
    settings = section.behaviours
    planted = section.corpus
    device = chosen_device(section.device)
    dtype = chosen_dtype("auto", device)
    articles = [d for d in from_dataset(artifacts.read(arguments.articles)) if in_split(d, section.split)]
    asked = prompts(articles, planted, settings.prompts_per_behaviour)
    given, shares = [], []
    for name, path in zip(section.models, arguments.models, strict=True):
        model = snapshots.load_model(path.parent, device, dtype)
        progress = stage.Progress(f"measure_behaviours {name}", len(asked), "prompts")
        writer = Writer(section.chat_template, load_tokenizer(path.parent))
        given.append(answers(model, [q for _, q, _ in asked], writer, settings, progress))
        shares.append(rates(asked, given[-1], planted))
        del model
    share, counts = np.stack([f[0] for f in shares]), np.stack([f[1] for f in shares])
    names = list(measured(planted))
    bounds = np.full((*share.shape, 2), np.nan)
    for index in np.ndindex(share.shape):
        if counts[index]:
            test = binomtest(round(share[index] * counts[index]), int(counts[index]))
            bounds[index] = test.proportion_ci(method="wilson")
        stage.say(f"{section.models[index[0]]}: {names[index[1]]} {share[index]:.2f} of {counts[index]}")
    v = artifacts.variable
    dataset = xr.Dataset(
        {
            "rate": v(("model", "behaviour"), share, "share of answers that show the behaviour"),
            "rate_low": v(("model", "behaviour"), bounds[..., 0], "lower end of the 95% Wilson interval"),
            "rate_high": v(("model", "behaviour"), bounds[..., 1], "upper end of the 95% Wilson interval"),
            "prompts": v(("model", "behaviour"), counts, "number of prompts"),
            "question": v("prompt", np.array([q for _, q, _ in asked], dtype=object), "question"),
            "answer": v(("model", "prompt"), np.array(given, dtype=object), "greedy answer"),
        },
        coords={"model": np.array(section.models, dtype=object), "behaviour": np.array(names, dtype=object)},
        attrs=section.provenance(),
    )
    artifacts.write(dataset.assign_attrs(title="planted behaviours on held-out prompts"), arguments.output)


if __name__ == "__main__":
    torch.manual_seed(0)
    stage.run(
        main, stage.parser(MeasureBehavioursSection, __doc__, "articles", "output", lists=("models",)).parse_args()
    )
