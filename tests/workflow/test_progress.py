"""The bar of a whole run: it goes by the work that is expected, and says how long the rest will take."""

import pytest
from tests import project

from crosscoders.study import loading
from crosscoders.workflow import plan, progress


def test_the_bar_goes_by_work_and_not_by_the_number_of_jobs():
    run = progress.Run(
        {"fetch_text": 3, "train_crosscoder": 3}, {"fetch_text": 1.0, "train_crosscoder": 99.0}, began=0.0
    )
    assert run.line(0, 6, now=1.0) == "[------------------------------]   0%  0 of 6 jobs"
    for name in ("wiki", "chats", "chitchat"):
        run.finish("fetch_text", f"fetch_text {name}")
    assert run.line(3, 6, now=3.0) == "[------------------------------]   1%  3 of 6 jobs  fetch_text chitchat"
    run.finish("train_crosscoder", "train_crosscoder pair/l1/0")
    assert run.line(4, 6, now=102.0) == (
        f"[{10 * '#'}{20 * '-'}]  34%  4 of 6 jobs  about 3 minutes left  train_crosscoder pair/l1/0"
    )
    run.finish("train_crosscoder", "a")
    run.finish("train_crosscoder", "b")
    assert run.line(6, 6, now=300.0) == f"[{30 * '#'}] 100%  6 of 6 jobs  b"


@pytest.mark.parametrize("path", ["config.yaml", "studies/planted.yaml", "studies/dose-small.yaml"])
def test_every_rule_that_takes_time_is_known_and_others_count_as_the_mean(path, monkeypatch):
    monkeypatch.chdir(project.ROOT)
    study = loading.load(path)
    expected = progress.seconds_by_rule(study)
    assert set(expected) == {job.rule for job in plan.jobs(study)}
    progress.begin(study)
    run = progress.run({rule: 1 for rule in expected} | {"notebook_base_vs_chat": 1, "all": 1})
    assert run.weights["notebook_base_vs_chat"] == expected["notebook"]
    assert min(run.weights.values()) > 0
