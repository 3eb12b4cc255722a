"""The feed gives every token once an epoch, sources aligned, sinks left out, statistics of the training split."""

import json
from types import MappingProxyType

import numpy as np
import pytest
import torch
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

from crosscoders import artifacts
from crosscoders.activations import dataset as dataset_module
from crosscoders.activations import extraction, fit_normalisation, shuffle, stored
from crosscoders.activations.dataset import Activations
from crosscoders.activations.sections import NullChange
from crosscoders.kernels import rows as rows_module
from crosscoders.kernels.cpu_library import library
from crosscoders.study.settings.comparisons import Source

NO_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
SOURCES = {"base": Source(model="a", layer=0), "chat": Source(model="b", layer=0)}


@pytest.fixture
def shards(tmp_path):
    return written(tmp_path, 6, 6)


def written(folder, *widths):
    """Two shards whose first channel numbers the tokens; every 50th token is a sink in one source."""
    generator, paths, first = np.random.default_rng(0), [], 0
    for number, count in enumerate((300, 213)):
        bits, norms = {}, {}
        for source, width in zip(SOURCES, widths, strict=True):
            values = generator.normal(2, 3, (count, width)).astype(np.float32)
            values[:, 0] = first + np.arange(count)
            values[:, 0] /= 100
            if source == "chat":
                values[::50, 1] = 1000
            bits[source] = torch.from_numpy(values).bfloat16().view(torch.uint16).numpy()
            norms[source] = np.linalg.norm(artifacts.from_bits(bits[source]), axis=1)
        metadata = {name: ("token", np.zeros(count, np.int32)) for name in ("role", "planted_behaviour", "token_id")}
        tokens = xr.Dataset(
            metadata
            | {
                "document": ("token", np.arange(count) // 20),
                "position": ("token", 1 + np.arange(count) % 20),
                "token_index": ("token", first + np.arange(count)),
            }
        )
        dataset = extraction.to_dataset(bits, norms, tokens, SOURCES)
        paths.append(folder / f"{number}.nc")
        artifacts.write(dataset, paths[-1], contiguous=SOURCES)
        first += count
    return paths


def fitted(paths, differences=MappingProxyType({"difference": ["chat", "base"]})) -> xr.Dataset:
    opened = [artifacts.read(path) for path in paths]
    names = [*SOURCES, *differences]
    variables = [
        [[part[name].values for name in stored.parts_of(source, differences)] for source in names] for part in opened
    ]
    found = fit_normalisation.fit(np.concatenate([part["norm"].values for part in opened]), variables, 6.0)
    dataset = xr.Dataset({"scale": ("source", found["scale"]), "sink_norm": ("source", found["sink_norm"])})
    for name, mean in zip(names, found["mean"], strict=True):
        dataset[f"mean_{name}"] = (f"width_{name}", mean)
    dataset.attrs["differences"] = json.dumps(dict(differences))
    return dataset.assign_coords(source=np.array(names, dtype=object))


def test_rows_are_normalised_aligned_and_free_of_sinks(shards):
    data = Activations(shards, fitted(shards))
    assert len(data) == 513 - 6 - 5
    x = data.rows(np.arange(len(data))).double()
    for columns, width in ((slice(0, 6), 6), (slice(6, 12), 6)):
        assert x[:, columns].mean(0).abs().max() < 1e-5
        assert x[:, columns].pow(2).sum(1).mean().item() == pytest.approx(width, rel=1e-5)
    assert np.corrcoef(x[:, 0], x[:, 6])[0, 1] > 0.9999, "both sources are read at the same token"
    chosen = np.random.default_rng(1).permutation(len(data))
    assert (data.rows(chosen).double() == x[chosen]).all()
    assert (np.diff(data.metadata["token_index"].values) > 0).all()


def test_a_difference_is_normalised_apart_and_read_at_the_same_tokens(shards):
    statistics = fitted(shards)
    both = Activations(shards, statistics)
    data = Activations(shards, statistics, ["difference"])
    assert (both.sources, data.sources, data.widths) == (["base", "chat"], ["difference"], [6])
    assert np.array_equal(data.metadata["token_index"], both.metadata["token_index"])
    x, sources = data.rows(np.arange(len(data))).double(), both.rows(np.arange(len(data))).double()
    assert x.mean(0).abs().max() < 1e-5
    assert x.pow(2).sum(1).mean().item() == pytest.approx(6, rel=1e-5)
    scale = statistics["scale"].values
    rebuilt = (sources[:, 6:] * scale[1] - sources[:, :6] * scale[0]) / scale[2]
    torch.testing.assert_close(rebuilt - rebuilt.mean(0), x, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("sources", [["base", "chat"], ["difference"]])
def test_compiled_or_not_the_rows_are_the_same_bytes(shards, monkeypatch, sources):
    data = Activations(shards, fitted(shards), sources)
    index = np.random.default_rng(2).permutation(len(data))
    compiled = data.rows(index)
    monkeypatch.setattr(dataset_module, "library", lambda: None)
    assert torch.equal(data.rows(index), compiled)


def test_sources_of_several_widths_are_read_at_the_same_tokens(tmp_path, monkeypatch):
    paths = written(tmp_path, 70, 33)
    data = Activations(paths, fitted(paths, {}))
    index = np.random.default_rng(2).permutation(len(data))
    compiled, x = data.stored(index, torch.empty(len(index), 103, dtype=torch.bfloat16)), data.rows(index)
    assert data.widths == [70, 33]
    assert torch.equal(compiled[:, 0], compiled[:, 70])
    assert torch.equal(data.normalise(compiled), x)
    monkeypatch.setattr(dataset_module, "library", lambda: None)
    assert torch.equal(data.stored(index, torch.empty_like(compiled)), compiled)


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=[pytest.mark.gpu, NO_GPU])])
@pytest.mark.parametrize("sources", [["base", "chat"], ["difference", "base"]])
def test_stored_rows_normalised_where_they_lie_are_the_same_bytes(shards, monkeypatch, sources, device):
    null = NullChange(kind="permuted_tokens", base="base", chat=sources[1])
    data = Activations(shards, fitted(shards), sources, null)
    index = np.random.default_rng(2).permutation(len(data))
    buffer = torch.empty(len(index), data.stored_width, dtype=torch.bfloat16)
    stored = data.stored(index, buffer).clone()
    assert torch.equal(data.normalise(stored.to(device)).cpu(), data.rows(index))
    monkeypatch.setattr(dataset_module, "library", lambda: None)
    assert torch.equal(data.stored(index, buffer.zero_()), stored)


