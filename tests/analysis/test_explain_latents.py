"""Labels of latents: a labeller that sees what a latent does is told from chance, and nothing is asked twice."""

import json
import re
import threading
import urllib.request
from argparse import Namespace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import torch
import transformers
import xarray as xr
from tests.project import ROOT

from crosscoders import artifacts, stage
from crosscoders.activations import extraction
from crosscoders.analysis import excerpts, explain_latents
from crosscoders.analysis.latent_page import shown_labels
from crosscoders.analysis.sections import ExplainLatentsSection
from crosscoders.crosscoder import crosscoder, files
from crosscoders.errors import UserError
from crosscoders.language_models import endpoint, pretrain, snapshots
from crosscoders.study import loading, surroundings
from crosscoders.study.settings.comparisons import Source
from crosscoders.study.settings.models import TrainedModel

WORDS = ("fox", "owl", "pike", "newt", "crow", "hare")
"""Latent i fires on the word i and on nothing else."""
DOCUMENTS, LENGTH = 80, 60
KEY = "secret-of-the-test"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The files of a crosscoder whose latents stand for words, on test documents in which the words are rare."""
    folder, generator = tmp_path_factory.mktemp("explain"), np.random.default_rng(0)
    tokens = DOCUMENTS * LENGTH
    word = np.where(generator.random(tokens) < 0.03, generator.integers(len(WORDS), size=tokens), -1)
    text = np.array([f" {WORDS[i]}" if i >= 0 else " grass" for i in word], object)
    v, width = artifacts.variable, len(WORDS)
    plain = xr.Dataset(
        {name: ("token", np.zeros(tokens, np.int32)) for name in ("role", "planted_behaviour", "token_id")}
    )
    plain["document"] = v("token", np.arange(tokens) // LENGTH, "document")
    plain["position"] = v("token", 1 + np.arange(tokens) % LENGTH, "position")
    plain["token_index"] = v("token", np.arange(tokens), "token")
    artifacts.write(plain.assign(token_text=v("token", text, "text")), folder / "tokens.nc")
    x = np.zeros((tokens, width), np.float32)
    x[np.flatnonzero(word >= 0), word[word >= 0]] = 1 + generator.random((word >= 0).sum())
    bits = torch.from_numpy(x).bfloat16().view(torch.uint16).numpy()
    sources = {"base": Source(model="a", layer=0), "chat": Source(model="b", layer=0)}
    both, norms = dict.fromkeys(sources, bits), dict.fromkeys(sources, np.linalg.norm(x, axis=1))
    artifacts.write(extraction.to_dataset(both, norms, plain, sources), folder / "test.nc", contiguous=sources)
    normalisation = xr.Dataset({"scale": ("source", np.ones(2)), "sink_norm": ("source", np.full(2, np.inf))})
    for name in sources:
        normalisation[f"mean_{name}"] = (f"width_{name}", np.zeros(width))
    normalisation = normalisation.assign_coords(source=np.array(list(sources), object))
    artifacts.write(normalisation, folder / "normalisation.nc")
    artifacts.write(files.to_dataset(_coder(list(sources), width), normalisation), folder / "crosscoder.nc")
    latents = {
        name: ("latent", np.linspace(0.1, 0.9, width)) for name in ("relative_norm", "nu_error", "nu_reconstruction")
    }
    planted = ("latent", "behaviour"), np.eye(width, 2)
    artifacts.write(xr.Dataset(latents | {"planted_share": planted}), folder / "latents.nc")
    return folder


def _coder(sources: list[str], width: int) -> crosscoder.Crosscoder:
    settings = {"latents": width, "blocks": {"all": {"share": 1.0}}, "activation": {"kind": "relu"}}
    training = {"steps": 1, "batch_tokens": 1, "learning_rate": 1.0, "warmup_steps": 0, "decay_share": 0.0}
    settings |= {"penalty": {"kind": "l1_of_norms", "coefficient": 1.0}}
    training |= {"gradient_clip": 1.0, "decoder_norm": 1.0, "dead_tokens": 1}
    made = files.CrosscoderSettings.model_validate(settings | {"training": training})
    coder = crosscoder.create(made, sources, [width, width], 0)
    coder.encoder[:] = torch.cat([torch.eye(width), torch.zeros(width, width)], 1)
    coder.encoder_bias[:] = -0.5
    return coder


def run(folder, output, snapshot=None, **explain) -> xr.Dataset:
    """What the stage makes of the files."""
    latents = {"relative_norm": 2, "nu": 2, "planted_share": 2, "random": 2}
    section = ExplainLatentsSection(
        study="s",
        setting_name="pair",
        crosscoder_name="l1",
        seed=0,
        explain={"latents": latents, "examples": 4, "held_out": 20} | explain,
        bootstrap={"bootstrap_replicates": 100, "confidence": 0.95},
        dtype="float32",
        device="cpu",
    )
    given = {name: folder / f"{name}.nc" for name in ("crosscoder", "latents", "normalisation", "tokens")}
    explain_latents.main(
        Namespace(settings=section, activations=[folder / "test.nc"], model=snapshot, output=output, **given)
    )
    return artifacts.read(output)


class Handler(BaseHTTPRequestHandler):
    """Labels excerpts by the word that is marked in them, and finds the excerpts that have the word of the label."""

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.asked.append(body)
        if self.headers.get("Authorization") != f"Bearer {KEY}":
            return self.answer(401, {"error": "who are you"})
        if len(self.server.asked) in self.server.busy_at:
            return self.answer(429, {"error": "busy"})
        if len(self.server.asked) > self.server.fails_after:
            return self.answer(400, {"error": f"enough of {KEY}"})
        given = json.loads(body)
        assert self.path == "/v1/chat/completions" and given["temperature"] == 0
        self.answer(200, self.server.reply(given["messages"][0]["content"]))

    def answer(self, status: int, content: dict) -> None:
        sent = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(sent)))
        self.end_headers()
        self.wfile.write(sent)

    def log_message(self, *_):
        pass


def truth(prompt: str) -> dict:
    marked = re.findall("«(.*?)»", prompt)
    if label := re.search("Label: the word (.*)\n", prompt):
        said = [int(number) for number, text in re.findall(r"^(\d+)\. (.*)$", prompt, re.M) if label[1] in text]
        return {"model": "knows-2026", "choices": [{"message": {"content": f"They are:\n{json.dumps(said)}"}}]}
    return {"model": "knows-2026", "choices": [{"message": {"content": f'"the word {marked[-1].strip()}"\n'}}]}


@pytest.fixture
def server(monkeypatch):
    """An endpoint that knows the truth, and that counts what it is asked."""
    opened = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    opened.asked, opened.busy_at, opened.fails_after, opened.reply = [], (), 10**6, truth
    thread = threading.Thread(target=opened.serve_forever)
    thread.start()
    monkeypatch.setenv("CROSSCODERS_ENDPOINT", f"http://127.0.0.1:{opened.server_port}/v1/")
    monkeypatch.setenv("CROSSCODERS_ENDPOINT_KEY", KEY)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(endpoint, "FIRST_WAIT", 0.01)
    yield opened
    opened.shutdown()
    thread.join()
    opened.server_close()


ASKED = {"endpoint": {"model": "knows"}}


def test_a_true_label_is_shown_and_another_latents_label_is_at_chance(folder, server, tmp_path):
    server.busy_at = (2, 3)
    found = run(folder, tmp_path / "a/b/c/seed-0.nc", **ASKED)
    labels = dict(zip(found["latent"].values.tolist(), found["label"].values, strict=True))
    assert sorted(labels) == list(range(6)), "each once, whatever it is chosen by"
    assert labels == {i: f"the word {WORDS[i]}" for i in labels}
    assert (found["score"].values == 1).all()
    assert (found["excerpt_active"].values == found["said"].values).all()
    assert ((found["excerpt_active"] == 1).sum("excerpt") == (found["excerpt_active"] == 0).sum("excerpt")).all()
    assert abs(float(found["mean_shuffled_score"]) - 0.5) < 0.1
    assert found["mean_shuffled_score_low"] <= found["mean_shuffled_score"] <= found["mean_shuffled_score_high"]
    assert (found["shown"].values == 1).all() and found["shuffled_shown"].sum() == 0
    assert (found["shuffled_of"] != found["latent"]).all()
    assert found.attrs["answered_by"] == "knows-2026"
    page = shown_labels(tmp_path / "a/b/c/seed-0.nc")["labels"]
    assert page["tried"] == list(range(6)) and list(page["shown"]["2"][:2]) == [f"the word {WORDS[2]}", 1]
    assert KEY not in str(found.attrs) + "".join(path.read_text() for path in tmp_path.rglob("*.json"))
    columns = (found[name].values for name in ("excerpt_text", "excerpt_active", "latent"))
    for text, active, latent in zip(*columns, strict=True):
        assert [WORDS[int(latent)] in one for one in text] == (active == 1).tolist()
        assert not any("«" in one for one in text)


def test_documents_that_label_do_not_score(folder):
    tokens = artifacts.read(folder / "tokens.nc")
    document, numbered = tokens["document"].values, np.array([f"{i} " for i in range(tokens.sizes["token"])], object)
    corpus = excerpts.Corpus(numbered, document, excerpts.halves(document, 0))
    at = np.flatnonzero(tokens["token_text"].values == " fox")
    value = np.linspace(1, 2, len(at))
    scored, active = excerpts.held_out(corpus, at, value, 20, np.random.default_rng(0))
    shown = excerpts.examples(corpus, at, value, 5)
    of = lambda text: {int(document[int(number)]) for number in re.findall(r"\d+", text)}  # noqa: E731
    assert all(len(of(text)) == 1 for text in (*scored, *shown))
    assert not set.union(*map(of, shown)) & set.union(*map(of, scored))
    assert sum(active) == 10 == len(active) // 2
    lengths = [
        sorted(len(text.split()) for text, on in zip(scored, active, strict=True) if on == side) for side in (0, 1)
    ]
    assert lengths[0] == lengths[1]


def test_an_interrupted_run_goes_on_and_asks_nothing_twice(folder, server, tmp_path):
    whole = run(folder, tmp_path / "whole/b/c/seed-0.nc", **ASKED)
    once = len(set(server.asked))
    assert len(server.asked) == once == 18
    server.asked.clear()
    server.fails_after = 9
    output = tmp_path / "parts/b/c/seed-0.nc"
    with pytest.raises(UserError, match=r"^explain.endpoint: 127.0.0.1 refuses requests to 'knows' \(status 400\): "):
        run(folder, output, **ASKED)
    answered, server.fails_after = set(server.asked[:9]), 10**6
    server.asked.clear()
    again = run(folder, output, **ASKED)
    assert not answered & set(server.asked) and len(server.asked) == once - 9
    assert again.identical(whole)
    assert output.read_bytes() == (tmp_path / "whole/b/c/seed-0.nc").read_bytes()
    server.asked.clear()
    run(folder, output, **ASKED)
    assert not server.asked


@pytest.mark.parametrize(
    ("variables", "reply", "said"),
    [
        ({"CROSSCODERS_ENDPOINT": ""}, truth, "explain.endpoint: CROSSCODERS_ENDPOINT is not set; expected an address"),
        ({"CROSSCODERS_ENDPOINT": "here"}, truth, "CROSSCODERS_ENDPOINT: no address; expected one as https://"),
        ({"CROSSCODERS_ENDPOINT": "http://127.0.0.1:9/v1"}, truth, "explain.endpoint: 127.0.0.1 cannot be reached"),
        ({"CROSSCODERS_ENDPOINT_KEY": "old"}, truth, "CROSSCODERS_ENDPOINT_KEY: refused by 127.0.0.1 (status 401)"),
        ({}, lambda prompt: {"choices": []}, "explain.endpoint: 127.0.0.1 sent '{\"choices\": []}'; expected choices"),
    ],
)
def test_an_endpoint_that_does_not_answer_is_one_line(
    folder, server, tmp_path, monkeypatch, capsys, variables, reply, said
):
    server.reply = reply
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit):
        stage.run(lambda _: run(folder, tmp_path / "a/b/c/seed-0.nc", **ASKED), Namespace(log=None, threads=0))
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert line.removeprefix("error: ").startswith(said)
    assert KEY not in line


def test_replies_that_list_nothing_count_as_chance(folder, server, tmp_path, capsys):
    server.reply = lambda prompt: {"choices": [{"message": {"content": "I would rather not. [99]"}}]}
    found = run(folder, tmp_path / "a/b/c/seed-0.nc", **ASKED)
    assert (found["score"].values == 0.5).all() and found["shown"].sum() == found["understood"].sum() == 0
    assert "12 of 12 replies list no excerpts" in capsys.readouterr().err


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A small model with random weights and a tokenizer of its own."""
    torch.manual_seed(0)
    options = {
        "kind": "trained",
        "corpora": ["wiki"],
        "vocabulary": 300,
        "special_tokens": ["<|endoftext|>"],
        "depth": 2,
    }
    options |= {"width": 32, "heads": 2, "steps": 1, "batch_tokens": 1, "learning_rate": 1.0, "warmup_steps": 0}
    tokenizer = pretrain.byte_pairs(
        [f"a {word} in the grass says yes or no" for word in WORDS], TrainedModel(**options)
    )
    config = transformers.LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=256,
        initializer_range=0.3,
    )
    folder = tmp_path_factory.mktemp("model") / "made"
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    snapshots.publish(folder, folder.with_name("small"), {})
    return folder.with_name("small") / "provenance.json"


