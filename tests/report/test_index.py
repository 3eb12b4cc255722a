"""The front page of a study: it names every setting, its links lead somewhere, and a browser shows it."""

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from tests.accessibility import faults
from tests.project import copy_finished, snakemake

from crosscoders import artifacts
from crosscoders.report import index

RESULTS = "results/smoke"


class Links(HTMLParser):
    """Collects what a page links to and shows."""

    def __init__(self):
        super().__init__()
        self.targets, self.identifiers = [], set()

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        self.targets += [given[name] for name in ("href", "src") if given.get(name)]
        self.identifiers.add(given.get("id"))


@pytest.fixture(scope="module")
def page(finished_project):
    return (finished_project / RESULTS / "index.html").read_text()


@pytest.mark.slow
def test_every_link_leads_to_a_file_or_a_part_of_the_page(finished_project, page):
    found = Links()
    found.feed(page)
    for target in found.targets:
        if target.startswith("#"):
            assert target[1:] in found.identifiers
        else:
            assert (finished_project / RESULTS / target).exists(), target
    shown = {Path(target).stem for target in found.targets if target.startswith("figures/")}
    assert shown >= {path.stem for path in (finished_project / RESULTS / "figures").glob("*.png")}
    assert {target for target in found.targets if target.startswith("latents/")}


@pytest.mark.slow
def test_the_comparison_of_two_models_comes_first_and_every_setting_is_heard_on_the_terminal(finished_project, page):
    assert page.index('id="base-vs-chat"') < page.index('id="cross-layer"')
    log = (finished_project / RESULTS / "logs/index.log").read_text()
    said = log[log.index("what was found, among other things:") :].splitlines()[1:]
    assert [line.split(":")[0].strip() for line in said[:2]] == ["base-vs-chat", "cross-layer"]
    assert len(said) == index.SAID


@pytest.mark.slow
def test_findings_are_the_sentences_of_the_notebooks_with_their_numbers(finished_project, page):
    summary = artifacts.read(finished_project / RESULTS / "summary/base-vs-chat.nc")
    l0 = float(summary["l0"].sel(crosscoder="batchtopk").mean())
    assert f"{l0:.1f}" in page
    notebook = (finished_project / RESULTS / "notebooks/model_diffing-base-vs-chat.html").read_text()
    findings = re.findall(r"<article class=\"finding\">.*?<h3>(.*?)</h3>(.*?)</div>", page, re.DOTALL)
    assert len(findings) >= 5
    sentence = re.sub(r"<.*?>", "", findings[0][1]).strip().splitlines()[0]
    assert sentence[:60] in re.sub(r"<.*?>", "", notebook)
    assert index.members(summary)[0]["tokens seen"] in page
    assert {"chat-only", "layer-02-only"} <= set(re.findall(r'<th scope="col">(.*?)</th>', page))


@pytest.mark.slow
def test_the_same_summaries_make_the_same_page(finished_project, tmp_path):
    project = copy_finished(finished_project, tmp_path / "project")
    before = (project / RESULTS / "index.html").read_bytes()
    (project / RESULTS / "index.html").unlink()
    done = snakemake(project, f"{RESULTS}/index.html", "--configfile", "studies/smoke.yaml")
    assert "[##############################] 100%  1 of 1 jobs  index" in done.stderr
    assert "Select jobs" not in done.stderr
    assert (project / RESULTS / "index.html").read_bytes() == before


def test_what_a_name_holds_is_shown_and_not_run():
    template = (Path(index.__file__).parents[3] / "report" / "index.html").read_text()
    hostile = "<script>document.title='owned'</script>"
    one = index.Chapter(hostile, notebook="n.html", members=[{"crosscoder": hostile}])
    made = index.render(template, study=hostile, chapters=[one], datasets=[(hostile, "1", "1 B")])
    assert "<script" not in made


@pytest.mark.slow
def test_the_report_of_the_workflow_opens_with_the_findings(finished_project, page, browser):
    browser.get((finished_project / RESULTS / "report.html").as_uri())
    captions = re.findall(r"<article class=\"finding\">.*?<h3>(.*?)</h3>", page, re.DOTALL)
    found = browser.execute_script("return document.body.innerText")
    assert all(caption in found for caption in captions)
    top = "return document.querySelector('.prose p').getBoundingClientRect().top"
    assert browser.execute_script(top) >= 0, "the beginning can be reached"
    links = browser.execute_script("return [...document.querySelectorAll('a')].map(one => one.getAttribute('href'))")
    pages = {
        str(path.relative_to(finished_project / RESULTS))
        for path in finished_project.glob("results/*/latents/*/*/*.html")
    }
    assert pages
    assert pages <= set(links)


@pytest.mark.slow
@pytest.mark.parametrize(("width", "theme"), [(1400, "light"), (400, "dark")])
def test_a_browser_shows_it_without_a_fault(finished_project, browser, width, theme):
    browser.set_window_size(width, 900)
    media = {"features": [{"name": "prefers-color-scheme", "value": theme}]}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
    browser.get((finished_project / RESULTS / "index.html").as_uri())
    assert browser.execute_script("return [...document.images].every(one => one.complete && one.naturalWidth > 0)")
    wide = browser.execute_script("return document.documentElement.scrollWidth - document.documentElement.clientWidth")
    assert wide <= 1  # nothing sticks out
    assert [one for one in browser.get_log("browser") if one["level"] == "SEVERE"] == []
    assert faults(browser) == []
