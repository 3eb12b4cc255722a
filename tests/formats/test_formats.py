"""Crosscoders in peers' formats: the same input gives the same code and reconstruction here and there, and damage is one line."""

import dataclasses
import importlib.util
import json
import os
import pickle
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from tests import project
from tests.formats import plain

from crosscoders.crosscoder import crosscoder as model
from crosscoders.crosscoder.encode import encode_sparse
from crosscoders.errors import UserError
from crosscoders.formats import crosscoder_learning, recognise, sae_lens, sparsify
from crosscoders.formats.portable import Portable

TOKENS, WIDTH, LATENTS = 200, 12, 24
PEERS = project.ROOT / ".venv-peers/bin/python"
FORWARD = {"crosscoder_learning": plain.crosscoder_learning, "sae-lens": plain.sae_lens, "sparsify": plain.sparsify}
EXPRESSIBLE = [
    ("crosscoder_learning", "relu"),
    ("crosscoder_learning", "batchtopk"),
    ("sae-lens", "relu"),
    ("sae-lens", "batchtopk"),
    ("sae-lens", "jumprelu"),
    ("sae-lens", "topk"),
    ("sparsify", "topk"),
]


def portable(member, activation: str, sources=("base", "chat"), width=WIDTH, **options) -> Portable:
    """A crosscoder with weights, biases, thresholds and units that all matter, and a latent without decoder."""
    generator = torch.Generator().manual_seed(3)
    draw = lambda *size: torch.randn(*size, generator=generator)  # noqa: E731
    settings = member(activation, penalty="l1_of_norms", latents=LATENTS, k=4, **options)
    coder = model.create(settings, list(sources), [width] * len(sources), seed=1)
    coder.encoder += 0.1 * draw(*coder.encoder.shape) * (coder.encoder != 0)
    coder.decoder *= 0.5 + torch.rand(LATENTS, 1, generator=generator)
    coder.decoder[:, :width] *= 1.7
    coder.encoder_bias += 0.3 * draw(LATENTS)
    coder.decoder_bias += 0.3 * draw(width * len(sources))
    coder.decoder[5] = 0
    if activation == "batchtopk":
        coder.threshold = 0.9
    if activation == "jumprelu":
        coder.log_threshold = (0.5 + torch.rand(LATENTS, generator=generator)).log()
    count = len(sources)
    mean = [(10 * draw(width)).double() for _ in range(count)]
    scale = torch.tensor([3.7, 21.0, 0.6, 5.0][:count], dtype=torch.float64)
    return Portable(coder, mean, scale, torch.full((count,), torch.inf, dtype=torch.float64))


def raw(found: Portable) -> dict[str, torch.Tensor]:
    """Raw activations that have the crosscoder's mean and scale."""
    generator = torch.Generator().manual_seed(8)
    widths, units = found.crosscoder.widths, zip(found.crosscoder.sources, found.mean, found.scale, strict=True)
    drawn = [torch.randn(TOKENS, width, generator=generator) for width in widths]
    return {name: (x * scale + mean).float() for x, (name, mean, scale) in zip(drawn, units, strict=True)}


def as_peers_see(format_name: str, activations: dict[str, torch.Tensor]) -> np.ndarray:
    """Activations as the format's forward pass takes them: (T, n, d), or sources side by side, (T, n·d)."""
    stacked = torch.stack(list(activations.values()), 1)
    return (stacked if format_name == "crosscoder_learning" else stacked.flatten(1)).numpy()


def expected(found: Portable, format_name: str, activations: dict) -> tuple[torch.Tensor, np.ndarray]:
    """Our code, as the format counts it, and our reconstruction, as the format shows it."""
    code = found.encode(activations)
    rebuilt = as_peers_see(format_name, found.decode(code))
    if found.crosscoder.activation == "topk":  # these formats rank activations, so they hold scores
        code = code * found.crosscoder.decoder_norms().sum(1)
    return code, rebuilt


def close(a, b) -> None:
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    assert np.array_equal(a != 0, b != 0) if a.shape[-1] == LATENTS else True
    assert np.abs(a - b).max() <= 1e-5 * np.abs(b).max()


