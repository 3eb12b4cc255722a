"""Stage tokenize: the token sequences of a setting, split by document, every token with its role and behaviour."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import transformers
import xarray as xr

from crosscoders import artifacts, stage
from crosscoders.data.alignment import OwnTokens, align, token_ends
from crosscoders.data.chats import BEHAVIOURS, ROLES, Document, in_split, named_behaviours, shuffled
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
    own: dict[str, OwnTokens] = field(default_factory=dict)
    """Tokens of the models that have a tokenizer of their own, by model."""


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
    own : {model: PreTrainedTokenizerBase}
        Tokenizers of the models that read a document through their own.
    """

    writer: Writer
    window: int
    control_tokens: ControlTokens = "text"
    with_text: bool = False
    own: dict[str, transformers.PreTrainedTokenizerBase] = field(default_factory=dict)

    def encode(self, document: Document) -> Encoded:
        """The tokens of a document."""
        return encode(self.writer.document(document), self.writer.tokenizer, self.control_tokens)

    def encode_own(self, tokens: Encoded) -> dict[str, Encoded]:
        """A document as the models with their own tokenizers read it, as far as its reference tokens reach."""
        reach, documents = token_ends(tokens)[-1:], {}
        for model, tokenizer in self.own.items():
            made = encode(tokens.parts, tokenizer, self.control_tokens)
            documents[model] = made.first(int(np.searchsorted(token_ends(made), reach, side="right").sum()))
        return documents


def fill(sequences: Sequences, documents: list[Document], budget: int, corpus: int, encoder: Encoder) -> int:
    """Append whole documents until `budget` tokens are there; return the tokens appended.

    A document longer than a window continues in further windows, each of which starts at position 1 (position 0 is the
    sink, which is not stored). The last document is cut where the budget ends. Where models read a document through
    tokenizers of their own, the budget counts tokens of the reference.
    """
    count = 0
    for document in documents:
        if count >= budget:
            break
        whole = encoder.encode(document)
        tokens = whole.first(budget - count)
        index = len(sequences.corpus)
        sequences.corpus.append(corpus)
        sequences.key.append(document.key)
        sequences.topic.append(document.topic)
        sequences.token_id += tokens.ids
        sequences.document += [index] * len(tokens.ids)
        sequences.position += _positions(sequences, tokens, index, encoder)
        parts = [tokens.parts[place] for place in tokens.places]
        sequences.role += [ROLES.index(part.role) for part in parts]
        sequences.planted_behaviour += [BEHAVIOURS.index(part.behaviour) for part in parts]
        if encoder.with_text:
            sequences.token_text += whole.texts(encoder.writer.tokenizer)[: len(tokens.ids)]
        count += len(tokens.ids)
    return count


def fill_mixed(
    sequences: Sequences, documents: dict[str, list[Document]], budgets: dict[str, int], encoder: Encoder
) -> dict[str, int]:
    """Append documents of all corpora in turn, each time from the one that has the least of its budget.

    Every stretch of the split then holds the corpora in about the same shares.

    Returns
    -------
    {corpus: int}
        The tokens appended.
    """
    counts, left, numbers = (
        dict.fromkeys(budgets, 0),
        {name: iter(docs) for name, docs in documents.items()},
        [*budgets],
    )
    left = {name: docs for name, docs in left.items() if budgets[name]}
    while left:
        name = min(left, key=lambda name: counts[name] / budgets[name])
        document = next(left[name], None)
        if document is not None:
            counts[name] += fill(sequences, [document], budgets[name] - counts[name], numbers.index(name), encoder)
        if document is None or counts[name] >= budgets[name]:
            del left[name]
    return counts


def _positions(sequences: Sequences, tokens: Encoded, document: int, encoder: Encoder) -> list[int]:
    """Positions of a document's tokens in their windows; the models' own tokens, if any, are appended."""
    if not encoder.own:
        return [1 + i % encoder.window for i in range(len(tokens.ids))]
    own = encoder.encode_own(tokens)
    aligned = align([token_ends(tokens), *map(token_ends, own.values())], encoder.window)
    for (model, made), positions, places in zip(own.items(), aligned.positions[1:], aligned.places[1:], strict=True):
        sequences.own.setdefault(model, OwnTokens()).append(made.ids, document, positions, places)
    return aligned.positions[0].tolist()


