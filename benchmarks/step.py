"""One training step: ours against the dense autograd crosscoder that every peer writes, and against their packages.

`make bench` prints the table and writes benchmarks/out/step.json and step.png. All sides see batches of one shape, take
turns step by step, and are timed by process CPU time on one thread.
"""

from __future__ import annotations

import sys

from benchmarks.race import race, save

PAIR = {"sources": 2, "width": 576, "latents": 8192, "k": 32, "batch": 1024, "activation": "batchtopk"}
PEERS = {"dense": 8.0, "eai-sparsify": 2.2, "sae-lens": 8.0, "dictionary-learning": None}
RACES = {
    "step_batchtopk": (PAIR, PEERS),
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


def main() -> None:
    """Run the races named on the command line, or all of them."""
    rows, wanted = [], sys.argv[1:]
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
            }
            rows.append(row | ({"target": target} if target else {}))
            print(
                f"{name:22s} ours {times['ours']:7.1f} ms  {rival:20s} {times[rival]:7.1f} ms  × {ratio:.2f}",
                flush=True,
            )
    for change, values in GROWTH.items():
        if not wanted or "growth" in wanted:
            times, memory = race(["ours"], PAIR | values, STEPS)
            rows.append(
                {"name": f"growth {change}", "shape": PAIR | values, "milliseconds": times, "megabytes": memory}
            )
            print(f"growth {change:15s} ours {times['ours']:7.1f} ms, {memory['ours']:,} MB", flush=True)
    save("step", rows)


if __name__ == "__main__":
    main()
