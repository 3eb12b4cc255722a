"""`crosscoders new`: a complete study from models and texts, through the command line."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from crosscoders.cli import main
from crosscoders.study.loading import load
from crosscoders.study.queries import measurements


@pytest.fixture(scope="module")
def models(tmp_path_factory, small_llama):
    """Two folders of one architecture; only the second's tokenizer has a chat template."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("modèles fins")  # a space and an accent, as users' folders have
    letters = {chr(97 + index): index for index in range(26)}
    tokenizer = Tokenizer(models.WordLevel({**letters, "<s>": 26, "<unk>": 27}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    for name, template in (("base", None), ("chat", "{% for m in messages %}{{ m.content }}{% endfor %}")):
        small_llama.save_pretrained(folder / name)
        fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", unk_token="<unk>")
        fast.chat_template = template
        fast.save_pretrained(folder / name)
    return folder


@pytest.fixture
def texts(tmp_path):
    path = tmp_path / "café text.jsonl"
    path.write_text("".join(json.dumps({"text": "ab cd " * 50}) + "\n" for _ in range(400)))
    return path


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_two_models_and_a_text_give_a_study_that_is_valid(models, texts, capsys):
    main(["new", str(models / "base"), str(models / "chat"), "--text", str(texts), "--study", "mine"])
    assert "--configfile studies/mine.yaml" in capsys.readouterr().out
    study = load("studies/mine.yaml")
    setting = study.settings["base-vs-chat"]
    assert [source.layer for source in setting.sources.values()] == [2, 2]
    assert study.chat_template.kind == "model"
    text = next(iter(study.corpora.values()))
    assert str(text.path) == str(texts)
    asked = sum(count for split in setting.tokens.values() for count in split.values())
    assert 0 < asked <= texts.stat().st_size / 4


def test_without_a_text_the_embedded_corpora_are_named(models):
    main(["new", str(models / "base"), str(models / "chat"), "--layer", "1"])
    study = load("studies/base-vs-chat.yaml")
    assert {corpus.kind for corpus in study.corpora.values()} == {"wheel"}
    assert {source.layer for source in study.settings["base-vs-chat"].sources.values()} == {1}


def test_layers_of_one_model_in_any_order(models, texts):
    main(["new", str(models / "base"), "--layers", "3,0,2", "--text", str(texts)])
    setting = load("studies/base-layers.yaml").settings["cross-layer"]
    assert [source.layer for source in setting.sources.values()] == [0, 2, 3]
    assert setting.notebook == "cross_layer"


def test_the_study_gives_its_reasons_in_comments(models, texts):
    main(["new", str(models / "base"), str(models / "chat"), "--text", str(texts), "--study", "mine"])
    content = Path("studies/mine.yaml").read_text()
    assert "llama: 4 layers of width 32, 64 tokens" in content
    chosen = [line for line in content.splitlines() if line.strip().startswith(("latents: ", "steps: ", "seeds:"))]
    assert all("#" in line for line in chosen[:3]), chosen


def test_a_study_that_exists_is_never_replaced(models, texts):
    arguments = ["new", str(models / "base"), "--layers", "0,1", "--study", "mine"]
    main(arguments)
    before = Path("studies/mine.yaml").read_text()
    with pytest.raises(SystemExit, match=r"studies/mine\.yaml: exists already"):
        main([*arguments, "--text", str(texts)])
    assert Path("studies/mine.yaml").read_text() == before


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["{base}", "{chat}", "--layer", "9"], r"--layer: 9; .*base has the layers 0 to 3"),
        (["{base}", "--layers", "1"], r"--layers: \[1\]; expected at least two"),
        (["{base}"], "expected two models"),
        (["{base}", "{chat}", "--text", "nowhere.jsonl"], "nowhere.jsonl: no such file or folder"),
        (["./nothing", "{chat}"], "./nothing: no such folder"),
        (["{base}", "{chat}", "--text", "org/data"], "org/data: .* expected org/data@COMMIT"),
    ],
)
def test_mistakes_end_in_one_line_and_write_nothing(models, tmp_path, monkeypatch, arguments, line):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")  # nobody listens
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    given = [text.format(base=models / "base", chat=models / "chat") for text in arguments]
    with pytest.raises(SystemExit, match=line) as caught:
        main(["new", *given])
    assert str(caught.value).count("\n") == 0
    assert not list(tmp_path.rglob("*.yaml"))


def test_models_of_the_hub_are_named_by_commit(models, monkeypatch):
    files = models / "chat"
    commit = "0123456789abcdef0123456789abcdef01234567"

    def download(repo, name, revision, local_dir):
        assert (repo, revision) == ("org/chat", commit)
        (local_dir / name).write_bytes((files / name).read_bytes())

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    counted = SimpleNamespace(parameter_count={"BF16": 1000, "F32": 24})
    monkeypatch.setattr("huggingface_hub.HfApi.get_safetensors_metadata", lambda *given, **named: counted)
    main(["new", f"org/chat@{commit}", "--layers", "0,3", "--study", "hub"])
    model = yaml.safe_load(Path("studies/hub.yaml").read_text())["models"]["model"]
    assert (model["kind"], model["revision"], model["depth"]) == ("hub", commit, 4)
    assert model["size"]["parameters"] == 1024
    assert load("studies/hub.yaml").chat_template.kind == "model"


def with_another_tokenizer(folder: Path, source: Path, old: str, new: str) -> Path:
    """A copy of a model whose tokenizer.json says something else."""
    shutil.copytree(source, folder)
    path = folder / "tokenizer.json"
    path.write_text(path.read_text().replace(old, new))
    return folder


ADDED = '"added_tokens": [{"id": 40, "content": "<tool>"},'


@pytest.mark.parametrize(
    ("old", "new", "alignment"),
    [
        ('"b":', '"é":', "characters"),
        ('"c": 2', '"c": 30', "characters"),
        ('"added_tokens": [', ADDED, "tokens"),
        ("", "", "tokens"),
    ],
)
def test_models_with_different_tokenizers_are_aligned_by_characters(models, texts, tmp_path, old, new, alignment):
    other = with_another_tokenizer(tmp_path / "other", models / "base", old, new)
    main(["new", str(other), str(models / "chat"), "--text", str(texts), "--study", "mine"])
    assert load("studies/mine.yaml").settings["base-vs-chat"].alignment == alignment


def test_what_needs_one_tokenizer_is_left_out_and_said(models, texts, tmp_path, capsys):
    other = with_another_tokenizer(tmp_path / "other", models / "base", '"b":', '"é":')
    main(["new", str(other), str(models / "chat"), "--text", str(texts), "--study", "mine"])
    path = Path("studies/mine.yaml")
    path.write_text(path.read_text().replace("    notebook:", "    causal: {prompts: 4, new_tokens: 8}\n    notebook:"))
    capsys.readouterr()
    main(["check", str(path)])
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("warning: settings.base-vs-chat.causal: left out")
    assert not measurements.patched(load(path), "base-vs-chat")
