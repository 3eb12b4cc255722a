"""The sides of the benchmarks that need no package of a peer answer, at a shape that takes no time."""

import json

import numpy as np
import pytest
import torch
from benchmarks import averaged_seeds, end_to_end, gpu, sides, step, table, worker
from tests import architectures

from crosscoders import storage
from crosscoders.crosscoder import crosscoder
from crosscoders.kernels import backends
from crosscoders.planted.concepts import Sample
from crosscoders.study import loading
from crosscoders.study.blocks import crosscoder_sources


@pytest.mark.parametrize("activation", ["batchtopk", "relu"])
def test_own_sides_take_turns(activation):
    shape = step.PAIR | {"width": 16, "latents": 64, "k": 4, "batch": 32, "activation": activation}
    times, memory = sides.in_turns(list(sides.OWN), shape, 2)
    assert set(times) == set(sides.OWN)
    assert min(times.values()) > 0
    assert min(memory.values()) > 50


@pytest.mark.filterwarnings("ignore:Warning only once for all operators")
def test_peers_can_be_given_the_faster_product(monkeypatch):
    """Forward and backward, for code that knows nothing of it; gradients are the same up to rounding."""

    def gradients() -> list[torch.Tensor]:
        generator = torch.Generator().manual_seed(0)
        x, encoder, decoder = (torch.randn(*size, generator=generator) for size in ((32, 16), (64, 16), (64, 2, 8)))
        leaves = [encoder.requires_grad_(), decoder.requires_grad_()]
        rebuilt = torch.einsum("tm,msd->tsd", torch.nn.functional.linear(x, encoder, torch.ones(64)).relu(), decoder)
        (x - rebuilt.flatten(1)).square().sum().backward()
        return [leaf.grad for leaf in leaves]

    asked, multiply = [], worker.onednn
    monkeypatch.setattr(worker, "onednn", lambda a, b: asked.append(1) or multiply(a, b))
    shape = {"sources": 2, "width": 8, "batch": 16, "latents": 32}
    plain, library = gradients(), worker.faster_gemm(shape, certainly=True)
    asked.clear()
    try:
        by_onednn = gradients()
    finally:
        library._destroy()
    assert len(asked) == 5, "two products forward, three backward"
    for a, b in zip(by_onednn, plain, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-3)


def test_the_benchmarks_of_a_gpu_run_on_interpreted_kernels(monkeypatch, tmp_path):
    """All that a GPU is asked for except the timing: sides, roofline, profile, the share of loading."""
    pytest.importorskip("triton", reason="triton is made for Linux")
    shape = {"sources": 2, "width": 8, "latents": 64, "k": 4, "batch": 16, "activation": "batchtopk"}
    monkeypatch.setattr(backends, "choose", lambda device="cpu": backends.triton())
    monkeypatch.setattr(torch, "compile", lambda function: function)
    monkeypatch.setattr(gpu, "BENCHMARKS", {"tiny": (shape, {"dense TF32": 2.5, "dense bfloat16": 1.0})})
    monkeypatch.setattr(gpu, "WANTED", {"tiny": 1000.0})
    monkeypatch.setattr(gpu.dataset, "WIDTH", 8)
    monkeypatch.setattr(gpu.dataset, "TOKENS", 100)
    rows = gpu.measure("tiny", gpu.rates("cpu", 128), "cpu", steps=3, warmup=1)
    assert [(row["side"], row["peer"]) for row in rows] == [
        (a, b) for b in ("dense TF32", "dense bfloat16") for a in gpu.OURS
    ]
    for row in rows:
        assert 0 < row["roofline"] < row["milliseconds"][row["side"]]
        assert len(row["kernels"]) == 8
        assert row["share_of_wanted"] == pytest.approx(row["tokens_per_second"] / 1000, abs=0.01)
    assert ["loader_share" in row for row in rows] == [True, False, False, False]
    monkeypatch.setattr(table, "OUT", tmp_path)
    storage.write_json({"rows": [row | {"device": "a GPU"} for row in rows]}, tmp_path / "gpu.json")
    device, text = table.on_gpu()
    lines = text.splitlines()
    assert device == "a GPU"
    assert len({line.count("|") for line in lines}) == 1
    assert len(lines) == 2 + len(rows)


def test_a_benchmark_run_again_replaces_its_rows_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(sides, "OUT", tmp_path)
    monkeypatch.setattr(sides, "machine", dict)
    rows = [
        {"name": name, "peer": "dense", "ratio": ratio, "target": 1.0}
        for name, ratio in (("a", 1.0), ("b", 2.0), ("c", 3.0))
    ]
    sides.save("step", rows)
    sides.save("step", [rows[1] | {"ratio": 4.0}], kept=True)
    saved = json.loads((tmp_path / "step.json").read_text())["rows"]
    assert [(row["name"], row["ratio"]) for row in saved] == [("a", 1.0), ("b", 4.0), ("c", 3.0)]


