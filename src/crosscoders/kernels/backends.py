"""The choice of a backend, made once for whoever computes."""

from __future__ import annotations

import functools
import importlib

import torch

from crosscoders import stage
from crosscoders.kernels.cpu import CompiledBackend
from crosscoders.kernels.cpu_library import library, why_not
from crosscoders.kernels.interface import Backend
from crosscoders.kernels.plain import PlainBackend
from crosscoders.kernels.streamed import StreamedBackend

MANY_LATENTS = 1 << 18
"""Latents from which on the pre-activations of all of them are too many to hold in memory at once."""


def choose(device: str | torch.device = "cpu") -> Backend:
    """The fastest backend for a device.

    On a GPU the kernels are Triton's. On a CPU they are compiled where there is a C++ compiler and the processor has
    AVX2; elsewhere torch computes.

    Parameters
    ----------
    device : str or torch.device

    Returns
    -------
    Backend
    """
    if torch.device(device).type == "cuda":
        return triton()
    return compiled() if library() is not None else plain()


def choose_for_evaluation(device: str, latents: int) -> Backend:
    """The backend that applies a finished dictionary, which lies in main memory.

    Parameters
    ----------
    device : str
        `cpu` or `cuda`; a GPU gets a block of latents at a time.
    latents : int
        Of the dictionary.

    Returns
    -------
    Backend
    """
    blocks = device == "cuda" or latents >= MANY_LATENTS
    return StreamedBackend(choose(device), device) if blocks else choose(device)


@functools.cache
def say_what_lacks(device: str | torch.device = "cpu") -> None:
    """Say once, in a line, why torch computes on a CPU where kernels could not be compiled.

    Parameters
    ----------
    device : str or torch.device
    """
    if torch.device(device).type == "cpu" and why_not():
        stage.say(f"kernels: torch computes, and nothing is compiled, because {why_not()}")


@functools.cache
def plain() -> Backend:
    """Plain torch."""
    return PlainBackend()


@functools.cache
def compiled() -> Backend:
    """The kernels of cpu.cpp, for where :func:`crosscoders.kernels.cpu_library.library` is not None."""
    return CompiledBackend()


@functools.cache
def triton() -> Backend:
    """Triton's kernels, imported when first used, because Triton comes with torch's CUDA builds alone."""
    return importlib.import_module("crosscoders.kernels.gpu").TritonBackend()
