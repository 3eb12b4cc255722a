"""Passes of a training step in C++, compiled once per machine; without a compiler torch makes the same passes.

The encoder asks which pre-activations exceed a floor, and most do not. A product in 8 bits tells which may, and only those
are computed in full precision. With x = x̂ + e and w = ŵ + r, rows rounded to whole steps, x·w = x̂·ŵ + e·w + x̂·r. Roundings are independent of what they are multiplied with, so the error has a standard
deviation of at most √((‖e‖‖w‖)² + (‖x̂‖‖r‖)²) / √D, and DEVIATIONS of these are allowed for: chance alone passes them once
in 10¹⁵ pairs, and ‖e‖‖w‖ + ‖x̂‖‖r‖, which nothing passes, bounds them where D is small. Columns are scaled first, so that none
decides the steps of all. What is found is exact: a pair counts by its value in full precision.

With AVX-512 VNNI rows have 127 steps to either side. With AVX2 products of two columns and the sums of four such are held in
16 bits: latents have 63 steps, and a token as many as never overflow, by the sizes of its columns alone.
"""

from __future__ import annotations

import atexit
import ctypes
import functools
import hashlib
import os
import shutil
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

if TYPE_CHECKING:
    from crosscoders.sparse import ByLatent, Code

SOURCE = Path(__file__).with_name("passes.cpp")
FLAGS = [
    "-O3", "-march=native", "-mprefer-vector-width=512", "-fno-math-errno", "-std=c++17", "-shared", "-fPIC",
]  # fmt: skip
DEVIATIONS = 8.0
"""Standard deviations of the 8-bit product's error that a candidate is given."""
SPARSE_BELOW = {64: 0.02, 32: 0.05}
"""Share of pairs above the floor up to which finding them in 8 bits costs less than all of them in full; measured.

By the bytes of a register: wide ones multiply in full precision twice as fast.
"""
SPARSE_BELOW_ON_GPU = 0.02
"""The same where :mod:`crosscoders.kernels` finds them, in 16 bits; not measured."""
WORTHWHILE = 1 << 28
"""Multiplications below which a product costs less than preparing for it."""
FEW_TOKENS = 128
"""Tokens below which rounding the encoder costs more than it saves."""
GROUP = 128
"""Latents that the C++ code works on at a time."""
RECONSTRUCTED_BY_COLUMNS_FROM = {8: 12, 4: 32, 2: 80}
"""Pairs per latent from which working through columns of all latents costs less than gathering rows; measured.

By the registers that hold the columns of one latent: the fewer, the more often every latent is read.
"""
LARGEST_WIDTH = 1 << 16
"""Columns whose 8-bit products still fit in 32 bits."""
NAMES = {torch.float32: "float32", torch.float64: "float64"}


@functools.cache
def library() -> ctypes.CDLL | None:
    """The compiled passes; None where there is no compiler or the processor lacks the instructions."""
    if compiler() is None or not {"avx2", "fma"} <= set(processor().split()):
        return None
    try:
        version = subprocess.run([compiler(), "--version"], capture_output=True, text=True, check=True).stdout
        key = hashlib.sha256("\n".join([SOURCE.read_text(), *FLAGS, version, processor()]).encode()).hexdigest()
        return _opened(_built(compiler(), key[:16]))
    except (OSError, subprocess.CalledProcessError):
        return None


def name() -> str:
    """Who makes the passes on a CPU, and in which instructions."""
    if library() is None:
        return "torch"
    return "C++, AVX-512" if library().register_bytes() == 64 else "C++, AVX2"


def compiler() -> str | None:
    """The C++ compiler: $CXX, or g++."""
    return os.environ.get("CXX") or shutil.which("g++")


def processor() -> str:
    """What decides the instructions compiled for: the same cache may serve several kinds of machines."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []
    first = lines[: lines.index("")] if "" in lines else lines
    return "\n".join(line for line in first if line.startswith(("vendor_id", "model", "stepping", "flags")))


def cache_folder() -> Path:
    """The user's cache of what is made once per machine; a temporary one where there is no home, or a full or read-only one."""
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "crosscoders"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError:
        folder = Path(tempfile.mkdtemp(prefix="crosscoders-"))
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def _built(compiler: str, key: str) -> Path:
    """The compiled file, from the user's cache where it was compiled before."""
    cache = cache_folder()
    built = cache / f"passes-{key}.so"
    if not built.exists():
        with tempfile.TemporaryDirectory(dir=cache) as folder:
            part = Path(folder) / built.name
            subprocess.run([compiler, *FLAGS, str(SOURCE), "-o", str(part)], capture_output=True, check=True)
            part.replace(built)  # complete or absent, also with many jobs starting at once
    return built


