"""The page of latents: its examples are those of the code, its text can do no harm, and it works in a browser."""

import json
import re
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from tests.accessibility import faults

from crosscoders import storage
from crosscoders.analysis import latent_examples, latent_page
from crosscoders.analysis.latent_examples import UNKNOWN, Firings, OwnTokens, Reads
from crosscoders.analysis.page_files import LATENTS_PER_PART, Parts, render, signs
from crosscoders.crosscoder.crosscoder import create
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
        self.x, self.metadata = x, {"token_index": torch.from_numpy(token_index)}

    def __len__(self) -> int:
        return len(self.x)

    def rows(self, index: np.ndarray) -> torch.Tensor:
        return self.x[index]


def test_what_sources_add_is_the_preactivation_without_its_bias(firings, member):
    given, _ = firings
    generator = torch.Generator().manual_seed(0)
    kept = np.delete(np.arange(400), [5, 17])  # two sinks
    coder, x = create(member(latents=7), ["base", "chat"], [6, 4], generator), torch.randn(398, 10, generator=generator)
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
    np.testing.assert_allclose(changes[0], (norm * logits).topk(4).values, rtol=1e-4)


def detail(generator: np.random.Generator, latents: int, hostile: bool) -> dict:
    """What a page shows of one latent: random words, and a hostile text where asked for."""
    beside = {"base": [0, "UVWXYZabcdef"], "chat": [[7, 8, 9], "9-z"]}

    def example(strength: float) -> list:
        words = generator.integers(1, 500, 12).tolist()
        return [[0, *words[1:]] if hostile else words, 4, strength, "00050zA00000", beside]

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
        "matched": {"1": [0, 0.91]},
        "groups": [[example(3.2), example(2.9)], [example(1.5)], []],
    }


def written(folder: Path, latents: int, in_parts: bool = False) -> Path:
    """The page of a crosscoder of random latents; the first has the largest Δ and a hostile token."""
    generator, texts = np.random.default_rng(0), [HOSTILE, *(f" word{i}" for i in range(500))]
    delta = np.round(0.05 + generator.random(latents) * 0.8, 3)
    delta[0] = 0.95
    kinds = ["chat-only" if d >= 0.9 else "base-only" if d <= 0.1 else "shared" if 0.4 <= d <= 0.6 else "other" for d in delta]
    nu = np.round(generator.normal(0.8, 0.3, latents), 3)
    intervals = list(zip(np.round(nu - 0.1, 3).tolist(), np.round(nu + 0.1, 3).tolist(), strict=True))
    parts = Parts(folder / "seed-0" if in_parts else None)
    each = parts.latents or latents
    for number, first in enumerate(range(0, latents, each)):
        inside = range(first, min(first + each, latents))
        content = {"texts": texts, "latents": [detail(generator, latents, j == 0) for j in inside]}
        parts.add(f"details-{number:04d}", content)
    parts.add("search", [f"{HOSTILE} word{j} promoted" if j == 0 else f"word{j} promoted" for j in range(latents)])
    content = {
        "study": "study",
        "setting": HOSTILE,
        "crosscoder": "batchtopk",
        "seed": 0,
        "siblings": ["batchtopk", "l1"],
        "seeds": [0, 1],
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
    }
    page = folder / "seed-0.html"
    storage.write_sealed(render(TEMPLATE.read_text(encoding="utf-8"), content), page)
    return page
