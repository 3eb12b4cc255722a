"""One training step: ours against the dense autograd crosscoder that every peer writes, and against packages of peers.

`make bench` prints the table and writes benchmarks/out/step.json and step.png. All sides see batches of one shape, take
turns step by step, and are timed by process CPU time on one thread. Benchmarks named on the command line (or `growth`)
replace their rows.

The roofline of a step is the time in which this machine could do three things. It multiplies the encoder in 8 bits, at
four times the rate that MKL reaches in 32 bits. It multiplies active pairs with their rows, at MKL's rate in 32 bits,
five times: for the value, the reconstruction, the gradient at the code and both weight gradients. It reads and writes
every weight and moment once, at the rate that torch's fused Adam reaches.
"""

from __future__ import annotations

import sys

from benchmarks import roofline
from benchmarks.sides import Side, in_turns, run, save

PAIR = {"sources": 2, "width": 576, "latents": 8192, "k": 32, "batch": 1024, "activation": "batchtopk"}
PEERS = {"dense": 8.0, "eai-sparsify": 2.2, "sae-lens": 8.0, "dictionary-learning": None}
BENCHMARKS = {
    "step_batchtopk": (PAIR, PEERS),
    "step_batchtopk_fast": (PAIR | {"adam_moments": "bfloat16"}, {"dense": 10.0, "eai-sparsify": 2.8}),
    "step_same_gemm": (PAIR | {"gemm": "faster"}, {"dense": 4.5, "eai-sparsify": 1.5}),
    "step_wide": (PAIR | {"latents": 16384}, {"dense": 9.0}),
    "step_layers": (PAIR | {"sources": 12, "width": 128}, {"dense": 8.0}),
    "step_l1 L0 16": (PAIR | {"activation": "relu", "k": 16}, {"dense": 8.0}),
    "step_l1 L0 64": (PAIR | {"activation": "relu", "k": 64}, {"dense": 5.5}),
    "step_l1 L0 256": (PAIR | {"activation": "relu", "k": 256}, {"dense": 2.7}),
    "step_l1 L0 4096": (PAIR | {"activation": "relu", "k": 4096}, {"dense": 1.0}),
    "embedded base-vs-chat": (PAIR | {"latents": 4096, "k": 48, "batch": 768}, {"dense": None}),
    "embedded cross-layer": (PAIR | {"sources": 5, "latents": 4096, "k": 48, "batch": 768}, {"dense": None}),
}
"""Name: shape, and the ratio aimed at for every peer."""
GROWTH = {"as it is": {}, "m × 4": {"latents": 4 * 8192}, "k × 4": {"k": 128}, "B × 4": {"batch": 4096}}
STEPS = 10
WEIGHT_BYTES = 24
"""Bytes per weight that every step has to move: weight and both moments, read and written."""
SPARSE_PART_BYTES = 6
"""The same for the sparse part: it reads the decoder, half of all weights, and writes the gradients of all weights."""


def bound_of(shape: dict, multiplications: float, moved: float, side: str = "ours") -> dict[str, float | str]:
    """The least time of an exact step, or of its sparse part, on a machine of these rates, and what bounds it."""
    columns = shape["sources"] * shape["width"]
    weights, code = 2 * shape["latents"] * columns, shape["batch"] * shape["k"] * columns
    if side == "sparse_part":
        return roofline.bound_of(code=4 * code / multiplications, memory=SPARSE_PART_BYTES * weights / moved)
    encoder = shape["batch"] * shape["latents"] * columns / (roofline.NARROW * multiplications)
    return roofline.bound_of(encoder=encoder, code=5 * code / multiplications, memory=WEIGHT_BYTES * weights / moved)


def main() -> None:
    """Run the benchmarks named on the command line, or all of them."""
    rows, wanted, measured = [], sys.argv[1:], roofline.rates()
    for name, (shape, peers) in BENCHMARKS.items():
        if wanted and name not in wanted:
            continue
        times, memory = in_turns(["ours", *peers], shape, STEPS)
        for peer, target in peers.items():
            if peer not in times:
                continue
            ratio = round(times[peer] / times["ours"], 2)
            row = {
                "name": name,
                "peer": peer,
                "shape": shape,
                "milliseconds": times,
                "megabytes": memory,
                "ratio": ratio,
            } | bound_of(shape, *measured)
            rows.append(row | ({"target": target} if target else {}))
            print(
                f"{name:22s} ours {times['ours']:7.1f} ms  {peer:20s} {times[peer]:7.1f} ms  × {ratio:.2f}", flush=True
            )
        save("step", rows, kept=bool(wanted))  # saved now, in case the next benchmark fails
    for side, label in (("ours", "growth"), ("sparse_part", "growth of the sparse part")):
        if wanted and "growth" not in wanted:
            continue
        times, memory = run({change: Side(side, PAIR | values) for change, values in GROWTH.items()}, STEPS)
        for change, values in GROWTH.items():
            row = {"name": f"{label} {change}", "shape": PAIR | values, "milliseconds": {"ours": times[change]}}
            rows.append(row | {"megabytes": {"ours": memory[change]}} | bound_of(PAIR | values, *measured, side))
            print(f"{label} {change:15s} {times[change]:7.1f} ms, {memory[change]:,} MB", flush=True)
        save("step", rows, kept=bool(wanted))


if __name__ == "__main__":
    main()
