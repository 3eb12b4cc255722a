"""One side of a benchmark, in its own process: `worker.py SIDE SHAPE` takes a training step for every line it reads.

It answers with milliseconds of CPU time, and at the end with its largest memory in MB. It needs torch and the package
of its side alone, so that peers run in an environment of their own. Peers see the sources side by side, as one long
activation.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Callable

import torch

Step = Callable[[torch.Tensor], object]
LEARNING_RATE, CLIP = 1e-4, 1.0
STILL = 1e-7
"""Learning rate at which L0 of an L1 crosscoder stays as given; at LEARNING_RATE it about doubles in twenty steps."""


def ours(shape: dict, device: str = "cpu") -> Step:
    """One step of :mod:`crosscoders.training.loop`."""
    from crosscoders.crosscoder import crosscoder
    from crosscoders.kernels import backends
    from crosscoders.stage import reuse_memory
    from crosscoders.study.settings.crosscoders import CrosscoderSettings
    from crosscoders.training import loop
    from crosscoders.training.recipes import CrosscoderRecipe
    from crosscoders.training.state import start

    reuse_memory()
    torch.set_grad_enabled(False)
    l1 = shape["activation"] == "relu"
    names = [str(i) for i in range(shape["sources"])]
    settings = CrosscoderSettings.model_validate(
        {
            "latents": shape["latents"],
            "blocks": {"all": {"share": 1.0}},
            "activation": {"kind": "relu"} if l1 else {"kind": shape["activation"], "k": shape["k"]},
            "penalty": {"kind": "l1_of_norms", "coefficient": 1.0} if l1 else {"kind": "none"},
            "training": {
                "steps": 10**6,
                "batch_tokens": shape["batch"],
                "learning_rate": STILL if l1 else LEARNING_RATE,
                "warmup_steps": 0,
                "decay_share": 0.0,
                "gradient_clip": CLIP,
                "decoder_norm": 0.1,
                "auxiliary_coefficient": 0.0,
                "dead_tokens": 10**9,
                "adam_moments": shape.get("adam_moments", "float32"),
                "precision": shape.get("precision", "float32"),
            },
        }
    )
    coder = crosscoder.create(settings, names, [shape["width"]] * len(names), 0).to(device)
    state = start(coder, CrosscoderRecipe(settings), backends.choose(device))
    if l1:
        crosscoder.equalise_rates(coder, next(batches(shape)).to(device), shape["k"])
    return lambda x: loop.step(state, x)


def sparse_part(shape: dict) -> Step:
    """The sparse part of our step alone: reconstruction, gradient at the code, both weight gradients."""
    from crosscoders.crosscoder import crosscoder
    from crosscoders.kernels import backends, sparse_code
    from crosscoders.stage import reuse_memory
    from crosscoders.training.paths import SparsePath

    reuse_memory()
    torch.set_grad_enabled(False)
    tokens, m, width = shape["batch"], shape["latents"], shape["sources"] * shape["width"]
    generator = torch.Generator().manual_seed(0)
    weights = torch.randn(m, width, generator=generator)
    coder = crosscoder.Crosscoder(
        weights,
        torch.zeros(m),
        weights.clone(),
        torch.zeros(width),
        ["all"],
        [width],
        torch.ones(m, 1, dtype=torch.bool),
        torch.ones(m, 1, dtype=torch.bool),
        torch.zeros(m, dtype=torch.bool),
        torch.ones(m),
        "batchtopk",
        shape["k"],
    )
    backend = backends.choose()
    index = torch.randint(tokens * m, (tokens * shape["k"],), generator=generator).unique()
    code = sparse_code.from_flat(index, torch.ones(len(index)), (tokens, m))

    def step(x: torch.Tensor) -> None:
        path = SparsePath(code, backend)
        reconstruction = path.reconstruct(coder, x, torch.ones(width))
        path.weight_gradient(reconstruction.at_values, x)
        path.weight_gradient(path.values, reconstruction.at_output)

    return step


def dense(shape: dict, device: str = "cpu") -> Step:
    """A crosscoder as peers write it: einsum, torch.topk, autograd, clipped gradients, Adam."""
    s, d, m, k = (shape[key] for key in ("sources", "width", "latents", "k"))
    generator = torch.Generator().manual_seed(0)
    decoder = torch.randn(m, s, d, generator=generator)
    decoder = (decoder / decoder.norm(dim=-1, keepdim=True) * 0.1).to(device)
    encoder = decoder.permute(1, 2, 0).clone().requires_grad_()
    decoder.requires_grad_()
    biases = [torch.zeros(*size, device=device, requires_grad=True) for size in ((m,), (s, d))]
    parameters = [encoder, decoder, *biases]
    adam = torch.optim.Adam(parameters, lr=LEARNING_RATE, fused=True)

    def step(x: torch.Tensor) -> None:
        x = x.view(-1, s, d)
        f = (torch.einsum("tsd,sdm->tm", x, encoder) + biases[0]).relu()
        size = decoder.norm(dim=-1).sum(1)
        if shape["activation"] == "batchtopk":
            score = (f * size).flatten()
            f = f * torch.zeros_like(score).scatter_(0, score.topk(k * len(x)).indices, 1.0).view_as(f)
        rebuilt = torch.einsum("tm,msd->tsd", f, decoder) + biases[1]
        loss = (x - rebuilt).pow(2).sum((1, 2)).mean()
        if shape["activation"] == "relu":
            loss = loss + (f * size).sum(1).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, CLIP)
        adam.step()
        adam.zero_grad()

    return step


def dictionary_learning(shape: dict) -> Step:
    """BatchTopK of `dictionary-learning`, trained by its own trainer."""
    from dictionary_learning.trainers.batch_top_k import BatchTopKTrainer

    trainer = BatchTopKTrainer(
        steps=10**6,
        activation_dim=shape["sources"] * shape["width"],
        dict_size=shape["latents"],
        k=shape["k"],
        layer=0,
        lm_name="none",
        lr=LEARNING_RATE,
        device="cpu",
        seed=0,
    )
    taken = iter(range(10**6))
    return lambda x: trainer.update(next(taken), x)


def sparsify(shape: dict) -> Step:
    """TopK of `eai-sparsify`, with the projections of its trainer, under the same optimizer as ours."""
    from sparsify import SparseCoder, SparseCoderConfig

    config = SparseCoderConfig(num_latents=shape["latents"], k=shape["k"])
    coder = SparseCoder(shape["sources"] * shape["width"], config)
    adam = torch.optim.Adam(coder.parameters(), lr=LEARNING_RATE, fused=True)

    def step(x: torch.Tensor) -> None:
        coder.set_decoder_norm_to_unit_norm()
        coder(x).fvu.backward()
        coder.remove_gradient_parallel_to_decoder_directions()
        torch.nn.utils.clip_grad_norm_(coder.parameters(), CLIP)
        adam.step()
        adam.zero_grad()

    return step


def sae_lens(shape: dict) -> Step:
    """BatchTopK of `sae-lens`, under the same optimizer as ours."""
    from sae_lens import BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig
    from sae_lens.saes.sae import TrainStepInput

    config = BatchTopKTrainingSAEConfig(
        d_in=shape["sources"] * shape["width"], d_sae=shape["latents"], k=shape["k"], device="cpu", dtype="float32"
    )
    sae = BatchTopKTrainingSAE(config)
    adam = torch.optim.Adam(sae.parameters(), lr=LEARNING_RATE, fused=True)
    taken = iter(range(10**6))

    def step(x: torch.Tensor) -> None:
        given = TrainStepInput(
            sae_in=x, coefficients={}, dead_neuron_mask=None, n_training_steps=next(taken), is_logging_step=False
        )
        sae.training_forward_pass(given).loss.backward()
        torch.nn.utils.clip_grad_norm_(sae.parameters(), CLIP)
        adam.step()
        adam.zero_grad()

    return step


def faster_gemm(shape: dict, certainly: bool = False) -> torch.library.Library | None:
    """Let torch multiply float32 matrices by oneDNN where that is faster for this shape.

    This holds for packages too, forward and backward, as long as the caller keeps the returned library.
    """
    columns = shape["sources"] * shape["width"]
    x, weights = torch.ones(shape["batch"], columns), torch.ones(shape["latents"], columns)
    sides = (lambda: x @ weights.T), (lambda: onednn(x, weights.T))
    blas, other = (min(seconds) for seconds in zip(*([timed(side) for side in sides] for _ in range(5)), strict=True))
    if other > 0.9 * blas and not certainly:  # laying out matrices for oneDNN costs more than a smaller gain
        return None

    def mm(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        if a.dtype == torch.float32:
            return onednn(a, b)
        return torch.mm(a, b, out=a.new_empty(len(a), b.shape[1]))

    def bmm(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return torch.stack([mm(*pair) for pair in zip(a, b, strict=True)])

    def addmm(
        bias: torch.Tensor, a: torch.Tensor, b: torch.Tensor, *, beta: float = 1, alpha: float = 1
    ) -> torch.Tensor:
        return alpha * mm(a, b) + beta * bias

    library = torch.library.Library("aten", "IMPL")
    for name, product in {"mm": mm, "bmm": bmm, "addmm": addmm}.items():
        library.impl(name, product, "CPU")
    return library


def onednn(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Product of float32 matrices."""
    return torch.ops.mkldnn._linear_pointwise(a, b.T, None, "none", [], "")


