"""What can be seen of a model folder before it is loaded: files that are missing, cut off, or no weights at all.

Reads names, sizes and the first bytes of files alone, so that `crosscoders check` is quick for a large model too.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path

WEIGHTS = {"model.safetensors": "model.safetensors.index.json", "pytorch_model.bin": "pytorch_model.bin.index.json"}
"""Name of a file that holds all weights, the preferred format first, to that of an index where several files hold them."""
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "vocab.json",
    "vocab.txt",
    "spiece.model",
    "tokenizer_config.json",
)
POINTER = b"version https://git-lfs"
LARGEST_HEADER = 100_000_000


def problems(folder: Path) -> list[str]:
    """What is wrong with a folder that should hold a Hugging Face model, one line each; each names a file.

    Parameters
    ----------
    folder : Path

    Returns
    -------
    list of str
        Empty where nothing is wrong that can be seen without loading the model.
    """
    if not folder.is_dir():
        return [f"{str(folder)!r} is no folder; expected a Hugging Face model folder"]
    if not (folder / "config.json").is_file() and (folder / "adapter_config.json").is_file():
        return [
            f"{str(folder)!r} holds an adapter alone; expected a whole model, so please merge the adapter into its base"
        ]
    config, lines = _read_mapping(folder / "config.json")
    if config is not None:
        lines += _config_problems(folder / "config.json", config)
    return lines + _weight_problems(folder) + _tokenizer_problems(folder)


@dataclass(frozen=True)
class Shape:
    """What a config says of a model; None where it does not say."""

    architecture: str | None = None
    depth: int | None = None
    width: int | None = None
    context_length: int | None = None
    vocabulary: int | None = None


NAMES = {
    "depth": ("num_hidden_layers", "n_layer", "n_layers", "num_layers"),
    "width": ("hidden_size", "n_embd", "d_model"),
    "context_length": ("max_position_embeddings", "n_positions", "max_seq_len", "n_ctx"),
    "vocabulary": ("vocab_size",),
}
"""Names of a model's sizes in configs, old ones too."""


def shape(folder: Path) -> Shape:
    """Sizes of the language model in a folder, of the text part where there are several parts."""
    config, _ = _read_mapping(folder / "config.json")
    if config is None:
        return Shape()
    text = config.get("text_config")
    inner = config | text if isinstance(text, dict) else config
    sizes = {}
    for size, names in NAMES.items():
        values = (inner.get(name) for name in names)
        sizes[size] = next((value for value in values if type(value) is int and value > 0), None)
    kind = config.get("model_type")
    return Shape(kind if isinstance(kind, str) else None, **sizes)


@dataclass(frozen=True)
class Vocabulary:
    """The tokens of a tokenizer, and those that were added to it after it was made."""

    tokens: frozenset[tuple[str, int]]
    added: frozenset[str]

    def differs(self, other: Vocabulary) -> bool:
        """Whether two tokenizers differ in more than added tokens."""
        added = self.added | other.added
        return any(text not in added for text, _ in self.tokens ^ other.tokens)


def vocabulary(folder: Path) -> Vocabulary | None:
    """The tokens that `tokenizer.json` names.

    Parameters
    ----------
    folder : Path

    Returns
    -------
    Vocabulary or None
        None where there is no such file, or it is of an unknown kind.
    """
    content, _ = _read_mapping(folder / "tokenizer.json")
    model, added = (content or {}).get("model"), (content or {}).get("added_tokens") or []
    known = model.get("vocab") if isinstance(model, dict) else None
    if isinstance(known, list):  # pieces with their scores
        known = {piece[0]: number for number, piece in enumerate(known)}
    if not isinstance(known, dict):
        return None
    return Vocabulary(
        frozenset({*known.items(), *((token["content"], token["id"]) for token in added)}),
        frozenset(token["content"] for token in added),
    )


