"""From a model folder and text to a dictionary, end to end, beside the trainers of peers.

Every side gets the same folder and the same file of JSON lines, and makes a dictionary of the same size at the same L0 from
one source. Ours is a study: Snakemake fetches, tokenizes, extracts and trains. The others are `sae-lens` and
`eai-sparsify` with their own trainers, which run the model beside the training. Budgets of training tokens grow until a
side explains WANTED of the variance of the same held-out activations. Sides take turns within a budget, on all cores. Wall
time, CPU time and the largest memory of a process are those of all that the command starts.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import yaml

import crosscoders
from benchmarks.sides import OUT, PEERS, ROOT, available, save
from crosscoders import artifacts

LAYER, LATENTS, K, CONTEXT, ROWS = 15, 4096, 48, 128, 6
"""The site, the size of the dictionary, active latents per token, tokens per row, rows per batch."""
STORED = 80_000
"""Training tokens whose activations our side extracts; it passes over them as often as the budget asks."""
SINK_THRESHOLD = 6.0
HELD_OUT = 20_000
"""Tokens on which dictionaries are judged."""
WANTED, AIM = 0.80, 4.0
BUDGETS = (46_080, 69_120, 92_160, 138_240, 184_320, 276_480, 368_640, 552_960)
RATES = {"ours": 3e-3, "sae-lens": 4e-3, "eai-sparsify": 2.5e-3}
"""Learning rates, which `--rate` replaces."""


@dataclass(frozen=True)
class Task:
    """What every side is asked for."""

    model: Path
    text: Path
    tokens: int
    rate: float
    folder: Path
    stored: int = STORED


def study(task: Task) -> dict:
    """Our side as a study; the second source is there because a setting compares two, and nothing is trained on it."""
    shared = yaml.safe_load((ROOT / "config.yaml").read_text(encoding="utf-8"))
    member = shared["crosscoders"]["batchtopk"]
    batch = ROWS * CONTEXT
    training = member["training"] | {
        "steps": task.tokens // batch,
        "batch_tokens": batch,
        "learning_rate": task.rate,
        "decay_share": 0.5,
    }
    return {
        "study": "end-to-end",
        "device": "auto",
        "seeds": [0],
        "models": {"base": {"kind": "folder", "path": str(task.model), "licence": "as of the folder"}},
        "corpora": {"text": {"kind": "file", "path": str(task.text), "licence": "as of the file"}},
        "chat_template": shared["chat_template"],
        "splits": {"train": [0.0, 0.8], "validation": [0.8, 0.9], "test": [0.9, 1.0]},
        "settings": {
            "one": {
                "sources": {"one": {"model": "base", "layer": LAYER}, "other": {"model": "base", "layer": LAYER - 1}},
                "contrast": ["one", "other"],
                "tokens": {"train": {"text": task.stored}, "validation": {"text": 2_000}, "test": {"text": 2_000}},
                "shards": {"train": 1, "validation": 1, "test": 1},
                "context": CONTEXT,
                "crosscoders": ["sae"],
                "notebook": "cross_layer",
            }
        },
        "crosscoders": {"sae": member | {"latents": LATENTS, "sources": ["one"], "training": training}},
        "classification": shared["classification"],
        "page": shared["page"],
    }


def snakemake(folder: Path, target: str) -> list[str]:
    """The command that makes a file of our study."""
    cores = str(os.cpu_count())
    workflow = ["-s", str(ROOT / "Snakefile"), "-d", str(folder), "--configfile", str(folder / "study.yaml")]
    return [sys.executable, "-m", "snakemake", "--cores", cores, target, *workflow]


def ours(task: Task) -> tuple[list[str], Path]:
    """Our command, and the crosscoder that it makes."""
    (task.folder / "study.yaml").write_text(yaml.safe_dump(study(task)), encoding="utf-8")
    made = "results/end-to-end/crosscoders/one/sae/seed-0.nc"
    return snakemake(task.folder, made), task.folder / made


def peer(side: str) -> Callable[[Task], tuple[list[str], Path]]:
    """The command of a peer, and the folder or file that it makes."""

    def command(task: Task) -> tuple[list[str], Path]:
        config = json.loads((task.model / "config.json").read_text(encoding="utf-8"))
        output = task.folder / "sae"
        asked = {
            "model": str(task.model),
            "text": str(task.text),
            "output": str(output),
            "layer": LAYER,
            "width": config["hidden_size"],
            "latents": LATENTS,
            "k": K,
            "context": CONTEXT,
            "rows": ROWS,
            "tokens": task.tokens,
            "rate": task.rate,
        }
        made = output / f"layers.{LAYER}" if side == "eai-sparsify" else output
        return [str(PEERS), str(ROOT / "benchmarks/peer_trainer.py"), side, json.dumps(asked)], made

    return command


SIDES = {"ours": ours, "sae-lens": peer("sae-lens"), "eai-sparsify": peer("eai-sparsify")}


def measured(command: list[str], folder: Path) -> dict[str, float]:
    """Wall and CPU seconds of a command and all that it starts, and the largest memory of a process in MB."""
    began = time.perf_counter()
    with (folder / "log").open("w", encoding="utf-8") as log:
        started = subprocess.Popen(command, cwd=folder, stdout=log, stderr=subprocess.STDOUT)
        _, status, used = os.wait4(started.pid, 0)
    if status:
        raise SystemExit(f"error: a side failed; {folder / 'log'} says why")
    return {
        "wall": round(time.perf_counter() - began, 1),
        "cpu": round(used.ru_utime + used.ru_stime, 1),
        "megabytes": round(used.ru_maxrss / 1024),
    }


def held_out(model: Path, text: Path, folder: Path) -> Path:
    """Activations on documents that no side trains on."""
    made = folder / "results/end-to-end/activations/one/train/000.nc"
    if not made.exists():
        folder.mkdir(parents=True, exist_ok=True)
        ours(Task(model, text, BUDGETS[0], RATES["ours"], folder, HELD_OUT))
        measured(snakemake(folder, str(made.relative_to(folder))), folder)
    return made


def judged(path: Path, held: Path) -> dict[str, float]:
    """The variance of held-out activations, without sinks, that a saved dictionary explains; its active latents per token."""
    dataset = artifacts.read(held)
    norm = dataset["norm"].sel(source="one").values
    kept = torch.from_numpy(norm < SINK_THRESHOLD * np.median(norm))
    activations = torch.from_numpy(dataset["one"].values).view(torch.bfloat16)[kept].float()
    coder = crosscoders.load(path, sources=None if path.suffix == ".nc" else ["one"])
    code = coder.encode({"one": activations})
    error = (activations - coder.decode(code)["one"]).square().sum()
    active = code.to_dense() != 0
    return {
        "fve": round(1 - float(error / (activations - activations.mean(0)).square().sum()), 4),
        "l0": round(float(active.sum(1).float().mean()), 1),
        "dead": round(float((~active.any(0)).float().mean()), 3),
    }


def apart(function: Callable, *arguments: Path) -> dict[str, float]:
    """What a function returns, run in a process of its own: a command that is started later inherits this one's largest memory."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def embedded_text(folder: Path) -> tuple[Path, Path]:
    """The Wikipedia leads of the embedded study as JSON lines: those to train on, and those that are held out."""
    source = ROOT / "results/embedded/text/wiki.nc"
    if not source.exists():
        raise SystemExit(f"error: {source}: missing; expected the text of a finished embedded study")
    texts = artifacts.read(source)
    documents: dict[int, str] = {}
    for number, text in zip(texts["document"].values, texts["text"].values, strict=True):
        documents[number] = documents.get(number, "") + str(text)
    files = folder / "train.jsonl", folder / "held-out.jsonl"
    for path, chosen in zip(files, (lambda i: i % 20, lambda i: not i % 20), strict=True):
        lines = [json.dumps({"text": text}) + "\n" for i, text in enumerate(documents.values()) if chosen(i)]
        path.write_text("".join(lines), encoding="utf-8")
    return files


