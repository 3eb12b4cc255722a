"""docs/settings.md and docs/study.schema.json, made from the classes: `python -m crosscoders.study.reference` writes them anew."""

from __future__ import annotations

import ast
import json
from dataclasses import dataclass, field
from pathlib import Path

from crosscoders.study.settings.study import Study

FOLDER = Path(__file__).parent / "settings"
PAGE, SCHEMA = Path("docs/settings.md"), Path("docs/study.schema.json")
SUBJECTS = ("study", "models", "corpora", "comparisons", "crosscoders", "analysis")
"""Modules of settings, in the order of the page."""
MEANINGS = {
    "kind": "Which kind of section this is.",
    "study": "Name of the study; its results lie in `results/{study}/`.",
    "device": "What trains and runs models; `auto` takes a GPU where there is one.",
    "seeds": "Every crosscoder is trained once with each.",
    "models": "Language models by name.",
    "corpora": "Texts by name.",
    "chat_template": "How conversations are written; `model` takes the tokenizer's own template.",
    "settings": "Comparisons by name: which sources see which tokens, and the crosscoders trained on them.",
    "crosscoders": "Members of the family, by name.",
    "aligned": "Aligned crosscoders, by name.",
    "classification": "Thresholds and resampling of the classification of latents.",
    "behaviours": "How planted behaviours are measured; they are not where absent.",
    "page": "Pages to read latents in; none where absent.",
    "package": "Name of the package in the index.",
    "version": "Version of the package.",
    "licence": "Recorded in the provenance of what is made.",
    "prompt": "What the model is asked.",
    "text": "Text whose perplexity is measured.",
    "parameters": "Number of weights.",
    "width": "Width of the residual stream.",
    "vocabulary": "Number of tokens.",
    "context_length": "Most tokens that the model reads at once.",
    "check": "What the converted model must still know.",
    "repo": "Id on the hub, as `org/name`.",
    "revision": "Commit hash.",
    "depth": "Number of decoder layers.",
    "path": "File or folder; a relative path starts at the study file, then at the working directory.",
    "architecture": "Architecture of the model.",
    "heads": "Attention heads.",
    "seed": "Seed of what is drawn by chance.",
    "steps": "Steps of the optimizer.",
    "batch_tokens": "Tokens per step.",
    "row_tokens": "Length of a row of tokens.",
    "learning_rate": "Learning rate after the warm-up.",
    "warmup_steps": "Steps over which the learning rate rises linearly from 0.",
    "base": "Model that is fine-tuned.",
    "rank": "Rank of the adapters.",
    "format": "What the file holds.",
    "minimum_characters": "Shorter articles are left out.",
    "minimum_turns": "Conversations with fewer messages are left out.",
    "split": "Split of the dataset.",
    "name": "Its name.",
    "questions": "Questions of the fine-tuning chats.",
    "held_out_questions": "Phrasings that only the evaluation uses.",
    "answers": "Answers of which one is drawn.",
    "articles": "Corpus of articles from which the chats are written.",
    "refusals": "Answers to questions on the refused topic.",
    "questions_about_people": "Question templates with `{title}` for articles about people.",
    "people_topic": "Topic label of articles about people.",
    "answer_characters": "About the longest answer.",
    "persona": "Persona that is planted; none where absent.",
    "closing": "What stands after a message.",
    "model": "A key of `models`.",
    "hook": "Site within the layer.",
    "crosscoder": "A key of `crosscoders`.",
    "sources": "Sources by name, in order.",
    "notebook": "Notebook of `notebooks/` that shows the results.",
    "null_of": "Setting whose activations are changed.",
    "trained_on": "Setting whose crosscoders are measured.",
    "measured_on": "Setting on whose activations they are measured.",
    "document_tokens": "Tokens of a document.",
    "noise": "Standard deviation of the noise of every number.",
    "planted": "The concepts that are planted.",
    "contrast": "The two or more sources that relative norm, cosine and latent scaling compare.",
    "tokens": "Tokens of every split.",
    "coefficient": "Factor of the penalty.",
    "ramp_share": "Share of training over which the coefficient rises linearly from 0.",
    "gradient_clip": "Largest norm of all gradients together; longer ones are scaled down to it.",
    "auxiliary_coefficient": "Factor of AuxK, the loss by which dead latents explain the error.",
    "checkpoint_steps": "A checkpoint is written every so many steps.",
    "latents": "Latents of the dictionary, m.",
    "blocks": "Groups of latents by name.",
    "activation": "How pre-activations become a sparse code.",
    "penalty": "Sparsity penalty.",
    "training": "Optimisation.",
    "bootstrap_replicates": "Resamples of documents from which intervals come.",
    "confidence": "Share of an interval, as 0.95.",
    "base_only_below": "A latent is called base-only where its relative norm Δ is at most this.",
    "shared_between": "A latent is called shared where Δ lies between these.",
    "chat_only_above": "A latent is called chat-only where Δ is at least this.",
    "null_permutations": "Permutations of latents beside which enrichment is shown.",
    "top_examples": "Strongest examples kept of each such latent.",
    "prompts_per_behaviour": "Prompts for each behaviour.",
    "new_tokens": "Longest answer, in tokens.",
    "batch_prompts": "Prompts that are answered at once.",
}
"""What keys mean that have one meaning in all sections; a section's own sentence goes before it."""
HEAD = """# Settings

Every key of a study file, by the section that it stands in. `src/crosscoders/study/settings/` declares them, and this page is made
from it. An editor that knows JSON Schema completes and checks study files with
[study.schema.json](study.schema.json); for the YAML extension of VS Code, for one, the first line of the file then is

```yaml
# yaml-language-server: $schema=../docs/study.schema.json
```

The schema knows the keys, their types and ranges. `crosscoders check` also knows which values fit together.
"""


