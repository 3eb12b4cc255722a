"""Training steps on a GPU: ours against dense autograd crosscoders in TF32, compiled, and in bfloat16 with fused Adam.

`python -m benchmarks.gpu` prints tokens per second and writes benchmarks/out/gpu.json. Sides take turns in one process,
each step ended by a synchronisation. Without a GPU it says so and ends.
"""

from __future__ import annotations

import itertools
import statistics
import sys
import time
from collections.abc import Callable

import torch

from benchmarks import worker
from benchmarks.race import save

GEMMA = {"sources": 2, "width": 2304, "latents": 73728, "k": 100, "activation": "batchtopk"}
RACES = {
    "step_gemma B 2048": (GEMMA | {"batch": 2048}, {"dense TF32": 2.5}),
    "step_gemma B 4096": (GEMMA | {"batch": 4096}, {"dense TF32": 2.5}),
    "step_kissane": (GEMMA | {"latents": 16384, "batch": 4096}, {"dense bfloat16": 1.0}),
    "step_gpt2": (
        {"sources": 12, "width": 768, "latents": 32768, "k": 64, "batch": 4096, "activation": "batchtopk"},
        {"dense TF32": 2.5},
    ),
}
"""Name: shape, and the ratio aimed at for every rival."""
FLOOR = {"step_gemma B 4096": 257_000}
"""Tokens per second that the memory traffic of Adam and the encoder's product allow on an H100."""
STEPS, WARMUP = 20, 15
OURS = ("ours", "ours bfloat16")
"""Factors of products and moments in 32 bits, candidates for the code aside; and in 16."""


def dense(shape: dict, dtype: torch.dtype) -> worker.Step:
    """The dense crosscoder, its products in TF32 or bfloat16, compiled."""
    step = worker.dense(shape, "cuda")

    def cast(x: torch.Tensor) -> None:
        with torch.autocast("cuda", dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
            step(x)

    return torch.compile(cast)


LOWER = {"precision": "bfloat16", "adam_moments": "bfloat16"}
SIDES: dict[str, Callable[[dict], worker.Step]] = {
    "ours": lambda shape: worker.ours(shape, "cuda"),
    "ours bfloat16": lambda shape: worker.ours(shape | LOWER, "cuda"),
    "dense TF32": lambda shape: dense(shape, torch.float32),
    "dense bfloat16": lambda shape: dense(shape, torch.bfloat16),
}


def race(names: list[str], shape: dict) -> dict[str, float]:
    """Median tokens per second of every side."""
    steps, times = {name: SIDES[name](shape) for name in names}, {name: [] for name in names}
    generator = torch.Generator("cuda").manual_seed(1)
    for _ in range(STEPS + WARMUP):
        x = torch.randn(shape["batch"], shape["sources"] * shape["width"], device="cuda", generator=generator)
        for name, step in steps.items():
            torch.cuda.synchronize()
            began = time.perf_counter()
            with torch.set_grad_enabled(name not in OURS):
                step(x)
            torch.cuda.synchronize()
            times[name].append(time.perf_counter() - began)
    return {name: round(shape["batch"] / statistics.median(values[WARMUP:])) for name, values in times.items()}


def main() -> None:
    """Run the races named on the command line, or all of them."""
    if not torch.cuda.is_available():
        print("benchmarks.gpu: no CUDA device found; nothing was measured")
        return
    torch.set_float32_matmul_precision("high")
    rows = []
    for name, (shape, rivals) in RACES.items():
        if sys.argv[1:] and name not in sys.argv[1:]:
            continue
        found = race([*OURS, *rivals], shape)
        torch.cuda.empty_cache()
        for (rival, target), ours in itertools.product(rivals.items(), OURS):
            row = {"name": name, "side": ours, "rival": rival, "shape": shape, "tokens_per_second": found, "target": target,
                   "ratio": round(found[ours] / found[rival], 2), "device": torch.cuda.get_device_name()}  # fmt: skip
            if name in FLOOR:
                row["share_of_floor"] = round(found[ours] / FLOOR[name], 2)
            rows.append(row)
            print(f"{name:20s} {ours:15s} {found}  × {row['ratio']:.2f}", flush=True)
    save("gpu", rows)


if __name__ == "__main__":
    main()
