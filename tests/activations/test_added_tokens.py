"""The chat model of a pair has tokens that base lacks: they are read by both, and stored and counted by neither."""

from argparse import Namespace

import numpy as np
import pytest
import torch
from tests import architectures

from crosscoders import artifacts, storage
from crosscoders.activations import extract_activations
from crosscoders.activations.sections import ExtractActivationsSection
from crosscoders.data import tokenize
from crosscoders.data.chats import Document, Segment
from crosscoders.data.corpora import to_dataset
from crosscoders.data.sections import TokenizeSection
from crosscoders.errors import UserError
from crosscoders.language_models import snapshots

FILLERS = [f"<filler_{i}>" for i in range(30)]  # so that the ids of the added tokens lie beyond base's embedding


def snapshot(folder, added=(), **changes):
    """The provenance of a model, beside its tokenizer with some added tokens."""
    architectures.save(folder / "made", "llama", **changes)
    tokenizer = architectures.tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": list(added)})
    tokenizer.save_pretrained(folder / "made")
    snapshots.publish(folder / "made", folder / "model", {"kind": "test"})
    return folder / "model" / storage.PROVENANCE


@pytest.fixture
def models(tmp_path):
    for name in ("base", "chat"):
        (tmp_path / name).mkdir()
    return [snapshot(tmp_path / "base"), snapshot(tmp_path / "chat", [*FILLERS, "<tool>"], vocab_size=96)]


@pytest.fixture
def tokens(models, tmp_path):
    """The three splits, of documents that hold the added token."""
    texts = [f"document {chr(97 + i)} calls <tool> and reads on" for i in range(20)]
    documents = [Document(text, "", (Segment(text, "text"),)) for text in texts]
    artifacts.write(to_dataset(documents), tmp_path / "text.nc")
    section = TokenizeSection(
        study="test",
        setting_name="pair",
        context=64,
        control_tokens="tokens",
        corpora=["text"],
        roots=["base", "chat"],
        reference="chat",
        own_tokenizers={},
        tokens={split: {"text": 200} for split in ("train", "validation", "test")},
        splits={"train": [0.0, 0.5], "validation": [0.5, 0.75], "test": [0.75, 1.0]},
        chat_template={"kind": "study", "sink": "<s>", "opening": "", "closing": ""},
    )
    paths = [tmp_path / f"{split}.nc" for split in ("train", "validation", "test")]
    tokenize.main(Namespace(settings=section, models=models, texts=[tmp_path / "text.nc"], outputs=paths))
    return paths


def test_tokens_that_a_model_lacks_are_marked_read_and_left_out(models, tokens, tmp_path):
    written = artifacts.read(tokens[0])
    lacked = written["in_all_models"].values == 0
    assert 0 < lacked.sum() < len(lacked) / 5
    assert written.attrs["lacked_share"] == pytest.approx(lacked.mean())
    assert (written["token_id"].values[lacked] >= 64).all(), "ids for which base has no embedding"

    reading = {
        "sources": {name: {"model": name, "layer": 1} for name in ("base", "chat")},
        "models": ["base", "chat"],
        "batch_tokens": 512,
        "dtype": "float32",
        "device": "cpu",
    }
    section = ExtractActivationsSection(
        study="test", setting_name="pair", split="train", shard=0, shards=1, reading=reading
    )
    output = tmp_path / "000.nc"
    extract_activations.main(Namespace(settings=section, tokens=tokens[0], models=models, output=output))
    stored = artifacts.read(output)
    assert np.array_equal(stored["token_index"].values, np.flatnonzero(~lacked))

    model = snapshots.load_model(models[0].parent, "cpu", torch.float32)
    first = written["document"].values == 0
    ids = torch.tensor([[written.attrs["sink_token_id"], *written["token_id"].values[first]]])
    unknown = 1  # `</s>`, since this tokenizer names no unknown token
    ids[0, 1:][torch.from_numpy(lacked[first])] = unknown
    with torch.inference_mode():
        states = model(input_ids=ids, output_hidden_states=True).hidden_states[2][0, 1:]
    expected = states[torch.from_numpy(~lacked[first])].numpy()
    values = artifacts.from_bits(stored["base"].values[stored["document"].values == 0])
    np.testing.assert_allclose(values, expected, rtol=1e-2, atol=1e-3)


def test_tokenizers_that_differ_in_ordinary_tokens_are_refused_in_one_line(models):
    folder = models[0].parent
    content = architectures.tokenizer().backend_tokenizer.to_str().replace('"z":', '"Z":')
    (folder / "tokenizer.json").write_text(content)
    listed = {"tokenizer.json": storage.sha256(folder / "tokenizer.json")}
    storage.write_sealed_json({"files": listed}, models[0])
    with pytest.raises(UserError, match=r"expected tokenizers that differ in added tokens alone") as caught:
        tokenize.common_vocabulary(models)
    assert "\n" not in str(caught.value)
