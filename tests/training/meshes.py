"""Trainings on meshes of processes, small and in float64, and every member of the family that they are made for."""

import copy
import multiprocessing
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist

from crosscoders.crosscoder import aligned, crosscoder, encode
from crosscoders.kernels import backends
from crosscoders.kernels.mesh import ALONE, Mesh
from crosscoders.kernels.sharded import over_mesh
from crosscoders.planted.concepts import Sample
from crosscoders.study.settings.crosscoders import AlignedSettings, CrosscoderSettings
from crosscoders.training import exchange, loop
from crosscoders.training.recipes import AlignedRecipe, CrosscoderRecipe
from crosscoders.training.state import State, start

PROCESS = multiprocessing.get_context("forkserver")
TOKENS = 20
"""Of a batch; those of one of two replicas begin where AuxK takes no token."""
ALL = {"all": {"share": 1.0}}
L1 = {"kind": "l1_of_norms", "coefficient": 0.05}
DEDICATED = {
    "first-only": {"share": 0.2, "reads": ["p"], "writes": ["p"]},
    "second-only": {"share": 0.2, "reads": ["q"], "writes": ["q"], "penalty": 0.5},
    "shared": {"share": 0.6},
}
BUDGETS = {"exclusive": {"share": 0.3, "reads": ["q"], "writes": ["q"], "k": 1}, "shared": {"share": 0.7, "k": 2}}
TIED = {"shared": {"share": 0.3, "tied": True, "penalty": 0.2}, "free": {"share": 0.7}}
CAUSAL = {"causal": {"share": 1.0, "reads": "each", "writes": "onward"}}
APART = {"sae": {"share": 1.0, "reads": "each", "writes": "each"}}
STEPS = 8
"""Of every member; latents may be dead after two of them."""
RESUMED = ["sources apart, jumprelu", "dedicated", "aligned"]
TWO, THREE = {"p": 6, "q": 6}, {"p": 6, "q": 6, "r": 6}
BATCHTOPK = {"kind": "batchtopk", "k": 3}
MEMBERS = {
    "batchtopk": (BATCHTOPK, {}, ALL, TWO),
    "annealed": (BATCHTOPK | {"initial_k": 9, "anneal_share": 0.5}, {}, ALL, {"p": 5, "q": 8}),
    "topk": ({"kind": "topk", "k": 3}, {}, ALL, TWO),
    "l1": ({"kind": "relu"}, L1 | {"target_l0": 4.0}, ALL, TWO),
    "l2": ({"kind": "relu"}, L1 | {"kind": "l2_of_norms"}, ALL, TWO),
    "tanh": ({"kind": "relu"}, L1 | {"kind": "tanh", "scale": 0.5, "ramp_share": 0.3}, ALL, TWO),
    "decoder sparsity": (BATCHTOPK, L1 | {"kind": "decoder_sparsity"}, ALL, TWO),
    "jumprelu": ({"kind": "jumprelu", "initial_threshold": 0.3, "bandwidth": 1.0}, L1 | {"kind": "tanh"}, ALL, TWO),
    "dedicated": (BATCHTOPK, {}, DEDICATED, TWO),
    "tied": ({"kind": "relu"}, L1, TIED, THREE),
    "causal": ({"kind": "topk", "k": 4}, {}, CAUSAL, THREE),
    "sources apart": (BATCHTOPK, {}, APART, THREE),
    "sources apart, jumprelu": ({"kind": "jumprelu", "initial_threshold": 0.3}, L1, APART, {"p": 5, "q": 8}),
    "nested": (BATCHTOPK, L1, TIED, THREE, {"nested": ["shared", "free"]}),
    "delta": (BATCHTOPK, {}, BUDGETS, TWO, {"nested": ["shared", "exclusive"], "delta": {"of": ["q", "p"]}}),
    "difference": (BATCHTOPK, {}, ALL, {"difference": 7}),
    "aligned": (BATCHTOPK, L1, None, {"p": 5, "q": 8}),
    "aligned, topk": ({"kind": "topk", "k": 3}, {}, None, TWO),
    "aligned, global topk": ({"kind": "topk", "k": 3}, {}, None, {"p": 5, "q": 8}, {"support": "global"}),
    "aligned, global batchtopk": (BATCHTOPK, {}, None, TWO, {"support": "global"}),
}
"""Name of each member to its activation, penalty and blocks, to the widths of its sources, and to further settings."""


