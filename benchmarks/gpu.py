"""Training steps on a GPU: ours against dense autograd crosscoders in TF32, compiled, and in bfloat16 with fused Adam.

`python -m benchmarks.gpu` prints tokens per second and writes benchmarks/out/gpu.json, from which `python -m
benchmarks.table` makes the table of docs/gpu.md. Sides take turns in one process, each step ended by a synchronisation.
Every row also has its roofline, from the rates that this GPU reaches in a product and in a copy, and the time of our
step by kernel. Without a GPU the command says so and ends.
"""

from __future__ import annotations

import itertools
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks import dataset, roofline, worker
from benchmarks.sides import save
from crosscoders.activations.dataset import Activations
from crosscoders.activations.prefetch import Prefetch
from crosscoders.activations.shuffle import Order

GEMMA = {"sources": 2, "width": 2304, "latents": 73728, "k": 100, "activation": "batchtopk"}
BENCHMARKS = {
    "step_gemma B 2048": (GEMMA | {"batch": 2048}, {"dense TF32": 2.5}),
    "step_gemma B 4096": (GEMMA | {"batch": 4096}, {"dense TF32": 2.5}),
    "step_kissane": (GEMMA | {"latents": 16384, "batch": 4096}, {"dense bfloat16": 1.0}),
    "step_gpt2": (
        {"sources": 12, "width": 768, "latents": 32768, "k": 64, "batch": 4096, "activation": "batchtopk"},
        {"dense TF32": 2.5},
    ),
}
"""Name: shape, and the ratio aimed at for every peer."""
WANTED = {"step_gemma B 4096": 0.6 * 257_000}
"""Tokens per second that are also aimed at."""
STEPS, WARMUP = 20, 15
LOWER = {"precision": "bfloat16", "adam_moments": "bfloat16"}
OURS = {"ours": {}, "ours bfloat16": LOWER}
"""Our sides: factors of products and moments in 32 bits (candidates for the code are found in 16), and both in 16 bits."""
PEERS = {"dense TF32": torch.float32, "dense bfloat16": torch.bfloat16}
BYTES = {"ours": 24, "ours bfloat16": 16}
"""Bytes per weight that every step has to read and write: the weight and both moments."""


