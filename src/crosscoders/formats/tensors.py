"""Files of weights: read without running anything of theirs, checked tensor by tensor, written byte-stably."""

from __future__ import annotations

import json
import warnings
from dataclasses import dataclass, field
from pathlib import Path

import safetensors
import safetensors.torch
import torch

from crosscoders import storage
from crosscoders.errors import UserError, shortened

LARGEST_JSON = 10**7
METADATA = "crosscoders"
"""The one key of safetensors' metadata that we write; its value is JSON. Several keys would be in no fixed order."""


@dataclass
class Tensors:
    """The tensors of a file, and the sizes that their shapes must share.

    Attributes
    ----------
    path : Path
    values : {name: tensor}
    metadata : dict
        What we wrote into the file beside its tensors; empty in files of others.
    sizes : {letter: int}
        What the letters of shapes stand for, filled by the first tensor that has them.
    """

    path: Path
    values: dict[str, torch.Tensor]
    metadata: dict = field(default_factory=dict)
    sizes: dict[str, int] = field(default_factory=dict)

    def take(self, name: str, *shape: str | int, finite: bool = True) -> torch.Tensor:
        """A tensor of numbers in float32, of a shape such as ("n", "d", "F").

        Raises
        ------
        UserError
            It is absent, or of another shape or type, or holds numbers that are not finite.
        """
        expected = f"{name} ({', '.join(map(str, shape))})"
        if name not in self.values:
            has = shortened(", ".join(sorted(self.values)), 100) or "none"
            raise UserError(f"{self.path}: tensor {name!r} is missing; expected {expected}, found {has}")
        tensor = self.values[name]
        if tensor.dtype not in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
            raise UserError(f"{self.path}: {name} holds {tensor.dtype}; expected floating-point numbers")
        found = tuple(tensor.shape)
        for letter, size in zip(shape, found, strict=False):
            if isinstance(letter, str):
                self.sizes.setdefault(letter, size)
        wanted = tuple(self.sizes.get(letter, letter) for letter in shape)
        if found != wanted or 0 in found:
            raise UserError(f"{self.path}: {name} has the shape {found}; expected {expected} = {wanted}")
        if finite and not torch.isfinite(tensor).all():
            raise UserError(f"{self.path}: {name} holds numbers that are not finite; expected weights")
        return tensor.float()

    def number(self, name: str) -> float | None:
        """A tensor of a single number; None where it is absent.

        Raises
        ------
        UserError
            It holds more than one number, or one that is not finite.
        """
        if name not in self.values:
            return None
        tensor = self.values[name]
        if tensor.numel() != 1 or not torch.isfinite(tensor.float()).all():
            raise UserError(f"{self.path}: {name} is no single finite number (shape {tuple(tensor.shape)})")
        return tensor.item()


def read_json(path: Path) -> dict:
    """A mapping in a JSON file of someone else.

    Raises
    ------
    UserError
        The file is absent, too large, or holds something else.
    """
    try:
        with path.open(encoding="utf-8") as file:
            content = json.loads(file.read(LARGEST_JSON))
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); expected a JSON file") from None
    except (ValueError, RecursionError):
        raise UserError(f"{path}: not valid JSON; expected the settings of a crosscoder") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: holds a {type(content).__name__}; expected a mapping of settings")
    return content


def count_of(config: dict, key: str, path: Path, least: int = 1) -> int:
    """A whole number of a configuration.

    Raises
    ------
    UserError
        It is absent or something else.
    """
    value = config.get(key)
    if type(value) is not int or value < least:
        raise UserError(f"{path}: {key} is {shortened(repr(value), 60)}; expected a whole number of at least {least}")
    return value


def agree(config: dict, tensors: Tensors, path: Path, **letters: str) -> None:
    """Compare sizes that a configuration states with those of the tensors, by key and letter.

    Raises
    ------
    UserError
        They differ.
    """
    for key, letter in letters.items():
        if key in config and config[key] != tensors.sizes[letter]:
            stated = shortened(repr(config[key]), 60)
            raise UserError(
                f"{path}: {key} is {stated}, but the weights in {tensors.path.name} have {tensors.sizes[letter]}"
            )


def read_safetensors(path: Path) -> Tensors:
    """The tensors of a safetensors file.

    Raises
    ------
    UserError
        The file is absent or damaged.
    """
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            values = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            stored = (file.metadata() or {}).get(METADATA, "{}")
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error}); expected safetensors") from None
    except (safetensors.SafetensorError, RuntimeError, ValueError, TypeError, OverflowError) as error:
        reason = shortened(str(error).splitlines()[0] if str(error) else type(error).__name__, 100)
        raise UserError(f"{path}: damaged, or no safetensors file ({reason})") from None
    try:
        metadata = json.loads(stored)
    except (ValueError, RecursionError):
        metadata = None
    if not isinstance(metadata, dict):
        raise UserError(f"{path}: its metadata {METADATA!r} is damaged; expected JSON")
    return Tensors(path, values, metadata)


def read_pickle(path: Path) -> Tensors:
    """The tensors of a file in torch's own format, whose code is never run.

    Raises
    ------
    UserError
        The file is absent, damaged, or holds more than tensors.
    """
    expected = "expected tensors by name and nothing that runs code"
    try:
        with warnings.catch_warnings(action="ignore"):  # of pickles that torch did not write
            values = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from None
    except Exception:  # a damaged stream makes torch's reader fail in many ways, as with IndexError
        raise UserError(f"{path}: damaged, or holds more than tensors; {expected}") from None
    named = isinstance(values, dict) and all(isinstance(name, str) for name in values)
    if not named or not all(isinstance(value, torch.Tensor) for value in values.values()):
        raise UserError(f"{path}: holds more than tensors; {expected}")
    return Tensors(path, dict(values))


def write_safetensors(values: dict[str, torch.Tensor], path: Path, metadata: dict) -> None:
    """Write tensors atomically; equal tensors and metadata give equal bytes.

    Parameters
    ----------
    values : {name: tensor}
    path : Path
    metadata : dict
        Anything that JSON can hold.

    Raises
    ------
    UserError
        The disk is full or the folder cannot be written.
    """
    text = json.dumps(metadata, sort_keys=True)
    content = safetensors.torch.save({name: one.contiguous() for name, one in values.items()}, {METADATA: text})
    storage.atomic(path, lambda temporary: temporary.write_bytes(content), len(content))


def write_folder(folder: Path, weights: str, values: dict, metadata: dict, settings: tuple[str, dict]) -> None:
    """Write a folder of weights and settings; the settings come last, so that a folder that has them is complete.

    Parameters
    ----------
    folder : Path
    weights : str
        Name of the safetensors file.
    values : {name: tensor}
    metadata : dict
    settings : (str, dict)
        Name and content of the JSON file.

    Raises
    ------
    UserError
        The disk is full or the folder cannot be written.
    """
    name, content = settings
    write_safetensors(values, folder / weights, metadata)
    storage.write_json(content, folder / name)
