"""The page of latents: its examples are those of the code, its text can do no harm, and it works in a browser."""

import json
import re
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
import xarray as xr
from selenium import webdriver
from selenium.webdriver.common.keys import Keys
from tests.accessibility import faults

from crosscoders import artifacts, storage
from crosscoders.analysis import latent_examples
from crosscoders.analysis.latent_examples import UNKNOWN, Firings, OwnTokens, Reads
from crosscoders.analysis.page_files import LATENTS_PER_PART, Parts, render, signs
from crosscoders.analysis.page_neighbours import SHOWN, in_units_of, neighbours_elsewhere
from crosscoders.crosscoder.crosscoder import create
from crosscoders.crosscoder.files import to_dataset
from crosscoders.errors import UserError
from crosscoders.language_models.unembedding import logit_effects

TEMPLATE = Path(__file__).parents[2] / "report" / "latents.html"
HOSTILE = "</script><script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">\u2028\u202e"


@pytest.fixture
def firings():
    """Random firings of 7 latents, the fourth of which never fires, on 20 documents of 20 tokens; and as a matrix."""
    generator = np.random.default_rng(0)
    f = (generator.random((7, 400)) < 0.2) * generator.random((7, 400)).astype(np.float32)
    f[3] = 0
    latent, token = np.nonzero(f)
    return Firings(latent, token, f[latent, token], np.repeat(np.arange(20), 20)), f


def test_examples_are_the_strongest_firings_and_some_of_each_quantile(firings):
    given, f = firings
    found = {latent: groups for latent, _, groups in latent_examples.examples(given, 4, 3)}
    assert sorted(found) == [0, 1, 2, 4, 5, 6]
    for j, (strongest, *groups) in found.items():
        best = [f[j, given.document == d].max() for d in range(20)]
        np.testing.assert_allclose([one.value for one in strongest], np.sort(best)[::-1][:4])
        falling = np.sort(f[j][f[j] > 0])[::-1]
        for group, values in zip(groups, np.array_split(falling, 3), strict=True):
            assert group
            assert all(values.min() <= one.value <= values.max() for one in group)
        shown = [one for group in (strongest, *groups) for one in group]
        documents = [int(given.document[one.tokens[one.at]]) for one in shown]
        assert len(set(documents)) == len(documents), "every example is from a document of its own"
        for one, document in zip(shown, documents, strict=True):
            assert (given.document[one.tokens] == document).all()
            assert len(one.tokens) <= latent_examples.BEFORE + 1 + latent_examples.AFTER
            np.testing.assert_array_equal(one.levels, np.ceil(61 * (f[j, one.tokens] / float(f[j].max()))))


class Rows:
    """Activations of kept tokens, as a stage reads them."""

    def __init__(self, x: torch.Tensor, token_index: np.ndarray):
        self.x, self.metadata = x, xr.Dataset({"token_index": ("token", token_index)})

    def __len__(self) -> int:
        return len(self.x)

    def rows(self, index: np.ndarray) -> torch.Tensor:
        return self.x[index]


def test_what_sources_add_is_the_preactivation_without_its_bias(firings, member):
    given, _ = firings
    generator = torch.Generator().manual_seed(0)
    kept = np.delete(np.arange(400), [5, 17])  # two sinks
    coder, x = create(member(latents=7), ["base", "chat"], [6, 4], seed=0), torch.randn(398, 10, generator=generator)
    reads = Reads(coder, Rows(x, kept), ["base", "chat"], 400)
    expected = np.full(400, np.nan)
    for latent, _, groups in latent_examples.examples(given, 2, 2):
        expected[kept] = (coder.preactivations(x) - coder.encoder_bias)[:, latent]
        largest, levels = reads.of(latent, groups)
        for group, added in zip(groups, levels, strict=True):
            for one, by_source in zip(group, added, strict=True):
                known = ~np.isnan(expected[one.tokens])
                assert all((by_source[name][~known] == UNKNOWN).all() for name in by_source)
                total = (by_source["base"] + by_source["chat"])[known] * largest / latent_examples.READ_LEVELS
                np.testing.assert_allclose(total, expected[one.tokens][known], atol=largest / 28)


