"""A series over doses becomes ordinary settings and models, and what is wrong with one is a line each."""

import pytest
from tests.series import small_series

from crosscoders.errors import UserError
from crosscoders.study import loading
from crosscoders.study.queries import comparisons
from crosscoders.workflow import sections


@pytest.fixture
def content():
    return small_series("small-series")


def test_a_series_makes_a_setting_and_a_model_for_every_dose_and_seed(content):
    content["settings"]["power"] |= {"doses": [1.0, 0.025, 0.0], "seeds": [0, 3]}
    study = loading.check(content)
    cells = comparisons.cells_of(study, "power")
    assert [(cell.dose, cell.seed) for cell in cells] == [(d, s) for d in (1.0, 0.025, 0.0) for s in (0, 3)]
    assert cells[3].setting == "pair-dose-2p5-seed-3"
    for cell in cells:
        model, setting = study.models[cell.model], study.settings[cell.setting]
        assert (model.dose, model.seed) == (cell.dose, cell.seed)
        assert model.model_copy(update={"dose": 1.0, "seed": 0}) == study.models["chat"]
        assert (setting.sources["chat"].model, setting.sources["base"].model) == (cell.model, "base")
        assert setting.tokens == study.settings["pair"].tokens
    assert comparisons.drawn_settings(study) == ["power"], "neither the pattern nor its repetitions have a notebook"


def test_a_study_without_a_series_is_as_it_was(content):
    del content["settings"]["power"]
    study = loading.check(content)
    assert (list(study.settings), list(study.models)) == (["pair"], ["base", "chat"])


@pytest.mark.parametrize(
    ("place", "value", "line"),
    [
        ("setting", "pear", "settings.power.setting: 'pear' is not defined; known: pair, power; did you mean 'pair'?"),
        ("setting", "power", "settings.power.setting: 'power' reads no activations of models of its own"),
        (
            "model",
            "base",
            "settings.power.model: 'base' has no dose; expected a fine-tuned model with `dose` and `plain`",
        ),
        ("doses", [1.0, 0.5], "settings.power.doses: [1.0, 0.5]; expected 0 among them: it is the null"),
        ("doses", [1.0, 1.0, 0.0], "settings.power.doses: [1.0, 1.0, 0.0] does not fit; expected each once"),
        ("doses", [2.0, 0.0], "settings.power.doses.0: 2.0 does not fit"),
        ("seeds", [], "settings.power.seeds: a list does not fit"),
        ("best", 9, "settings.power.best: 9 exceeds components = 8"),
    ],
)
def test_what_is_wrong_with_a_series_is_a_line(content, place, value, line):
    content["settings"]["power"][place] = value
    with pytest.raises(UserError) as error:
        loading.check(content)
    (found,) = str(error.value).splitlines()
    assert line in found


@pytest.mark.parametrize(
    ("place", "value", "line"),
    [
        ("plain", "chats", "models.chat.plain: 'chats' plants something"),
        ("plain", None, "models.chat.plain: None; expected dose and plain together"),
        ("plain", "plane", "models.chat.plain: 'plane' is not defined"),
    ],
)
def test_what_is_wrong_with_a_dose_is_a_line(content, place, value, line):
    content["models"]["chat"][place] = value
    with pytest.raises(UserError) as error:
        loading.check(content)
    assert any(line in found for found in str(error.value).splitlines())


def test_a_setting_without_planted_tokens_or_with_the_name_of_a_repetition_is_a_line(content):
    content["settings"]["pair"]["tokens"]["test"] = {"wiki": 1000}
    content["settings"]["pair-dose-0-seed-0"] = content["settings"]["pair"]
    with pytest.raises(UserError) as error:
        loading.check(content)
    lines = str(error.value)
    assert "settings.power.setting: 'pair' has no test tokens of 'chats'" in lines
    assert "settings.power.setting: 'pair-dose-0-seed-0' is a name that the series gives; expected another" in lines


def test_jobs_of_studies_without_doses_get_what_they_got():
    study = loading.load("studies/nulls.yaml")
    for stage, given in (("fetch_text", {"corpus": "chats"}), ("fine_tune", {"model": "chat"})):
        text = sections.section(study, stage, **given)
        assert not {"dose", "plain", "backdoor"} & set(text.replace('"', " ").split())
