"""Stage steer: which planted behaviours change when sets of latents are added to base or taken out of chat.

Both models answer prompts with held-out titles and phrasings greedily, unmodified and under every intervention of
:mod:`crosscoders.interventions.steering`. Every behaviour's rate is counted, and how many answers are no longer fluent.

An answer is called not fluent where its loss, the mean cross-entropy of its tokens given the prompt, exceeds a threshold:
the 95th percentile of the same loss over the answers of the unmodified model. There are two such counts. The first takes
the loss and the threshold of the unmodified model of the same side. Under it, base that was made to answer as chat does
counts as not fluent, since base finds such answers improbable. The second counts answers that exceed the thresholds of
both unmodified models, each under its own loss: answers that neither model would write.
"""

from __future__ import annotations

import numpy as np
import torch
import transformers
import xarray as xr

from crosscoders import artifacts, stage
from crosscoders.activations.dataset import Activations
from crosscoders.crosscoder.files import from_dataset
from crosscoders.data.chats import in_split
from crosscoders.data.corpora import from_dataset as documents_of
from crosscoders.data.encoding import encode
from crosscoders.data.templates import Writer
from crosscoders.data.tokenizer import load_tokenizer
from crosscoders.errors import UserError
from crosscoders.interventions import steering
from crosscoders.interventions.reading import Reader, Scale, directions, load_pair
from crosscoders.interventions.sections import SteerSection
from crosscoders.interventions.steering import UNMODIFIED, Intervention
from crosscoders.language_models import splicing
from crosscoders.language_models.behaviours import measured_rates, prompts, rates, wilson
from crosscoders.language_models.windows import windows
from crosscoders.study.settings.corpora import PlantedChats

SIDES = ("base", "chat")
FLUENT = 0.95
"""Quantile of the unmodified model's losses above which an answer is not fluent."""


def answer_losses(
    model: transformers.PreTrainedModel,
    asked: list[list[int]],
    given: list[list[list[int]]],
    wanted: np.ndarray,
    batch_tokens: int,
) -> np.ndarray:
    """Mean cross-entropy (nats) of the tokens of answers under an unmodified model, (interventions, prompts).

    Parameters
    ----------
    model : PreTrainedModel
    asked : list of list of int
        Token ids of the prompts, of which the first is the sink.
    given : list, per intervention, of lists, per prompt, of token ids
    wanted : (interventions, prompts) bool
        Answers that are measured; the others get NaN.
    batch_tokens : int
        Tokens per forward pass.
    """
    found = np.full(wanted.shape, np.nan)
    different = dict.fromkeys((p, tuple(given[i][p])) for i, p in np.argwhere(wanted))  # many are alike
    if not different:
        return found
    texts = [asked[p][1:] + list(answer) for p, answer in different]
    position = np.concatenate([np.arange(1, 1 + len(text)) for text in texts])
    ids, spans = np.concatenate(texts), windows(position)
    (losses,) = splicing.token_losses(model, ids, spans, asked[0][0], batch_tokens, [None])
    means = {
        key: losses[span.stop - len(key[1]) : span.stop].mean() for key, span in zip(different, spans, strict=True)
    }
    for i, p in np.argwhere(wanted):
        found[i, p] = means[p, tuple(given[i][p])]
    return found


def losses_of(
    reader: Reader, made: list[Intervention], asked: list[list[int]], given: list[list[list[int]]], batch_tokens: int
) -> np.ndarray:
    """Losses of all answers under unmodified base and chat, (2, interventions, prompts).

    Those of the other side's model are measured where the side's own model finds an answer not fluent, and NaN elsewhere.
    """
    models, side = (reader.base, reader.chat), np.array([SIDES.index(one.side) for one in made])
    shape = (len(made), len(asked))
    own = [np.broadcast_to((side == s)[:, None], shape) for s in (0, 1)]
    losses = np.stack([answer_losses(models[s], asked, given, own[s], batch_tokens) for s in (0, 1)])
    _, above, _ = fluency(losses, made)
    for s in (0, 1):
        other = answer_losses(models[s], asked, given, above & ~own[s], batch_tokens)
        losses[s] = np.where(own[s], losses[s], other)
    return losses