def test_a_model_with_its_own_tokenizer_shows_its_own_tokens():
    own = OwnTokens(np.array([9, 8, 7, 6, 5]), np.array([-1, 0, -1, 2, 4]))
    example = latent_examples.Example(np.arange(4), 3, 1.0, np.zeros(4, int))
    ids, levels = own.beside(example, np.array([1, 2, 3, 4]))
    assert ids.tolist() == [9, 8, 7]
    assert levels.tolist() == [2, UNKNOWN, 4]
    assert signs(levels, 30, UNKNOWN) == "W-Y"


def test_the_nearest_latents_are_those_with_the_largest_cosine():
    decoder = torch.randn(9, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    alive = np.array([0, 2, 3, 5, 8])
    latents, cosines = latent_examples.nearest(decoder, alive, 3)
    for row, j in enumerate(alive):
        likeness = torch.nn.functional.cosine_similarity(decoder[j], decoder).numpy()
        others = sorted(set(alive) - {j}, key=lambda other: -likeness[other])[:3]
        assert latents[row].tolist() == others
        np.testing.assert_allclose(cosines[row], likeness[others], atol=1e-6)


def test_latents_of_another_crosscoder_are_compared_in_common_units_and_by_the_names_of_sources(tmp_path, member):
    mine, theirs = (
        create(member(latents=9), names, widths, seed=seed)
        for names, widths, seed in ((["base", "chat"], [6, 4], 0), (["chat", "base"], [4, 6], 1))
    )
    scale = {"base": 2.0, "chat": 5.0}, {"base": 1.0, "chat": 40.0}
    units = [
        xr.Dataset({name: ("source", [one[s] for s in coder.sources]) for name in ("scale", "sink_norm")})
        .assign_coords(source=np.array(coder.sources, object))
        .assign({f"mean_{s}": (f"width_{s}", np.zeros(w)) for s, w in zip(coder.sources, coder.widths, strict=True)})
        for coder, one in zip((mine, theirs), scale, strict=True)
    ]
    artifacts.write(to_dataset(theirs, units[1]), tmp_path / "theirs.nc")
    known = {name: ("latent", np.linspace(0.1, 0.9, 9)) for name in SHOWN}
    artifacts.write(xr.Dataset(known | {"density": ("latent", (np.arange(9) != 4) * 0.5)}), tmp_path / "latents.nc")
    alive = np.array([1, 3, 8])
    found = neighbours_elsewhere(mine, units[0]["scale"], alive, tmp_path / "theirs.nc", tmp_path / "latents.nc")
    raw = [
        torch.cat(
            [coder.decoder[:, coder.columns[coder.sources.index(s)]] * one[s] / scale[0][s] for s in ("base", "chat")],
            1,
        ).double()
        for coder, one in zip((mine, theirs), scale, strict=True)
    ]
    likeness = torch.nn.functional.cosine_similarity(raw[0][:, None], raw[1][None], dim=2).numpy()
    likeness[:, 4] = -1
    for j in alive.tolist():
        assert [row[0] for row in found[j]] == np.argsort(-likeness[j])[:3].tolist()
        for other, cosine, *said in found[j]:
            assert cosine == pytest.approx(likeness[j, other], abs=1e-3) and said == [round(0.1 + 0.1 * other, 3)] * 3
    other = create(member(latents=9), ["base", "chat"], [6, 5], seed=0)
    with pytest.raises(UserError, match=r"sources of widths .* expected"):
        in_units_of(mine, units[0]["scale"], other, units[1]["scale"])


def test_promoted_tokens_are_those_of_the_unembedding():
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=50, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2
    )
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        model.model.norm.weight.uniform_(0.5, 2)
    direction = torch.randn(3, 16)
    (up, down), changes = logit_effects(model, direction, 4)
    logits = (direction * model.model.norm.weight) @ model.lm_head.weight.T
    assert up.tolist() == logits.topk(4).indices.tolist()
    assert down.tolist() == (-logits).topk(4).indices.tolist()
    norm = direction.square().mean(1, keepdim=True).add(config.rms_norm_eps).rsqrt()
    np.testing.assert_allclose(changes[0], (norm * logits).topk(4).values.detach(), rtol=1e-4)