def dense(shape: dict, dtype: torch.dtype, device: str) -> worker.Step:
    """The dense crosscoder, its products in TF32 or bfloat16, compiled."""
    step = worker.dense(shape, device)

    def cast(x: torch.Tensor) -> None:
        with torch.autocast(device, dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
            step(x)

    return torch.compile(cast)


def side(name: str, shape: dict, device: str) -> worker.Step:
    """A side's step, with or without autograd as it needs."""
    own = name in OURS
    step = worker.ours(shape | OURS[name], device) if own else dense(shape, PEERS[name], device)

    def take(x: torch.Tensor) -> None:
        with torch.set_grad_enabled(not own):
            step(x)

    return take


def seconds(work: Callable[[], object], device: str) -> float:
    """Seconds of some work, until the device is done."""
    wait = torch.cuda.synchronize if device == "cuda" else lambda: None
    wait()
    began = time.perf_counter()
    work()
    wait()
    return time.perf_counter() - began


def in_turns(
    sides: dict[str, worker.Step], shape: dict, device: str, steps: int = STEPS, warmup: int = WARMUP
) -> dict[str, float]:
    """Median milliseconds of every side's step."""
    times, generator = {name: [] for name in sides}, torch.Generator(device).manual_seed(1)
    for _ in range(steps + warmup):
        x = torch.randn(shape["batch"], shape["sources"] * shape["width"], device=device, generator=generator)
        for name, step in sides.items():
            times[name].append(seconds(lambda step=step, x=x: step(x), device))
    return {name: 1000 * statistics.median(values[warmup:]) for name, values in times.items()}


def rates(device: str, size: int = 8192) -> tuple[float, float]:
    """Multiplications in float16 per millisecond in a product, and bytes per millisecond in a copy."""
    a = torch.ones(size, size, dtype=torch.float16, device=device)
    long, other = (torch.ones(size * size, device=device) for _ in range(2))
    product, copy = (
        1000 * min(seconds(work, device) for _ in range(10)) for work in (lambda: a @ a, lambda: other.copy_(long))
    )
    return size**3 / product, 2 * long.nbytes / copy


def bound_of(name: str, shape: dict, multiplications: float, moved: float) -> dict[str, float | str]:
    """Milliseconds of the encoder's product and of reading and writing weights, added up, and the longer of the two."""
    weights = shape["latents"] * shape["sources"] * shape["width"]
    product, memory = shape["batch"] * weights / multiplications, BYTES[name] * 2 * weights / moved
    return roofline.bound_of(product=product, memory=memory)


def profile(step: worker.Step, shape: dict, device: str) -> dict[str, float]:
    """Milliseconds of a step by kernel, the longest eight."""
    x = torch.randn(shape["batch"], shape["sources"] * shape["width"], device=device)
    kind = torch.profiler.ProfilerActivity.CUDA if device == "cuda" else torch.profiler.ProfilerActivity.CPU
    with torch.profiler.profile(activities=[kind]) as trace:
        seconds(lambda: step(x), device)
    total = "self_device_time_total" if device == "cuda" else "self_cpu_time_total"
    times = {event.key: getattr(event, total) / 1000 for event in trace.key_averages()}
    return dict(sorted(times.items(), key=lambda item: -item[1])[:8])


def waiting(step: worker.Step, shape: dict, device: str, steps: int = STEPS, warmup: int = WARMUP) -> float:
    """Share of a step that loading adds: batches from stored activations against one that lies on the device."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "000.nc"
        data = Activations([path], dataset.shard(path))
        order, tokens = Order(len(data), 0), shape["batch"]
        with Prefetch(data, lambda i: order.take(i * tokens, tokens), steps + warmup, tokens, device) as batch:
            times, there = {"loaded": [], "resident": []}, batch(0).clone()
            for i in range(1, steps + warmup):
                times["loaded"].append(seconds(lambda i=i: step(batch(i)), device))
                times["resident"].append(seconds(lambda: step(there), device))
    loaded, resident = (statistics.median(values[warmup:]) for values in times.values())
    return loaded / resident - 1


def measure(name: str, measured: tuple[float, float], device: str, **lengths: int) -> list[dict]:
    """The rows of one benchmark."""
    shape, peers = BENCHMARKS[name]
    sides = {label: side(label, shape, device) for label in (*OURS, *peers)}
    times = in_turns(sides, shape, device, **lengths)
    profiles = {ours: profile(sides[ours], shape, device) for ours in OURS}
    rows = []
    for (peer, target), ours in itertools.product(peers.items(), OURS):
        row = {"name": name, "side": ours, "peer": peer, "shape": shape, "milliseconds": times, "target": target}
        row |= {
            "ratio": round(times[peer] / times[ours], 2),
            "tokens_per_second": round(1000 * shape["batch"] / times[ours]),
        }
        row |= bound_of(ours, shape, *measured) | {"kernels": profiles[ours]}
        if name in WANTED:
            row["share_of_wanted"] = round(row["tokens_per_second"] / WANTED[name], 2)
        rows.append(row)
        print(
            f"{name:20s} {ours:15s} {row['tokens_per_second']:,} tokens/s  × {row['ratio']:.2f} {peer}, "
            f"roofline {row['roofline']:.1f} of {times[ours]:.1f} ms, bound by {row['bound']}; {profiles[ours]}",
            flush=True,
        )
    if shape["width"] == dataset.WIDTH:
        rows[0]["loader_share"] = round(waiting(sides["ours"], shape, device, **lengths), 3)
        print(f"{name:20s} loading adds {rows[0]['loader_share']:.1%} to a step", flush=True)
    return rows


def main() -> None:
    """Run the benchmarks named on the command line, or all of them."""
    if not torch.cuda.is_available():
        print("benchmarks.gpu: no CUDA device found; nothing was measured")
        return
    torch.set_float32_matmul_precision("high")
    measured, rows = rates("cuda"), []
    for name in sys.argv[1:] or BENCHMARKS:
        rows += [row | {"device": torch.cuda.get_device_name()} for row in measure(name, measured, "cuda")]
        torch.cuda.empty_cache()
        save("gpu", rows)


if __name__ == "__main__":
    main()
