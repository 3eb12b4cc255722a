"""The compiled library of cpu.cpp: built once per machine, opened with the signatures of its functions."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path

import torch

from crosscoders import stage, storage
from crosscoders.errors import UserError
from crosscoders.kernels import machine

SOURCE = Path(__file__).with_name("cpu.cpp")
FLAGS = ["-O3", "-march=native", "-mprefer-vector-width=512", "-fno-math-errno", "-std=c++17", "-shared", "-fPIC"]
NAMES = {torch.float32: "float32", torch.float64: "float64"}
"""Types of numbers that the kernels are compiled for, and their names there."""
MACHINES = ("x86_64", "AMD64")
"""Names of the processors that cpu.cpp is written for."""


def library() -> ctypes.CDLL | None:
    """The compiled kernels of cpu.cpp, compiled where this machine has not done so before.

    Returns
    -------
    ctypes.CDLL or None
        None where there is no compiler, it fails, or the processor lacks AVX2.
    """
    return _compiled()[0]


def why_not() -> str:
    """Why there are no compiled kernels, as the end of a sentence; empty where there are."""
    return _compiled()[1]


@functools.cache
def _compiled() -> tuple[ctypes.CDLL | None, str]:
    """The library, or None and the reason."""
    program = compiler()
    if platform.machine() not in MACHINES:
        return None, f"they are written for x86-64 and this processor is {platform.machine() or 'unknown'}"
    if not {"avx2", "fma"} <= set(machine.processor().split()):
        return None, "the system names no processor with AVX2 and FMA"
    if program is None:
        return None, "there is no C++ compiler (g++, or the one that CXX names)"
    try:
        command = [program, "--version"]
        version = subprocess.run(command, capture_output=True, encoding="utf-8", errors="replace", check=True).stdout
        parts = [SOURCE.read_text(encoding="utf-8"), *FLAGS, version, machine.processor()]
        return opened(built(program, hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16])), ""
    except (OSError, UserError) as error:
        return None, f"{program} or what it made cannot be used ({error})"
    except subprocess.CalledProcessError as error:
        said = error.stderr if isinstance(error.stderr, str) else error.stderr.decode(errors="replace")
        return None, f"{program} failed ({(said.strip().splitlines() or ['no reason given'])[0]})"


def compiler() -> str | None:
    """The C++ compiler: $CXX, or g++."""
    return os.environ.get("CXX") or shutil.which("g++")


def built(compiler: str, key: str) -> Path:
    """The compiled file, taken from the user's cache where it was compiled before and is as it was written.

    It ends with a checksum, which the system's loader ignores. Opening a damaged library would end the process with a bus
    error and no message.
    """
    cache = machine.cache_folder()
    built = cache / f"kernels-{key}.so"
    if built.is_symlink() or built.exists():
        try:
            storage.verify(built)
            return built
        except UserError as error:
            stage.say(f"kernels are compiled anew: {error}")
            built.unlink()
    with tempfile.TemporaryDirectory(dir=cache) as folder:
        part = Path(folder) / built.name
        subprocess.run([compiler, *FLAGS, str(SOURCE), "-o", str(part)], capture_output=True, check=True)
        # The library is complete or absent, however many jobs compile it at once.
        storage.write_sealed(part.read_bytes(), built)
    return built


def opened(path: Path) -> ctypes.CDLL:
    """The library with its signatures."""
    kernels = ctypes.CDLL(str(path))
    p, n, i, x, d = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int, ctypes.c_float, ctypes.c_double
    kernels.adam_float32.argtypes = [p] * 3 + [i] + [p] * 2 + [n] * 3 + [ctypes.c_uint32, p]
    kernels.adam_float32.restype = None
    kernels.register_bytes.argtypes, kernels.register_bytes.restype = [], n
    kernels.normalised_rows.argtypes, kernels.normalised_rows.restype = [p, p, n, n, p, x, p, n], None
    kernels.stored_rows.argtypes, kernels.stored_rows.restype = [p, n, n, p, n], None
    for name in NAMES.values():
        getattr(kernels, f"quantise_{name}").argtypes = [p, p, n, n, p, p, p, p, p]
        getattr(kernels, f"quantise_{name}").restype = None
        getattr(kernels, f"scan_{name}").argtypes = [p] * 6 + [n] + [p] * 4 + [n] * 4 + [x, p, p, n]
        getattr(kernels, f"scan_{name}").restype = n
        getattr(kernels, f"reconstruct_{name}").argtypes = [p] * 3 + [n] * 2 + [p] * 4 + [d, n, n] + [p] * 3 + [i]
        getattr(kernels, f"reconstruct_{name}").restype = None
        getattr(kernels, f"reconstruct_rows_{name}").argtypes = [p] * 7 + [d] + [n] * 3 + [p] * 3
        getattr(kernels, f"reconstruct_rows_{name}").restype = None
        getattr(kernels, f"weight_gradient_{name}").argtypes = [p] * 3 + [n] * 2 + [p] + [n] * 2 + [p] * 2 + [i]
        getattr(kernels, f"weight_gradient_{name}").restype = None
    return kernels
