"""Two model families, each with its own tokenizer: what is stored of each is what it computes on the same text."""

from argparse import Namespace

import numpy as np
import pytest
import torch
import transformers
from tests import architectures
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from crosscoders import artifacts, storage
from crosscoders.activations import extract_activations, measure_ablations
from crosscoders.activations.sections import ExtractActivationsSection
from crosscoders.data import tokenize
from crosscoders.data.chats import Document, Segment
from crosscoders.data.corpora import to_dataset
from crosscoders.data.sections import TokenizeSection
from crosscoders.data.tokenizer import load_tokenizer
from crosscoders.errors import UserError
from crosscoders.language_models import snapshots, splicing
from crosscoders.language_models.model_tokens import ChosenDocuments, ModelTokens

TEXTS = [
    f"Der naïve Käfer {i} aß in 東京 ein 🙂 und {i * i} Äpfel; then it said: don't  stop.\n" * 3 for i in range(30)
]
CONTEXT = 40


def byte_level(size: int) -> Tokenizer:
    """Bytes and merges, as of GPT-2 and Llama 3."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    made.train_from_iterator(
        TEXTS, trainers.BpeTrainer(vocab_size=size, special_tokens=["<s>"], initial_alphabet=alphabet)
    )
    return made


def with_dummy_prefix() -> Tokenizer:
    """A space before every text and pieces that begin with `▁`, as of Llama 2 and Gemma."""
    made = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    made.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Strip(" ", 1, 0)])
    made.train_from_iterator(TEXTS, trainers.BpeTrainer(vocab_size=90, special_tokens=["<s>", "<unk>"]))
    return made


def word_pieces() -> Tokenizer:
    """Words in small letters without accents, and pieces of them, as of BERT; spaces are no tokens."""
    made = Tokenizer(models.WordPiece(unk_token="<unk>"))
    made.normalizer = normalizers.BertNormalizer()
    made.pre_tokenizer, made.decoder = pre_tokenizers.BertPreTokenizer(), decoders.WordPiece()
    made.train_from_iterator(TEXTS, trainers.WordPieceTrainer(vocab_size=150, special_tokens=["<s>", "<unk>"]))
    return made


def unigram() -> Tokenizer:
    """Pieces with probabilities, as of T5 and XGLM."""
    made = Tokenizer(models.Unigram())
    made.pre_tokenizer, made.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    made.train_from_iterator(
        TEXTS, trainers.UnigramTrainer(vocab_size=150, special_tokens=["<s>", "<unk>"], unk_token="<unk>")
    )
    return made


def snapshot(folder, kind: str, tokenizer: Tokenizer):
    """The provenance of a model of some architecture, beside its tokenizer."""
    folder.mkdir()
    architectures.model(kind, vocab_size=tokenizer.get_vocab_size()).save_pretrained(folder / "made")
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="<s>")
    fast.save_pretrained(folder / "made")
    snapshots.publish(folder / "made", folder / "model", {"kind": "test"})
    return folder / "model" / storage.PROVENANCE


@pytest.fixture(params=[with_dummy_prefix, word_pieces, unigram, lambda: byte_level(270)])
def pair(request, tmp_path):
    """A base model with a tokenizer of its own, the chat model, and the three splits as they read them."""
    folders = [
        snapshot(tmp_path / "base", "gpt2", request.param()),
        snapshot(tmp_path / "chat", "llama", byte_level(400)),
    ]
    documents = [Document(text, "", (Segment(text, "text"),)) for text in TEXTS]
    artifacts.write(to_dataset(documents), tmp_path / "text.nc")
    paths = [tmp_path / f"{split}.nc" for split in ("train", "validation", "test")]
    arguments = Namespace(settings=section(), models=folders, texts=[tmp_path / "text.nc"], outputs=paths)
    tokenize.main(arguments)
    return folders, paths[2]


def section(**changes) -> TokenizeSection:
    values = {
        "study": "test",
        "setting_name": "pair",
        "context": CONTEXT,
        "control_tokens": "text",
        "corpora": ["text"],
        "roots": ["base", "chat"],
        "reference": "chat",
        "own_tokenizers": {"base": "base"},
        "tokens": {split: {"text": 500} for split in ("train", "validation", "test")},
        "splits": {"train": [0.0, 0.4], "validation": [0.4, 0.7], "test": [0.7, 1.0]},
        "chat_template": {"kind": "study", "sink": "<s>", "opening": "", "closing": ""},
    }
    return TokenizeSection(**values | changes)


def reading() -> dict:
    return {
        "sources": {name: {"model": name, "layer": 1} for name in ("base", "chat")},
        "models": ["base", "chat"],
        "batch_tokens": 512,
        "dtype": "float32",
        "device": "cpu",
    }


def extracted(pair, tmp_path, shard=0, shards=1):
    folders, tokens = pair
    asked = ExtractActivationsSection(
        study="test", setting_name="pair", split="test", shard=shard, shards=shards, reading=reading()
    )
    output = tmp_path / f"{shard:03d}.nc"
    extract_activations.main(Namespace(settings=asked, tokens=tokens, models=folders, output=output))
    return artifacts.read(output)


def test_both_models_read_the_text_as_their_tokenizers_give_it(pair):
    folders, path = pair
    tokens = artifacts.read(path)
    own = ModelTokens.of(tokens, "base")
    paired = tokens["in_all_models"].values == 1
    assert np.array_equal(paired, own.place >= 0)
    assert paired.mean() > 0.1
    shares = tokens["covered_share"].sel(tokenizer=["chat", "base"]).values
    np.testing.assert_allclose(shares, paired.sum() / np.array([len(paired), len(own.ids)]))
    ends = {}
    for name, folder, read in zip(("base", "chat"), folders, (own, ModelTokens.of(tokens, "chat")), strict=True):
        ends[name] = np.empty(len(read.ids), int)
        for number, key in enumerate(tokens["key"].values):
            made = load_tokenizer(folder.parent)(key, add_special_tokens=False, return_offsets_mapping=True)
            of_document = np.flatnonzero(read.document == number)
            assert read.ids[of_document].tolist() == made.input_ids[: len(of_document)]
            ends[name][of_document] = [end for _, end in made.offset_mapping[: len(of_document)]]
        assert read.position.max() < CONTEXT
    assert np.array_equal(ends["base"][own.place[paired]], ends["chat"][paired])


def test_what_is_stored_is_what_each_model_computes_alone(pair, tmp_path):
    folders, path = pair
    tokens = artifacts.read(path)
    stored = [extracted(pair, tmp_path, shard, 2) for shard in range(2)]
    index = np.concatenate([part["token_index"].values for part in stored])
    assert np.array_equal(index, np.flatnonzero(tokens["in_all_models"].values))
    for name, folder in zip(("base", "chat"), folders, strict=True):
        model = snapshots.load_model(folder.parent, "cpu", torch.float32)
        read = ModelTokens.of(tokens, name)
        expected = []
        for token in read.place[index]:
            first = token - read.position[token] + 1
            ids = torch.tensor([[read.sink, *read.ids[first : token + 1]]])
            with torch.inference_mode():
                expected.append(model(input_ids=ids, output_hidden_states=True).hidden_states[2][0, -1].numpy())
        values = np.concatenate([artifacts.from_bits(part[name].values) for part in stored])
        np.testing.assert_allclose(values, np.stack(expected), rtol=1e-2, atol=2e-3)


def test_losses_are_those_of_each_model_on_its_own_tokens(pair, tmp_path):
    folders, path = pair
    tokens, stored = artifacts.read(path), extracted(pair, tmp_path)
    document = tokens["document"].values
    replaced = np.zeros(len(document), bool)
    replaced[stored["token_index"].values] = True
    for name, folder in zip(("base", "chat"), folders, strict=True):
        model, read = snapshots.load_model(folder.parent, "cpu", torch.float32), ModelTokens.of(tokens, name)
        chosen = ChosenDocuments.of(read, document, np.array([1, 2]))
        assert chosen.counts.tolist() == [np.sum(read.document == number) for number in (1, 2)]
        rows = np.zeros((len(document), 32), np.float32)
        rows[replaced] = artifacts.from_bits(stored[name].values)
        site = (1, "resid_post")
        changes = [None, (site, read.spread(rows, replaced)), (site, np.zeros((len(read.ids), 32), np.float32))]
        losses = splicing.token_losses(model, read.ids, chosen.spans, read.sink, 256, changes, read.marked(replaced))
        by_itself, zero = np.abs(losses[1:] - losses[0])[:, chosen.counted].mean(axis=1)
        assert by_itself < zero / 20
        first = np.flatnonzero(read.document == 1)
        first = first[: np.sum(np.cumsum(read.position[first] == 1) == 1)]
        ids = torch.tensor([[read.sink, *read.ids[first]]])
        with torch.inference_mode():
            logits = model(input_ids=ids).logits[0, :-1]
        expected = torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="none").numpy()
        np.testing.assert_allclose(losses[0, first], expected, rtol=1e-4, atol=1e-5)


def test_tokens_of_a_document_differ_between_the_sources():
    sums, counts = np.ones((2, 2, 3)), np.array([[3, 5], [4, 4]])
    dataset = measure_ablations.to_dataset(sums, counts, np.arange(2), ["base", "chat"])
    assert dataset["tokens"].sel(source="chat").values.tolist() == [5, 4]


def test_a_tokenizer_without_a_first_token_is_a_line(tmp_path):
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=byte_level(270))
    with pytest.raises(UserError, match="names no token that begins or ends a text"):
        tokenize.own_sink(tokenizer, tmp_path)
