"""The tokenizer of a model's snapshot, loaded without torch where its file allows: stages that only tokenize start fast."""

from __future__ import annotations

from pathlib import Path

import transformers


def load_tokenizer(folder: Path) -> transformers.PreTrainedTokenizerBase:
    """The tokenizer of a snapshot, whose own chat template is never used.

    `tokenizer.json` says everything about a tokenizer; only snapshots without one need the class of their model.
    """
    if (folder / "tokenizer.json").is_file():
        return transformers.PreTrainedTokenizerFast.from_pretrained(folder)
    return transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
