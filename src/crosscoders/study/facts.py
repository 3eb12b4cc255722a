"""What is known of a model or a text before a study begins: from a folder, a file, or the hub."""

from __future__ import annotations

import json
import re
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

from crosscoders.errors import UserError
from crosscoders.study import model_folder

HUB = re.compile(r"(?P<repo>[A-Za-z0-9][\w.-]*/[\w.-]+)(@(?P<revision>[0-9a-f]{40}))?")
"""An id of the hub, with or without a commit."""
CHARACTERS_PER_TOKEN = 4
PACKED = 3
"""About how many times longer text becomes when it is unpacked from gzip or Parquet."""


@dataclass(frozen=True)
class ModelFacts:
    """A model as a study file names it, its sizes, and its chat template's tokens.

    Attributes
    ----------
    place : str
        The folder, or the id of the hub.
    revision : str, optional
        The commit, for a model of the hub.
    shape : Shape
    sink : str, optional
        Token that begins a text, else the one that ends it.
    has_template : bool
        Whether the tokenizer has a chat template.
    vocabulary : Vocabulary, optional
        The tokens of its tokenizer, where they can be read.
    parameters : int, optional
        Number of weights of a model of the hub, where the hub says it.
    """

    place: str
    revision: str | None
    shape: model_folder.Shape
    sink: str | None
    has_template: bool
    vocabulary: model_folder.Vocabulary | None = None
    parameters: int | None = None

    @property
    def name(self) -> str:
        """A short name for studies and labels."""
        return name_of(Path(self.place).name)


@dataclass(frozen=True)
class TextFacts:
    """A text as a study file names it, and about how many tokens it has; None where that is not known."""

    place: str
    revision: str | None
    tokens: int | None

    @property
    def name(self) -> str:
        """A short name."""
        return name_of(Path(self.place).name.split(".")[0])


def name_of(text: str) -> str:
    """A name of letters, digits, `_` and `-` for anything.

    Parameters
    ----------
    text : str

    Returns
    -------
    str
        `text` with every run of other characters replaced by one `-`; `x` where nothing is left.
    """
    return re.sub(r"[^A-Za-z0-9_-]+", "-", text).strip("-_") or "x"


def model_facts(place: str) -> ModelFacts:
    """What is known of a model.

    Parameters
    ----------
    place : str
        A folder, or an id of the hub: `org/name` or `org/name@commit`.

    Returns
    -------
    ModelFacts

    Raises
    ------
    UserError
        There is no such model, or it is not whole; one line for each problem.
    """
    folder = Path(place).expanduser()
    if folder.exists():
        problems = model_folder.problems(folder)
        if problems:
            raise UserError("\n".join(problems))
        return _facts(str(folder.resolve()), None, folder)
    match = HUB.fullmatch(place)
    if match is None:
        raise UserError(f"{place}: no such folder, and no id of the hub; expected a model folder or org/name")
    revision = match["revision"] or _resolved(match["repo"], "model")
    with tempfile.TemporaryDirectory() as name:
        for file in ("config.json", "tokenizer_config.json", "tokenizer.json", "chat_template.jinja"):
            _download(match["repo"], revision, file, Path(name), needed=file == "config.json")
        facts = _facts(match["repo"], revision, Path(name))
    return replace(facts, parameters=_parameters(match["repo"], revision))


def text_facts(place: str) -> TextFacts:
    """What is known of a text: a file, a folder, or a dataset of the hub.

    Parameters
    ----------
    place : str
        A path, or an id of the hub: `org/name` or `org/name@commit`.

    Returns
    -------
    TextFacts
        The number of tokens is estimated from the bytes of local files; it is None for a dataset of the hub.

    Raises
    ------
    UserError
        There is no such text.
    """
    path = Path(place).expanduser()
    if path.exists():
        files = [file for file in path.rglob("*") if file.is_file()] if path.is_dir() else [path]
        characters = sum(file.stat().st_size * (PACKED if file.suffix in (".gz", ".parquet") else 1) for file in files)
        return TextFacts(str(path.resolve()), None, characters // CHARACTERS_PER_TOKEN)
    match = HUB.fullmatch(place)
    if match is None:
        raise UserError(f"{place}: no such file or folder, and no dataset of the hub; expected a text")
    return TextFacts(match["repo"], match["revision"] or _resolved(match["repo"], "dataset"), None)


def _facts(place: str, revision: str | None, folder: Path) -> ModelFacts:
    shape, config = model_folder.shape(folder), _tokenizer_config(folder)
    missing = [name for name in ("depth", "width") if getattr(shape, name) is None]
    if missing:
        raise UserError(f"{place}: its config.json says no {' and no '.join(missing)}; expected a language model")
    sink = next((text for text in map(_text_of, (config.get("bos_token"), config.get("eos_token"))) if text), None)
    template = bool(config.get("chat_template")) or (folder / "chat_template.jinja").is_file()
    return ModelFacts(place, revision, shape, sink, template, model_folder.vocabulary(folder))


def _tokenizer_config(folder: Path) -> dict:
    try:
        content = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _text_of(token: object) -> str | None:
    """The text of a token, which configs give as text or as a mapping."""
    text = token.get("content") if isinstance(token, dict) else token
    return text if isinstance(text, str) and text else None


def _resolved(repo: str, kind: str) -> str:
    """The commit that a repository of the hub stands at."""
    from huggingface_hub import HfApi

    try:
        return HfApi().repo_info(repo, repo_type=kind, timeout=20).sha
    except Exception:  # whatever the reason, the user can name the commit
        raise UserError(
            f"{repo}: the hub does not say its commit from here; expected {repo}@COMMIT, with 40 hexadecimal digits"
        ) from None


def _parameters(repo: str, revision: str) -> int | None:
    """Number of weights of a model of the hub, from the headers of its safetensors files."""
    from huggingface_hub import HfApi

    try:
        counts = HfApi().get_safetensors_metadata(repo, revision=revision).parameter_count
    except Exception:  # the size is a convenience: without it the study says what is guessed
        return None
    return sum(counts.values()) or None


def _download(repo: str, revision: str, file: str, folder: Path, needed: bool) -> None:
    from huggingface_hub import hf_hub_download

    try:
        hf_hub_download(repo, file, revision=revision, local_dir=folder)
    except Exception as error:  # of the network, of access, of the repository: all end the same way
        if needed:
            reason = str(error).strip().splitlines()[0][:80] if str(error).strip() else type(error).__name__
            raise UserError(f"{repo}@{revision}: {file} cannot be fetched from the hub ({reason})") from None
