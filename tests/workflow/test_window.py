"""Training on a window of activations: bounded disk, one pass for all members, the same bytes after a kill."""

import threading
import time
from pathlib import Path

import pytest
import yaml
from tests.faults.kills import kill, start
from tests.project import ROOT, copy, copy_finished, planned, snakemake

from crosscoders import artifacts
from crosscoders.data import tokenize
from crosscoders.errors import UserError
from crosscoders.study import loading

WINDOW, SHARDS = 2, 3
STUDY = "studies/window.yaml"


def windowed() -> dict:
    """Two members on two layers of a small model, whose training activations pass through a window."""
    content = loading.read(ROOT / "studies/smoke.yaml")
    setting = content["settings"]["cross-layer"]
    setting.pop("circuits")
    setting |= {"activations": {"keep": "window", "window": WINDOW}, "crosscoders": ["l1", "batchtopk"]}
    setting["shards"]["train"], setting["splice_tokens"] = SHARDS, 0
    for name in ("l1", "batchtopk"):
        content["crosscoders"][name]["training"]["steps"] = 22
    content |= {"study": "window", "settings": {"cross-layer": setting}, "models": {"base": content["models"]["base"]}}
    content |= {"corpora": {"wiki": content["corpora"]["wiki"]}}
    for key in ("aligned", "behaviours", "page"):
        content.pop(key)
    return content


@pytest.fixture(scope="module")
def projects(tmp_path_factory):
    """Two copies of the project with the study and its tokens."""
    folder = tmp_path_factory.mktemp("window")
    whole = copy(folder / "whole")
    (whole / STUDY).write_text(yaml.safe_dump(windowed()))
    snakemake(whole, "results/window/tokens/cross-layer/train.nc", "--configfile", STUDY)
    return whole, copy_finished(whole, folder / "killed")


TARGETS = [f"results/window/crosscoders/cross-layer/{name}/seed-0.nc" for name in ("l1", "batchtopk")]


class Watch(threading.Thread):
    """Counts, again and again, the shards that lie in the window."""

    def __init__(self, project: Path):
        super().__init__(daemon=True)
        self.folder, self.most, self.over = project / "results/window/activations/cross-layer/window", 0, False

    def run(self) -> None:
        while not self.over:
            self.most = max(self.most, len([*self.folder.glob("*")]) if self.folder.exists() else 0)
            time.sleep(0.02)


@pytest.fixture(scope="module")
def whole(projects):
    """The study trained without a stop, and the most shards that lay in its window."""
    project, watch = projects[0], Watch(projects[0])
    watch.start()
    snakemake(project, *TARGETS, "--configfile", STUDY)
    watch.over = True
    return project, watch


@pytest.mark.slow
def test_the_window_bounds_what_lies_on_disk_and_is_empty_at_the_end(whole):
    project, watch = whole
    assert watch.most == WINDOW
    assert not [*watch.folder.glob("*")]
    assert not [*(project / "results/window/segments").rglob("*.checkpoint")]
    for target in TARGETS:
        trained = artifacts.read(project / target)
        assert int(trained["training_tokens"]) == 22 * 256


@pytest.mark.slow
def test_a_killed_run_ends_with_the_same_bytes(whole, projects):
    project, reference = projects[1], whole[0]
    command = ["snakemake", "--cores", "2", *TARGETS, "--configfile", STUDY]
    notes = project / "results/window/segments/cross-layer/batchtopk/seed-0"
    assert kill(start(project, command), until=(notes / "0001.json").exists, after=1.0)
    assert not (project / TARGETS[1]).exists()
    log = project / "results/window/logs/train_segment/cross-layer/batchtopk/seed-0/0000.log"
    first = log.stat().st_mtime_ns
    snakemake(project, *TARGETS, "--configfile", STUDY)
    for target in TARGETS:
        assert (project / target).read_bytes() == (reference / target).read_bytes()
    assert log.stat().st_mtime_ns == first  # segments that were done are not taken again


@pytest.mark.slow
def test_a_finished_window_makes_nothing_anew(whole):
    done = snakemake(whole[0], "-n", *TARGETS, "--configfile", STUDY)
    assert "Nothing to be done" in done.stdout + done.stderr


def test_every_stretch_of_a_mixed_split_holds_all_corpora(monkeypatch):
    """Documents of two corpora are taken in turn, by the share of the budget that each still lacks."""
    order = []

    def fill(sequences, documents, budget, index, encoder) -> int:
        order.append(index)
        return min(10, budget)

    monkeypatch.setattr(tokenize, "fill", fill)
    counts = tokenize.fill_mixed(None, {"a": range(100), "b": range(100)}, {"a": 300, "b": 100}, None)
    assert counts == {"a": 300, "b": 100}
    assert [order[i : i + 8].count(0) for i in range(0, 40, 8)] == [6] * 5


def test_a_published_crosscoder_beside_a_window_is_read_and_not_trained(projects):
    content = windowed() | {"seeds": [0]}
    (projects[0] / "peer").mkdir()
    content["crosscoders"]["theirs"] = {"kind": "published", "path": "peer"}
    content["settings"]["cross-layer"]["crosscoders"] = ["batchtopk", "theirs"]
    (projects[0] / "published.yaml").write_text(yaml.safe_dump(content))
    jobs = planned(projects[0], "--configfile", "published.yaml")
    assert jobs["import_crosscoder"] == jobs["finish_training"] == 1
    assert jobs["train_segment"] == jobs["extract_window"] == SHARDS


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"activations": {"keep": "window"}}, "activations.window: None; expected a number of shards"),
        ({"activations": {"keep": "all", "window": 2}}, "activations.window: 2; expected none with keep: all"),
        ({"shards": {"train": 100, "validation": 1, "test": 1}}, "fewer than batch_tokens = 256 of 'l1'"),
        ({"aligned": ["aligned"]}, "expected keep: all, or none"),
    ],
)
def test_a_window_that_does_not_fit_is_one_line(monkeypatch, change, line):
    monkeypatch.chdir(ROOT)
    content = windowed()
    content["aligned"] = loading.read(Path("studies/smoke.yaml"))["aligned"]
    content["settings"]["cross-layer"] |= change
    with pytest.raises(UserError) as caught:
        loading.check(content)
    assert [one for one in str(caught.value).splitlines() if line in one]