def _opened(path: Path) -> ctypes.CDLL:
    """The library with its signatures."""
    found = ctypes.CDLL(str(path))
    p, n, i, x, d = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int, ctypes.c_float, ctypes.c_double
    found.adam_float32.argtypes = [p] * 3 + [i] + [p] * 2 + [n] * 3 + [ctypes.c_uint32, p]
    found.adam_float32.restype = None
    found.register_bytes.argtypes, found.register_bytes.restype = [], n
    found.normalised_rows.argtypes, found.normalised_rows.restype = [p, p, n, n, p, x, p, n], None
    found.stored_rows.argtypes, found.stored_rows.restype = [p, n, n, p, n], None
    for name in NAMES.values():
        getattr(found, f"quantise_{name}").argtypes = [p, p, n, n, p, p, p, p, p]
        getattr(found, f"quantise_{name}").restype = None
        getattr(found, f"scan_{name}").argtypes = [p] * 6 + [n] + [p] * 4 + [n] * 4 + [x, p, p, n]
        getattr(found, f"scan_{name}").restype = n
        getattr(found, f"reconstruct_{name}").argtypes = [p] * 3 + [n] * 2 + [p] * 4 + [d, n, n] + [p] * 3 + [i]
        getattr(found, f"reconstruct_{name}").restype = None
        getattr(found, f"reconstruct_rows_{name}").argtypes = [p] * 7 + [d] + [n] * 3 + [p] * 3
        getattr(found, f"reconstruct_rows_{name}").restype = None
        getattr(found, f"weight_gradient_{name}").argtypes = [p] * 3 + [n] * 2 + [p] + [n] * 2 + [p] * 2 + [i]
        getattr(found, f"weight_gradient_{name}").restype = None
    return found