def detail(generator: np.random.Generator, latents: int, hostile: bool) -> dict:
    """What a page shows of one latent: random words, and a hostile text where asked for."""
    beside = {"base": [0, "UVWXYZabcdef"], "chat": [[7, 8, 9], "9-z"]}

    def example(strength: float) -> list:
        words = generator.integers(1, 500, 12).tolist()
        return [[0, *words[1:]] if hostile else words, 4, strength, "0005zA000000", beside]

    return {
        "norms": [0.5, 1.0],
        "firings": 321,
        "largest": 3.2,
        "added": 2.0,
        "bars": generator.integers(0, 200, latent_examples.BARS).tolist(),
        "effects": {
            source: [[[0 if hostile else 1, 1.5], [2, 1.2]], [[3, -1.1], [4, -0.9]]] for source in ("base", "chat")
        },
        "near": [[int(one), 0.5] for one in generator.integers(0, latents, 6)],
        "elsewhere": {
            "batchtopk/1": [[0, 0.91, 0.5, 0.8, None]],
            "l1/0": [[j, 0.9 - j / 10, 0.95, 0.25, 0.35] for j in range(3)],
        },
        "groups": [[example(3.2), example(2.9)], [example(1.5)], []],
    }


LABELS = {
    "labeller": HOSTILE,
    "tried": [0, 3, 5],
    "shown": {
        "0": [HOSTILE, 0.9, [0.7, 0.97], 0.5, [0.3, 0.7]],
        "5": ["greets a Bear", 0.95, [0.8, 1], 0.45, [0.2, 0.6]],
    },
}


def written(folder: Path, latents: int, in_parts: bool = False, detailed: int | None = None, **beside) -> Path:
    """The page of a crosscoder of random latents; the first has the largest Δ and a hostile token.

    Only the first `detailed` parts are made up where that is given.
    """
    generator, texts = np.random.default_rng(0), [HOSTILE, *(f" word{i}" for i in range(500))]
    delta = np.round(0.05 + generator.random(latents) * 0.8, 3)
    delta[0] = 0.95
    kinds = [
        "chat-only" if d >= 0.9 else "base-only" if d <= 0.1 else "shared" if 0.4 <= d <= 0.6 else "other"
        for d in delta
    ]
    nu = np.round(generator.normal(0.8, 0.3, latents), 3)
    intervals = list(zip(np.round(nu - 0.1, 3).tolist(), np.round(nu + 0.1, 3).tolist(), strict=True))
    parts = Parts(folder / "seed-0.html", in_parts)
    each = parts.latents or latents
    for number, first in enumerate(range(0, latents, each)[:detailed]):
        inside = range(first, min(first + each, latents))
        content = {"texts": texts, "latents": [detail(generator, latents, j == 0) for j in inside]}
        parts.add(f"details-{number:04d}", content)
    parts.add("search", [f"{HOSTILE} word{j} promoted" if j == 0 else f"word{j} promoted" for j in range(latents)])
    content = {
        "study": "study",
        "setting": HOSTILE,
        "crosscoder": "batchtopk",
        "seed": 0,
        "pages": [["batchtopk", 0], ["batchtopk", 1], ["l1", 0], ["l1", 1]],
        "others": [["batchtopk", 1], ["l1", 0]],
        "sources": ["base", "chat"],
        "contrast": ["base", "chat"],
        "columns": {
            "latent": list(range(latents)),
            "class": kinds,
            "specific": ["none"] * latents,
            "delta": delta.tolist(),
            "cosine": [None] * latents,
            "density": np.round(generator.random(latents) / 100, 6).tolist(),
            "template_share": [0.0] * latents,
            "persistence": [2] * latents,
            "share_refusal": [0.0] * latents,
            "nu_error": nu.tolist(),
            "nu_error_interval": intervals,
            "nu_reconstruction": nu[::-1].tolist(),
            "nu_reconstruction_interval": intervals[::-1],
        },
        "folder": "seed-0" if in_parts else None,
        "latentsPerPart": parts.latents,
        "parts": parts.inline,
    } | beside
    page = folder / "seed-0.html"
    storage.write_sealed(render(TEMPLATE.read_text(encoding="utf-8"), content), page)
    return page


