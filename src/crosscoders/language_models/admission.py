"""What a model must be before a study works with it: whole, of plain weights, with a tokenizer, and of a known build.

Every error names the place that the user named, not the copy that the study works with.
"""

from __future__ import annotations

import json
import os
import pickle
import signal
import warnings
from pathlib import Path

import torch
import transformers
from safetensors.torch import save_file

from crosscoders import storage
from crosscoders.data.tokenizer import load_tokenizer
from crosscoders.errors import UserError, shortened
from crosscoders.language_models.anatomy import anatomy_of
from crosscoders.study import model_folder

COPIED = ("*.json", "*.safetensors", "tokenizer*", "*.model", "vocab*", "merges*", "*.jinja")
"""Files of a snapshot that a study reads; nothing else is fetched or linked."""
LEFT = (storage.PROVENANCE, "config.json", "adapter_*")
"""Files among these that are not linked: of another study, written anew, and of adapters, whose base may be anywhere."""
RUNNING = {
    "auto_map",
    "attn_implementation",
    "_attn_implementation",
    "_attn_implementation_internal",
    "experts_implementation",
    "_experts_implementation",
    "_experts_implementation_internal",
}
"""Entries of a config that name code: modules in the folder, and kernels of the hub."""
BUILDING_SECONDS = 20
"""Longest time to build a model without its weights; the largest models take a few seconds."""
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
        if file.is_file() and any(map(file.match, COPIED)) and not any(map(file.match, LEFT)):
            os.symlink(file.resolve(), folder / file.name)
    config = json.loads((source / "config.json").read_text(encoding="utf-8"))
    storage.write_json(plain_config(config), folder / "config.json")
    weights = model_folder.weight_files(source)
    if weights[0].suffix == ".bin":
        convert_pickles(weights, folder)
        (folder / "pytorch_model.bin.index.json").unlink(missing_ok=True)


def plain_config(config: object) -> object:
    """A config without the entries by which transformers would fetch and run code, in nested configs neither.

    Parameters
    ----------
    config : object
        What JSON holds.

    Returns
    -------
    object
    """
    if isinstance(config, list):
        return [plain_config(entry) for entry in config]
    if isinstance(config, dict):
        return {name: plain_config(entry) for name, entry in config.items() if name not in RUNNING}
    return config


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
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
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
        _build_without_weights(config, named)
        model, info = transformers.AutoModelForCausalLM.from_pretrained(
            folder, dtype="auto", trust_remote_code=False, output_loading_info=True
        )
    except UserError:
        raise
    except Exception as error:  # of whatever kind: the config and the weights are the user's, the code is transformers'
        raise UserError(f"{named}: cannot be loaded as a causal language model ({_reason(error)})") from None
    _refuse_loading(info, named)
    try:
        anatomy_of(model.eval())
        tokenizer = load_tokenizer(folder)
    except UserError as error:
        raise UserError(f"{named}: {error}") from None
    except Exception as error:
        raise UserError(f"{named}: its tokenizer cannot be read ({_reason(error)})") from None
    largest, rows = max(tokenizer.get_vocab().values()), model.get_input_embeddings().weight.shape[0]
    if largest >= rows:
        raise UserError(
            f"{named}: its tokenizer has the id {largest}, where the embedding has {rows} rows ({config.model_type})"
        )


def _reason(error: Exception) -> str:
    """What a library says of its failure, in one line."""
    if "ignore_mismatched_sizes" in str(error):
        return "tensors have another shape than the config says"
    said = str(error).strip().splitlines()
    return shortened(f"{type(error).__name__}: {said[0]}" if said else type(error).__name__, 120)


def _build_without_weights(config: transformers.PreTrainedConfig, named: str) -> None:
    """Build the model once without memory for its weights, and refuse one whose sizes keep that from ending."""

    def stop(*_: object) -> None:
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(BUILDING_SECONDS)
    try:
        with torch.device("meta"):
            transformers.AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    except TimeoutError:
        raise UserError(f"{named}: its config asks for more parts than can be built in {BUILDING_SECONDS} s") from None
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


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