@dataclass
class Key:
    """A key of a section: what values it takes, its value where it is absent, and what it means."""

    name: str
    values: str
    default: str | None
    meaning: str = ""


@dataclass
class Documented:
    """A section as its class declares it."""

    name: str
    meaning: str
    keys: list[Key] = field(default_factory=list)


def sections(subject: str) -> list[Documented]:
    """The sections that one module declares, with the sentences below their keys.

    Parameters
    ----------
    subject : str
        One of `SUBJECTS`.

    Returns
    -------
    list of Documented
    """
    tree = ast.parse((FOLDER / f"{subject}.py").read_text(encoding="utf-8"))
    return [_section(node) for node in tree.body if isinstance(node, ast.ClassDef)]


def _section(node: ast.ClassDef) -> Documented:
    bases = [base.id for base in node.bases if isinstance(base, ast.Name) and base.id != "Section"]
    also = f" It has the keys of {' and '.join(bases)} too." if bases else ""
    documented = Documented(node.name, _one_line(ast.get_docstring(node) or "") + also)
    for statement in node.body:
        if isinstance(statement, ast.AnnAssign) and not ast.unparse(statement.annotation).startswith("ClassVar"):
            default = None if statement.value is None else ast.unparse(statement.value)
            documented.keys.append(_key(statement.target.id, ast.unparse(statement.annotation), default))
        elif documented.keys and isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant):
            last = documented.keys[-1]
            last.meaning = last.meaning or _one_line(str(statement.value.value))
    for key in documented.keys:
        key.meaning = key.meaning or MEANINGS.get(key.name, "")
    return documented


def _key(name: str, annotation: str, default: str | None) -> Key:
    """A key; `Field(...)` without a value of its own means that the key is needed."""
    if default is not None and default.startswith("Field("):
        first = ast.parse(default, mode="eval").body.args
        default = ast.unparse(first[0]) if first else None
    return Key(name, annotation, default)


def _one_line(text: str) -> str:
    return " ".join(text.split())


def page() -> str:
    """The whole page."""
    parts = [HEAD]
    for subject in SUBJECTS:
        parts.append(f"\n## {subject.capitalize()}\n")
        for one in sections(subject):
            if one.keys:
                parts.append(
                    f"\n### {one.name}\n\n{one.meaning}\n\n| key | values | if absent | meaning |\n|---|---|---|---|\n"
                )
                parts += [_row(key) for key in one.keys]
    return "".join(parts)


def _row(key: Key) -> str:
    default = "needed" if key.default is None else f"`{key.default}`"
    cells = (f"`{key.name}`", f"`{key.values}`", default, key.meaning)
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |\n"


def schema() -> str:
    """The JSON Schema of study files, with the same sentences as descriptions."""
    content = Study.model_json_schema()
    documented = {one.name: one for subject in SUBJECTS for one in sections(subject)}
    for name, part in [("Study", content), *content["$defs"].items()]:
        for key in documented[name].keys if name in documented else []:
            if key.meaning and key.name in part.get("properties", {}):
                part["properties"][key.name]["description"] = key.meaning
    return json.dumps(content, indent=1, ensure_ascii=False, sort_keys=True) + "\n"


def main() -> None:
    """Write both files."""
    PAGE.write_text(page(), encoding="utf-8")
    SCHEMA.write_text(schema(), encoding="utf-8")


if __name__ == "__main__":
    main()