def weight_files(folder: Path) -> list[Path]:
    """The files that hold the weights: all in safetensors where there are such, else all in torch's own format.

    Parameters
    ----------
    folder : Path

    Returns
    -------
    list of Path
        Empty where there are no weights. Files that an index names need not exist.
    """
    for single, index in WEIGHTS.items():
        if (folder / single).exists() or (folder / single).is_symlink():
            return [folder / single]
        if (folder / index).exists() or (folder / index).is_symlink():
            content, _ = _read_mapping(folder / index)
            names = (content or {}).get("weight_map", {})
            return [folder / name for name in sorted(set(names.values()))] if isinstance(names, dict) else []
    return []


def parameters(folder: Path) -> int | None:
    """Number of weights in a folder, from the headers of its files.

    Parameters
    ----------
    folder : Path

    Returns
    -------
    int or None
        None where a file cannot be read. Of weights in torch's own format, two bytes count as one weight.
    """
    total = 0
    for path in weight_files(folder):
        try:
            if path.suffix != ".safetensors":
                total += path.stat().st_size // 2
                continue
            with path.open("rb") as file:
                header = json.loads(file.read(min(int.from_bytes(file.read(8), "little"), LARGEST_HEADER)))
            total += sum(math.prod(entry["shape"]) for name, entry in header.items() if name != "__metadata__")
        except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
            return None
    return total or None


def _read_mapping(path: Path) -> tuple[dict | None, list[str]]:
    """The mapping in a JSON file, or a line that says why there is none."""
    if path.is_symlink() and not path.exists():
        return None, [f"{path}: a broken link; expected a file"]
    if not path.is_file():
        return None, [f"{str(path.parent)!r} has no {path.name}; expected a Hugging Face model folder"]
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        return None, [f"{path}: no JSON ({type(error).__name__}); expected a mapping"]
    if not isinstance(content, dict):
        return None, [f"{path}: holds a {type(content).__name__}; expected a mapping"]
    return content, []


def _config_problems(path: Path, config: dict) -> list[str]:
    lines = []
    kind = config.get("model_type")
    if not isinstance(kind, str):
        lines.append(f"{path}: model_type is {kind!r}; expected the name of an architecture")
    if config.get("quantization_config"):
        lines.append(f"{path}: the weights are quantised; expected weights in float32, float16 or bfloat16")
    return lines


def _weight_problems(folder: Path) -> list[str]:
    files = weight_files(folder)
    if not files:
        return [f"{str(folder)!r} has no weights; expected model.safetensors or pytorch_model.bin"]
    return [line for file in files for line in _file_problems(file)]


def _file_problems(path: Path) -> list[str]:
    """Whether a file of weights is there, is no pointer to a file elsewhere, and is as long as it says."""
    if path.is_symlink() and not path.exists():
        return [f"{path}: a broken link; expected weights"]
    if not path.is_file():
        return [f"{path}: missing, though the list of weights names it; expected a file"]
    with path.open("rb") as file:
        start = file.read(max(len(POINTER), 8))
        if start.startswith(POINTER):
            return [f"{path}: a pointer of Git LFS, not the weights; please run 'git lfs pull' in that folder"]
        if path.suffix != ".safetensors":
            return []
        return _safetensors_problems(path, start, file.read(LARGEST_HEADER))


def _safetensors_problems(path: Path, start: bytes, rest: bytes) -> list[str]:
    """Whether the header can be read, and the file has the bytes that the header promises."""
    length = int.from_bytes(start[:8], "little")
    header = (start[8:] + rest)[:length]
    try:
        entries = json.loads(header) if len(start) >= 8 and len(header) == length else None
        ends = [entry["data_offsets"][1] for name, entry in entries.items() if name != "__metadata__"]
        wanted = 8 + length + max(ends, default=0)
    except (ValueError, TypeError, KeyError, AttributeError, IndexError, RecursionError):
        return [f"{path}: damaged or cut off; expected weights in the format safetensors"]
    size = path.stat().st_size
    if size != wanted:
        return [f"{path}: {size:,} bytes long, where its header says {wanted:,}; it is damaged or cut off"]
    return []


def _tokenizer_problems(folder: Path) -> list[str]:
    if any((folder / name).is_file() for name in TOKENIZER_FILES[:-1]):
        return []
    return [f"{str(folder)!r} has no tokenizer; expected one of {', '.join(TOKENIZER_FILES[:-1])}"]
