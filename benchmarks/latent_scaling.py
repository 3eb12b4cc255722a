"""Latent scaling of all latents against one evaluation pass over the same tokens: time, and largest memory of each.

m = 8,192, 200,000 tokens, two sources of width 576, k = 32. Scaling runs once without resampling and once with 200
resamples of documents. Each run has a process of its own, so that its largest memory is its own. The roofline is the
encoder's product in 8 bits, at four times the rate that MKL reaches in 32 bits.
"""

from __future__ import annotations

import multiprocessing
import os
import resource
import time

import numpy as np
import torch

from benchmarks import roofline
from benchmarks.sides import PINNED, save
from crosscoders.activations import shuffle
from crosscoders.analysis import bootstrap, classification
from crosscoders.analysis.reconstruction import reconstruction
from crosscoders.crosscoder import crosscoder
from crosscoders.stage import reuse_memory

LATENTS, TOKENS, WIDTHS, K, DOCUMENT_TOKENS = 8192, 200_000, [576, 576], 32, 200


class Tokens:
    """Activations as the dataset offers them, made as they are read, so that no gigabyte of them lies in memory."""

    sources = ("base", "chat")

    def __init__(self) -> None:
        self.pool = torch.randn(8192, sum(WIDTHS), generator=torch.Generator().manual_seed(0))

    def __len__(self) -> int:
        return TOKENS

    def rows(self, index: np.ndarray) -> torch.Tensor:
        """Rows of the pool, (T, D), which is repeated."""
        return self.pool[torch.from_numpy(index % len(self.pool))]

    def batches(self, count: int):
        """All tokens in order."""
        for start in range(0, TOKENS, count):
            chosen = slice(start, min(start + count, TOKENS))
            yield chosen, self.rows(np.arange(chosen.start, chosen.stop))


def coder() -> crosscoder.Crosscoder:
    """A BatchTopK crosscoder whose threshold leaves about k latents per token active."""
    generator = torch.Generator().manual_seed(1)
    decoder = torch.randn(LATENTS, sum(WIDTHS), generator=generator) / 34
    every = torch.ones(LATENTS, 2, dtype=torch.bool)
    member = crosscoder.Crosscoder(
        encoder=decoder.clone(),
        encoder_bias=torch.zeros(LATENTS),
        decoder=decoder,
        decoder_bias=torch.zeros(sum(WIDTHS)),
        sources=["base", "chat"],
        widths=WIDTHS,
        reads=every,
        writes=every,
        tied=torch.zeros(LATENTS, dtype=torch.bool),
        penalty=torch.ones(LATENTS),
        activation="batchtopk",
        k=K,
    )
    scores = member.preactivations(Tokens().pool[:1024]).relu() * member.decoder_norms().sum(1)
    member.threshold = float(scores.flatten().topk(K * 1024).values[-1])
    return member


def once(name: str, results) -> None:
    """Put the seconds of CPU time of one run, and the largest memory of its process in MB, into `results`."""
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    reuse_memory()
    data, member = Tokens(), coder()
    document = shuffle.consecutive(np.arange(TOKENS) // DOCUMENT_TOKENS)
    documents = int(document[-1]) + 1
    began = time.process_time()
    if name == "evaluation":
        reconstruction(member, data, document)
    else:
        replicates = 200 if name.endswith("resamples") else 1
        classification.scan(member, data, document, (0, 1), bootstrap.resamples(documents, replicates, 0))
    seconds = time.process_time() - began
    results.put((name, round(seconds, 1), round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)))


def main() -> None:
    """Run evaluation and both scalings one after the other, twice, and keep the faster run of each."""
    os.environ.update(PINNED)
    context, measured = multiprocessing.get_context("spawn"), {}
    for _ in range(2):
        for name in ("evaluation", "scaling", "scaling with 200 resamples"):
            results = context.Queue()
            process = context.Process(target=once, args=(name, results))
            process.start()
            _, seconds, memory = results.get()
            process.join()
            before = measured.get(name, {}).get("seconds", seconds)
            measured[name] = {"seconds": min(seconds, before), "megabytes": memory}
    base, rows, (multiplications, _) = measured.pop("evaluation"), [], roofline.rates()
    bound = roofline.bound_of(encoder=TOKENS * LATENTS * sum(WIDTHS) / (roofline.NARROW * multiplications))
    for name, values in measured.items():
        seconds = {"ours": values["seconds"], "evaluation": base["seconds"]}
        row = {
            "name": f"latent_{name}",
            "peer": "evaluation pass",
            "seconds": seconds,
            "target": 0.5,
            "ratio": round(seconds["evaluation"] / seconds["ours"], 2),
            "megabytes": {"ours": values["megabytes"]},
        }
        rows.append(row | bound)
        print(f"{row['name']:35s} {seconds}  × {row['ratio']:.2f}  {values['megabytes']} MB", flush=True)
    save("latent_scaling", rows)


if __name__ == "__main__":
    main()
