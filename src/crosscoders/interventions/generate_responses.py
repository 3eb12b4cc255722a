"""Stage generate_responses: the chat model's own answers to prompts from test documents.

A prompt is the first message of a conversation that no model or crosscoder was trained on.
"""

from __future__ import annotations

import numpy as np
import torch
import xarray as xr

from crosscoders import artifacts, stage
from crosscoders.data.chats import ROLES, Document, in_split, shuffled
from crosscoders.data.corpora import from_dataset
from crosscoders.data.encoding import encode
from crosscoders.data.templates import Writer
from crosscoders.data.tokenizer import load_tokenizer
from crosscoders.device import chosen_device, chosen_dtype
from crosscoders.errors import UserError
from crosscoders.interventions.sections import GenerateResponsesSection
from crosscoders.language_models import snapshots

BATCH_PROMPTS = 24


def questions(documents: list[Document], count: int) -> list[tuple[str, str]]:
    """(question, planted behaviour) of `count` conversations, each question once."""
    behaviours: dict[str, str] = {}
    for document in shuffled(documents, "responses"):
        first = document.segments[0]
        if first.role == "user" and first.text not in behaviours:
            behaviours[first.text] = document.behaviour
        if len(behaviours) == count:
            break
    return list(behaviours.items())


def encode_prompt(question: str, writer: Writer) -> tuple[list[int], list[int]]:
    """Token ids and roles of a prompt, up to where the answer begins."""
    tokens = encode(writer.prompt(question), writer.tokenizer)
    return tokens.ids, [ROLES.index(tokens.parts[place].role) for place in tokens.places]


def to_dataset(prompts: list[tuple[list[int], list[int]]], answers: list[list[int]], stop: int) -> xr.Dataset:
    """Conversations one after the other, in the shape of a setting's tokens."""
    columns: dict[str, list[int]] = {
        name: [] for name in ("token_id", "document", "position", "role", "response_place")
    }
    for number, ((ids, roles), answer) in enumerate(zip(prompts, answers, strict=True)):
        ends = [ROLES.index("template") if token == stop else ROLES.index("assistant") for token in answer]
        columns["token_id"] += ids + answer
        columns["document"] += [number] * len(ids + answer)
        columns["position"] += range(1, 1 + len(ids + answer))
        columns["role"] += roles + ends
        columns["response_place"] += [-1] * len(ids) + list(range(len(answer)))
    v = artifacts.variable
    integers = {name: np.array(values, np.int32) for name, values in columns.items()}
    return xr.Dataset(
        {
            "token_id": v("token", integers["token_id"], "token id"),
            "document": v("token", integers["document"], "index of the conversation"),
            "position": v("token", integers["position"], "position; the sink at 0 is not stored"),
            "role": artifacts.flags("token", columns["role"], ROLES, "who speaks"),
            "response_place": v("token", integers["response_place"], "place in the response, -1 in the prompt"),
        }
    )


def main(arguments) -> None:
    """Ask the chat model, and save its answers."""
    section: GenerateResponsesSection = arguments.settings
    settings = section.asking
    documents = [document for path in arguments.texts for document in from_dataset(artifacts.read(path))]
    asked = questions([d for d in documents if in_split(d, section.split)], settings.prompts)
    if not asked:
        raise UserError(f"settings.{section.setting_name}.causal: no test document begins with a user's message")
    writer = Writer(section.chat_template, load_tokenizer(arguments.model.parent))
    device = chosen_device(section.device)
    model = snapshots.load_model(arguments.model.parent, device, chosen_dtype(section.dtype, device))
    torch.manual_seed(settings.seed)
    prompts = [encode_prompt(question, writer) for question, _ in asked]
    answers: list[list[int]] = [[]] * len(prompts)
    ordered = sorted(range(len(prompts)), key=lambda i: (len(prompts[i][0]), i))
    progress = stage.Progress(f"generate_responses {section.setting_name}", len(prompts), "prompts")
    for first in range(0, len(ordered), BATCH_PROMPTS):
        group = ordered[first : first + BATCH_PROMPTS]
        chosen = [[writer.sink, *prompts[i][0]] for i in group]
        continuations = snapshots.continuations(model, chosen, settings.new_tokens, writer.stop, settings.temperature)
        for i, answer in zip(group, continuations, strict=True):
            answers[i] = answer
        progress.update(len(group))
    dataset = to_dataset(prompts, answers, writer.stop)
    v = artifacts.variable
    dataset["question"] = v("document_id", np.array([q for q, _ in asked], dtype=object), "question")
    dataset["behaviour"] = v(
        "document_id", np.array([b for _, b in asked], dtype=object), "planted behaviour asked for"
    )
    dataset["answer"] = v(
        "document_id", np.array([writer.tokenizer.decode(a) for a in answers], dtype=object), "answer"
    )
    dataset.attrs = section.provenance(settings.seed)
    artifacts.write(
        dataset.assign_attrs(title="responses of the chat model", sink_token_id=writer.sink), arguments.output
    )
    stage.say(f"generate_responses: {len(asked)} conversations, {sum(map(len, answers)):,} response tokens")


if __name__ == "__main__":
    stage.run(main, stage.parser(GenerateResponsesSection, __doc__, "model", "output", lists=("texts",)).parse_args())