@pytest.mark.skipif(library() is None, reason="needs g++ and a processor with AVX2")
@given(
    count=st.integers(1, 20), width=st.integers(1, 150), first=st.sampled_from([0, 1, 8, 16]), seed=st.integers(0, 99)
)
@settings(deadline=None)
def test_compiled_rows_are_numpys_wherever_they_go_and_nothing_else_is_written(count, width, first, seed):
    """Places on whole registers and off them, rows that fill registers, lines and groups of rows, and ones that do not."""
    generator = torch.Generator().manual_seed(seed)
    kept = torch.randn(30, width, generator=generator).bfloat16()
    row, other = torch.randint(30, (2, count), generator=generator)
    addresses = kept.data_ptr() + 2 * width * torch.stack([row, other]).numpy()
    mean, scale = torch.randn(width, generator=generator), 1.7
    values, normalised = kept.float(), torch.full((2, count, first + width + 3), torch.inf)
    stored, inside = normalised[0].bfloat16(), slice(first, first + width)
    rows_module.stored_rows(addresses[0], stored[:, inside])
    for taken in (1, 2):
        rows_module.normalised_rows(addresses[:taken], mean.numpy(), scale, normalised[taken - 1, :, inside])
    assert torch.equal(stored[:, inside], kept[row])
    assert torch.equal(normalised[0, :, inside], (values[row] - mean) / torch.tensor(scale))
    assert torch.equal(normalised[1, :, inside], (values[row] - values[other] - mean) / torch.tensor(scale))
    for out in (stored, *normalised):
        assert out[:, :first].isinf().all() and out[:, first + width :].isinf().all()


