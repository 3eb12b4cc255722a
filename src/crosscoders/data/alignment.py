"""One document as models with different tokenizers read it, and where their tokens end at the same character.

Tokens of two tokenizers rarely stand for the same piece of text, but many end at the same character. At such a character
both models have read the same text since their window began, so their activations can be compared there. The tokens of
one model, the reference, are those that a study counts and shows; the others are known by where they end.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from crosscoders.data.encoding import Encoded


@dataclass
class OwnTokens:
    """What a model reads that has a tokenizer of its own: columns over its tokens, and where reference tokens end.

    Attributes
    ----------
    token_id, document, position : (own tokens,) lists of int
    place : (reference tokens,) list of int
        The own token that ends where the reference token does, -1 where none does.
    """

    token_id: list[int] = field(default_factory=list)
    document: list[int] = field(default_factory=list)
    position: list[int] = field(default_factory=list)
    place: list[int] = field(default_factory=list)

    def append(self, ids: list[int], document: int, positions: np.ndarray, places: np.ndarray) -> None:
        """Append a document; `places` count from its own first token."""
        first = len(self.token_id)
        self.token_id += ids
        self.document += [document] * len(ids)
        self.position += positions.tolist()
        self.place += np.where(places < 0, -1, first + places).tolist()


@dataclass(frozen=True)
class Alignment:
    """How several models read one document.

    Attributes
    ----------
    positions : per model, (its tokens,) int
        Position of every token in its window; position 0 is the sink.
    places : per model, (tokens of the first,) int
        The token that ends where a token of the first model does, -1 unless a token of every model ends there.
    """

    positions: list[np.ndarray]
    places: list[np.ndarray]


def token_ends(tokens: Encoded) -> np.ndarray:
    """The character at which every token ends, (tokens,); never before the end of an earlier token."""
    return np.maximum.accumulate(np.array(tokens.ends, np.int64)) if tokens.ends else np.empty(0, np.int64)


def align(ends: list[np.ndarray], window: int) -> Alignment:
    """Pair the tokens of models at the characters where a token of each ends, and lay out their windows.

    Windows begin at such characters and at the same ones for all models, so that paired tokens follow the same text.
    Each takes as much text as fits for every model. A stretch between two shared ends that is longer than a window for
    some model continues in further windows of that model.

    Parameters
    ----------
    ends : per model, (its tokens,) int
        Where tokens end, in characters, ascending. The first model is the reference.
    window : int
        Longest window in tokens, without the sink.

    Returns
    -------
    Alignment
    """
    shared = np.unique(ends[0])
    for other in ends[1:]:
        shared = np.intersect1d(shared, other)
    shared = shared[shared > 0]  # a token that stands for no text pairs with nothing
    after = [np.searchsorted(own, shared, side="right") for own in ends]  # tokens up to each shared end
    places = []
    for stops in after:
        place = np.full(len(ends[0]), -1, np.int64)
        place[after[0] - 1] = stops - 1
        places.append(place)
    begins = _window_begins([np.r_[0, stops, len(own)] for stops, own in zip(after, ends, strict=True)], window)
    return Alignment([_positions(len(own), begin, window) for own, begin in zip(ends, begins, strict=True)], places)


def _window_begins(edges: list[np.ndarray], window: int) -> list[np.ndarray]:
    """Per model, its first token of every common window; `edges` are its tokens up to each shared end."""
    counts = np.diff(np.stack(edges), axis=1).T.tolist()
    begins, used = [0], [0] * len(edges)
    for stretch, tokens in enumerate(counts):
        filled = [a + b for a, b in zip(used, tokens, strict=True)]
        if max(filled) > window and max(used) > 0:
            begins.append(stretch)
            filled = tokens
        used = filled
    return [own[begins] for own in edges]


def _positions(tokens: int, begins: np.ndarray, window: int) -> np.ndarray:
    """Positions of tokens in windows that begin at some tokens, and again wherever a window is full."""
    index = np.arange(tokens)
    start = begins[np.searchsorted(begins, index, side="right") - 1] if tokens else index
    return 1 + (index - start) % window
