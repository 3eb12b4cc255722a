"""What a model must be before a study works with it: whole, of plain weights, with a tokenizer, and of a known build.

Every error names the place that the user named, not the copy that the study works with.
"""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import torch
import transformers
from safetensors.torch import save_file

from crosscoders.data.tokenizer import load_tokenizer
from crosscoders.errors import UserError
from crosscoders.language_models.anatomy import anatomy_of
from crosscoders.study import model_folder

COPIED = ("*.json", "*.safetensors", "tokenizer*", "*.model", "vocab*", "merges*", "*.jinja")
"""Files of a snapshot that a study reads; nothing else is fetched or linked."""
PICKLED = ("*.bin",)
"""Weights in torch's own format, which are converted where there are no others."""


def link_snapshot(source: Path, folder: Path, named: str) -> None:
    """Link the files of a snapshot that lies elsewhere, so that large weights exist once.

    Weights in torch's own format are read without running anything of them, and written as safetensors.

    Parameters
    ----------
    source, folder : Path
        Where the snapshot lies, and the new folder.
    named : str
        The place as the user named it.

    Raises
    ------
    UserError
        The folder is no whole model; one line for each problem.
    """
    problems = model_folder.problems(source)
    if problems:
        raise UserError("\n".join(line.replace(str(source), named) for line in problems))
    for file in sorted(source.iterdir()):
        if file.is_file() and any(file.match(pattern) for pattern in COPIED) and file.name != "provenance.json":
            os.symlink(file.resolve(), folder / file.name)
    weights = model_folder.weight_files(source)
    if weights[0].suffix == ".bin":
        convert_pickles(weights, folder)
        (folder / "pytorch_model.bin.index.json").unlink(missing_ok=True)


def convert_pickles(files: list[Path], folder: Path) -> None:
    """Weights in torch's own format as one file of safetensors; nothing that a file asks to run is run.

    Raises
    ------
    UserError
        A file holds anything but tensors by name.
    """
    tensors: dict[str, torch.Tensor] = {}
    for file in files:
        try:
            content = torch.load(file, weights_only=True, map_location="cpu")
        except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError, AttributeError) as error:
            reason = str(error).splitlines()[0][:80] if str(error) else type(error).__name__
            raise UserError(f"{file}: refused, since it is no plain file of weights ({reason})") from None
        plain = isinstance(content, dict) and all(
            isinstance(name, str) and isinstance(value, torch.Tensor) for name, value in content.items()
        )
        if not plain:
            raise UserError(f"{file}: refused, since it holds something else than tensors by name")
        tensors |= {name: value.contiguous().clone() for name, value in content.items()}
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def admit(folder: Path, named: str) -> None:
    """Load a snapshot once, and refuse it where anything about it is not as it must be.

    Parameters
    ----------
    folder : Path
        The study's snapshot.
    named : str
        The place as the user named it.

    Raises
    ------
    UserError
        Tensors are missing, extra or of another shape; the architecture needs code of its own or is not supported; the
        tokenizer has ids that the model lacks.
    """
    try:
        config = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=False)
        model, info = transformers.AutoModelForCausalLM.from_pretrained(
            folder, dtype="auto", trust_remote_code=False, output_loading_info=True
        )
    except (ValueError, OSError, RuntimeError, KeyError, TypeError, AttributeError, ImportError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(f"{named}: cannot be loaded as a causal language model ({reason[:120]})") from None
    _refuse_loading(info, named)
    try:
        anatomy_of(model.eval())
        tokenizer = load_tokenizer(folder)
    except UserError as error:
        raise UserError(f"{named}: {error}") from None
    except (ValueError, OSError, KeyError, TypeError) as error:
        raise UserError(f"{named}: its tokenizer cannot be read ({str(error).splitlines()[0][:120]})") from None
    largest, rows = max(tokenizer.get_vocab().values()), model.get_input_embeddings().weight.shape[0]
    if largest >= rows:
        raise UserError(
            f"{named}: its tokenizer has the id {largest}, where the embedding has {rows} rows ({config.model_type})"
        )


def _refuse_loading(info: dict, named: str) -> None:
    """Refuse weights that do not fill the model exactly."""
    said = {
        "missing_keys": "lacks tensors, which would be random numbers",
        "unexpected_keys": "has tensors that the model does not know",
        "mismatched_keys": "has tensors of another shape than the model's",
    }
    for key, problem in said.items():
        names = sorted(str(name[0] if isinstance(name, tuple) else name) for name in info.get(key) or ())
        if names:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            raise UserError(f"{named}: {problem}: {names[0]}{more}")
    if info.get("error_msgs"):
        raise UserError(f"{named}: {str(info['error_msgs'][0]).splitlines()[0][:120]}")