def to_dataset(sequences: Sequences, corpora: list[str]) -> xr.Dataset:
    """The columns as a dataset over `token` and `document_id`."""
    v = artifacts.variable
    shown = (BEHAVIOURS[number] for number in set(sequences.planted_behaviour))
    integers = {name: np.array(getattr(sequences, name), np.int32) for name in ("token_id", "document", "position")}
    dataset = xr.Dataset(
        {
            "token_id": v("token", integers["token_id"], "token id"),
            "document": v("token", integers["document"], "index of the document"),
            "position": v("token", integers["position"], "position in the window; the sink at 0 is not stored"),
            "role": artifacts.flags("token", sequences.role, ROLES, "who speaks"),
            "planted_behaviour": artifacts.flags(
                "token", sequences.planted_behaviour, named_behaviours(shown), "planted behaviour the token belongs to"
            ),
            "corpus": artifacts.flags("document_id", sequences.corpus, corpora, "corpus the document comes from"),
            "key": v("document_id", np.array(sequences.key, dtype=object), "name that decides the split"),
            "topic": v("document_id", np.array(sequences.topic, dtype=object), "topic label"),
        }
    )
    for model, own in sequences.own.items():
        dataset = dataset.assign(_own_columns(model, own))
    if sequences.token_text:
        texts = np.array(sequences.token_text, dtype=object)
        dataset["token_text"] = v("token", texts, "text of the token in its place")
    return dataset


def _own_columns(model: str, own: OwnTokens) -> dict[str, tuple]:
    """What a model with a tokenizer of its own reads, and where reference tokens end in it."""
    v, dimension = artifacts.variable, f"token_of_{model}"
    columns = {name: np.array(getattr(own, name), np.int32) for name in ("token_id", "document", "position", "place")}
    return {
        f"token_id_of_{model}": v(dimension, columns["token_id"], f"token id in the vocabulary of {model}"),
        f"document_of_{model}": v(dimension, columns["document"], "index of the document"),
        f"position_of_{model}": v(dimension, columns["position"], "position in the window of the model's own tokens"),
        f"place_of_{model}": v("token", columns["place"], f"token of {model} that ends at the same character, or -1"),
    }


def main(arguments) -> None:
    """Write the three splits of one setting."""
    section: TokenizeSection = arguments.settings
    folders = dict(zip(section.roots, arguments.models, strict=True))
    of_own = section.own_tokenizers
    vocabulary = common_vocabulary([path for root, path in folders.items() if root not in of_own.values()])
    own = {model: load_tokenizer(folders[root].parent) for model, root in of_own.items()}
    sinks = {f"sink_token_id_of_{model}": own_sink(own[model], folders[root].parent) for model, root in of_own.items()}
    texts = dict(zip(section.corpora, arguments.texts, strict=True))
    corpora = {name: shuffled(from_dataset(artifacts.read(path)), "tokens") for name, path in texts.items()}
    writer = Writer(section.chat_template, vocabulary.tokenizer)
    for split, path in zip(SPLITS, arguments.outputs, strict=True):
        encoder = Encoder(writer, section.context - 1, section.control_tokens, split == "test", own)
        dataset = to_dataset(fill_split(section, split, corpora, encoder), list(section.tokens[split]))
        lacked = np.isin(dataset["token_id"].values, vocabulary.lacked)
        dataset = mark_pairs(dataset, lacked, [section.reference, *own])
        dataset.attrs = section.provenance() | {"title": f"{split} tokens", "split": split, **sinks}
        dataset.attrs |= {
            "sink_token_id": writer.sink,
            "chat_template_sha256": writer.digest,
            "chat_template": writer.source,
            "lacked_share": float(lacked.mean()),
        }
        artifacts.write(dataset, path)
        say_counts(split, dataset, vocabulary)


