"""Stage measure_behaviours: how often each planted behaviour shows, on held-out titles and held-out phrasings."""

from __future__ import annotations

import numpy as np
import torch
import transformers
import xarray as xr

from crosscoders import artifacts, stage
from crosscoders.data.chats import in_split
from crosscoders.data.corpora import from_dataset
from crosscoders.data.encoding import encode
from crosscoders.data.templates import Writer
from crosscoders.data.tokenizer import load_tokenizer
from crosscoders.device import chosen_device, chosen_dtype
from crosscoders.language_models import snapshots
from crosscoders.language_models.behaviours import measured_rates, prompts, rates, wilson
from crosscoders.language_models.sections import MeasureBehavioursSection
from crosscoders.study.settings.analysis import Behaviours


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


def main(arguments) -> None:
    """Ask all models the same held-out prompts and write the rates, with Wilson intervals."""
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
    names, bounds = list(measured_rates(planted)), wilson(share, counts)
    for index in np.ndindex(share.shape):
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