def test_every_row_stands_beside_what_bounds_it(tmp_path, monkeypatch):
    """Milliseconds, seconds and rates, with a peer and without."""
    monkeypatch.setattr(table, "OUT", tmp_path)
    small, large = step.PAIR, step.PAIR | {"k": 4096}
    encoder, code = step.bound_of(small, 1e8, 1e9), step.bound_of(large, 1e8, 1e9)
    assert (encoder["bound"], code["bound"], step.bound_of(small, 1e9, 1e6)["bound"]) == ("encoder", "code", "memory")
    sparse_part = step.bound_of(small, 1e8, 1e9, "sparse_part")
    assert sparse_part["roofline"] < encoder["roofline"] < code["roofline"]
    compared = {"peer": "other", "ratio": 2.0, "target": 1.5, "roofline": 500.0, "bound": "product"}
    measured = {
        "step": [
            {"name": "step", "milliseconds": {"ours": 1000.0, "other": 2000.0}} | compared,
            {"name": "growth", "milliseconds": {"ours": 1000.0}, "megabytes": {"ours": 7}} | encoder,
        ],
        "extract": [{"name": "extract", "seconds": {"sorted": 1.0, "other": 2.0}} | compared],
        "dataset": [{"name": "dataset", "thousand_rows_per_second": {"ours": 250, "other": 9}} | compared],
        "latent_scaling": [{"name": "scaling", "seconds": {"ours": 1.0, "other": 2.0}} | compared],
    }
    for name, rows in measured.items():
        storage.write_json(
            {"machine": {"cpu": "one", "cores": 2, "versions": {}}, "rows": rows}, tmp_path / f"{name}.json"
        )
    machine, text = table.on_cpu()
    lines = text.splitlines()[2:]
    assert (machine, len(lines), len({line.count("|") for line in lines})) == ("one", 7, 1)
    assert sum("50%, product" in line for line in lines) == 4
    assert "| step | other | 1,000 ms / 2,000 ms | 2.00 | 1.50 | 500 ms, 50%, product | – |" in lines


def test_every_machine_keeps_its_table(tmp_path):
    path = tmp_path / "text.md"
    path.write_text(f"before\n{table.BEGIN}| planned |\n{table.END}after\n")
    for machine, text in (("one", "versions\n\n| a |"), ("other", "| b |"), ("one", "versions\n\n| c |")):
        table.fill(path, machine, text)
    expected = f"before\n{table.BEGIN}### one\n\nversions\n\n| c |\n\n### other\n\n| b |\n{table.END}after\n"
    assert path.read_text() == expected


def test_a_side_that_cannot_start_says_why():
    with pytest.raises(RuntimeError, match=r"ours: (.|\n)*latents"):
        sides.Side("ours", step.PAIR | {"latents": 0})


def test_an_average_of_seeds_lies_between_them(member):
    """Latent by latent; every latent of a training is its own partner, and none of its negative is."""
    torch.set_grad_enabled(False)
    one, other = (crosscoder.create(member(k=4), ["base", "chat"], [16, 16], seed) for seed in (0, 1))
    x = torch.randn(64, 32, generator=torch.Generator().manual_seed(0))
    held_out = Sample(x, ["base", "chat"], [16, 16], np.zeros(64, int), np.zeros((64, 0), bool))
    mean = averaged_seeds.average([one, other], held_out)
    torch.testing.assert_close(mean.decoder, (one.decoder + other.decoder) / 2)
    kept = (mean.preactivations(x).relu() * mean.decoder_norms().sum(1) > mean.threshold).sum()
    assert kept == 4 * 64, "the threshold is that of the average"
    fires = np.ones(one.latents, bool)
    assert averaged_seeds.come_back(one, one, fires, fires) == pytest.approx((1, 1))
    assert averaged_seeds.come_back(one, mean, fires, fires)[1] > averaged_seeds.come_back(one, other, fires, fires)[1]


def test_the_study_of_the_benchmark_from_end_to_end_can_be_planned(tmp_path):
    sizes = {"num_hidden_layers": end_to_end.LAYER + 1, "max_position_embeddings": end_to_end.CONTEXT}
    model, text = architectures.save(tmp_path / "model", "llama", **sizes), tmp_path / "text.jsonl"
    text.write_text('{"text": "x"}\n')
    task = end_to_end.Task(model, text, end_to_end.BUDGETS[0], 3e-3, tmp_path)
    command, made = end_to_end.ours(task)
    study = loading.load(tmp_path / "study.yaml")
    assert str(made.relative_to(tmp_path)) in command
    assert study.crosscoders["sae"].training.steps * study.crosscoders["sae"].training.batch_tokens == task.tokens
    assert crosscoder_sources(study.settings["one"], study.crosscoders["sae"]) == ["one"]
