"""One training step: ours against the dense autograd crosscoder that every peer writes (einsum, torch.topk, Adam).

`make bench` prints a table and writes benchmarks/out/step.json. Both sides see the same batches, take turns step by
step, and are timed by process CPU time on one thread.
"""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch

from crosscoders import artifacts, crosscoder, training
from crosscoders.settings import CrosscoderSettings

SHAPES = {
    "step_batchtopk": {"sources": 2, "width": 576, "latents": 8192, "k": 32, "batch": 1024},
    "study_pair": {"sources": 2, "width": 576, "latents": 4096, "k": 48, "batch": 768},
    "study_layers": {"sources": 5, "width": 576, "latents": 4096, "k": 48, "batch": 768},
}
STEPS, WARMUP = 12, 4


def dense_step(shape: dict[str, int]) -> Callable[[torch.Tensor], None]:
    """A BatchTopK crosscoder in einsum and autograd, clipped, with Adam."""
    s, d, m, k = (shape[key] for key in ("sources", "width", "latents", "k"))
    generator = torch.Generator().manual_seed(0)
    decoder = torch.randn(m, s, d, generator=generator)
    decoder = decoder / decoder.norm(dim=-1, keepdim=True) * 0.1
    encoder = decoder.permute(1, 2, 0).clone().requires_grad_()
    decoder.requires_grad_()
    biases = torch.zeros(m, requires_grad=True), torch.zeros(s, d, requires_grad=True)
    parameters = [encoder, decoder, *biases]
    adam = torch.optim.Adam(parameters, lr=1e-4, fused=True)

    def step(x: torch.Tensor) -> None:
        with torch.enable_grad():
            x = x.view(-1, s, d)
            f = (torch.einsum("tsd,sdm->tm", x, encoder) + biases[0]).relu()
            score = (f * decoder.norm(dim=-1).sum(1)).flatten()
            kept = torch.zeros_like(score).scatter_(0, score.topk(k * len(x)).indices, 1.0).view_as(f)
            rebuilt = torch.einsum("tm,msd->tsd", f * kept, decoder) + biases[1]
            loss = (x - rebuilt).pow(2).sum((1, 2)).mean()
            loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        adam.step()
        adam.zero_grad()

    return step


def our_step(shape: dict[str, int]) -> Callable[[torch.Tensor], None]:
    """One step of :mod:`crosscoders.training`."""
    settings = CrosscoderSettings.model_validate(
        {
            "latents": shape["latents"],
            "blocks": {"all": {"share": 1.0}},
            "activation": {"kind": "batchtopk", "k": shape["k"]},
            "training": {
                "steps": 1000,
                "batch_tokens": shape["batch"],
                "learning_rate": 1e-4,
                "warmup_steps": 0,
                "decay_share": 0.0,
                "gradient_clip": 1.0,
                "decoder_norm": 0.1,
                "auxiliary_coefficient": 0.0,
                "dead_tokens": 10**9,
            },
        }
    )
    names = [str(i) for i in range(shape["sources"])]
    coder = crosscoder.create(settings, names, [shape["width"]] * len(names), 0)
    state, weights = training.start(coder, settings), torch.ones(shape["sources"] * shape["width"])
    return lambda x: training.step(state, x, settings, weights)


def measure(shape: dict[str, int]) -> dict[str, float]:
    """Median milliseconds of CPU time per step of both sides, taking turns."""
    rivals = {"ours": our_step(shape), "dense autograd": dense_step(shape)}
    times: dict[str, list[float]] = {name: [] for name in rivals}
    generator = torch.Generator().manual_seed(1)
    for _ in range(STEPS + WARMUP):
        x = torch.randn(shape["batch"], shape["sources"] * shape["width"], generator=generator)
        for name, step in rivals.items():
            began = time.process_time()
            step(x)
            times[name].append(1000 * (time.process_time() - began))
    return {name: round(statistics.median(values[WARMUP:]), 1) for name, values in times.items()}


def main() -> None:
    """Measure every shape."""
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    training_memory()
    found = {"machine": platform.processor() or platform.machine(), "versions": artifacts.versions(), "shapes": {}}
    for name, shape in SHAPES.items():
        times = measure(shape)
        ratio = round(times["dense autograd"] / times["ours"], 2)
        found["shapes"][name] = {**shape, "milliseconds": times, "ratio": ratio}
        print(
            f"{name:16s} ours {times['ours']:7.1f} ms  dense {times['dense autograd']:7.1f} ms  ratio {ratio:.2f}",
            flush=True,
        )
    artifacts.write_json(found, Path("benchmarks/out/step.json"))


def training_memory() -> None:
    """The same allocator settings as the training stage."""
    from crosscoders.stage import reuse_memory

    reuse_memory()


if __name__ == "__main__":
    main()