def fluency(losses: np.ndarray, made: list[Intervention]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Which answers are not fluent.

    Parameters
    ----------
    losses : (2, interventions, prompts)
        Under unmodified base and chat; NaN where not measured, which is above no threshold.
    made : list of Intervention

    Returns
    -------
    thresholds : (2,)
        95th percentile of the losses of either model's own unmodified answers.
    own, both : (interventions, prompts) bool
        Above the threshold of the side that answered; above both.
    """
    unmodified = [next(i for i, one in enumerate(made) if (one.side, one.name) == (side, UNMODIFIED)) for side in SIDES]
    thresholds = np.array([np.quantile(losses[s, i], FLUENT) for s, i in enumerate(unmodified)])
    above = losses > thresholds[:, None, None]
    side = np.array([SIDES.index(one.side) for one in made])
    return thresholds, above[side, np.arange(len(made))], above.all(0)


def to_dataset(
    made: list[Intervention],
    questions: list[tuple[str, str, str]],
    texts: list[list[str]],
    losses: np.ndarray,
    corpus: PlantedChats,
) -> xr.Dataset:
    """Rates of every behaviour and of answers that are not fluent, with Wilson intervals, by intervention."""
    thresholds, own, both = fluency(losses, made)
    share, count = (np.stack(part) for part in zip(*(rates(questions, row, corpus) for row in texts), strict=True))
    v, dims = artifacts.variable, ("intervention", "steered_behaviour")
    variables = {"steering_prompts": v("steered_behaviour", count[0], "number of prompts")}
    answers, same = np.full(len(made), own.shape[1]), "answers not fluent to the unmodified model of the same side"
    measured = (
        ("steering_rate", dims, share, count, "share of answers that show the behaviour"),
        ("steering_not_fluent", dims[:1], own.mean(1), answers, f"share of {same}"),
        ("steering_not_fluent_to_both", dims[:1], both.mean(1), answers, "share of answers not fluent to either model"),
    )
    for name, over, values, counts, label in measured:
        bounds = wilson(values, counts)
        variables[name] = v(over, values, label)
        variables[f"{name}_low"] = v(over, bounds[..., 0], "lower end of the 95% Wilson interval")
        variables[f"{name}_high"] = v(over, bounds[..., 1], "upper end of the 95% Wilson interval")
    side = np.array([SIDES.index(one.side) for one in made])
    variables |= {
        "steering_loss": v(
            "intervention", losses[side, np.arange(len(made))].mean(1), "mean loss of the answers", "nats"
        ),
        "steering_side": v("intervention", np.array([one.side for one in made], dtype=object), "model that answers"),
        "steering_set": v(
            "intervention", np.array([one.name for one in made], dtype=object), "what is added or taken out"
        ),
        "steering_strength": v(
            "intervention", np.array([one.strength for one in made]), "size of what is added, in units of steering_unit"
        ),
        "fluency_threshold": v("side", thresholds, "loss above which an answer is not fluent", "nats"),
        "question": v("prompt", np.array([question for _, question, _ in questions], dtype=object), "question"),
        "answer": v(("intervention", "prompt"), np.array(texts, dtype=object), "greedy answer"),
        "answer_loss": v(("side", "intervention", "prompt"), losses, "loss under the unmodified models", "nats"),
    }
    coords = {
        "intervention": list(map(_label, made)),
        "steered_behaviour": list(measured_rates(corpus)),
        "side": list(SIDES),
    }
    return xr.Dataset(variables, coords={name: np.array(values, dtype=object) for name, values in coords.items()})


def _label(made: Intervention) -> str:
    """What was done, in words."""
    name = made.name if made.side == "base" else f"{made.name}, ablated"
    return name if np.isnan(made.strength) else f"{name}, {made.strength:g} added"


def sets_dataset(
    named: dict[str, np.ndarray], activity: steering.Activity, norms: dict[str, float], unit: float
) -> xr.Dataset:
    """The latents of every set, and the sizes of their directions."""
    size = max((len(members) for members in named.values()), default=0)
    latents = np.full((len(named), size), -1, np.int64)
    for row, members in zip(latents, named.values(), strict=True):
        row[: len(members)] = members
    density = np.array([activity.density[members].mean() for members in named.values()])
    v = artifacts.variable
    return xr.Dataset(
        {
            "set_latents": v(("latent_set", "place"), latents, "latents of the set; -1 where it has no more"),
            "set_density": v("latent_set", density, "share of validation tokens on which its latents are active, mean"),
            "set_norm": v(
                "latent_set", np.array([norms[name] for name in named]), "norm of its direction at typical activations"
            ),
            "steering_unit": v((), np.float64(unit), "norm of what is added at strength 1"),
        },
        coords={"latent_set": np.array(list(named), dtype=object)},
    )


def main(arguments) -> None:
    """Steer with one crosscoder's latents."""
    section: SteerSection = arguments.settings
    settings = section.steering
    torch.set_grad_enabled(False)
    trained = artifacts.read(arguments.crosscoder)
    coder, normalisation = from_dataset(trained), artifacts.read(arguments.normalisation)
    base, chat = section.contrast
    scale = Scale(normalisation, list(dict.fromkeys([base, chat, *coder.sources])))
    decoder = directions(coder, scale, base, chat)[0].chat
    activity = steering.Activity.of(coder, Activations(arguments.activations, normalisation, coder.sources))
    written = decoder.norm(dim=1).double().numpy()
    named = steering.sets(activity, artifacts.read(arguments.latents), written, settings)
    mean = scale.mean[chat] - scale.mean[base]
    made, norms, unit = steering.interventions(named, activity.typical, decoder, mean, settings.strengths)
    folders = dict(zip(section.models, arguments.models, strict=True))
    writer = Writer(section.chat_template, load_tokenizer(folders[section.chat].parent))
    articles = [d for d in documents_of(artifacts.read(arguments.articles)) if in_split(d, section.split)]
    questions = prompts(articles, section.corpus, settings.prompts_per_behaviour)
    if not questions:
        raise UserError(f"settings.{section.setting_name}.steering: no article of the test split can be asked about")
    asked = [[writer.sink, *encode(writer.prompt(question), writer.tokenizer).ids] for _, question, _ in questions]
    norms_of_sinks = {name: float(normalisation["sink_norm"].sel(source=name)) for name in (base, chat)}
    reader = Reader(*load_pair(section, folders), section.contrast, section.layer, coder, scale, norms_of_sinks)
    label = f"steer {section.label}"
    given = steering.answers(reader, decoder, made, asked, settings, writer.stop, label)
    losses = losses_of(reader, made, asked, given, section.batch_tokens)
    texts = [[_text(answer, writer) for answer in row] for row in given]
    dataset = to_dataset(made, questions, texts, losses, section.corpus)
    dataset = dataset.merge(sets_dataset(named, activity, norms, unit)).merge(trained[["training_tokens"]])
    artifacts.write(dataset.assign_attrs(**section.provenance(), title="steering with latents"), arguments.output)
    stage.say(f"steer: {len(made)} interventions, {len(questions)} prompts each; unit {unit:.3g}")


def _text(answer: list[int], writer: Writer) -> str:
    """The text of an answer without the token that ends it."""
    return writer.tokenizer.decode(answer[:-1] if answer[-1] == writer.stop else answer)


if __name__ == "__main__":
    flags = ("crosscoder", "latents", "normalisation", "articles", "output")
    stage.run(main, stage.parser(SteerSection, __doc__, *flags, lists=("activations", "models")).parse_args())