def test_a_model_of_the_study_labels_alone_and_the_same_twice(folder, model, tmp_path, monkeypatch, capsys):
    def refuse(*_, **__):
        raise AssertionError("nothing is sent where no endpoint is named")

    monkeypatch.setattr(urllib.request.OpenerDirector, "open", refuse)
    outputs = [tmp_path / name / "b/c/seed-0.nc" for name in "ab"]
    found, _ = (run(folder, output, model, model="small", label_tokens=6) for output in outputs)
    assert outputs[0].read_bytes() == outputs[1].read_bytes()
    there = found["excerpt_active"] >= 0
    assert (np.isfinite(found["log_odds"]) == there).all()
    assert ((found["said"] == 1).sum("excerpt") <= there.sum("excerpt") / 2).all(), "at most half are above the median"
    assert (found["score_low"] <= found["score"]).all() and (found["score"] <= found["score_high"]).all()
    assert not (found["shown"].values & (found["score_low"].values <= float(found["mean_shuffled_score_high"]))).any()
    assert "prompts lost their beginning, as small reads 256 tokens" in capsys.readouterr().err


def test_log_odds_are_those_of_the_whole_answers(model):
    asked = explain_latents.LocalLabeller(model.parent, "cpu", torch.float32, 4)
    prompts = ["a fox", "in the grass a crow says"]
    for prompt, odds in zip(prompts, asked._log_odds(prompts), strict=True):
        sums = []
        for answer in (" yes", " no"):
            before, ids = (
                asked.tokenizer(text, add_special_tokens=False).input_ids for text in (prompt, prompt + answer)
            )
            assert ids[: len(before)] == before
            logits = torch.log_softmax(asked.model(torch.tensor([ids])).logits[0].detach().double(), -1)
            sums.append(sum(float(logits[i - 1, ids[i]]) for i in range(len(before), len(ids))))
        assert odds == pytest.approx(sums[0] - sums[1], abs=1e-4)


def test_an_address_that_is_missing_is_told_before_any_job(monkeypatch):
    content = loading.read(ROOT / "studies/smoke.yaml")
    content["settings"]["base-vs-chat"]["explain"] = ASKED
    monkeypatch.chdir(ROOT)
    study = loading.check(content)
    for name in ("CROSSCODERS_ENDPOINT", "OPENAI_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    (line,) = surroundings.missing(study)
    assert line.startswith(
        "settings.base-vs-chat.explain.endpoint: CROSSCODERS_ENDPOINT is not set; expected an address"
    )
    monkeypatch.setenv("OPENAI_BASE_URL", "https://api.example.org/v1")
    assert surroundings.missing(study) == []
