"""What the project tells catalogs and container builders of itself: it parses, and what it names is there."""

import re

import pytest
import yaml
from tests import preloaded
from tests.project import ENVIRONMENT, ROOT, SMOKE

CATALOG = yaml.safe_load((ROOT / ".snakemake-workflow-catalog.yml").read_text(encoding="utf-8"))
RULES = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "Snakefile", *(ROOT / "rules").glob("*.smk")))


def test_the_catalog_entry_has_the_keys_that_the_catalog_reads():
    assert set(CATALOG) == {"usage"}
    assert set(CATALOG["usage"]) == {"mandatory-flags", "software-stack-deployment"}
    flags = CATALOG["usage"]["mandatory-flags"]
    assert set(flags) == {"desc", "flags"} and all(isinstance(text, str) for text in flags.values())
    deployment = CATALOG["usage"]["software-stack-deployment"]
    assert set(deployment) == {"conda", "apptainer", "apptainer+conda", "report"}
    assert all(isinstance(works, bool) for works in deployment.values())


def test_the_catalog_entry_names_what_there_is():
    """The catalog finds the Snakefile at the root; conda, apptainer and the report are what the entry says."""
    deployment = CATALOG["usage"]["software-stack-deployment"]
    named = {(ROOT / "rules" / path).resolve() for path in re.findall(r'conda:\s+"([^"]+)"', RULES)}
    assert deployment["conda"] == bool(named) and all(path.is_file() for path in named)
    assert deployment["apptainer"] == ("container: IMAGE" in RULES) == (ROOT / "envs/crosscoders.def").is_file()
    assert "conda" not in (ROOT / "envs/crosscoders.def").read_text() or deployment["apptainer+conda"]
    assert deployment["report"] == ("report(" in RULES)
    assert (ROOT / "Snakefile").is_file() and "--configfile" in CATALOG["usage"]["mandatory-flags"]["desc"]


@pytest.mark.parametrize("recipe", ["crosscoders.def", "Dockerfile"])
def test_images_are_made_of_the_lock(recipe):
    text = (ROOT / "envs" / recipe).read_text(encoding="utf-8")
    files = set(re.findall(r"envs/([\w.-]+\.txt)", text))
    assert {"requirements.txt", "cuda.txt"} <= files
    assert all((ROOT / "envs" / name).is_file() for name in files)
    assert "--require-hashes" in text and "--no-deps" in text
    assert "python:3.11-" in text, "the Python of envs/crosscoders.yaml"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("image", "said"),
    [
        (None, "container: envs/crosscoders.sif does not exist; expected an image, as `apptainer build "),
        ("/nowhere/x.sif", "container: /nowhere/x.sif does not exist; expected an image, as `apptainer build "),
    ],
)
def test_an_image_that_is_not_built_is_a_line_where_it_is_asked_for(image, said):
    if image is None and (ROOT / "envs/crosscoders.sif").exists():
        pytest.skip("the image is built here")
    arguments = ["-n", *SMOKE, "--software-deployment-method", "apptainer"]
    variables = ENVIRONMENT | ({"CROSSCODERS_IMAGE": image} if image else {})
    done = preloaded.snakemake(ROOT, arguments, variables)
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert done.returncode != 0 and len(lines) == 1 and lines[0].startswith(f"error: {said}"), done.stderr


def test_a_run_without_apptainer_leaves_the_container_aside(finished_project):
    """The shared study was made without an image, and nothing of it is made again where one is named."""
    variables = ENVIRONMENT | {
        "CROSSCODERS_IMAGE": "docker://another/image",
        "PYTHONPATH": str(finished_project / "src"),
    }
    done = preloaded.snakemake(finished_project, ["-n", *SMOKE], variables)
    assert done.returncode == 0 and "Nothing to be done" in done.stdout + done.stderr, done.stderr
