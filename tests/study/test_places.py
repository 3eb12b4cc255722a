"""Paths of a study file are read from its folder, else from the working directory, and `~` is a home folder."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from crosscoders.errors import UserError, shortened
from crosscoders.study import loading
from crosscoders.study.places import from_here

ROOT = Path(__file__).parents[2]


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Writes a study file in a folder of its own, whose corpus has the given path; the working directory is another."""
    content = loading.read(ROOT / "studies/smoke.yaml")
    (tmp_path / "my study").mkdir()
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")

    def make(path, name="ü.yaml"):
        content["corpora"]["wiki"]["path"] = path
        file = tmp_path / "my study" / name
        file.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
        return file

    return make


def text(folder, name="tëxt.jsonl"):
    return shutil.copy(ROOT / "studies/smoke/articles.jsonl", folder / name)


def corpus_path(*files, **overrides):
    return loading.load(*files, overrides=overrides).corpora["wiki"].path


def test_a_path_is_found_beside_the_study_file_before_here(write, tmp_path):
    file = write("tëxt.jsonl")
    text(tmp_path / "my study")
    text(tmp_path / "here")
    assert corpus_path(file) == str(tmp_path / "my study/tëxt.jsonl")


def test_a_path_that_is_only_here_keeps_its_spelling(write, tmp_path):
    text(tmp_path / "here")
    assert corpus_path(write("./tëxt.jsonl")) == "./tëxt.jsonl"


def test_a_study_within_the_working_directory_names_its_files_relatively(write, tmp_path, monkeypatch):
    text(tmp_path / "my study")
    monkeypatch.chdir(tmp_path)
    assert corpus_path(write("tëxt.jsonl")) == corpus_path("my study/ü.yaml") == "my study/tëxt.jsonl"


def test_studies_of_this_project_keep_their_paths(monkeypatch):
    monkeypatch.chdir(ROOT)
    assert corpus_path("studies/smoke.yaml") == "studies/smoke/articles.jsonl"


def test_a_tilde_is_the_home_folder(write, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    text(tmp_path)
    assert corpus_path(write("~/tëxt.jsonl")) == str(tmp_path / "tëxt.jsonl")
    with pytest.raises(UserError) as error:
        corpus_path(write("~/absent"))
    (line,) = str(error.value).splitlines()
    assert line.endswith(
        f"corpora.wiki.path: '~/absent' does not exist ({shortened(str(tmp_path / 'absent'), 60)}); expected an existing path"
    )


def test_each_of_two_files_has_its_own_folder(write, tmp_path):
    first = write("tëxt.jsonl")
    text(tmp_path / "my study")
    second = tmp_path / "here/second.yaml"
    second.write_text("seeds: [3]")
    assert corpus_path(first, second) == str(tmp_path / "my study/tëxt.jsonl")
    second.write_text("corpora: {wiki: {path: other.jsonl}}")
    text(tmp_path / "here", "other.jsonl")
    assert corpus_path(write("absent"), second) == "other.jsonl"
    assert corpus_path(first, corpora={"wiki": {"path": "other.jsonl"}}) == "other.jsonl"


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_the_error_names_both_places(write, tmp_path, kind):
    file = write("absent.jsonl" if kind == "file" else "../here")
    second = ["--", file]
    if kind == "folder":
        extra = tmp_path / "my study/model.yaml"
        extra.write_text("models: {base: {kind: folder, path: absent.jsonl}}")
        content = loading.read(file)
        content["models"].pop("base")
        file.write_text(yaml.safe_dump(content, sort_keys=False))
        second = ["--", file, extra]
    command = [sys.executable, "-m", "crosscoders.cli", "check", *second]
    done = subprocess.run(command, capture_output=True, text=True)
    place = "corpora.wiki" if kind == "file" else "models.base"
    (line,) = done.stderr.splitlines()
    assert done.returncode == 1
    assert line.endswith(
        f"{place}.path: 'absent.jsonl' is neither in the study file's folder nor in "
        f"{shortened(str(tmp_path / 'here'), 40)}; expected an existing path"
    )


def test_paths_are_spelt_from_here_where_they_lie_here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert str(from_here(tmp_path / "a/b")) == "a/b"
    assert str(from_here(tmp_path / "x/..")) == "x/.."
    assert from_here(tmp_path.parent / "c") == tmp_path.parent / "c"
    assert str(from_here("a/b")) == "a/b"
