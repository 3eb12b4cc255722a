"""One training step: ours against the dense autograd crosscoder that every peer writes, and against their packages.

`make bench` prints the table and writes benchmarks/out/step.json and step.png. All sides see batches of one shape, take
turns step by step, and are timed by process CPU time on one thread. Races named on the command line (or `growth`) replace
their rows. The floor of a step is the time in which this machine could multiply the encoder in 8 bits, at four times the
rate that MKL reaches in 32; multiply what is on with its rows (the value, its reconstruction, its gradient, both weights');
and read and write every weight and moment once, at the rate that torch's fused Adam reaches.
"""

from __future__ import annotations

import sys

from benchmarks import roofline
from benchmarks.race import Side, race, run, save

PAIR = {"sources": 2, "width": 576, "latents": 8192, "k": 32, "batch": 1024, "activation": "batchtopk"}
PEERS = {"dense": 8.0, "eai-sparsify": 2.2, "sae-lens": 8.0, "dictionary-learning": None}
RACES = {
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
"""Name: shape, and the ratio aimed at for every rival."""
GROWTH = {"as it is": {}, "m × 4": {"latents": 4 * 8192}, "k × 4": {"k": 128}, "B × 4": {"batch": 4096}}
STEPS = 10
WEIGHT_BYTES = 24
"""Bytes per weight that a step cannot but move: weight and both moments, read and written."""
PASSED_BYTES = 6
"""The same of the sparse part: half of all weights read, the decoder, and the gradients of all of them written."""


def floor(shape: dict, multiplications: float, moved: float, side: str = "ours") -> dict[str, float | str]:
    """The time below which no exact step, or its sparse part, can come on a machine of these rates, and what bounds it."""
    columns = shape["sources"] * shape["width"]
    weights, code = 2 * shape["latents"] * columns, shape["batch"] * shape["k"] * columns
    if side == "passes":
        return roofline.floor(code=4 * code / multiplications, memory=PASSED_BYTES * weights / moved)
    encoder = shape["batch"] * shape["latents"] * columns / (roofline.NARROW * multiplications)
    return roofline.floor(encoder=encoder, code=5 * code / multiplications, memory=WEIGHT_BYTES * weights / moved)


def main() -> None:
    """Run the races named on the command line, or all of them."""
    rows, wanted, measured = [], sys.argv[1:], roofline.rates()
    for name, (shape, rivals) in RACES.items():
        if wanted and name not in wanted:
            continue
        times, memory = race(["ours", *rivals], shape, STEPS)
        for rival, target in rivals.items():
            if rival not in times:
                continue
            ratio = round(times[rival] / times["ours"], 2)
            row = {
                "name": name,
                "rival": rival,
                "shape": shape,
                "milliseconds": times,
                "megabytes": memory,
                "ratio": ratio,
            } | floor(shape, *measured)
            rows.append(row | ({"target": target} if target else {}))
            print(
                f"{name:22s} ours {times['ours']:7.1f} ms  {rival:20s} {times[rival]:7.1f} ms  × {ratio:.2f}",
                flush=True,
            )
        save("step", rows, kept=bool(wanted))  # race by race: what was measured stays, should the next one fail
    for side, label in (("ours", "growth"), ("passes", "growth of the sparse part")):
        if wanted and "growth" not in wanted:
            continue
        times, memory = run({change: Side(side, PAIR | values) for change, values in GROWTH.items()}, STEPS)
        for change, values in GROWTH.items():
            row = {"name": f"{label} {change}", "shape": PAIR | values, "milliseconds": {"ours": times[change]}}
            rows.append(row | {"megabytes": {"ours": memory[change]}} | floor(PAIR | values, *measured, side))
            print(f"{label} {change:15s} {times[change]:7.1f} ms, {memory[change]:,} MB", flush=True)
        save("step", rows, kept=bool(wanted))


if __name__ == "__main__":
    main()
