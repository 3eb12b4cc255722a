"""Files of every kind say by themselves whether they are damaged."""

import json
from pathlib import Path
from xml.etree import ElementTree

import matplotlib.pyplot as plt
import nbformat
import pytest

from crosscoders import storage
from crosscoders.errors import UserError
from crosscoders.report import figures


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A small file of every kind that has a seal."""
    made = tmp_path_factory.mktemp("sealed")
    storage.write_sealed("<!doctype html><html><body>é</body></html>", made / "a.html")
    storage.write_sealed(b"state", made / "a.checkpoint")
    storage.write_sealed_json({"name": "é", "files": {}}, made / "provenance.json")
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell("some words")])
    storage.write_sealed_json(json.loads(nbformat.writes(notebook)), made / "a.ipynb")
    drawn, axis = plt.subplots(figsize=(0.3, 0.2), layout="constrained")
    axis.set_axis_off()
    figures.save(drawn, made, "a")
    plt.close(drawn)
    return made


NAMES = ["a.html", "a.svg", "a.png", "a.checkpoint", "provenance.json", "a.ipynb"]


def problem(path: Path) -> str | None:
    """The line that says what is wrong with a file."""
    try:
        storage.verify(path)
    except UserError as error:
        return str(error)
    return None


@pytest.mark.parametrize("name", NAMES)
def test_every_flipped_bit_and_every_truncation_is_found(folder, name, tmp_path):
    content, path = (folder / name).read_bytes(), tmp_path / name
    assert problem(folder / name) is None
    for place in range(0, len(content), max(1, len(content) // 400)):
        flipped = bytearray(content)
        flipped[place] ^= 1 << place % 8
        for damaged in (bytes(flipped), content[:place]):
            path.write_bytes(damaged)
            said = problem(path)
            if said is None:  # space between the entries of JSON means nothing
                assert name.endswith(("json", "ipynb")) and json.loads(damaged) == json.loads(content)
            else:
                assert str(path) in said and "\n" not in said


def test_a_seal_is_a_comment_to_other_programs(folder):
    ElementTree.parse(folder / "a.svg")
    nbformat.validate(nbformat.read(folder / "a.ipynb", as_version=4))
    assert (folder / "a.html").read_text().rstrip().endswith("-->")
    assert plt.imread(folder / "a.png").ndim == 3
    assert storage.read_sealed(folder / "a.checkpoint") == b"state"
    assert storage.read_sealed(folder / "a.html").decode().endswith("é</body></html>")
    assert storage.read_json(folder / "provenance.json") == {"name": "é", "files": {}}


def test_a_folder_is_verified_by_its_list(tmp_path: Path):
    (tmp_path / "weights").write_bytes(b"some")
    storage.write_sealed_json(
        {"files": {"weights": storage.sha256(tmp_path / "weights")}}, tmp_path / storage.PROVENANCE
    )
    assert set(storage.verify_folder(tmp_path)) == {"files"}
    (tmp_path / "weights").write_bytes(b"same")
    with pytest.raises(UserError, match="weights: missing or not as written; delete the folder and run again"):
        storage.verify_folder(tmp_path)
