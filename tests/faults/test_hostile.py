"""Hostile model folders: nothing in them runs, nothing is written outside `results/`, and each ends in a line or is harmless."""

import json
import os
import pickle
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tests.architectures import save
from tests.faults.jobs import processes, run
from tests.project import ROOT

from crosscoders.errors import UserError
from crosscoders.study import loading
from crosscoders.workflow.sections import section

CODE = "import pathlib; pathlib.Path({marker!r}).touch()\n"


class Runs:
    """An object that touches a file when it is unpickled."""

    def __init__(self, marker: str):
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


def edited(path: Path, **changes: object) -> None:
    """Change entries of a JSON file."""
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def pickled(folder: Path, marker: str) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps({"model.embed_tokens.weight": Runs(marker)}))


def pickled_by_torch(folder: Path, marker: str) -> None:
    (folder / "model.safetensors").unlink()
    torch.save({"weight": Runs(marker)}, folder / "pytorch_model.bin")


def own_model_code(folder: Path, marker: str) -> None:
    (folder / "modeling_own.py").write_text(CODE.format(marker=marker) + "class Own: pass\n")
    edited(
        folder / "config.json", auto_map={"AutoConfig": "modeling_own.Own", "AutoModelForCausalLM": "modeling_own.Own"}
    )


def own_architecture(folder: Path, marker: str) -> None:
    own_model_code(folder, marker)
    edited(folder / "config.json", model_type="own")


def own_tokenizer_code(folder: Path, marker: str) -> None:
    (folder / "tokenization_own.py").write_text(CODE.format(marker=marker) + "class Own: pass\n")
    changes = {"tokenizer_class": "Own", "auto_map": {"AutoTokenizer": ["tokenization_own.Own", None]}}
    edited(folder / "tokenizer_config.json", **changes)


def kernels_of_the_hub(folder: Path, marker: str) -> None:
    changes = {"attn_implementation": "somebody/kernels", "_attn_implementation": "somebody/kernels"}
    edited(folder / "config.json", **changes)


def an_adapter_beside(folder: Path, marker: str) -> None:
    content = {"peft_type": "LORA", "base_model_name_or_path": "/etc", "task_type": "CAUSAL_LM", "r": 2}
    (folder / "adapter_config.json").write_text(json.dumps(content))


def weights_elsewhere(folder: Path, marker: str) -> None:
    (folder / "model.safetensors").rename(folder.parent / "outside.safetensors")
    index = {"metadata": {}, "weight_map": {"model.embed_tokens.weight": "../outside.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def weights_of_the_system(folder: Path, marker: str) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").symlink_to("/etc/passwd")


def an_endless_device(folder: Path, marker: str) -> None:
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer.json").symlink_to("/dev/zero")


def a_huge_header(folder: Path, marker: str) -> None:
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", 2**60) + b"{}")


def tensors_past_the_end(folder: Path, marker: str) -> None:
    header = json.dumps({"model.embed_tokens.weight": {"dtype": "F32", "shape": [64, 32], "data_offsets": [0, 2**50]}})
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header.encode())


def huge_sizes(folder: Path, marker: str) -> None:
    edited(folder / "config.json", vocab_size=10**12)


def a_billion_layers(folder: Path, marker: str) -> None:
    edited(folder / "config.json", num_hidden_layers=10**9)


def layers_that_are_text(folder: Path, marker: str) -> None:
    edited(folder / "config.json", num_hidden_layers="__import__('os')", torch_dtype="os.system", dtype="os.system")


def a_deep_config(folder: Path, marker: str) -> None:
    (folder / "config.json").write_text('{"model_type":"llama","a":' + "[" * 200_000 + "]" * 200_000 + "}")


def a_deep_tokenizer(folder: Path, marker: str) -> None:
    (folder / "tokenizer.json").write_text("[" * 200_000 + "]" * 200_000)


MODELS: dict[Callable[[Path, str], None], bool] = {
    pickled: False,
    pickled_by_torch: False,
    own_model_code: True,
    own_architecture: False,
    own_tokenizer_code: True,
    kernels_of_the_hub: True,
    an_adapter_beside: True,
    weights_elsewhere: False,
    weights_of_the_system: False,
    an_endless_device: False,
    a_huge_header: False,
    tensors_past_the_end: False,
    huge_sizes: False,
    a_billion_layers: False,
    layers_that_are_text: False,
    a_deep_config: False,
    a_deep_tokenizer: False,
}
"""What is done to a folder, and whether the model can be used all the same, since the rest of it is plain."""


def fetched(folder: Path, model: Path) -> tuple[int, str]:
    """What a user sees who studies a model folder: of the check, and where that passes, of the stage that fetches it."""
    smoke = loading.read(ROOT / "studies/smoke.yaml")
    layers = smoke["settings"]["cross-layer"] | {"context": 32}
    content = smoke | {"study": "hostile", "settings": {"layers": layers}, "aligned": {}}
    content["models"] = {"base": {"kind": "folder", "path": str(model), "licence": "MIT"}}
    content["corpora"] = {"wiki": {"kind": "file", "path": str(folder / "text.jsonl"), "licence": "MIT"}}
    (folder / "text.jsonl").write_text('{"text": "some words"}\n')
    (folder / "results").mkdir()
    try:
        study = loading.check(content)
    except UserError as error:
        return 1, "\n".join(f"error: {line}" for line in str(error).splitlines())
    settings = section(study, "fetch_model", model="base")
    output = "results/hostile/models/base/provenance.json"
    return run(folder, "language_models.fetch_model", "--settings", settings, "--output", output)


def listing(folder: Path) -> set[str]:
    """Everything that lies in a folder, but for its results."""
    names = {str(path.relative_to(folder)) for path in folder.rglob("*")}
    return {name for name in names if not name.startswith("results")}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Every hostile folder, and what came of it: status, output, what was there before and after."""
    seen = {}
    with processes() as pool:
        for spoil in MODELS:
            folder = tmp_path_factory.mktemp("hostile")
            (folder / "model").mkdir()
            save(folder / "model", "llama")
            spoil(folder / "model", str(folder / "ran"))
            before = listing(folder) | {"text.jsonl"}
            seen[spoil.__name__] = folder, before, pool.submit(fetched, folder, folder / "model")
        return {name: (folder, before, *future.result(120)) for name, (folder, before, future) in seen.items()}


@pytest.mark.parametrize("spoil", MODELS, ids=lambda spoil: spoil.__name__)
def test_nothing_in_a_model_folder_runs_or_reaches_out(models, spoil):
    folder, before, status, printed = models[spoil.__name__]
    assert not (folder / "ran").exists()
    assert listing(folder) == before
    assert "Traceback" not in printed
    assert (status == 0) == MODELS[spoil], printed
    print(printed)
    if status:
        assert all(line.startswith("error: ") and len(line) <= 400 for line in printed.strip().splitlines()), printed