def above(
    x: torch.Tensor, encoder: torch.Tensor, bias: torch.Tensor, floor: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor] | None:
    """Pairs whose pre-activation exceeds the floor of their latent.

    Parameters
    ----------
    x : (T, D)
    encoder : (m, D)
    bias, floor : (m,)

    Returns
    -------
    index : (pairs,)
        Ascending, token · m + latent.
    values : (pairs,)
        Pre-activations, in the precision of x.

    None where the whole product costs less, or cannot be avoided.
    """
    width = x.shape[1]
    if width > LARGEST_WIDTH or not usable(x) or not rare(x, encoder, bias, floor):
        return None
    factor = torch.zeros(2, -(-width // 64) * 64)
    some_tokens, some = _sample(x, encoder)
    balance = (encoder[some].float().square().mean(0) / x[some_tokens].float().square().mean(0)).nan_to_num(1.0, 1.0)
    factor[0, :width] = balance.clamp(1e-12, 1e12).pow(0.25)
    factor[1, :width] = 1 / factor[0, :width]
    return _scan(x, encoder, bias, floor, factor)


def rare(x: torch.Tensor, encoder: torch.Tensor, bias: torch.Tensor, floor: torch.Tensor) -> bool:
    """Whether so few pre-activations exceed their floor, by a sample, that finding them costs less than all of them."""
    (tokens, width), m = x.shape, len(encoder)
    if tokens < FEW_TOKENS or tokens * width * m < WORTHWHILE:
        return False
    some_tokens, some = _sample(x, encoder)
    sample = torch.addmm(bias[some], x[some_tokens], encoder[some].T) > floor[some]
    return float(sample.float().mean()) <= sparse_below(x)


def sparse_below(x: torch.Tensor) -> float:
    """The share that holds where `x` lies: for this processor's registers, or for a GPU."""
    return SPARSE_BELOW[library().register_bytes()] if usable(x) else SPARSE_BELOW_ON_GPU


def _sample(x: torch.Tensor, encoder: torch.Tensor) -> tuple[slice, slice]:
    """Some tokens and some latents."""
    return slice(None, None, max(1, len(x) // 64)), slice(None, None, max(1, len(encoder) // 512))


def usable(x: torch.Tensor) -> bool:
    """Whether the passes over such a tensor are compiled."""
    return x.device.type == "cpu" and x.dtype in NAMES and library() is not None


def _alike(*tensors: torch.Tensor) -> list[torch.Tensor]:
    """As the C++ code expects them: in the precision of the first, without gaps."""
    return [tensor.to(tensors[0].dtype).contiguous() for tensor in tensors]


def _scan(x, encoder, bias, floor, factor) -> tuple[torch.Tensor, torch.Tensor] | None:
    """The pairs, found by all threads, each on latents of its own."""
    (tokens, width), m, name = x.shape, len(encoder), NAMES[x.dtype]
    x, encoder, bias, floor = _alike(x, encoder, bias, floor)
    rounded = torch.zeros(tokens, factor.shape[1], dtype=torch.int8)
    sums, (scale, norm, residual) = torch.zeros(tokens, dtype=torch.int32), torch.zeros(3, tokens)
    pointers = [tensor.data_ptr() for tensor in (rounded, sums, scale, norm, residual)]
    getattr(library(), f"quantise_{name}")(x.data_ptr(), factor[0].data_ptr(), tokens, width, *pointers)
    capacity = int(2 * sparse_below(x) * tokens * m)
    deviations = min(DEVIATIONS / width**0.5, 2**0.5)

    def scan(part: int) -> tuple[torch.Tensor, torch.Tensor] | None:
        first, last = part * share, min((part + 1) * share, m)
        index, values = torch.empty(capacity, dtype=torch.int64), torch.empty(capacity, dtype=x.dtype)
        weights = [tensor.data_ptr() for tensor in (encoder, bias, floor, factor[1])]
        found = getattr(library(), f"scan_{name}")(
            x.data_ptr(), *pointers, tokens, *weights, first, last, m, width, deviations,
            index.data_ptr(), values.data_ptr(), capacity,
        )  # fmt: skip
        return None if found < 0 else (index[:found], values[:found])

    share = -(-m // (GROUP * torch.get_num_threads())) * GROUP
    parts = in_parallel(scan, -(-m // share))
    if any(part is None for part in parts):
        return None
    index, values = (torch.cat(column) for column in zip(*parts, strict=True))
    order = torch.from_numpy(np.argsort(index.numpy()))
    return index[order], values[order]


def reconstruct(
    code: Code, by_latent: ByLatent, x: torch.Tensor, decoder: torch.Tensor, bias: torch.Tensor, weights: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The error x − x̂ of a code, (T, D), and the gradients of its weighted mean square at x̂, (T, D), and at the values."""
    inputs = _alike(x, decoder, bias, weights)
    chunks = _chunks(x)
    if not chunks.pay(len(code.values), code.size[1], RECONSTRUCTED_BY_COLUMNS_FROM):
        return _reconstruct_rows(code, *inputs)
    error, gradient = torch.empty_like(x), torch.empty_like(x)
    slopes = x.new_empty(chunks.count, len(code.values))
    pairs, pointers = _pairs(by_latent, code.values), [tensor.data_ptr() for tensor in inputs]
    function = getattr(library(), f"reconstruct_{NAMES[x.dtype]}")

    def work(chunk: int) -> None:
        outputs = error.data_ptr(), gradient.data_ptr(), slopes[chunk].data_ptr()
        function(*pairs.pointers, *pointers, -2 / len(x), chunk, x.shape[1], *outputs, chunks.registers)

    in_parallel(work, chunks.count)
    at_values = torch.empty_like(code.values)
    at_values[by_latent.order] = slopes.sum(0)
    return error, gradient, at_values


def _reconstruct_rows(code: Code, *inputs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    x, (pairs_offsets, latents, values) = inputs[0], (t.contiguous() for t in (code.offsets, code.latents, code.values))
    outputs = torch.empty_like(x), torch.empty_like(x), torch.empty_like(values)
    pointers = [tensor.data_ptr() for tensor in (pairs_offsets, latents, values, *inputs)]
    function = getattr(library(), f"reconstruct_rows_{NAMES[x.dtype]}")
    share = -(-len(x) // torch.get_num_threads())

    def work(part: int) -> None:
        first, last = part * share, min((part + 1) * share, len(x))
        function(*pointers, -2 / len(x), first, last, x.shape[1], *(tensor.data_ptr() for tensor in outputs))

    in_parallel(work, -(-len(x) // share))
    return outputs


@dataclass
class Gradient:
    """A weight gradient, (m, D), whose norm was found on the way; rows that are not active were not written, and are 0."""

    values: torch.Tensor
    active: torch.Tensor
    squares: torch.Tensor
    """Sums of squares of parts of rows."""

    def dense(self) -> torch.Tensor:
        """The gradient as a tensor."""
        return self.values.index_fill_(0, (~self.active).nonzero()[:, 0], 0)

    def squared_norm(self) -> torch.Tensor:
        """Sum of its squares."""
        return self.squares.sum(dtype=torch.float64)


def weight_gradient(by_latent: ByLatent, values: torch.Tensor, rows: torch.Tensor) -> Gradient:
    """Σ_t value_tj rows_t, (m, D), of values in the order of tokens."""
    m, chunks, rows = len(by_latent.counts), _chunks(rows), rows.contiguous()
    found = Gradient(rows.new_empty(m, rows.shape[1]), by_latent.counts > 0, rows.new_empty(chunks.count, m))
    pairs = _pairs(by_latent, values)
    function = getattr(library(), f"weight_gradient_{NAMES[rows.dtype]}")

    def work(chunk: int) -> None:
        outputs = found.values.data_ptr(), found.squares[chunk].data_ptr()
        function(*pairs.pointers, rows.data_ptr(), chunk, rows.shape[1], *outputs, chunks.registers)

    in_parallel(work, chunks.count)
    return found


def adam_usable(weights: torch.Tensor) -> bool:
    """Whether :func:`adam_step` takes such weights."""
    return usable(weights) and weights.dtype == torch.float32


def adam_step(
    weights: torch.Tensor, mean: torch.Tensor, square: torch.Tensor, gradient: Gradient | torch.Tensor, seed: int,
    options: list[float],
) -> None:  # fmt: skip
    """One step of Adam in place on float32 weights, (m, D), as :func:`crosscoders.optimizer.plain_step`."""
    (m, width), active = weights.shape, None
    if isinstance(gradient, Gradient):
        gradient, active = gradient.values, gradient.active
    options, gradient = np.array(options, np.float32), gradient.contiguous()
    moments, narrow = [mean.data_ptr(), square.data_ptr()], mean.dtype == torch.bfloat16
    inputs = gradient.data_ptr(), None if active is None else active.data_ptr()
    share = -(-m // torch.get_num_threads())

    def work(part: int) -> None:
        rows = part * share, min((part + 1) * share, m)
        library().adam_float32(weights.data_ptr(), *moments, narrow, *inputs, *rows, width, seed, options.ctypes.data)

    in_parallel(work, -(-m // share))


def stored_rows(addresses: np.ndarray, out: torch.Tensor) -> None:
    """Stored rows, whose addresses are (rows,) int64, into `out`, (rows, width), bfloat16."""
    addresses = np.ascontiguousarray(addresses)
    library().stored_rows(addresses.ctypes.data, *out.shape, out.data_ptr(), out.stride(0))


def normalised_rows(addresses: np.ndarray, mean: np.ndarray, scale: float, out: torch.Tensor) -> None:
    """(row − mean) / scale of stored bfloat16 rows, or of the differences of two, into `out`, (rows, width), float32.

    Parameters
    ----------
    addresses : (1 or 2, rows), int64
        Where the rows lie in memory.
    """
    first, *other = (np.ascontiguousarray(values) for values in addresses)
    pointers = first.ctypes.data, other[0].ctypes.data if other else None
    library().normalised_rows(*pointers, *out.shape, mean.ctypes.data, scale, out.data_ptr(), out.stride(0))


@dataclass
class _Chunks:
    """Groups of columns that a pass works on one after the other."""

    count: int
    registers: int

    def pay(self, pairs: int, latents: int, least: dict[int, float]) -> bool:
        """Whether so many pairs are better worked on by columns."""
        return pairs >= least[self.registers] * latents


def _chunks(rows: torch.Tensor) -> _Chunks:
    """As wide as lets the columns of all tokens stay in the second cache."""
    tokens, width = rows.shape
    register = library().register_bytes()
    fitting = second_cache() * 3 // 4 // (register * tokens)
    registers = next((r for r in (8, 4) if r <= fitting), 2)
    return _Chunks(-(-width * rows.element_size() // (register * registers)), registers)


@functools.cache
def second_cache() -> int:
    """Bytes of the second cache of a core; half a MB where they are not told."""
    told = Path("/sys/devices/system/cpu/cpu0/cache/index2/size")
    size = told.read_text().strip() if told.exists() else ""
    return int(size[:-1]) << 10 if size.endswith("K") else 512 << 10


@dataclass
class _Pairs:
    """Pairs sorted by latent, as the C++ code takes them; keeps what the pointers point to."""

    pointers: list[int]
    kept: list[torch.Tensor]


def _pairs(by_latent: ByLatent, values: torch.Tensor) -> _Pairs:
    kept = [by_latent.offsets, by_latent.tokens, values[by_latent.order]]
    sizes = [by_latent.all_tokens, len(by_latent.counts)]
    return _Pairs([tensor.data_ptr() for tensor in kept] + sizes, kept)


def in_parallel(work, count: int) -> list:
    """work(0), …, work(count − 1), by as many threads as torch uses; its results in order."""
    threads = min(torch.get_num_threads(), count)
    if threads == 1:
        return [work(i) for i in range(count)]
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(work, range(count)))