def recipe(name: str, steps: int) -> CrosscoderRecipe | AlignedRecipe:
    """How a member is trained."""
    activation, penalty, blocks, _, *further = MEMBERS[name]
    training = {
        "steps": steps,
        "batch_tokens": TOKENS,
        "learning_rate": 3e-3,
        "warmup_steps": 2,
        "decay_share": 0.2,
        "gradient_clip": 0.5,
        "decoder_norm": 0.5,
        "dead_tokens": 2 * TOKENS,
    }
    content = {"latents": 28, "activation": activation, "penalty": penalty, "training": training}
    content |= further[0] if further else {}
    if blocks is None:
        return AlignedRecipe(AlignedSettings.model_validate(content | {"alignment": 0.1}))
    return CrosscoderRecipe(CrosscoderSettings.model_validate(content | {"blocks": blocks}))


def batch(name: str, step: int, mesh) -> torch.Tensor:
    """The tokens of a step that a process gets."""
    widths, tokens = MEMBERS[name][3], TOKENS // mesh.replicas
    generator = torch.Generator().manual_seed(step)
    x = torch.randn(TOKENS, sum(widths.values()), generator=generator, dtype=torch.float64)
    return x[mesh.replica * tokens :][:tokens]


def begun(name: str, steps: int, mesh=ALONE, backend=None) -> State:
    """A member before its first step."""
    chosen, widths = recipe(name, steps), MEMBERS[name][3]
    mesh.owning(chosen.groups([*widths]))
    create = aligned.create if isinstance(chosen, AlignedRecipe) else crosscoder.create
    coder = create(chosen.settings, [*widths], [*widths.values()], 0, torch.float64, mesh.own)
    trainee = chosen.begin(coder, lambda: None)
    return start(trainee, chosen, over_mesh(backend or backends.choose(), mesh))


def trained(name: str, steps: int, mesh=ALONE, until: int | None = None, saved: dict | None = None) -> State:
    """A member after its training, or after its first steps; begun from a checkpoint where one is given."""
    state = begun(name, steps, mesh)
    if saved is not None:
        state.restore(saved if mesh.first else None)
    while state.step < (until or steps):
        loop.step(state, batch(name, state.step, mesh))
    return state


def on_mesh(ranks: int, replicas: int, work: Callable, *arguments) -> object:
    """What `work(mesh, *arguments)` returns in the first of several processes."""
    with tempfile.TemporaryDirectory() as folder:
        common = ranks, replicas, folder, work, arguments
        group = [PROCESS.Process(target=_member, args=(rank, *common)) for rank in range(ranks * replicas)]
        for process in group:
            process.start()
        for process in group:
            process.join(120)
        assert [process.exitcode for process in group] == [0] * len(group)
        return torch.load(Path(folder, "result"), weights_only=False)


def _member(rank: int, ranks: int, replicas: int, folder: str, work: Callable, arguments: tuple) -> None:
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    warnings.simplefilter("ignore")
    meeting = Path(folder, "meeting").as_uri()
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=ranks * replicas)
    result = work(Mesh(ranks, replicas), *arguments)
    if rank == 0:
        torch.save(result, Path(folder, "result"))
    dist.barrier()
    dist.destroy_process_group()


# -- what tests do on meshes --------------------------------------------------------------------------------------------


