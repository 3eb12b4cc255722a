"""The workflow as a module of another Snakefile, in another folder."""

from pathlib import Path

import pytest
import xarray as xr
import yaml
from tests import preloaded
from tests.project import ENVIRONMENT, ROOT, small_study

SNAKEFILE = """
configfile: "mine.yaml"


module crosscoders:
    snakefile:
        {snakefile!r}
    config:
        config["crosscoders"]{more}


use rule * from crosscoders as crosscoders_*


rule mine:
    default_target: True
    input:
        "results/small/manifest.json",
    output:
        "mine.txt",
    shell:
        "echo > {{output}}"


onstart:
    crosscoders.onstart()
"""


@pytest.fixture
def mine(tmp_path):
    """A folder with a workflow that uses this one, and settings of its own beside those of the study."""
    content = {"other": 1, "crosscoders": small_study("small")}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(content, sort_keys=False))

    def write(snakefile: str | Path = ROOT / "Snakefile", more: str = "") -> Path:
        (tmp_path / "Snakefile").write_text(SNAKEFILE.format(snakefile=str(snakefile), more=more))
        return tmp_path

    return write


def snakemake(folder: Path, *arguments: str) -> tuple[int, str]:
    """Run the workflow of a folder: status and output."""
    profile = ["--cores", "2", "--workflow-profile", f"{ROOT}/profiles/default"]
    done = preloaded.snakemake(folder, [*profile, *arguments], ENVIRONMENT)
    return done.returncode, done.stdout + done.stderr


@pytest.mark.slow
def test_another_workflow_plans_and_makes_this_one_as_a_module(mine):
    folder, target = mine(), "results/small/planted/pair/batchtopk/seed-0.nc"
    status, output = snakemake(folder, "-n")
    assert status == 0, output
    for rule in (
        "crosscoders_trial",
        "crosscoders_notebook_pair",
        "crosscoders_report",
        "crosscoders_manifest",
        "mine",
    ):
        assert f"{rule} " in output, output
    status, output = snakemake(folder, target)
    assert status == 0 and "Traceback" not in output, output
    with xr.open_dataset(folder / target) as found:
        assert found.attrs["study"] == "small"
    assert (folder / ".snakemake/runs/small.txt").is_file(), "its own onstart has let ours claim the study"
    status, output = snakemake(folder, "-n", target)
    assert status == 0 and "Nothing to be done" in output, output


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"more": '\n    prefix:\n        "there"'}, "error: module: prefix: 'there/' cannot be used"),
        ({"study": {"seeds": "many"}}, "seeds: 'many' does not fit; expected a valid list"),
    ],
    ids=str,
)
def test_what_a_module_cannot_be_given_is_a_line(mine, change, said):
    folder = mine(more=change.get("more", ""))
    if "study" in change:
        content = {"crosscoders": small_study("small") | change["study"]}
        (folder / "mine.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    status, output = snakemake(folder, "-n")
    lines = [line for line in output.splitlines() if line.startswith("error: ")]
    assert status != 0 and len(lines) == 1 and said in lines[0] and "Traceback" not in output, output
