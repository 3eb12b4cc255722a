"""Documents as tokens: encoded whole, as the model would see them; every token knows its part and its place in the text."""

from __future__ import annotations

import re
from bisect import bisect_right
from dataclasses import dataclass
from itertools import accumulate
from typing import Literal

import transformers

from crosscoders.data.templates import Part
from crosscoders.data.tokenizer import UNREADABLE, as_bytes

ControlTokens = Literal["text", "tokens"]
"""What control tokens that stand in a document are: text like any other, or the tokens that they name."""


@dataclass
class Encoded:
    """The tokens of a document.

    Attributes
    ----------
    text : str
        The whole document.
    parts : list of Part
    ids : (tokens,) list of int
    starts, ends : (tokens,) lists of int
        Where a token stands in the text, in characters.
    places : (tokens,) list of int
        Which part a token belongs to: the one in which it begins.
    """

    text: str
    parts: list[Part]
    ids: list[int]
    starts: list[int]
    ends: list[int]
    places: list[int]

    def first(self, count: int) -> Encoded:
        """The document's first tokens; its text and parts stay whole."""
        columns = (column[:count] for column in (self.ids, self.starts, self.ends, self.places))
        return Encoded(self.text, self.parts, *columns)

    def texts(self, tokenizer: transformers.PreTrainedTokenizerBase) -> list[str]:
        """How every token looks in its place.

        Tokens that are parts of one character are shown as their bytes; a token that stands for nothing in the text, such
        as the space that some tokenizers put before it, is shown as its piece of the vocabulary.
        """
        shown, reached = [], 0
        for i, token in enumerate(self.ids):
            start, end = self.starts[i], self.ends[i]
            following = self.starts[i + 1] if i + 1 < len(self.ids) else end
            piece = tokenizer.convert_ids_to_tokens(token)
            if (start < reached or following < end) and UNREADABLE in tokenizer.decode([token]):
                shown.append(as_bytes(piece))
                reached = max(reached, end)
            elif end <= reached or (following <= start < end and i + 1 < len(self.ids)):
                shown.append(piece)
            else:
                shown.append(self.text[reached:end])
                reached = end
        return shown


def encode(
    parts: list[Part], tokenizer: transformers.PreTrainedTokenizerBase, control_tokens: ControlTokens = "text"
) -> Encoded:
    """Encode a document whole.

    Parameters
    ----------
    parts : list of Part
        The document, one part after the other.
    tokenizer : PreTrainedTokenizerBase
    control_tokens : {"text", "tokens"}
        What control tokens are in parts that are not the template's.

    Returns
    -------
    Encoded
    """
    text = "".join(part.text for part in parts)
    control = _control_pattern(tokenizer)
    foreign = control_tokens == "text" and control is not None
    foreign = foreign and any(control.search(part.text) for part in parts if not part.control)
    tokens = _chunked(parts, tokenizer, control) if foreign else _tokens(tokenizer, text)
    edges = [0, *accumulate(len(part.text) for part in parts)]
    starts, ends = [start for _, start, _ in tokens], [end for _, _, end in tokens]
    places = [min(max(bisect_right(edges, start) - 1, 0), len(parts) - 1) for start in starts]
    return Encoded(text, parts, [token for token, _, _ in tokens], starts, ends, places)


def _control_pattern(tokenizer: transformers.PreTrainedTokenizerBase) -> re.Pattern[str] | None:
    """Finds the tokenizer's control tokens in a text; None where it has none."""
    names = {added.content for added in tokenizer.added_tokens_decoder.values() if added.special}
    names = sorted(names | set(tokenizer.all_special_tokens), key=len, reverse=True)
    return re.compile("|".join(map(re.escape, names))) if names else None


def _tokens(
    tokenizer: transformers.PreTrainedTokenizerBase, text: str, as_text: bool = False
) -> list[tuple[int, int, int]]:
    """(id, start, end) of every token of a text; with `as_text`, control tokens are split like other words."""
    options = {"split_special_tokens": True} if as_text else {}
    if tokenizer.is_fast:
        made = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, **options)
        return [(token, start, end) for token, (start, end) in zip(made.input_ids, made.offset_mapping, strict=True)]
    ids = tokenizer(text, add_special_tokens=False, **options).input_ids
    ends = [min(len(tokenizer.decode(ids[: i + 1])), len(text)) for i in range(len(ids))]
    return [(token, start, end) for token, start, end in zip(ids, [0, *ends], ends, strict=False)]


def _chunked(
    parts: list[Part], tokenizer: transformers.PreTrainedTokenizerBase, control: re.Pattern[str]
) -> list[tuple[int, int, int]]:
    """(id, start, end) of every token, where control tokens count in the parts alone that may hold them."""
    tokens: list[tuple[int, int, int]] = []
    pending, begun, place = "", 0, 0

    def flush() -> None:
        made = _tokens(tokenizer, pending, as_text=True) if pending else []
        tokens.extend((token, begun + start, begun + end) for token, start, end in made)

    for part in parts:
        inside = 0
        for match in control.finditer(part.text) if part.control else ():
            pending += part.text[inside : match.start()]
            flush()
            inside = match.end()
            tokens.append((tokenizer.convert_tokens_to_ids(match.group()), place + match.start(), place + inside))
            pending, begun = "", place + inside
        pending += part.text[inside:]
        place += len(part.text)
    flush()
    return tokens
