"""Stage tokenize: the token sequences of a setting, split by document, every token with its role and behaviour."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field

import numpy as np
import transformers
import xarray as xr

from crosscoders import artifacts, stage
from crosscoders.data.chats import BEHAVIOURS, EXCHANGES, ROLES, Document, in_split, shuffled
from crosscoders.data.corpora import from_dataset
from crosscoders.data.sections import TokenizeSection
from crosscoders.data.tokenizer import load_tokenizer
from crosscoders.errors import UserError
from crosscoders.study.settings.base import SPLITS
from crosscoders.study.settings.corpora import ChatTemplate


@dataclass
class Sequences:
    """Columns over tokens, and over the documents they come from."""

    token_id: list[int] = field(default_factory=list)
    document: list[int] = field(default_factory=list)
    position: list[int] = field(default_factory=list)
    role: list[int] = field(default_factory=list)
    planted_behaviour: list[int] = field(default_factory=list)
    corpus: list[int] = field(default_factory=list)
    key: list[str] = field(default_factory=list)
    topic: list[str] = field(default_factory=list)


def encode(
    document: Document, tokenizer: transformers.PreTrainedTokenizerBase, template: ChatTemplate
) -> list[tuple[int, int, int]]:
    """(token id, role, planted behaviour) of each token; messages of chats get the study's template around them."""
    found: list[tuple[int, int, int]] = []

    def add(text: str, role: str, behaviour: str = "none") -> None:
        entry = ROLES.index(role), BEHAVIOURS.index(behaviour)
        found.extend((token, *entry) for token in tokenizer(text, add_special_tokens=False).input_ids)

    for i, segment in enumerate(document.segments):
        is_chat = segment.role != "text"
        around = segment.behaviour if segment.behaviour in EXCHANGES else "none"
        before = document.segments[i - 1] if i else None
        after = document.segments[i + 1] if i + 1 < len(document.segments) else None
        if is_chat and (before is None or before.message != segment.message):
            add(template.open(segment.role), "template", around)
        add(segment.text, segment.role, segment.behaviour)
        if is_chat and (after is None or after.message != segment.message):
            add(template.closing, "template", around)
    return found


def fill(sequences: Sequences, documents: list[Document], budget: int, corpus: int, window: int, encoded) -> int:
    """Append whole documents until `budget` tokens are there; return the tokens appended.

    A document longer than `window` continues in further windows, each of which starts at position 1
    (position 0 is the sink, which is not stored).
    """
    count = 0
    for document in documents:
        if count >= budget:
            break
        tokens = encoded(document)[: budget - count]
        index = len(sequences.corpus)
        sequences.corpus.append(corpus)
        sequences.key.append(document.key)
        sequences.topic.append(document.topic)
        for i, (token, role, behaviour) in enumerate(tokens):
            sequences.token_id.append(token)
            sequences.document.append(index)
            sequences.position.append(1 + i % window)
            sequences.role.append(role)
            sequences.planted_behaviour.append(behaviour)
        count += len(tokens)
    return count


def to_dataset(sequences: Sequences, corpora: list[str], tokenizer, with_text: bool) -> xr.Dataset:
    """The columns as a dataset over `token` and `document_id`."""
    v = artifacts.variable
    integers = {name: np.array(getattr(sequences, name), np.int32) for name in ("token_id", "document", "position")}
    dataset = xr.Dataset(
        {
            "token_id": v("token", integers["token_id"], "token id"),
            "document": v("token", integers["document"], "index of the document"),
            "position": v("token", integers["position"], "position in the window; the sink at 0 is not stored"),
            "role": artifacts.flags("token", sequences.role, ROLES, "who speaks"),
            "planted_behaviour": artifacts.flags(
                "token", sequences.planted_behaviour, BEHAVIOURS, "planted behaviour the token belongs to"
            ),
            "corpus": artifacts.flags("document_id", sequences.corpus, corpora, "corpus the document comes from"),
            "key": v("document_id", np.array(sequences.key, dtype=object), "name that decides the split"),
            "topic": v("document_id", np.array(sequences.topic, dtype=object), "topic label"),
        }
    )
    if with_text:
        text = [tokenizer.decode([token]) for token in sequences.token_id]
        dataset["token_text"] = v("token", np.array(text, dtype=object), "text of the token")
    return dataset


def main(arguments) -> None:
    """Write the three splits of one setting."""
    section: TokenizeSection = arguments.settings
    template = section.chat_template
    tokenizer, *others = (load_tokenizer(path.parent) for path in arguments.models)
    for other, path in zip(others, arguments.models[1:], strict=True):
        if other.get_vocab() != tokenizer.get_vocab():
            raise UserError(
                f"{path.parent}: its vocabulary is not that of {arguments.models[0].parent}; sources of one setting see "
                "the same tokens"
            )
    texts = dict(zip(section.corpora, arguments.texts, strict=True))
    corpora = {name: shuffled(from_dataset(artifacts.read(path)), "tokens") for name, path in texts.items()}
    sink = tokenizer.convert_tokens_to_ids(template.sink)
    if sink is None or tokenizer.convert_ids_to_tokens(sink) != template.sink:
        raise UserError(f"chat_template.sink: {template.sink!r} is no token of the model's vocabulary")
    digest = hashlib.sha256(template.model_dump_json().encode()).hexdigest()
    for split, path in zip(SPLITS, arguments.outputs, strict=True):
        sequences = Sequences()
        for index, (name, budget) in enumerate(section.tokens[split].items()):
            inside = [document for document in corpora[name] if in_split(document, section.splits[split])]
            found = fill(
                sequences,
                inside,
                budget,
                index,
                section.context - 1,
                lambda document: encode(document, tokenizer, template),
            )
            if found < budget:
                stage.say(f"tokenize {split}: {name} has only {found:,} of {budget:,} tokens in this split")
        if not sequences.token_id:
            raise UserError(f"tokens.{split}: no document falls into the split; expected a wider range or more text")
        dataset = to_dataset(sequences, list(section.tokens[split]), tokenizer, with_text=split == "test")
        dataset.attrs = section.provenance()
        dataset.attrs |= {
            "title": f"{split} tokens",
            "split": split,
            "sink_token_id": sink,
            "chat_template_sha256": digest,
        }
        artifacts.write(dataset, path)
        stage.say(f"tokenize {split}: {len(sequences.token_id):,} tokens in {len(sequences.corpus):,} documents")


if __name__ == "__main__":
    stage.run(main, stage.parser(TokenizeSection, __doc__, lists=("models", "texts", "outputs")).parse_args())