def test_no_text_ends_a_script_and_all_of_it_comes_back(tmp_path):
    rendered = written(tmp_path / "one", 5).read_text(encoding="utf-8")
    assert HOSTILE not in rendered
    assert not set("\u2028\u2029") & set(rendered)
    (inside,) = re.findall(r'id="data">(.*?)</script>', rendered, flags=re.DOTALL)
    content = json.loads(inside)
    assert content["setting"] == HOSTILE
    assert content["parts"]["details-0000"]["texts"][0] == HOSTILE
    written(tmp_path / "several", 5, in_parts=True)
    (part,) = (tmp_path / "several/seed-0").glob("details-*.js")
    name, text = re.fullmatch(r'part\("(.*?)",(.*)\);\n', storage.read_sealed(part).decode()).groups()
    assert (name, "<" in text) == ("details-0000", False)
    assert json.loads(text) == content["parts"]["details-0000"]


def test_parts_are_whole_sealed_and_the_same_each_time(tmp_path):
    for folder in ("a", "b"):
        written(tmp_path / folder, LATENTS_PER_PART + 3, in_parts=True)
    (tmp_path / "a/seed-0/details-0009.js").write_text("of an earlier, larger crosscoder")
    written(tmp_path / "a", LATENTS_PER_PART + 3, in_parts=True)
    files = sorted(path.relative_to(tmp_path / "a") for path in (tmp_path / "a").rglob("*") if path.is_file())
    assert [file.name for file in files] == ["details-0000.js", "details-0001.js", "search.js", "seed-0.html"]
    for file in files:
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
        storage.verify(tmp_path / "a" / file)
    damaged = tmp_path / "a" / files[0]
    damaged.write_bytes(damaged.read_bytes().replace(b"word", b"ward", 1))
    with pytest.raises(UserError, match="corrupt"):
        storage.verify(damaged)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A page in one file, and the same page with parts beside it."""
    folder = tmp_path_factory.mktemp("pages")
    return [written(folder / name, 600, in_parts) for name, in_parts in (("one", False), ("several", True))]


@pytest.fixture
def page(browser, files, request):
    """A page, opened from disk in a window of a desk's size; no error may reach the browser's log."""
    browser.set_window_size(1400, 1000)
    browser.get(files[getattr(request, "param", 0)].as_uri())
    ready(browser)
    yield browser
    assert [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"] == []


def ready(page) -> None:
    eventually(lambda: page.find_element("css selector", "html").get_attribute("data-ready") == "true")


def eventually(condition) -> None:
    """Wait up to ten seconds for what the page does after it has answered."""
    ending = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < ending
        time.sleep(0.02)


def status(page) -> str:
    return page.find_element("id", "count").text


def title(page) -> str:
    return page.find_element("css selector", "#detail").text.split("\n")[0]


def column(page, key: str) -> list[str]:
    """What a column of the table shows."""
    place = 1 + [head.get_attribute("data-key") for head in page.find_elements("css selector", "#table th")].index(key)
    script = "return [...document.querySelectorAll(arguments[0])].map(cell => cell.textContent)"
    return page.execute_script(script, f"#table tbody td:nth-child({place})")


def press(page, *keys: str) -> None:
    webdriver.ActionChains(page).send_keys(*keys).perform()


@pytest.mark.parametrize("page", [0, 1], ids=["one file", "parts"], indirect=True)
def test_a_reader_opens_a_latent_and_hostile_text_stays_text(page):
    page.find_element("css selector", "#table tbody a").click()
    eventually(lambda: title(page).startswith("Latent 0: ▲ chat-only"))
    detail = page.find_element("id", "detail").text
    assert HOSTILE[:-2] + "⟨2028⟩⟨202e⟩" in detail, (
        "the hostile token is shown as text, and what has no shape by its number"
    )
    assert "owned" in page.title
    assert page.title != "owned"
    assert not page.find_elements("css selector", "#detail img")
    for words in ("Strongest test examples", "Nearest latents", "seed 1: latent 0 0.91", "1.50"):
        assert words in detail
    assert "from the 50th to the 100th percentile" in detail
    tokens = page.find_elements("css selector", ".example .tokens")[0].find_elements("tag name", "span")
    assert "--level: 8" in tokens[3].get_attribute("style")
    assert "--level: 100" in tokens[4].get_attribute("style")
    assert tokens[4].get_attribute("class") == "at"
    assert tokens[0].get_attribute("style") == ""
    beside = page.find_elements("css selector", ".example .by")[0].text
    assert "word6 word7 word8" in " ".join(beside.split()), "a model with a tokenizer of its own shows its tokens"


def test_the_address_holds_latent_filter_and_order(page):
    page.find_element("css selector", "#class option[value=shared]").click()
    page.find_element("css selector", "th[data-key=density] button").click()
    falling = [float(value) for value in column(page, "density")]
    assert falling == sorted(falling, reverse=True)
    shared, first = status(page), column(page, "latent")[:2]
    page.find_element("css selector", "#table tbody a").click()
    eventually(lambda: title(page).startswith(f"Latent {first[0]}:"))
    press(page, "j")
    eventually(lambda: title(page).startswith(f"Latent {first[1]}:"))
    page.back()
    eventually(lambda: title(page).startswith(f"Latent {first[0]}:"))
    address = page.current_url
    assert f"latent={first[0]}" in address
    page.get("about:blank")
    page.get(address)
    ready(page)
    eventually(lambda: title(page).startswith(f"Latent {first[0]}:"))
    assert (status(page), column(page, "latent")[:2]) == (shared, first)


@pytest.mark.parametrize("page", [1], ids=["parts"], indirect=True)
def test_a_reader_searches_and_turns_pages(page):
    assert status(page) == "1–100 of 600 latents (600 alive)"
    page.find_element("id", "next").click()
    assert status(page) == "101–200 of 600 latents (600 alive)"
    press(page, "/")
    press(page, "onerror")
    eventually(lambda: status(page) == "1–1 of 1 latents (600 alive)")
    page.find_element("id", "text").clear()
    page.find_element("id", "text").send_keys("no such words")
    eventually(lambda: status(page) == "no latent fits")


def test_the_scatter_picks_by_line_by_keys_and_by_ranges(page):
    plot = page.find_element("id", "plot")
    width, height = plot.size["width"], plot.size["height"]
    actions = webdriver.ActionChains(page).move_to_element_with_offset(plot, 0.4 * width, -0.45 * height)
    actions.click_and_hold()
    for x, y in ((0.08, 0), (0, 0.8), (-0.08, 0)):
        actions.move_by_offset(x * width, y * height)
    actions.release().perform()
    assert status(page) == "1–1 of 1 latents (1 picked)"
    assert column(page, "delta") == ["0.95"], "the line encloses the one latent at the right"
    eventually(lambda: title(page).startswith("Latent 0:"))
    page.find_element("id", "clear").click()
    assert status(page) == "1–100 of 600 latents (600 alive)"
    plot.click()
    page.execute_script("clearPicks()")
    press(page, *[Keys.ARROW_LEFT] * 3, Keys.ENTER)
    picked = column(page, "latent")
    assert 0 < len(picked) < 100
    press(page, Keys.ESCAPE)
    assert status(page) == "1–100 of 600 latents (600 alive)"
    page.find_element("css selector", "#ranges").find_element("xpath", "..").find_element("tag name", "summary").click()
    for name, value in (("x0", "0.6"), ("y1", "0.7")):
        page.find_element("name", name).send_keys(value)
    page.find_element("css selector", "#ranges button").click()
    delta, nu = (column(page, key) for key in ("delta", "nu_error"))
    assert delta
    assert all(float(one) >= 0.6 for one in delta)
    assert all(float(one.split(" ")[0]) <= 0.7 for one in nu)


def test_labels_are_shown_with_their_scores_and_can_be_searched(browser, tmp_path):
    browser.set_window_size(1400, 1000)
    browser.get(written(tmp_path, 8, labels=LABELS).as_uri() + "#latent=5")
    ready(browser)
    eventually(lambda: title(browser).startswith("Latent 5:"))
    detail = browser.find_element("id", "detail").text
    assert "Label: greets a Bear · score 0.95 [0.8, 1], by another latent's label 0.45 [0.2, 0.6]" in detail
    browser.find_element("css selector", "th[data-key=label_score] button").click()
    shown = dict(zip(column(browser, "latent"), column(browser, "label"), strict=True))
    assert list(shown)[:2] == ["5", "0"] and shown["3"] == "–" and "⟨2028⟩" in shown["0"]
    browser.find_element("id", "label").send_keys("bear")
    eventually(lambda: column(browser, "latent") == ["5"])
    assert column(browser, "label_shuffled") == ["0.45 [0.2, 0.6]"] and "label=bear" in browser.current_url
    browser.get(browser.current_url.replace("latent=5", "latent=3"))
    eventually(lambda: "A label was written, and is not shown" in browser.find_element("id", "detail").text)
    assert not browser.find_elements("css selector", "#detail img, #table img") and "owned" not in title(browser)
    assert faults(browser) == []


def test_what_is_picked_comes_back_from_the_address(page):
    plot, counted = (
        page.find_element("id", "plot"),
        "return [picked.size, inAddress(picked), [...picked].sort((a, b) => a - b).join()]",
    )
    for rows in ([0], [3, 4, 599], [*range(2, 600, 2)], [*range(600)], [*range(0, 600, 97)]):
        page.execute_script("repick(new Set(arguments[0]))", rows)
        size, text, listed = page.execute_script(counted)
        assert size == len(rows) and len(text) <= 103 and re.fullmatch(r"[\w.-]+", text)
        assert page.execute_script("return [...picksOf(arguments[0])].sort((a, b) => a - b).join()", text) == listed
    page.execute_script("visit(7)")
    eventually(lambda: title(page).startswith("Latent 7:"))
    plot.click()
    address, shown = page.current_url, column(page, "latent")
    page.get("about:blank")
    page.get(address)
    ready(page)
    assert (
        column(page, "latent") == shown
        and status(page) == f"1–{len(shown)} of {len(shown)} latents ({len(shown)} picked)"
    )
    press(page, "x")
    assert status(page).endswith(f"({len(shown) - 1 if '7' in shown else len(shown) + 1} picked)")
    plot, before = page.find_element("id", "plot"), int(page.execute_script("return picked.size"))
    webdriver.ActionChains(page).key_down(Keys.CONTROL).move_to_element_with_offset(plot, -150, 60).click().key_up(
        Keys.CONTROL
    ).perform()
    assert abs(int(page.execute_script("return picked ? picked.size : 0")) - before) == 1, "one is added or taken out"


def test_a_latent_stands_beside_those_of_another_crosscoder(browser, tmp_path):
    browser.set_window_size(1500, 1000)
    file = written(tmp_path / "batchtopk", 40)
    for name in ("l1", "batchtopk"):
        written(tmp_path / name, 40).rename(tmp_path / name / f"seed-{'0' if name == 'l1' else '1'}.html")
    written(tmp_path / "batchtopk", 40)
    browser.get(file.as_uri() + "#latent=2")
    ready(browser)
    press(browser, "c")
    browser.switch_to.active_element.send_keys("l1")
    eventually(lambda: "Beside it: l1, seed 0" in browser.find_element("id", "detail").text)
    rows = [line.text for line in browser.find_elements("css selector", ".near tr")]
    assert rows == [
        "nearest cosine Δ ν error ν reconstruction",
        *(f"latent {j} {round(0.9 - j / 10, 3)} 0.95 0.25 0.35" for j in range(3)),
    ]
    beside = lambda: browser.find_element("css selector", ".compared iframe").get_attribute("src")  # noqa: E731
    assert beside().endswith("/l1/seed-0.html?card#latent=0")
    browser.find_elements("css selector", ".near button")[1].click()
    eventually(lambda: beside().endswith("#latent=1"))
    own, other = (browser.find_element("css selector", f".compared > div:nth-child({i})").rect for i in (1, 2))
    assert other["x"] >= own["x"] + own["width"], "side by side"
    address = browser.current_url
    assert "with=l1%2F0" in address and "beside=1" in address
    browser.get("about:blank")
    browser.get(address)
    ready(browser)
    eventually(lambda: browser.find_elements("css selector", ".compared iframe") and beside().endswith("#latent=1"))
    browser.switch_to.frame(browser.find_element("css selector", ".compared iframe"))
    eventually(lambda: "Strongest test examples" in browser.find_element("id", "detail").text)
    assert not browser.find_elements("css selector", "#detail button, #detail iframe"), "a card compares nothing"
    browser.switch_to.default_content()
    press(browser, "j")
    eventually(lambda: not title(browser).startswith("Latent 2:") and beside().endswith("#latent=0"))
    assert faults(browser) == []
    links = [one.get_attribute("href") for one in browser.find_elements("css selector", ".compared > div + div p a")]
    assert links == [beside().replace("?card", "")]


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_readers_with_other_eyes_and_small_screens_can_read_it(browser, files, theme):
    media = {"features": [{"name": "prefers-color-scheme", "value": theme}]}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
    phone = {"width": 360, "height": 700, "deviceScaleFactor": 2, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", phone)
    browser.get(files[0].as_uri() + "#latent=0&with=l1%2F0&picks=AAAA")
    ready(browser)
    eventually(lambda: title(browser).startswith("Latent 0:"))
    assert browser.execute_script("return document.documentElement.scrollWidth") <= 360
    for one in browser.find_elements("css selector", "main details"):
        browser.execute_script("arguments[0].open = true", one)
    assert faults(browser) == []


def test_many_latents_open_soon(browser, tmp_path):
    """The page holds the whole table of 73,728 latents. Opening it reads the first part alone, so only that is made up."""
    file = written(tmp_path, 73728, in_parts=True, detailed=1)
    began = time.monotonic()
    browser.get(file.as_uri())
    ready(browser)
    browser.find_element("css selector", "#table tbody a").click()
    eventually(lambda: title(browser).startswith("Latent 0:"))
    seconds = time.monotonic() - began
    assert status(browser) == "1–100 of 73728 latents (73728 alive)"
    assert seconds < 3, f"{seconds:.1f} s to the first latent of 73,728"
    (folder,) = (path for path in tmp_path.iterdir() if path.is_dir() and path.name == "seed-0")
    (folder / "details-0000.js").unlink()
    browser.refresh()
    ready(browser)
    eventually(lambda: "cannot be read; it must lie beside this page" in browser.find_element("id", "detail").text)