@pytest.mark.parametrize("count", [1, 2, 3], ids=["single", "pair", "three"])
@pytest.mark.parametrize(("format_name", "activation"), EXPRESSIBLE)
def test_what_is_written_does_in_the_documented_forward_pass_what_it_does_here(
    member, tmp_path, format_name, activation, count
):
    found = portable(member, activation, ["base", "chat", "other"][:count])
    activations = raw(found)
    recognise.write(found, tmp_path, format_name)
    code, rebuilt = FORWARD[format_name](tmp_path, as_peers_see(format_name, activations).astype(np.float64))
    ours, ours_rebuilt = expected(found, format_name, activations)
    assert 0 < np.count_nonzero(code) < code.size and not code[:, 5].any()
    close(code, ours)
    close(rebuilt, ours_rebuilt)


@pytest.mark.parametrize(("format_name", "activation"), [*EXPRESSIBLE, ("netcdf", "relu"), ("netcdf", "jumprelu")])
def test_what_is_written_comes_back(member, tmp_path, format_name, activation):
    found = portable(member, activation)
    recognise.write(found, tmp_path, format_name)
    back, activations = recognise.read(tmp_path), raw(found)
    assert recognise.format_of(tmp_path) == format_name
    assert back.crosscoder.sources == ["base", "chat"]
    code = found.encode(activations)
    scores, read = (
        one.encode(activations) * one.crosscoder.decoder_norms().sum(1) for one in (found, back)
    )  # of topk, codes and decoders come back rescaled
    close(read, scores)
    for name, rebuilt in back.decode(back.encode(activations)).items():
        close(rebuilt, found.decode(code)[name])
    alive = found.crosscoder.decoder_norms().sum(1) > 0
    shares = [one.crosscoder.decoder_norms()[alive] for one in (found, back)]
    close(*(norms[:, 1] / norms.sum(1) for norms in shares))


@pytest.mark.parametrize(("format_name", "activation"), [*EXPRESSIBLE, ("netcdf", "batchtopk")])
def test_the_same_crosscoder_gives_the_same_bytes(member, tmp_path, format_name, activation):
    for name in ("one", "two"):
        recognise.write(portable(member, activation), tmp_path / name, format_name)
    for file in (tmp_path / "one").iterdir():
        assert file.read_bytes() == (tmp_path / "two" / file.name).read_bytes()


@pytest.mark.parametrize("kind", ["SAE", "MIXED", "NONE"])
def test_other_code_normalisations_become_thresholds_per_latent(member, tmp_path, kind):
    found = portable(member, "batchtopk")
    found.crosscoder.decoder[5] += 0.1
    recognise.write(found, tmp_path, "crosscoder_learning")
    change_tensors(
        tmp_path, code_normalization_id=torch.tensor(crosscoder_learning.CODE_NORMALISATIONS.index(kind) + 1)
    )
    change_config(tmp_path / "config.json", code_normalization=kind)
    back, activations = recognise.read(tmp_path), raw(found)
    code, rebuilt = plain.crosscoder_learning(tmp_path, as_peers_see("crosscoder_learning", activations))
    close(back.encode(activations), code)
    close(as_peers_see("crosscoder_learning", back.decode(back.encode(activations))), rebuilt)


def test_a_crosscoder_without_normaliser_reads_raw_activations(member, tmp_path):
    found = portable(member, "relu")
    found.mean, found.scale = [mean * 0 for mean in found.mean], torch.ones(2, dtype=torch.float64)
    recognise.write(found, tmp_path, "crosscoder_learning")
    nan = [torch.full((2, WIDTH), torch.nan) for _ in range(2)]
    change_tensors(tmp_path, activation_mean=nan[0], activation_std=nan[1], activation_global_scale=torch.ones(2))
    back, activations = recognise.read(tmp_path), raw(found)
    code, rebuilt = plain.crosscoder_learning(tmp_path, as_peers_see("crosscoder_learning", activations))
    close(back.encode(activations), code)
    close(as_peers_see("crosscoder_learning", back.decode(back.encode(activations))), rebuilt)


