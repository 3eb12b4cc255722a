"""The page of latents: its examples are those of the code, its text can do no harm, and it works in a browser."""

import json
import re
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers

from crosscoders.analysis import latent_page

TEMPLATE = Path(__file__).parents[2] / "report" / "latents.html"
HOSTILE = "</script><script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">"


def test_examples_are_the_strongest_firings_of_different_documents():
    generator = np.random.default_rng(0)
    tokens, latents = 400, 7
    f = (generator.random((latents, tokens)) < 0.2) * generator.random((latents, tokens)).astype(np.float32)
    f[3] = 0
    document = np.repeat(np.arange(20), 20)
    latent, token = np.nonzero(f)
    found = latent_page.examples(latent, token, f[latent, token], document, 4)
    assert 3 not in found
    for j, shown in found.items():
        best = [f[j, document == d].max() for d in range(20)]
        expected = np.sort(best)[::-1][:4]
        centres = [first + strongest for first, strongest, _ in shown]
        np.testing.assert_allclose(f[j, centres], expected)
        for (first, strongest, levels), at in zip(shown, centres, strict=True):
            places = first + np.arange(len(levels))
            assert (document[places] == document[at]).all()
            assert len(levels) <= latent_page.BEFORE + 1 + latent_page.AFTER
            np.testing.assert_array_equal(levels, np.ceil(99 * (f[j, places] / float(f[j].max()))))
            assert levels[strongest] == max(levels[strongest], 1)


def test_promoted_tokens_are_those_of_the_unembedding():
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=50, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2
    )
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        model.model.norm.weight.uniform_(0.5, 2)
    direction = torch.randn(3, 16)
    up, down = latent_page.promoted(model, direction, 4)
    logits = (direction * model.model.norm.weight) @ model.lm_head.weight.T
    assert up.tolist() == logits.topk(4).indices.tolist()
    assert down.tolist() == (-logits).topk(4).indices.tolist()


def content(latents: int) -> dict:
    """A dictionary of random latents; the first has the largest Δ and a hostile token."""
    generator = np.random.default_rng(0)
    delta = np.round(generator.random(latents) * 0.8, 3)
    delta[0] = 0.95
    kinds = ["chat-only" if d >= 0.9 else "shared" if 0.4 <= d <= 0.6 else "other" for d in delta]
    texts = [HOSTILE, *(f" word{i}" for i in range(500))]
    examples = [[[int(generator.integers(10, 400)), 2, [0, 40, 99, 10]] for _ in range(3)] for _ in range(latents)]
    examples[0][0] = [0, 0, [99, 0, 0, 0]]
    return {
        "title": HOSTILE,
        "sources": ["base", "chat"],
        "columns": {
            "latent": list(range(latents)),
            "class": kinds,
            "specific": ["none"] * latents,
            "delta": delta.tolist(),
            "cosine": [None] * latents,
            "density": np.round(generator.random(latents) / 100, 6).tolist(),
            "template_share": [0.0] * latents,
            "persistence": [2] * latents,
            "norms": [[0.5, 1.0]] * latents,
            "share_refusal": [0.0] * latents,
            "nu_error": [0.9] * latents,
            "nu_error_interval": [[0.8, 1.0]] * latents,
            "nu_reconstruction": [0.9] * latents,
            "nu_reconstruction_interval": [[0.8, 1.0]] * latents,
        },
        "examples": examples,
        "texts": texts,
        "tokens": list(range(501)),
        "effects": {source: [[[0, 1]] * latents, [[2, 3]] * latents] for source in ("base", "chat")}
        | {"elsewhere": [[[]] * latents] * 2},
        "vocabulary": [HOSTILE, " b", " c", " d"],
    }


def test_no_text_ends_the_script_and_all_of_it_comes_back():
    given = content(5)
    rendered = latent_page.render(TEMPLATE.read_text(encoding="utf-8"), given)
    assert HOSTILE not in rendered
    (inside,) = re.findall(r'id="data">(.*?)</script>', rendered, flags=re.DOTALL)
    assert json.loads(inside) == given


@pytest.fixture
def page(browser, tmp_path):
    """The page of a large crosscoder, opened from disk; no error may reach the browser's log."""
    file = tmp_path / "page.html"
    file.write_text(latent_page.render(TEMPLATE.read_text(encoding="utf-8"), content(8192)), encoding="utf-8")
    browser.get(file.as_uri())
    assert browser.find_element("css selector", "html").get_attribute("data-ready") == "true"
    yield browser
    assert [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"] == []


def status(page) -> str:
    return page.find_element("id", "count").text


def test_a_reader_opens_a_latent_soon(page):
    began = time.monotonic()
    page.refresh()
    page.find_element("css selector", "tbody tr").click()
    seconds = time.monotonic() - began
    assert seconds < 3, f"{seconds:.1f} s to the first interaction with 8,192 latents"
    detail = page.find_element("id", "detail").text
    assert "Latent 0: chat-only" in detail
    assert "direction in chat promotes" in detail
    assert "elsewhere" not in detail, "nothing is said of a source without promoted tokens"
    assert HOSTILE in detail, "the hostile token is shown as text"
    assert page.title == HOSTILE
    assert not page.find_elements("css selector", "img")
    spans = page.find_elements("css selector", ".example")[0].find_elements("tag name", "span")
    assert "rgb" in spans[0].get_attribute("style")
    assert spans[1].get_attribute("style") == ""


def test_a_reader_sorts_and_turns_pages(page):
    def column(key: str) -> list[str]:
        place = 1 + [head.get_attribute("data-key") for head in page.find_elements("css selector", "th")].index(key)
        return [cell.text for cell in page.find_elements("css selector", f"tbody td:nth-child({place})")]

    assert column("delta")[0] == "0.95", "ordered by Δ, the largest first"
    button = page.find_element("css selector", "th[data-key=density] button")
    button.click()
    falling = [float(value) for value in column("density")]
    assert falling == sorted(falling, reverse=True)
    button.click()
    rising = [float(value) for value in column("density")]
    assert rising == sorted(rising)
    assert status(page) == "1–100 of 8192 latents (8192 alive)"
    page.find_element("id", "next").click()
    assert status(page) == "101–200 of 8192 latents (8192 alive)"


def test_a_reader_filters_by_class_and_words(page):
    page.find_element("css selector", "#class option[value=chat-only]").click()
    assert status(page) == "1–1 of 1 latents (8192 alive)"
    page.find_element("css selector", "#class option[value='']").click()
    page.find_element("id", "text").send_keys("onerror")
    assert status(page).startswith("1–100 of 8192"), "every latent promotes the hostile token"
    page.find_element("id", "text").clear()
    page.find_element("id", "text").send_keys("no such words")
    assert status(page) == "no latent fits"
