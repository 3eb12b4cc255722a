"""A study through training: what is wrong with its models and their order is a line, and its null replaces every source."""

import copy

import pytest
from tests import project

from crosscoders.activations.sections import NullChange
from crosscoders.errors import UserError
from crosscoders.study import loading
from crosscoders.study.queries import measurements
from crosscoders.workflow import sections

CONTENT = loading.read(project.ROOT / "studies/through-training.yaml")
SETTING, MODEL = CONTENT["settings"]["snapshots"], CONTENT["models"]["base"]
ORDER = SETTING["through"]
SAES = {"latents": 2048, "blocks": {"all": {"share": 1.0, "reads": "each", "writes": "each"}}}


@pytest.mark.parametrize(
    ("place", "change", "line"),
    [
        (("models", "s060"), {"of": "bas"}, "models.s060.of: 'bas' is not defined; known: base"),
        (
            ("models", "s060"),
            {"of": "s010"},
            "models.s060.of: 's010' is of kind snapshot; expected a model of kind trained",
        ),
        (
            ("models", "s060"),
            {"step": 61},
            "models.s060.step: 61; expected one of the snapshots of 'base' (0, 10, 30, ",
        ),
        (
            ("models", "base"),
            {"snapshots": [0, 30, 10]},
            "models.base.snapshots: [0, 30, 10]; expected steps that ascend",
        ),
        (
            ("models", "base"),
            {"snapshots": [0, 221]},
            "models.base.snapshots: [0, 221]; expected steps of at most steps = 220",
        ),
        (("models", "base"), {"snapshots": [0, 0]}, "models.base.snapshots: [0, 0] does not fit; expected each once"),
        (
            ("settings", "snapshots"),
            {"through": ORDER[:2]},
            "settings.snapshots.through: a list does not fit; expected",
        ),
        (
            ("settings", "snapshots"),
            {"through": ["s00", *ORDER[1:]]},
            "settings.snapshots.through: 's00' is not defined",
        ),
        (
            ("settings", "snapshots"),
            {"through": ORDER[::-1]},
            "settings.snapshots.through: 's150' (step 150) comes after 's220' (step 220); expected a later step",
        ),
        (
            ("settings", "snapshots", "sources", "s030"),
            {"layer": 2},
            "settings.snapshots.through: 's030' reads resid_post of layer 2; expected resid_post of layer 3, as 's000' does",
        ),
        (("crosscoders", "l1"), SAES, "settings.snapshots.through: no latent of l1 writes all of its sources"),
    ],
)
def test_what_is_wrong_is_a_line(place, change, line):
    content = copy.deepcopy(CONTENT)
    content["settings"]["snapshots"]["crosscoders"] = ["l1"]
    here = content
    for step in place:
        here = here[step]
    here |= change
    with pytest.raises(UserError) as caught:
        loading.check(content)
    assert line in str(caught.value)


def test_a_null_of_one_snapshot_replaces_every_other_and_is_followed_too():
    study = loading.check(copy.deepcopy(CONTENT))
    change = NullChange.of(study, "null-same-snapshot")
    assert change.stands_for == dict.fromkeys(ORDER[1:], ORDER[0])
    assert measurements.traced(study, "null-same-snapshot") == ["batchtopk"]
    assert measurements.traced(study, "snapshots") == ["l1", "batchtopk"]
    section = sections.SECTIONS["trace_latents"].of(study, "null-same-snapshot", "batchtopk", "0")
    assert section.steps == MODEL["snapshots"]