def report(rows: list[dict]) -> None:
    """Save all rows; at the first budget that suffices for a peer, with how many times faster ours was at its own."""
    reached = {}
    for row in rows:
        if row["fve"] >= WANTED:
            reached.setdefault(row["side"], row)
    for side, row in reached.items():
        if side != "ours" and "ours" in reached:
            ratios = {f"ratio_{key}": round(row[key] / reached["ours"][key], 2) for key in ("wall", "cpu")}
            row |= {"name": "end_to_end", "peer": side, "ratio": ratios["ratio_wall"], "target": AIM} | ratios
    save("end_to_end", [{"name": f"{row['side']}, {row['tokens']:,} tokens"} | row for row in rows])


def main() -> None:
    """Raise the budget until every side explains what is wanted or budgets end, and save the rows."""
    arguments = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    arguments.add_argument("--model", type=Path, default=ROOT / "results/embedded/models/base")
    arguments.add_argument("--sides", nargs="+", default=list(SIDES), choices=list(SIDES))
    arguments.add_argument("--budgets", nargs="+", type=int, default=BUDGETS)
    arguments.add_argument("--rate", type=float, help="in place of the learning rate of each side")
    arguments.add_argument("--folder", type=Path, default=OUT / "end-to-end", help="where everything is written")
    given = arguments.parse_args()
    place, model = given.folder.resolve(), given.model.resolve()  # sides run in folders of their own
    place.mkdir(parents=True, exist_ok=True)
    train, held = embedded_text(place)
    judge = held_out(model, held, place / "held-out")
    rows, waiting = [], available(given.sides)
    for tokens in given.budgets:
        for side in list(waiting):
            rate = given.rate or RATES[side]
            folder = place / f"{side}-{tokens}-{rate:g}"
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            command, made = SIDES[side](Task(model, train, tokens, rate, folder))
            row = {"side": side, "tokens": tokens, "rate": rate} | measured(command, folder)
            row |= apart(judged, made, judge)
            print("  ".join(f"{key} {value}" for key, value in row.items()), flush=True)
            rows.append(row)
            if row["fve"] >= WANTED:
                waiting.remove(side)
    report(rows)


if __name__ == "__main__":
    main()
