"""Stage tokenize: the token sequences of a setting, split by document, every token with its role and behaviour."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import transformers
import xarray as xr

from crosscoders import artifacts, stage
from crosscoders.data.chats import BEHAVIOURS, ROLES, Document, in_split, shuffled
from crosscoders.data.corpora import from_dataset
from crosscoders.data.encoding import ControlTokens, Encoded, encode
from crosscoders.data.sections import TokenizeSection
from crosscoders.data.templates import Writer
from crosscoders.data.tokenizer import load_tokenizer
from crosscoders.errors import UserError
from crosscoders.study.settings.base import SPLITS


@dataclass
class Sequences:
    """Columns over tokens, and over the documents they come from."""

    token_id: list[int] = field(default_factory=list)
    document: list[int] = field(default_factory=list)
    position: list[int] = field(default_factory=list)
    role: list[int] = field(default_factory=list)
    planted_behaviour: list[int] = field(default_factory=list)
    token_text: list[str] = field(default_factory=list)
    corpus: list[int] = field(default_factory=list)
    key: list[str] = field(default_factory=list)
    topic: list[str] = field(default_factory=list)


@dataclass
class Encoder:
    """How documents become tokens.

    Attributes
    ----------
    writer : Writer
        Chat template and tokenizer.
    window : int
        Longest window, without the sink.
    control_tokens : {"text", "tokens"}
    with_text : bool
        Whether the texts of tokens are kept.
    """

    writer: Writer
    window: int
    control_tokens: ControlTokens = "text"
    with_text: bool = False

    def encode(self, document: Document) -> Encoded:
        """The tokens of a document."""
        return encode(self.writer.document(document), self.writer.tokenizer, self.control_tokens)


def fill(sequences: Sequences, documents: list[Document], budget: int, corpus: int, encoder: Encoder) -> int:
    """Append whole documents until `budget` tokens are there; return the tokens appended.

    A document longer than a window continues in further windows, each of which starts at position 1 (position 0 is the
    sink, which is not stored). The last document is cut where the budget ends.
    """
    count = 0
    for document in documents:
        if count >= budget:
            break
        tokens = encoder.encode(document)
        index, kept = len(sequences.corpus), min(len(tokens.ids), budget - count)
        sequences.corpus.append(corpus)
        sequences.key.append(document.key)
        sequences.topic.append(document.topic)
        sequences.token_id += tokens.ids[:kept]
        sequences.document += [index] * kept
        sequences.position += [1 + i % encoder.window for i in range(kept)]
        parts = [tokens.parts[place] for place in tokens.places[:kept]]
        sequences.role += [ROLES.index(part.role) for part in parts]
        sequences.planted_behaviour += [BEHAVIOURS.index(part.behaviour) for part in parts]
        if encoder.with_text:
            sequences.token_text += tokens.texts(encoder.writer.tokenizer)[:kept]
        count += kept
    return count


def to_dataset(sequences: Sequences, corpora: list[str]) -> xr.Dataset:
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
    if sequences.token_text:
        texts = np.array(sequences.token_text, dtype=object)
        dataset["token_text"] = v("token", texts, "text of the token in its place")
    return dataset


def main(arguments) -> None:
    """Write the three splits of one setting."""
    section: TokenizeSection = arguments.settings
    vocabulary = common_vocabulary(arguments.models)
    tokenizer = vocabulary.tokenizer
    texts = dict(zip(section.corpora, arguments.texts, strict=True))
    corpora = {name: shuffled(from_dataset(artifacts.read(path)), "tokens") for name, path in texts.items()}
    writer = Writer(section.chat_template, tokenizer)
    for split, path in zip(SPLITS, arguments.outputs, strict=True):
        encoder = Encoder(writer, section.context - 1, section.control_tokens, with_text=split == "test")
        sequences = fill_split(section, split, corpora, encoder)
        dataset = to_dataset(sequences, list(section.tokens[split]))
        lacked = np.isin(dataset["token_id"].values, vocabulary.lacked)
        dataset["in_all_models"] = artifacts.flags("token", ~lacked, ("no", "yes"), "every model has the token")
        dataset.attrs = section.provenance() | {"title": f"{split} tokens", "split": split}
        dataset.attrs |= {
            "sink_token_id": writer.sink,
            "chat_template_sha256": writer.digest,
            "chat_template": writer.source,
            "lacked_share": float(lacked.mean()),
        }
        artifacts.write(dataset, path)
        if len(vocabulary.lacked):
            stage.say(
                f"tokenize {split}: a model lacks {len(vocabulary.lacked)} tokens of the vocabulary, "
                f"{lacked.mean():.2%} of this split; they are left out of training and of every count"
            )
        stage.say(f"tokenize {split}: {len(sequences.token_id):,} tokens in {len(sequences.corpus):,} documents")


@dataclass(frozen=True)
class Vocabulary:
    """The tokenizer of a setting.

    Attributes
    ----------
    tokenizer : PreTrainedTokenizerBase
        The one with the most tokens.
    lacked : (n,)
        Ids of its tokens that a model lacks.
    """

    tokenizer: transformers.PreTrainedTokenizerBase
    lacked: np.ndarray


def common_vocabulary(models: list[Path]) -> Vocabulary:
    """The tokenizer of all models of a setting; some may have added tokens that others lack.

    Parameters
    ----------
    models : list of Path
        Provenance of each model, beside its tokenizer.

    Returns
    -------
    Vocabulary

    Raises
    ------
    UserError
        Tokenizers differ in more than added tokens.
    """
    tokenizers = [load_tokenizer(path.parent) for path in models]
    widest = max(range(len(models)), key=lambda i: (len(tokenizers[i]), -i))
    vocabulary, lacked = tokenizers[widest].get_vocab().items(), set()
    for tokenizer, path in zip(tokenizers, models, strict=True):
        differing = vocabulary ^ tokenizer.get_vocab().items()
        added = {*tokenizer.get_added_vocab(), *tokenizers[widest].get_added_vocab()}
        ordinary = {text for text, _ in differing} - added
        if ordinary:
            raise UserError(
                f"{path.parent}: its tokenizer is not that of {models[widest].parent} ({len(ordinary):,} tokens differ, "
                f"for one {min(ordinary)!r}); expected tokenizers that differ in added tokens alone"
            )
        lacked |= {number for _, number in vocabulary - tokenizer.get_vocab().items()}
    return Vocabulary(tokenizers[widest], np.array(sorted(lacked), np.int64))


def fill_split(section: TokenizeSection, split: str, corpora: dict[str, list[Document]], encoder: Encoder) -> Sequences:
    """The tokens of one split, corpus by corpus.

    Raises
    ------
    UserError
        No document falls into the split.
    """
    sequences = Sequences()
    for index, (name, budget) in enumerate(section.tokens[split].items()):
        inside = [document for document in corpora[name] if in_split(document, section.splits[split])]
        count = fill(sequences, inside, budget, index, encoder)
        if count < budget:
            stage.say(f"tokenize {split}: {name} has only {count:,} of {budget:,} tokens in this split")
    if not sequences.token_id:
        raise UserError(f"tokens.{split}: no document falls into the split; expected a wider range or more text")
    return sequences


if __name__ == "__main__":
    stage.run(main, stage.parser(TokenizeSection, __doc__, lists=("models", "texts", "outputs")).parse_args())
