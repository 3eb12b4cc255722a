"""Hugging Face snapshots with checked provenance: written whole, verified before they are loaded, and asked for answers."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

import torch
import transformers

from crosscoders import storage
from crosscoders.data.tokenizer import load_tokenizer


def publish(folder: Path, target: Path, provenance: dict) -> None:
    """Write `provenance.json` with the SHA-256 of every file and move the finished folder to its place."""
    files = {file.name: storage.sha256(file) for file in sorted(folder.iterdir())}
    storage.write_sealed_json({**provenance, "files": files}, folder / storage.PROVENANCE)
    if target.exists():
        shutil.rmtree(target)
    os.replace(folder, target)


def step_file(step: int) -> str:
    """Name of the file in which the folder of a trained model keeps the weights that it had after a step."""
    return f"step-{step:06d}.safetensors"


def working_folder(target: Path) -> tempfile.TemporaryDirectory:
    """A folder beside `target`, so that the finished snapshot can be renamed into place."""
    target.parent.mkdir(parents=True, exist_ok=True)
    return tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.", ignore_cleanup_errors=True)


def load_model(folder: Path, device: str, dtype: torch.dtype) -> transformers.PreTrainedModel:
    """A verified snapshot, ready for inference; tokens that its tokenizer lacks are read as its unknown token.

    Parameters
    ----------
    folder : Path
    device : str
    dtype : torch.dtype

    Returns
    -------
    transformers.PreTrainedModel

    Raises
    ------
    UserError
        The snapshot is not as it was written.
    """
    storage.verify_folder(folder)
    transformers.utils.logging.disable_progress_bar()
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, trust_remote_code=False)
    _replace_unknown_tokens(model, load_tokenizer(folder))
    return model.eval().to(device)


def _replace_unknown_tokens(
    model: transformers.PreTrainedModel, tokenizer: transformers.PreTrainedTokenizerBase
) -> None:
    """Let a model read ids that its tokenizer does not have as one that it has.

    The other model of a pair may have added tokens, for which this model has no embedding, or one never trained.
    """
    ids = torch.tensor(sorted(set(tokenizer.get_vocab().values())))
    known = torch.zeros(int(ids[-1]) + 1, dtype=torch.bool)
    known[ids] = True
    substitutes = (tokenizer.unk_token_id, tokenizer.eos_token_id, tokenizer.bos_token_id, int(ids[0]))
    substitute = next(token for token in substitutes if token is not None)

    def replace(_: torch.nn.Module, arguments: tuple, keywords: dict) -> tuple[tuple, dict]:
        given = keywords.get("input_ids")
        if given is None:
            return arguments, keywords
        has = known.to(given.device)[given.clamp(max=len(known) - 1)] & (given < len(known))
        return arguments, keywords | {"input_ids": given.where(has, substitute)}

    for module in {model, model.base_model}:
        module.register_forward_pre_hook(replace, with_kwargs=True)


@torch.inference_mode()
def continuations(
    model: transformers.PreTrainedModel, prompts: list[list[int]], new_tokens: int, stop: int, temperature: float = 0.0
) -> list[list[int]]:
    """Continuations of several prompts, which are padded on the left.

    Parameters
    ----------
    model : PreTrainedModel
    prompts : list of list of int
        Token ids.
    new_tokens : int
        Longest continuation.
    stop : int
        Token that ends a continuation.
    temperature : float
        Greedy continuations where 0, else sampled ones with torch's generator.

    Returns
    -------
    list of list of int
        Token ids up to and with `stop`.
    """
    longest = max(map(len, prompts))
    ids = torch.tensor([[stop] * (longest - len(prompt)) + prompt for prompt in prompts], device=model.device)
    mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts], device=model.device)
    sampling = {"do_sample": True, "temperature": temperature, "top_k": 0} if temperature else {"do_sample": False}
    sequences = model.generate(
        input_ids=ids, attention_mask=mask, max_new_tokens=new_tokens, eos_token_id=stop, pad_token_id=stop, **sampling
    )
    rows = sequences[:, longest:].tolist()
    return [row[: row.index(stop) + 1] if stop in row else row for row in rows]


def greedy(
    model: transformers.PreTrainedModel, prompts: list[list[int]], new_tokens: int, stop: int
) -> list[list[int]]:
    """Greedy continuations, ended before the token `stop`."""
    rows = continuations(model, prompts, new_tokens, stop)
    return [row[:-1] if row[-1] == stop else row for row in rows]
