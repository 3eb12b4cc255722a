"""Reading batches of shuffled rows, as training does: rows of 9.2 KB (two sources of 2,304 in bfloat16), one thread.

The files lie in the page cache. Our side reads memory-mapped contiguous variables; the peer is `xarray.Dataset.isel` on the same rows of the same files.
Both read stored bit patterns, which a GPU is sent, and normalised float32, which a step on a CPU gets. The roofline is
reading the same number of consecutive rows and writing them nowhere.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import xarray as xr

from benchmarks.sides import save, take_turns
from crosscoders import artifacts
from crosscoders.activations import extraction
from crosscoders.activations.dataset import Activations
from crosscoders.activations.shuffle import Order
from crosscoders.stage import reuse_memory
from crosscoders.study.settings.comparisons import Source

TOKENS, WIDTH, BATCH, ROUNDS = 60_000, 2304, 2048, 12
SOURCES = {"base": Source(model="base", layer=0), "chat": Source(model="chat", layer=0)}


def shard(path: Path) -> xr.Dataset:
    """Write one shard of random activations, and return the statistics that normalise it."""
    generator = np.random.default_rng(0)
    bits = {
        name: torch.from_numpy(generator.standard_normal((TOKENS, WIDTH), np.float32))
        .bfloat16()
        .view(torch.uint16)
        .numpy()
        for name in SOURCES
    }
    norms = {name: np.full(TOKENS, WIDTH**0.5, np.float32) for name in SOURCES}
    metadata = {name: ("token", np.zeros(TOKENS, np.int32)) for name in ("role", "planted_behaviour", "token_id")}
    place = np.arange(TOKENS)
    places = {"document": place // 100, "position": 1 + place % 100, "token_index": place}
    tokens = xr.Dataset(metadata | {name: ("token", values) for name, values in places.items()})
    dataset = extraction.to_dataset(bits, norms, tokens, SOURCES)
    artifacts.write(dataset, path, contiguous=SOURCES)
    statistics = xr.Dataset({"scale": ("source", [1.0, 1.0]), "sink_norm": ("source", [1e9, 1e9])})
    for name in SOURCES:
        statistics[f"mean_{name}"] = (f"width_{name}", np.zeros(WIDTH))
    return statistics.assign_coords(source=np.array(list(SOURCES), dtype=object))


def rates(sides: dict[str, Callable[[np.ndarray], object]]) -> dict[str, float]:
    """Thousands of rows per second of CPU time, for batches in the shuffled order of training."""
    order = Order(TOKENS, 0)
    seconds = take_turns(sides, ROUNDS, lambda i: (order.take(i * BATCH, BATCH),))
    return {name: round(BATCH / value / 1000) for name, value in seconds.items()}


def measure() -> dict[str, dict[str, float]]:
    """Thousands of rows per second of every side, as bits and as normalised numbers."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "000.nc"
        fitted = shard(path)
        data = Activations([path], fitted)
        buffer = torch.empty(BATCH, data.stored_width, dtype=torch.bfloat16)
        with xr.open_dataset(path, mask_and_scale=False) as opened:
            files = [artifacts.memory_map(path, name) for name in SOURCES]

            def read(index: np.ndarray) -> None:
                first = int(index[0]) % (TOKENS - BATCH)
                for file in files:
                    file[first : first + BATCH].view(np.int64).sum()

            for file in files:
                file.sum(dtype=np.int64)  # warm the cache
            bits = rates(
                {
                    "ours": lambda index: data.stored(index, buffer),
                    "isel": lambda index: [opened[name].isel(token=index).values for name in SOURCES],
                    "roofline": read,
                }
            )
            normalised = rates(
                {
                    "ours": data.rows,
                    "isel": lambda index: np.concatenate(
                        [artifacts.from_bits(opened[name].isel(token=index).values) for name in SOURCES], axis=1
                    ),
                    "roofline": read,
                }
            )
    return {"bits": bits, "float32": normalised}


def main() -> None:
    """Measure both kinds of rows, print and save them."""
    torch.set_num_threads(1)
    reuse_memory()
    rows = [
        {
            "name": f"dataset, {kind}",
            "peer": "xarray.isel",
            "roofline": speeds.pop("roofline"),
            "bound": "memory",
            "target": 5.0,
            "thousand_rows_per_second": speeds,
            "ratio": round(speeds["ours"] / speeds["isel"], 2),
        }
        for kind, speeds in measure().items()
    ]
    for row in rows:
        speeds = row["thousand_rows_per_second"]
        print(f"{row['name']}: {speeds} of {row['roofline']} thousand rows/s  × {row['ratio']:.2f}", flush=True)
    save("dataset", rows)


if __name__ == "__main__":
    main()