def ckkissane_folder(folder: Path, dtype=torch.float32, **changes) -> Path:
    """A folder as ckkissane publishes it."""
    generator = torch.Generator().manual_seed(0)
    sizes = {"W_enc": (2, WIDTH, LATENTS), "b_enc": (LATENTS,), "W_dec": (LATENTS, 2, WIDTH), "b_dec": (2, WIDTH)}
    weights = {name: torch.randn(*size, generator=generator).to(dtype) for name, size in sizes.items()}
    folder.mkdir(exist_ok=True)
    torch.save(weights | changes, folder / "cc_weights.pt")
    (folder / "cfg.json").write_text(json.dumps({"d_in": WIDTH, "dict_size": LATENTS, "enc_dtype": "fp32", "seed": 1}))
    return folder


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_ckkissane_with_the_factors_that_its_files_leave_out(tmp_path, dtype):
    folder, factors = ckkissane_folder(tmp_path, dtype), {"base": 0.2758961, "chat": 0.2442285}
    back = recognise.read(folder, input_scale=factors)
    generator = torch.Generator().manual_seed(1)
    activations = {name: 4 * torch.randn(TOKENS, WIDTH, generator=generator) for name in factors}
    scaled = np.stack([factors[name] * x.double().numpy() for name, x in activations.items()], 1)
    code, rebuilt = plain.ckkissane(folder, scaled)
    close(back.encode(activations), code)
    for s, (name, found) in enumerate(back.decode(back.encode(activations)).items()):
        close(found, rebuilt[:, s] / factors[name])


# -- what a format cannot express --------------------------------------------------------------------------------------

ONE_WAY = {"one": {"share": 0.5, "reads": ["base"]}, "all": {"share": 0.5}}
TIED = {"tied": {"share": 0.5, "tied": True}, "all": {"share": 0.5}}


@pytest.mark.parametrize("format_name", ["crosscoder_learning", "sae-lens"])
@pytest.mark.parametrize(
    ("changed", "line"),
    [
        (lambda make: make("relu", blocks=ONE_WAY), "blocks: some latents read or write only some of the sources"),
        (lambda make: make("relu", blocks=TIED), "blocks: some latents are tied to one direction for all sources"),
        (
            lambda make: dataclasses.replace(make("relu"), differences=["chat"]),
            "the source 'chat', which is a difference of others",
        ),
        (lambda make: unequal(make("relu")), "sources of unequal widths [4, 20]"),
    ],
    ids=["blocks", "tied", "difference", "widths"],
)
def test_what_no_peer_can_express_is_one_line(member, tmp_path, format_name, changed, line):
    with pytest.raises(UserError, match=r"^.*$") as error:
        recognise.write(changed(lambda *a, **k: portable(member, *a, **k)), tmp_path / "out", format_name)
    assert str(error.value) == f"{format_name} cannot express {line}"
    assert not (tmp_path / "out").exists()


def unequal(found: Portable) -> Portable:
    """The crosscoder over sources of unequal widths."""
    found.crosscoder.widths = [4, 20]
    return found


@pytest.mark.parametrize(
    ("format_name", "activation", "line"),
    [
        ("crosscoder_learning", "topk", "the activation 'topk'; it has relu, batchtopk"),
        ("crosscoder_learning", "jumprelu", "the activation 'jumprelu'; it has relu, batchtopk"),
        ("sparsify", "batchtopk", "the activation 'batchtopk'; it has topk"),
    ],
)
def test_an_activation_that_a_format_lacks_is_one_line(member, tmp_path, format_name, activation, line):
    with pytest.raises(UserError) as error:
        recognise.write(portable(member, activation), tmp_path, format_name)
    assert str(error.value) == f"{format_name} cannot express {line}"


# -- damage ------------------------------------------------------------------------------------------------------------

WEIGHTS = {
    "crosscoder_learning": "model.safetensors",
    "sae-lens": "sae_weights.safetensors",
    "sparsify": "sae.safetensors",
}
CONFIG = {"crosscoder_learning": "config.json", "sae-lens": "cfg.json", "sparsify": "cfg.json"}


def change_tensors(folder: Path, removed: str = "", **changes: torch.Tensor) -> None:
    """Write other tensors into the one safetensors file of a folder."""
    (path,) = folder.glob("*.safetensors")
    tensors = safetensors.torch.load(path.read_bytes()) | changes
    tensors.pop(removed, None)
    path.write_bytes(safetensors.torch.save({name: tensor.contiguous() for name, tensor in tensors.items()}))


def change_config(path: Path, **changes) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def one_line(folder: Path, **given) -> str:
    with pytest.raises(UserError) as error:
        recognise.read(folder, **given)
    assert len(str(error.value).splitlines()) == 1
    return str(error.value)