def mark_pairs(dataset: xr.Dataset, lacked: np.ndarray, models: list[str]) -> xr.Dataset:
    """Mark the tokens at which all models can be compared, and how much of what each reads these are.

    Parameters
    ----------
    dataset : xarray.Dataset
        Tokens of a split.
    lacked : (token,) bool
        Tokens that a model lacks in a vocabulary that is otherwise common.
    models : list of str
        The reference, and the models with a tokenizer of their own.

    Raises
    ------
    UserError
        There is no such token.
    """
    own = models[1:]
    paired = ~lacked & np.all([dataset[f"place_of_{model}"].values >= 0 for model in own], axis=0)
    if not paired.any():
        reason = "ends at the same character in all models" if own else "is in the vocabulary of all models"
        raise UserError(f"no token of {len(paired):,} {reason}; expected some, so that the models can be compared")
    marked = dataset.assign(in_all_models=artifacts.flags("token", paired, ("no", "yes"), "every model has the token"))
    if own:
        tokens = np.array([dataset.sizes["token"], *(dataset.sizes[f"token_of_{model}"] for model in own)])
        label = "share of a model's tokens that end where a token of every model ends"
        marked["covered_share"] = artifacts.variable("tokenizer", paired.sum() / tokens, label)
        marked = marked.assign_coords(tokenizer=("tokenizer", np.array(models, dtype=object)))
    return marked


def say_counts(split: str, dataset: xr.Dataset, vocabulary: Vocabulary) -> None:
    """Say how many tokens a split has, and how many of them a model lacks."""
    if len(vocabulary.lacked):
        stage.say(
            f"tokenize {split}: a model lacks {len(vocabulary.lacked)} tokens of the vocabulary, "
            f"{dataset.attrs['lacked_share']:.2%} of this split; they are left out of training and of every count"
        )
    if "covered_share" in dataset:
        shares = zip(dataset["tokenizer"].values, dataset["covered_share"].values, strict=True)
        stage.say(
            f"tokenize {split}: models are compared where a token of each ends at the same character: "
            + ", ".join(f"{share:.1%} of the tokens of {name}" for name, share in shares)
        )
    stage.say(f"tokenize {split}: {dataset.sizes['token']:,} tokens in {dataset.sizes['document_id']:,} documents")


def own_sink(tokenizer: transformers.PreTrainedTokenizerBase, folder: Path) -> int:
    """The token before every window of a model that reads text through its own tokenizer.

    Parameters
    ----------
    tokenizer : PreTrainedTokenizerBase
    folder : Path
        Of the model, for the error.

    Returns
    -------
    int
        The token that begins a text, else the one that ends it.

    Raises
    ------
    UserError
        The tokenizer names neither.
    """
    for token in (tokenizer.bos_token_id, tokenizer.eos_token_id):
        if token is not None:
            return token
    raise UserError(
        f"{folder}: its tokenizer names no token that begins or ends a text; expected bos_token or eos_token"
    )


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
                f"for one {min(ordinary)!r}); expected tokenizers that differ in added tokens alone, or alignment: characters"
            )
        lacked |= {number for _, number in vocabulary - tokenizer.get_vocab().items()}
    return Vocabulary(tokenizers[widest], np.array(sorted(lacked), np.int64))


def fill_split(section: TokenizeSection, split: str, corpora: dict[str, list[Document]], encoder: Encoder) -> Sequences:
    """The tokens of one split, corpus by corpus or mixed.

    Raises
    ------
    UserError
        No document falls into the split.
    """
    sequences, budgets = Sequences(), section.tokens[split]
    inside = {
        name: [document for document in corpora[name] if in_split(document, section.splits[split])] for name in budgets
    }
    if split in section.mixed:
        counts = fill_mixed(sequences, inside, budgets, encoder)
    else:
        counts = {
            name: fill(sequences, inside[name], budget, index, encoder)
            for index, (name, budget) in enumerate(budgets.items())
        }
    for name, budget in budgets.items():
        if counts[name] < budget:
            stage.say(f"tokenize {split}: {name} has only {counts[name]:,} of {budget:,} tokens in this split")
    if not sequences.token_id:
        raise UserError(f"tokens.{split}: no document falls into the split; expected a wider range or more text")
    return sequences


if __name__ == "__main__":
    stage.run(main, stage.parser(TokenizeSection, __doc__, lists=("models", "texts", "outputs")).parse_args())