def test_nulls_read_one_model_twice_or_other_tokens(shards):
    statistics = fitted(shards)
    everything = np.arange(502)
    plain = Activations(shards, statistics).rows(everything)
    pair = {"base": "base", "chat": "chat"}
    same = Activations(shards, statistics, null=NullChange(kind="same_model", **pair)).rows(everything)
    assert torch.equal(same[:, :6], plain[:, :6])
    assert torch.equal(same[:, 6:], plain[:, :6])
    permuted = Activations(shards, statistics, null=NullChange(kind="permuted_tokens", **pair)).rows(everything)
    assert torch.equal(permuted[:, :6], plain[:, :6])
    assert not torch.equal(permuted[:, 6:], plain[:, 6:])
    assert torch.equal(permuted[:, 6].sort().values, plain[:, 6].sort().values), "the same tokens in another order"


def test_nulls_of_three_sources_change_all_but_the_first(shards):
    statistics, sources, everything = fitted(shards), ["base", "difference", "chat"], np.arange(502)
    of = {"base": "base", "chat": "chat", "others": ["difference"]}
    same, permuted = (
        Activations(shards, statistics, sources, NullChange(kind=kind, **of)).rows(everything).split(6, dim=1)
        for kind in ("same_model", "permuted_tokens")
    )
    plain = Activations(shards, statistics, sources).rows(everything).split(6, dim=1)
    assert all(torch.equal(part, plain[0]) for part in same)
    assert torch.equal(permuted[0], plain[0])
    orders = [(part[:, None, 0] == whole[:, 0]).int().argmax(1) for part, whole in zip(permuted, plain, strict=True)]
    assert not any(
        torch.equal(a, b) for a, b in [(orders[0], orders[1]), (orders[0], orders[2]), (orders[1], orders[2])]
    )


def test_statistics_equal_float64_numpy(shards):
    opened = [artifacts.read(path) for path in shards]
    values = np.concatenate([artifacts.from_bits(part["chat"].values) for part in opened]).astype(np.float64)
    keep = np.linalg.norm(values, axis=1) < 500
    dataset = fitted(shards)
    np.testing.assert_allclose(dataset["mean_chat"], values[keep].mean(0), rtol=1e-12)
    np.testing.assert_allclose(dataset["scale"][1], np.sqrt(values[keep].var(0).mean()), rtol=1e-10)


@given(rows=st.integers(1, 3000), seed=st.integers(0, 5), start=st.integers(0, 9000), count=st.integers(1, 500))
@settings(max_examples=60, deadline=None)
def test_order_is_a_pure_function_that_visits_every_row_once_an_epoch(rows, seed, start, count):
    whole = shuffle.Order(rows, seed).take(0, 2 * rows)
    assert sorted(whole[:rows]) == sorted(whole[rows:]) == list(range(rows))
    drawn = shuffle.Order(rows, seed)
    drawn.take(start + 7, 3)
    assert np.array_equal(
        drawn.take(start, count),
        np.concatenate([shuffle.Order(rows, seed).take(start + i, 1) for i in range(count)])
        if count < 20
        else shuffle.Order(rows, seed).take(start, count),
    )


def test_order_mixes_documents_and_depends_on_the_seed():
    first, second = (shuffle.Order(200_000, seed).take(0, 1024) for seed in (0, 1))
    assert len(np.unique(first // shuffle.BLOCK_ROWS)) > 400
    assert not np.array_equal(first, second)


def test_pools_cover_large_epochs():
    rows = 3 * shuffle.BLOCK_ROWS * shuffle.POOL_BLOCKS + 77
    assert np.array_equal(np.sort(shuffle.Order(rows, 0).take(0, rows)), np.arange(rows))


def test_a_damaged_shard_is_named(shards):
    content = bytearray(shards[1].read_bytes())
    content[len(content) // 2] ^= 1
    normal = fitted(shards)
    shards[1].write_bytes(content)
    from crosscoders.errors import UserError

    with pytest.raises(UserError, match=r"1\.nc: corrupt"):
        Activations(shards, normal)
