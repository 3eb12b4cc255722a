"""Snapshots of a training: they change nothing about it, each is a model of its own, and damage is named."""

import argparse
import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from crosscoders import artifacts
from crosscoders.data import corpora
from crosscoders.data.chats import Document, Segment
from crosscoders.errors import UserError
from crosscoders.language_models import pretrain, snapshots, take_snapshot
from crosscoders.language_models.sections import PretrainSection, TakeSnapshotSection
from crosscoders.study.settings.corpora import ChatTemplate
from crosscoders.study.settings.models import SnapshotModel, TrainedModel

SETTINGS = {
    "kind": "trained",
    "corpora": ["wiki"],
    "vocabulary": 300,
    "special_tokens": ["<|endoftext|>"],
    "depth": 1,
    "width": 16,
    "heads": 2,
    "steps": 6,
    "batch_tokens": 128,
    "row_tokens": 16,
    "learning_rate": 1e-2,
    "warmup_steps": 1,
}
TEMPLATE = ChatTemplate(sink="<|endoftext|>", opening="<{role}>", closing="</>")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with one model trained without snapshots, and the same with snapshots."""
    folder = tmp_path_factory.mktemp("models")
    texts = [
        Document(f"wiki:{i}", "", (Segment(f"The fox {i} lives in the wood near lake {i % 7}."),)) for i in range(60)
    ]
    artifacts.write(corpora.to_dataset(texts), folder / "wiki.nc")
    for name, more in {"plain": {}, "base": {"snapshots": [0, 3, 6]}}.items():
        section = PretrainSection(
            study="s",
            name="base",
            model=TrainedModel(**SETTINGS | more),
            chat_template=TEMPLATE,
            splits=[[0.0, 1.0]],
            device="cpu",
        )
        output = folder / name / "provenance.json"
        pretrain.main(argparse.Namespace(settings=section, texts=[folder / "wiki.nc"], output=output))
    return folder


def take(folder, step: int):
    section = TakeSnapshotSection(study="s", name="one", model=SnapshotModel(kind="snapshot", of="base", step=step))
    given = folder / "base/provenance.json", folder / f"s{step}/provenance.json"
    take_snapshot.main(argparse.Namespace(settings=section, trained=given[0], output=given[1]))
    return folder / f"s{step}"


def test_a_training_is_the_same_with_snapshots(trained):
    plain, kept = ({file.name: file.read_bytes() for file in (trained / name).iterdir()} for name in ("plain", "base"))
    assert set(kept) - set(plain) == {f"step-00000{step}.safetensors" for step in (0, 3, 6)}
    assert {name for name in plain if plain[name] != kept[name]} == {"provenance.json"}
    assert "snapshots" not in json.dumps(json.loads(plain["provenance.json"]))


def test_every_snapshot_is_the_model_of_its_step(trained):
    models = {step: snapshots.load_model(take(trained, step), "cpu", torch.float32) for step in (0, 3, 6)}
    final = snapshots.load_model(trained / "base", "cpu", torch.float32)
    initial = pretrain.initial(TrainedModel(**SETTINGS), final.config.vocab_size)
    ids = torch.tensor([[0, 5, 9]])
    with torch.no_grad():
        logits = {step: model(ids).logits for step, model in models.items()}
        assert torch.equal(logits[6], final(ids).logits)
        assert torch.equal(logits[0], initial.eval()(ids).logits)
    assert not torch.equal(logits[3], logits[0])
    assert not torch.equal(logits[3], logits[6])
    assert json.loads((trained / "s3/provenance.json").read_text())["checks"] == {"step": 3}
    assert np.isclose(
        sum(t.numel() for t in load_file(trained / "s3/model.safetensors").values()), final.num_parameters()
    )


def test_a_damaged_snapshot_is_named(trained):
    path = trained / "base/step-000003.safetensors"
    content = path.read_bytes()
    try:
        path.write_bytes(content[:-1] + b"\x01")
        with pytest.raises(UserError, match=r"step-000003\.safetensors: missing or not as written"):
            take(trained, 0)
    finally:
        path.write_bytes(content)