def timed(work: Callable[[], object]) -> float:
    """Seconds of CPU time that some work takes."""
    began = time.process_time()
    work()
    return time.process_time() - began


SIDES = {
    "ours": ours,
    "sparse_part": sparse_part,
    "dense": dense,
    "dictionary-learning": dictionary_learning,
    "eai-sparsify": sparsify,
    "sae-lens": sae_lens,
}


def batches(shape: dict):
    """The same batches for every side."""
    generator = torch.Generator().manual_seed(1)
    while True:
        yield torch.randn(shape["batch"], shape["sources"] * shape["width"], generator=generator)


def main() -> None:
    """Answer every line on standard input with the milliseconds of one step."""
    side, shape = sys.argv[1], json.loads(sys.argv[2])
    torch.set_num_threads(1)
    answers = sys.stdout
    sys.stdout = sys.stderr  # packages may print
    gemm = shape.get("gemm")
    kept = faster_gemm(shape, gemm == "oneDNN") if gemm and side not in ("ours", "sparse_part") else None
    step, data = SIDES[side](shape), batches(shape)
    print(f"{side}: {'oneDNN' if kept else 'torch'} multiplies")
    print("ready", file=answers, flush=True)
    for _ in sys.stdin:
        x = next(data)
        began = time.process_time()
        step(x)
        print(1000 * (time.process_time() - began), file=answers, flush=True)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, file=answers, flush=True)


if __name__ == "__main__":
    main()
