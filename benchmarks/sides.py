"""Sides of a benchmark that take turns, step by step, each in a process of its own; medians, ratios, JSON, a figure."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from crosscoders import provenance, storage

ROOT = Path(__file__).parent.parent
OUT = ROOT / "benchmarks/out"
PEERS = ROOT / ".venv-peers/bin/python"
"""The interpreter that has the packages of peers."""
OWN = ("ours", "sparse_part", "dense")
"""Sides that run in this environment."""
WARMUP = 12
PINNED = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OMP_PROC_BIND": "true", "OMP_PLACES": "cores"}


class Side:
    """A worker that takes one step at a time."""

    def __init__(self, name: str, shape: dict):
        python = sys.executable if name in OWN else str(PEERS)
        command = [python, str(ROOT / "benchmarks/worker.py"), name, json.dumps(shape)]
        environment = os.environ | PINNED
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
        )
        if self.process.stdout.readline().strip() != "ready":
            raise RuntimeError(f"{name}: {self.process.stderr.read()[-2000:]}")

    def step(self) -> float:
        """Milliseconds of CPU time of one step."""
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        if not answer:
            raise RuntimeError(f"the worker has ended: {self.process.stderr.read()[-2000:]}")
        return float(answer)

    def close(self) -> int:
        """End the worker, and return its largest memory in MB."""
        self.process.stdin.close()
        memory = float(self.process.stdout.readline())
        self.process.wait()
        return round(memory)


def available(names: list[str]) -> list[str]:
    """The sides whose environment is installed."""
    return [name for name in names if name in OWN or PEERS.exists()]


def in_turns(names: list[str], shape: dict, steps: int) -> tuple[dict[str, float], dict[str, int]]:
    """Median milliseconds of CPU time per step of every side, and its largest memory in MB."""
    return run({name: Side(name, shape) for name in available(names)}, steps)


def run(sides: dict[str, Side], steps: int) -> tuple[dict[str, float], dict[str, int]]:
    """The same as :func:`in_turns`, for sides that may have shapes of their own."""
    times: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(steps + WARMUP):
        for name, side in sides.items():
            times[name].append(side.step())
    memory = {name: side.close() for name, side in sides.items()}
    return {name: round(statistics.median(values[WARMUP:]), 1) for name, values in times.items()}, memory


def take_turns(
    sides: dict[str, Callable[..., object]], rounds: int, given: Callable[[int], tuple] = lambda _: ()
) -> dict[str, float]:
    """Median seconds of CPU time of calls that take turns in this process; the first two rounds do not count."""
    times: dict[str, list[float]] = {name: [] for name in sides}
    for i in range(rounds + 2):
        arguments = given(i)
        for name, side in sides.items():
            began = time.process_time()
            side(*arguments)
            times[name].append(time.process_time() - began)
    return {name: statistics.median(values[2:]) for name, values in times.items()}


def machine() -> dict:
    """The processor, its cores and the versions of packages for which the numbers hold."""
    listed = Path("/proc/cpuinfo").read_text(encoding="utf-8") if Path("/proc/cpuinfo").exists() else ""
    model = next(
        (line.split(":")[1].strip() for line in listed.splitlines() if line.startswith("model name")), "unknown"
    )
    versions = provenance.versions()
    if PEERS.exists():
        packages = subprocess.run(
            [str(PEERS), "-m", "pip", "list", "--format=json"], capture_output=True, text=True, check=True
        )
        known = {package["name"]: package["version"] for package in json.loads(packages.stdout)}
        versions |= {name: known[name] for name in ("dictionary-learning", "eai-sparsify", "sae-lens") if name in known}
    return {"cpu": model, "cores": os.cpu_count(), "versions": versions}


def save(name: str, rows: list[dict], kept: bool = False) -> None:
    """Write benchmarks/out/{name}.json, and {name}.png with ratios and targets; `kept` keeps rows of other names."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    import seaborn as sns

    path, again = OUT / f"{name}.json", {row["name"] for row in rows}
    if kept and path.exists():
        before = json.loads(path.read_text(encoding="utf-8"))["rows"]
        names = list(dict.fromkeys(row["name"] for row in before + rows))
        rows = [row for row in before if row["name"] not in again] + rows
        rows.sort(key=lambda row: names.index(row["name"]))
    storage.write_json({"machine": machine(), "rows": rows}, path)
    sns.set_theme(style="whitegrid", palette="colorblind")
    bars = [row for row in rows if "ratio" in row]
    figure, axis = plt.subplots(figsize=(8, 1 + 0.35 * len(bars)))
    labels = [f"{row['name']}: {row['peer']}" for row in bars]
    axis.barh(labels, [row["ratio"] for row in bars])
    for place, row in enumerate(bars):
        if "target" in row:
            axis.plot(
                [row["target"]] * 2, [place - 0.4, place + 0.4], color="black", label="target" if place == 0 else None
            )
    axis.invert_yaxis()
    axis.axvline(1, color="grey", linewidth=1)
    axis.set_xlabel("times faster than the peer")
    if bars:
        axis.legend()
    figure.savefig(OUT / f"{name}.png", dpi=150, bbox_inches="tight")