@pytest.mark.parametrize(("format_name", "activation"), EXPRESSIBLE)
def test_every_missing_damaged_or_wrong_tensor_is_one_line(member, tmp_path, format_name, activation):
    recognise.write(portable(member, activation), tmp_path, format_name)
    path = tmp_path / WEIGHTS[format_name]
    whole = path.read_bytes()
    needed = {
        "crosscoder_learning": ("encoder.weight", "encoder.bias", "decoder.weight", "decoder.bias"),
        "sae-lens": ("W_enc", "W_dec", "b_enc", "b_dec", *(("threshold",) if activation in ("jumprelu",) else ())),
        "sparsify": ("encoder.weight", "encoder.bias", "W_dec", "b_dec"),
    }[format_name]
    for name in needed:
        tensor = safetensors.torch.load(whole)[name]
        change_tensors(tmp_path, removed=name)
        assert f"tensor {name!r} is missing" in one_line(tmp_path)
        for wrong, said in (
            (tensor[..., :-1], "expected"),
            (tensor[None], "has the shape"),
            (tensor.long(), "expected floating-point numbers"),
            (torch.full_like(tensor, torch.nan), "not finite"),
            (tensor[..., :0], "expected"),
        ):
            path.write_bytes(whole)
            change_tensors(tmp_path, **{name: wrong})
            assert said in one_line(tmp_path)
        path.write_bytes(whole)
    for damaged in (b"", whole[:100], whole[:-7], b"\x80\x04garbage", os.urandom(500), whole[:8] + b"}" + whole[9:]):
        path.write_bytes(damaged)
        assert str(path) in one_line(tmp_path)


@pytest.mark.parametrize(("format_name", "activation"), EXPRESSIBLE)
def test_a_damaged_configuration_is_one_line(member, tmp_path, format_name, activation):
    recognise.write(portable(member, activation), tmp_path, format_name)
    path = tmp_path / CONFIG[format_name]
    whole = path.read_text()
    key = "activation_dim" if format_name == "crosscoder_learning" else "d_in"
    for text in ("", "{", "[]", "nan", "[" * 10**5, whole.replace(f'"{key}": ', f'"{key}": 7'), '{"k": "many"'):
        path.write_text(text)
        assert str(path) in one_line(tmp_path)


@pytest.mark.parametrize(
    ("activation", "changes", "line"),
    [
        ("relu", {"architecture": "gated"}, "the architecture 'gated' is not read"),
        ("relu", {"activation_fn": "tanh-relu"}, "the activation 'tanh-relu' is not read"),
        ("relu", {"normalize_activations": "layer_norm"}, "normalize_activations is 'layer_norm'"),
        ("relu", {"reshape_activations": "hook_z"}, "reshape_activations is 'hook_z'"),
        ("topk", {"k": 0}, "k is 0; expected a whole number of at least 1"),
        ("topk", {"k": 99}, "k is 99; expected at most the 24 latents"),
    ],
)
def test_what_we_cannot_express_of_sae_lens_is_one_line(member, tmp_path, activation, changes, line):
    recognise.write(portable(member, activation), tmp_path, "sae-lens")
    change_config(tmp_path / "cfg.json", **changes)
    assert line in one_line(tmp_path)


def test_what_we_cannot_express_of_others_is_one_line(member, tmp_path):
    recognise.write(portable(member, "topk"), tmp_path / "sparsify", "sparsify")
    for changes, line in (
        ({"activation": "groupmax"}, "activation is 'groupmax'; expected 'topk'"),
        ({"transcode": True}, "transcode is True; expected False"),
        ({"k": 25}, "k is 25; expected at most the 24 latents"),
    ):
        whole = (tmp_path / "sparsify/cfg.json").read_text()
        change_config(tmp_path / "sparsify/cfg.json", **changes)
        assert line in one_line(tmp_path / "sparsify")
        (tmp_path / "sparsify/cfg.json").write_text(whole)
    recognise.write(portable(member, "batchtopk"), tmp_path / "fork", "crosscoder_learning")
    change_config(tmp_path / "fork/config.json", code_normalization="SAE")
    assert "code_normalization is SAE, but model.safetensors says CROSSCODER" in one_line(tmp_path / "fork")
    change_tensors(tmp_path / "fork", code_normalization_id=torch.tensor(5))
    change_config(tmp_path / "fork/config.json", code_normalization=None)
    assert "a decoupled code has one activation per source" in one_line(tmp_path / "fork")
    change_tensors(tmp_path / "fork", k=torch.tensor(0))
    assert "k is 0" in one_line(tmp_path / "fork")


