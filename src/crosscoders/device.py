"""Which device and which arithmetic to use, where a setting says `auto`."""

from __future__ import annotations

import torch

from crosscoders.errors import UserError


def chosen_device(wanted: str) -> str:
    """The device that a setting asks for: with `auto`, `cuda` where there is one.

    Parameters
    ----------
    wanted : str
        `auto`, `cpu` or `cuda`.

    Returns
    -------
    str
        `cpu` or `cuda`.

    Raises
    ------
    UserError
        `cuda` is asked for and there is none.
    """
    if wanted == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if wanted == "cuda" and not torch.cuda.is_available():
        raise UserError("device: 'cuda' is not available on this machine; expected 'auto' or 'cpu'")
    return wanted


def chosen_dtype(wanted: str, device: str) -> torch.dtype:
    """The arithmetic of models: bfloat16 where `auto` finds hardware that is faster with it, float32 elsewhere.

    Parameters
    ----------
    wanted : str
        `auto`, or the name of a torch type.
    device : str
        What :func:`chosen_device` returned.

    Returns
    -------
    torch.dtype
    """
    if wanted == "auto":
        fast = device == "cuda" or torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
        return torch.bfloat16 if fast else torch.float32
    return getattr(torch, wanted)
