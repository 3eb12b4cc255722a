"""The page of settings and the schema for editors are those of the classes, and the schema accepts every study."""

import json
from pathlib import Path

import pytest

from crosscoders.study import loading, reference
from crosscoders.study.settings.study import Study

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(("file", "text"), [(reference.PAGE, reference.page), (reference.SCHEMA, reference.schema)])
def test_files_are_made_from_the_classes(file, text):
    assert (ROOT / file).read_text(encoding="utf-8") == text(), "run `python -m crosscoders.study.reference`"


def test_every_key_has_a_meaning():
    keys = [
        (one.name, key) for subject in reference.SUBJECTS for one in reference.sections(subject) for key in one.keys
    ]
    assert [f"{name}.{key.name}" for name, key in keys if not key.meaning] == []


def test_every_key_of_a_study_stands_on_the_page():
    page = reference.page()
    named = {"Study": Study.model_json_schema()} | Study.model_json_schema()["$defs"]
    for section, part in named.items():
        for key in part.get("properties", {}):
            assert f"| `{key}` |" in page, f"{section}.{key}"


@pytest.mark.parametrize(
    "path", [ROOT / "config.yaml", *sorted((ROOT / "studies").glob("*.yaml"))], ids=lambda p: p.stem
)
def test_the_schema_accepts_every_study_and_refuses_a_misspelt_key(path):
    jsonschema = pytest.importorskip("jsonschema")
    content, schema = loading.read(path), json.loads((ROOT / reference.SCHEMA).read_text(encoding="utf-8"))
    jsonschema.validate(content, schema)
    content["seed"] = 3
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(content, schema)