class Hostile:
    """An object that would run a command when unpickled."""

    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self):
        return (Path.touch, (self.mark,))


def test_a_pickle_that_runs_code_is_refused_without_running_it(tmp_path):
    folder, mark = ckkissane_folder(tmp_path / "peer"), tmp_path / "ran"
    torch.save({"W_enc": Hostile(mark)}, folder / "cc_weights.pt")
    assert "holds more than tensors" in one_line(folder)
    (folder / "cc_weights.pt").write_bytes(pickle.dumps(Hostile(mark)))
    assert "holds more than tensors" in one_line(folder)
    assert not mark.exists()
    for content in (b"", b"PK\x03\x04", os.urandom(300)):
        (folder / "cc_weights.pt").write_bytes(content)
        assert "holds more than tensors" in one_line(folder)
    torch.save([1, 2], folder / "cc_weights.pt")
    assert "holds more than tensors" in one_line(folder)


def test_names_scales_and_places_that_do_not_fit_are_one_line(member, tmp_path):
    folder = ckkissane_folder(tmp_path / "peer")
    assert one_line(folder, sources=["base"]).endswith("1 sources named (base); expected 2")
    assert "expected different names" in one_line(folder, sources=["base", "base"])
    assert "expected different names" in one_line(folder, sources=["base", "../chat"])
    assert "expected a number for base, chat" in one_line(folder, input_scale={"base": 1.0})
    assert "expected positive numbers" in one_line(folder, input_scale={"base": 1.0, "chat": -1.0})
    assert "no such folder" in one_line(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    assert "holds the files of no known format" in one_line(tmp_path / "empty")
    recognise.write(portable(member, "relu"), tmp_path / "fork", "crosscoder_learning")
    assert "says itself how activations are normalised" in one_line(
        tmp_path / "fork", input_scale={"base": 1.0, "chat": 1.0}
    )
    recognise.write(portable(member, "relu"), tmp_path / "sae", "sae-lens")
    assert "24 columns; expected a multiple of the 5 sources" in one_line(tmp_path / "sae", sources=list("abcde"))


@pytest.mark.parametrize("format_name", ["sparsify", "sae-lens"])
def test_latents_of_unequal_norm_are_ranked_by_their_activations(member, tmp_path, format_name):
    """As in every checkpoint of a trainer, whose last update comes after the decoder was normalised."""
    generator = torch.Generator().manual_seed(2)
    found = portable(member, "topk")
    recognise.write(found, tmp_path / "peer", format_name)
    change_tensors(tmp_path / "peer", W_dec=torch.randn(LATENTS, 2 * WIDTH, generator=generator))
    read, activations = recognise.read(tmp_path / "peer", ["base", "chat"]), raw(found)
    theirs, rebuilt = FORWARD[format_name](tmp_path / "peer", as_peers_see(format_name, activations).astype(np.float64))
    by_score = (
        read.encode(activations),
        dataclasses.replace(read.crosscoder, rank_weight=None).encode(read.normalise(activations)),
    )
    assert ((by_score[0] != 0) != (by_score[1] != 0)).any(), "else the order of scores would do"
    close(by_score[0], theirs)
    close(as_peers_see(format_name, read.decode(by_score[0])), rebuilt)
    sparse = encode_sparse(read.crosscoder, read.normalise(activations))
    close(sparse.dense(), theirs)
    for name in ("netcdf", format_name):
        recognise.write(read, tmp_path / name, name)
        again = recognise.read(tmp_path / name)
        for one, value in again.decode(again.encode(activations)).items():
            close(value, read.decode(by_score[0])[one])


# -- peers' own packages -----------------------------------------------------------------------------------------------


def in_peers_environment(tmp_path: Path, function: str, x: np.ndarray, *folders: Path) -> dict:
    """What a peer's own package makes of folders: codes and reconstructions, in their order."""
    if not PEERS.exists():
        pytest.skip("needs peers' packages: make .venv-peers/installed")
    np.save(tmp_path / "x.npy", x)
    command = [str(PEERS), str(project.ROOT / "tests/formats/real.py"), function, str(tmp_path / "x.npy")]
    environment = os.environ | {"PYTHONPATH": os.environ.get("CROSSCODER_LEARNING", ""), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, str(tmp_path / "out.npz"), *map(str, folders)],
        env=environment | {"HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return dict(np.load(tmp_path / "out.npz"))


@pytest.mark.slow
@pytest.mark.parametrize("format_name", list(FORWARD))
def test_the_peers_own_package_computes_what_we_compute(member, tmp_path, format_name):
    if format_name == "crosscoder_learning" and "CROSSCODER_LEARNING" not in os.environ:
        pytest.skip("needs a checkout of science-of-finetuning/crosscoder_learning, named by CROSSCODER_LEARNING")
    made = [portable(member, activation) for name, activation in EXPRESSIBLE if name == format_name]
    folders = [tmp_path / str(i) for i in range(len(made))]
    for found, folder in zip(made, folders, strict=True):
        recognise.write(found, folder, format_name)
    activations = raw(made[0])
    x = as_peers_see(format_name, activations)
    theirs = in_peers_environment(tmp_path, format_name.replace("-", "_"), x, *folders)
    for i, found in enumerate(made):
        ours, rebuilt = expected(found, format_name, activations)
        close(theirs["code"][i], ours)
        close(theirs["rebuilt"][i], rebuilt)


@pytest.mark.slow
def test_saes_that_peers_save_are_read(tmp_path):
    x = 3 + 2 * np.random.default_rng(0).standard_normal((TOKENS, WIDTH)).astype(np.float32)
    theirs = in_peers_environment(tmp_path, "saved_by_sae_lens", x, tmp_path / "lens")
    for i, name in enumerate(("standard", "uncentred", "jumprelu", "topk")):
        found = recognise.read(tmp_path / "lens" / name, ["only"])
        assert found.origin == sae_lens.NAME
        code = found.encode({"only": torch.from_numpy(x)})
        close(code, theirs["code"][0][i])
        close(found.decode(code)["only"], theirs["rebuilt"][0][i])
    theirs = in_peers_environment(tmp_path, "saved_by_sparsify", x, tmp_path / "sparsify")
    _reads_as(theirs, tmp_path / "sparsify", x)
    theirs = in_peers_environment(tmp_path, "trained_by_sparsify", x, tmp_path / "trained")
    _reads_as(theirs, tmp_path / "trained/run/layers.0", x)


def _reads_as(theirs: dict, folder: Path, x: np.ndarray) -> None:
    """An SAE in a folder computes here what its own package computed."""
    found = recognise.read(folder, ["only"])
    assert found.origin == sparsify.NAME
    code = found.encode({"only": torch.from_numpy(x)})
    close(code, theirs["code"][0])
    close(found.decode(code)["only"], theirs["rebuilt"][0])


def test_the_plain_forward_passes_share_nothing_with_the_package():
    source = Path(importlib.util.find_spec("tests.formats.plain").origin).read_text()
    assert "crosscoders" not in source.replace("crosscoder_learning", "")


VALUES = [None, True, -1, 0, 10**400, 1.5, "x", "x" * 3000, [], {}, [1, 2], float("nan"), float("inf")]
"""What a setting of someone else may hold."""
KEYS = ["encoder_layers", "code_normalization", "activation_fn", "activation_fn_kwargs", "metadata", "architecture"]


@pytest.mark.parametrize(("format_name", "activation"), [*EXPRESSIBLE, ("netcdf", "relu"), ("ckkissane", "relu")])
def test_a_mutated_folder_is_read_or_refused_in_one_line(member, tmp_path, format_name, activation):
    whole, mutated = tmp_path / "whole", tmp_path / "mutated"
    if format_name == "ckkissane":
        ckkissane_folder(whole)
    else:
        recognise.write(portable(member, activation), whole, format_name)
    random = np.random.default_rng(0)
    for _ in range(25):
        shutil.rmtree(mutated, ignore_errors=True)
        shutil.copytree(whole, mutated)
        path = random.choice(sorted(mutated.iterdir()))
        if path.suffix == ".json" and random.random() < 0.8:
            content = json.loads(path.read_text())
            key = str(random.choice([*content, *KEYS]))
            path.write_text(json.dumps(content | {key: VALUES[random.integers(len(VALUES))]}))
        else:
            content = bytearray(path.read_bytes())
            for place in random.integers(min(len(content), 10 ** random.integers(2, 6)), size=3):
                content[place] ^= 1 << random.integers(8)
            path.write_bytes(content[: -random.integers(9) or None])
        said = ""
        try:
            recognise.read(mutated)
        except UserError as error:
            said = str(error)
        assert "\n" not in said
