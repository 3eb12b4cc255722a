"""The tokenizer of a model's snapshot, and how its tokens look to a reader.

A tokenizer is loaded without torch where its file allows, so that stages that only tokenize start fast.
"""

from __future__ import annotations

import functools
from pathlib import Path

import transformers

from crosscoders import storage

UNREADABLE = "\ufffd"
"""What a tokenizer gives for bytes that are no character by themselves."""


def load_tokenizer(folder: Path) -> transformers.PreTrainedTokenizerBase:
    """The tokenizer of a snapshot.

    `tokenizer.json` says everything about a tokenizer; only snapshots without one need the class of their model.

    Parameters
    ----------
    folder : Path
        The snapshot. One that lists its files is verified first, but for its weights.

    Returns
    -------
    PreTrainedTokenizerBase

    Raises
    ------
    UserError
        A file is not as it was written.
    """
    if (folder / storage.PROVENANCE).is_file():
        storage.verify_folder(folder, weights=False)
    if (folder / "tokenizer.json").is_file():
        return transformers.PreTrainedTokenizerFast.from_pretrained(folder)
    return transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=False)


def piece_text(tokenizer: transformers.PreTrainedTokenizerBase, token: int) -> str:
    """How one token looks within a text: with its leading space, and as bytes where it is no whole character.

    Parameters
    ----------
    tokenizer : PreTrainedTokenizerBase
    token : int
        Its id.

    Returns
    -------
    str
        Without U+FFFD, the sign for unreadable bytes.
    """
    piece = tokenizer.convert_ids_to_tokens(token)
    if piece is None:
        return f"<{token}>"
    if token in tokenizer.all_special_ids:
        return piece
    anchor = _anchor(tokenizer)
    alone = tokenizer.decode([anchor], clean_up_tokenization_spaces=False)
    text = tokenizer.decode([anchor, token], clean_up_tokenization_spaces=False)
    text = text[len(alone) :] if text.startswith(alone) else tokenizer.decode([token])
    return text if text and UNREADABLE not in text else as_bytes(piece)


def as_bytes(piece: str) -> str:
    """A piece of a vocabulary as the bytes that it stands for: `<0xE2><0x80>`; a piece that says its byte stays as it is."""
    if piece.startswith("<0x") or any(character not in _byte_of() for character in piece):
        return piece
    return "".join(f"<0x{_byte_of()[character]:02X}>" for character in piece)


@functools.cache
def _byte_of() -> dict[str, int]:
    """The byte that each character of a byte-level vocabulary stands for (Radford et al. 2019, GPT-2)."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + place): byte for place, byte in enumerate(others)}


@functools.lru_cache(maxsize=8)
def _anchor(tokenizer: transformers.PreTrainedTokenizerBase) -> int:
    """A token that is an ordinary word, before which another token shows its leading space."""
    for word in ("a", "x", "0"):
        ids = tokenizer(word, add_special_tokens=False).input_ids
        if ids and ids[-1] not in tokenizer.all_special_ids:
            return ids[-1]
    return 0
