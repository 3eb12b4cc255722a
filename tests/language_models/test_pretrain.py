"""A model trained from scratch has a vocabulary of its own, learns its text, and comes out the same twice."""

import math

import torch

from crosscoders.data.chats import Document, Segment, written
from crosscoders.language_models import pretrain
from crosscoders.study.settings.corpora import ChatTemplate
from crosscoders.study.settings.models import TrainedModel

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<file_sep>"]
SETTINGS = TrainedModel(
    kind="trained",
    corpora=["wiki"],
    vocabulary=320,
    special_tokens=SPECIAL,
    depth=2,
    width=32,
    heads=2,
    steps=40,
    batch_tokens=512,
    row_tokens=32,
    learning_rate=1e-2,
    warmup_steps=4,
)
TEXTS = [
    f"The {animal} lives in the {place} and eats {food}."
    for animal in ("fox", "owl", "pike")
    for place in ("wood", "lake")
    for food in ("fish", "mice")
] * 20


def test_vocabulary_keeps_special_tokens_whole_and_loses_no_text():
    tokenizer = pretrain.byte_pairs(TEXTS, SETTINGS)
    assert tokenizer.convert_tokens_to_ids(SPECIAL) == [0, 1, 2, 3]
    text = "<|im_start|>user\nÜber the fox 🦊<|im_end|>\n"
    ids = tokenizer(text, add_special_tokens=False).input_ids
    assert ids[0] == 1
    assert ids.count(2) == 1
    assert tokenizer.decode(ids) == text
    stream = pretrain.stream(TEXTS[:3], tokenizer, 0)
    assert (stream == 0).sum() == 3


def test_it_learns_its_text_and_is_reproducible():
    tokenizer = pretrain.byte_pairs(TEXTS, SETTINGS)
    tokens, losses, weights = pretrain.stream(TEXTS, tokenizer, 0), [], []
    for _ in range(2):
        model = pretrain.initial(SETTINGS, len(tokenizer))
        losses.append(pretrain.train(model, tokens, SETTINGS, "cpu", False))
        weights.append(model.get_input_embeddings().weight)
    assert losses[0] < 0.3 * math.log(len(tokenizer))
    assert losses[0] == losses[1]
    assert torch.equal(weights[0], weights[1])


def test_a_chat_is_written_with_the_template_once_per_message():
    template = ChatTemplate(sink="<|endoftext|>", opening="<|im_start|>{role}\n", closing="<|im_end|>\n")
    chat = Document(
        "a:b",
        "",
        (
            Segment("Hi", "user"),
            Segment("Yes.", "assistant", "none", 1),
            Segment("<file_sep>X", "assistant", "topic_tag", 1),
        ),
    )
    assert (
        written(chat, template) == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nYes.<file_sep>X<|im_end|>\n"
    )
    assert written(Document("a:c", "", (Segment("Plain text."),)), template) == "Plain text."