def states(mesh, names: list[str], steps: int) -> dict:
    """Of every member the state after its training, and the bytes that were sent beside those of the formula."""
    found = {}
    for name in names:
        mesh.sent.clear()
        state = trained(name, steps, mesh)
        sent = dict(mesh.sent)
        found[name] = {"state": state.to_dict(), "sent": sent, "formula": exchange.bytes_per_step(state)}
    return found


def stopped(mesh) -> list[dict]:
    """Checkpoints after half of some trainings."""
    return [trained(name, STEPS, mesh, until=STEPS // 2).to_dict() for name in RESUMED]


def resumed(mesh, saved: list[dict]) -> list[dict]:
    """The states after the other half."""
    pairs = zip(RESUMED, copy.deepcopy(saved), strict=True)
    return [trained(name, STEPS, mesh, saved=one).to_dict() for name, one in pairs]


class Kept:
    """The state after a segment, as a checkpoint offers it."""

    path = Path("kept")

    def __init__(self, state: State):
        self.content, self.mesh = state.to_dict(), state.backend.mesh

    def restore(self, state: State) -> bool:
        """Take the state over; the first process has it."""
        state.restore(self.content if self.mesh.first else None)
        return True


def on_a_window(mesh, names: list[str], segments: int = 2) -> dict[str, dict]:
    """Of every member the state after a training on a window of shards, a segment for each."""
    found = {}
    for name in names:
        widths, kept = MEMBERS[name][3], None
        for segment in range(segments):
            rows = torch.cat([batch(name, 10 * segment + i, ALONE) for i in range(STEPS)]).float()
            nothing = np.zeros((len(rows), 0), bool)
            shard = Sample(rows, [*widths], [*widths.values()], np.zeros(len(rows), int), nothing)
            part = loop.Part.of(segment, segments, STEPS, 0)
            state = loop.fit_part(recipe(name, STEPS), shard, part, 0, previous=kept, mesh=mesh)
            kept = Kept(state)
        found[name] = kept.content
    return found


def thresholds(mesh, name: str) -> torch.Tensor:
    """The score above which every latent of a finished crosscoder is on."""
    state = trained(name, STEPS, mesh, until=2)
    coder, held_out = state.crosscoder, batch(name, 99, ALONE)
    state.recipe.finish(coder, coder, [held_out], mesh)
    whole = coder if mesh.alone else coder.over_latents(mesh.gather)
    return whole.on_above


def tied_scores(tokens: int = 12, latents: int = 28) -> torch.Tensor:
    """Scores of which many are equal, a third of them 0."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 9, (tokens, latents), generator=generator).sub(3).clamp_min(0).double()


def ranked(mesh, kind: str, k: int, groups: list[int]) -> torch.Tensor:
    """The largest of tied scores, (tokens, latents); norms are one, so that codes are scores."""
    scores = tied_scores()
    mesh = mesh.owning(groups)
    tokens = len(scores) // mesh.replicas
    rows = scores[mesh.replica * tokens :][:tokens]
    own = encode.Whole(rows if mesh.own is None else rows[:, mesh.own].contiguous(), mesh)
    norms = torch.ones(own.size[1], dtype=torch.float64)
    if kind == "batch":
        code, threshold = encode.BatchTopK()(own, norms, k)
        kept = code.dense()
    else:
        kept, threshold = encode.ranked_by_token(own, norms, k), 0.0
    whole = torch.zeros_like(scores)
    part = whole[mesh.replica * tokens :][:tokens]
    part[:, slice(None) if mesh.own is None else mesh.own] = kept
    return torch.cat([mesh.add_all(whole, "test").flatten(), torch.tensor([threshold]).double()])


def ranked_often(mesh, cases: list) -> list[torch.Tensor]:
    return [ranked(mesh, *case) for case in cases]


def steps_of_triton(mesh, name: str, steps: int) -> dict:
    state = begun(name, STEPS, mesh, backends.triton())
    for step in range(steps):
        loop.step(state, batch(name, step, mesh))
    return state.to_dict()
