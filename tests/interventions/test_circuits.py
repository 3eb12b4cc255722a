"""Collapsing SAE latents: the graph is what brute force makes of it, planted features are found, ablations are exact."""

import itertools

import numpy as np
import pytest
import torch
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import csr_array

from crosscoders import artifacts
from crosscoders.interventions import ablate_nodes, collapse
from crosscoders.interventions.collapse import Layer
from crosscoders.planted import circuit_trial
from crosscoders.planted.sections import CircuitTrialSection

SOURCES, LATENTS, WIDTH, TOKENS = 3, 5, 4, 6


def random_layers(seed: int, density: float = 0.5) -> list[Layer]:
    generator = np.random.default_rng(seed)
    found = []
    for _ in range(SOURCES):
        code = generator.random((TOKENS, LATENTS)) * (generator.random((TOKENS, LATENTS)) < density)
        found.append(
            Layer(csr_array(code), generator.normal(size=(LATENTS, WIDTH)), generator.normal(size=(LATENTS, WIDTH)))
        )
    return found


def fewest(sizes: list[float], free: float) -> int:
    """The smallest number of edges that carry the wanted share, by trying all subsets."""
    wanted = collapse.KEPT_ATTRIBUTION * (sum(sizes) + free)
    for count in range(len(sizes) + 1):
        if any(sum(part) + free >= wanted * (1 - 1e-9) for part in itertools.combinations(sizes, count)):
            return count
    raise AssertionError


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.lists(st.integers(-1, 3), min_size=SOURCES * LATENTS, max_size=SOURCES * LATENTS))
def test_nodes_edges_and_identity_are_those_of_brute_force(seed, labels):
    layers = random_layers(seed, 0.4)
    labels = list(np.array(labels).reshape(SOURCES, LATENTS))
    found = collapse.measure(layers, collapse.edges(layers), labels)
    for t in range(TOKENS):
        codes = [layer.code.toarray()[t] for layer in layers]
        name = lambda s, i: ("node", int(labels[s][i])) if labels[s][i] >= 0 else ("alone", s, int(i))  # noqa: E731
        active = [(s, i) for s in range(SOURCES) for i in np.flatnonzero(codes[s])]
        joined, identity, total = {}, 0.0, 0.0
        for (s, i), (r, j) in itertools.product(active, active):
            if r == s + 1:
                value = codes[s][i] * layers[s].decoder[i] @ layers[r].encoder[j]
                total += abs(value)
                if name(s, i) == name(r, j):
                    identity += abs(value)
                else:
                    edge = (name(s, i), name(r, j))
                    joined[edge] = joined.get(edge, 0.0) + value
        assert found["nodes"][t] == len({name(s, i) for s, i in active})
        assert found["attribution"][t] == pytest.approx(total)
        assert found["identity"][t] == pytest.approx(identity)
        sizes = sorted((abs(value) for value in joined.values()), reverse=True)[:12]
        if len(joined) <= 12:
            assert found["edges"][t] == fewest(sizes, identity)


def test_correlation_is_pearsons_and_constant_columns_have_none():
    a, b = random_layers(0)[0].code, random_layers(1)[0].code
    expected = np.corrcoef(a.toarray().T, b.toarray().T)[:LATENTS, LATENTS:]
    np.testing.assert_allclose(collapse.correlation(a, b), np.nan_to_num(expected), atol=1e-12)


def test_latents_that_stand_for_one_feature_are_joined_and_others_are_not():
    generator = np.random.default_rng(0)
    code = csr_array(generator.random((400, 3)) * (generator.random((400, 3)) < 0.2))
    directions = np.eye(3, 8)
    layers = [Layer(code, directions, 2.0 * directions), Layer(code[:, [2, 0, 1]], directions, directions[[2, 0, 1]])]
    found = collapse.by_crosscoder(layers, code, [directions, directions], 0.7, 0.3)
    assert [part.tolist() for part in found] == [[0, 1, 2], [2, 0, 1]]
    assert collapse.factor(found) == 2
    chains = collapse.by_clustering(layers, 0.7, 0.3)
    assert chains[0].tolist() == [0, 1, 2]
    assert chains[1].tolist() == [2, 0, 1]
    shuffled = [layer.shuffled(np.random.default_rng(s)) for s, layer in enumerate(layers)]
    alone = collapse.by_crosscoder(shuffled, code, [directions, directions], 0.7, 0.3)
    assert (np.concatenate(alone) == -1).all(), "on other tokens nothing fires together"
    assert np.isnan(collapse.factor(alone))


@pytest.fixture(scope="module")
def planted_circuits(tmp_path_factory):
    """The stage itself, on five synthetic layers with concepts that persist."""
    training = {
        "steps": 700,
        "batch_tokens": 512,
        "learning_rate": 3e-3,
        "warmup_steps": 50,
        "decay_share": 0.5,
        "gradient_clip": 10.0,
        "decoder_norm": 0.3,
        "dead_tokens": 20000,
    }
    member = {"latents": 128, "activation": {"kind": "batchtopk", "k": 2}, "training": training}
    section = {
        "study": "test",
        "setting_name": "layers",
        "crosscoder_name": "shared",
        "seed": 0,
        "synthetic": {
            "planted": {"concepts": {"spanning": 60}, "rate": 0.03},
            "widths": {f"layer-{i}": 32 for i in range(4)},
            "tokens": {"train": 40000, "validation": 8000, "test": 8000},
            "differences": {},
        },
        "circuits": {"crosscoder": "shared", "saes": "saes", "tokens": 8000},
        "crosscoder": member | {"blocks": {"all": {"share": 1.0}}},
        "saes": member
        | {
            "latents": 384,
            "activation": {"kind": "batchtopk", "k": 6},
            "blocks": {"sae": {"share": 1.0, "reads": "each", "writes": "each"}},
        },
        "bootstrap": {"bootstrap_replicates": 50, "confidence": 0.95, "seed": 0},
    }
    output = tmp_path_factory.mktemp("circuits") / "one.nc"

    class Arguments:
        pass

    Arguments.settings, Arguments.output = CircuitTrialSection.model_validate(section), output
    circuit_trial.main(Arguments)
    return artifacts.read(output)


def test_planted_persistent_concepts_are_found_and_the_graph_shrinks(planted_circuits):
    found = planted_circuits
    ours, none, shuffled = (found.sel(collapse=way) for way in ("crosscoder", "none", "shuffled tokens"))
    assert float(ours["recall_of_known"]) >= 0.95
    assert float(shuffled["matched_share"]) < 0.02
    assert float(ours["nodes_per_token_high"]) < float(none["nodes_per_token_low"])
    assert float(ours["edges_per_token_high"]) < float(none["edges_per_token_low"])
    assert float(ours["identity_share_low"]) > 0.5
    assert (float(none["identity_share"]), float(shuffled["identity_share"])) == (0, pytest.approx(0, abs=0.02))
    assert float(found["saes_explained"].mean()) == pytest.approx(float(found["crosscoder_explained"].mean()), abs=0.01)


@pytest.fixture(scope="module")
def model(small_llama):
    return small_llama.double().requires_grad_(False)


def test_a_small_part_taken_away_changes_the_logit_as_the_gradient_says(model):
    ids, ends = torch.randint(1, 64, (3, 9), generator=torch.Generator().manual_seed(0)), torch.tensor([8, 3, 5])
    part = torch.randn(3, 32, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    site = (2, "resid_post")
    with torch.no_grad():
        logits = model(input_ids=ids).logits[torch.arange(3), ends]
        forth, gradient = ablate_nodes.respond(model, ids, ends, site, site, 1e-3 * part)
        back, _ = ablate_nodes.respond(model, ids, ends, site, site, -1e-3 * part)
        np.testing.assert_allclose((forth - back) / 2e-3, -(gradient * part).sum(1), rtol=1e-2)  # norms are float32
        nothing, _ = ablate_nodes.respond(model, ids, ends, (0, "resid_post"), site, 0 * part)
    assert nothing.abs().max() == 0
    hidden = model(input_ids=ids, output_hidden_states=True).hidden_states[3].requires_grad_()
    rotary = model.model.rotary_emb(hidden, torch.arange(9)[None])
    above = model.lm_head(model.model.norm(model.model.layers[3](hidden, position_embeddings=rotary)))
    above = above[torch.arange(3), ends]
    value = above[torch.arange(3), logits.argmax(1)] - above.mean(1)
    (expected,) = torch.autograd.grad(value.sum(), hidden)
    np.testing.assert_allclose(gradient, expected[torch.arange(3), ends], rtol=1e-4, atol=1e-6)


def test_weighted_correlation_counts_samples_as_often_as_they_are_drawn():
    a, b = np.random.default_rng(0).normal(size=(2, 30))
    weights = np.random.default_rng(1).integers(0, 4, (5, 30)).astype(float)
    expected = [np.corrcoef(np.repeat(a, w.astype(int)), np.repeat(b, w.astype(int)))[0, 1] for w in weights]
    np.testing.assert_allclose(ablate_nodes.correlation(a, b, weights), expected, rtol=1e-10)


def test_what_is_written_can_be_stacked_over_seeds(planted_circuits):
    from crosscoders.report import figures, layer_figures, prose
    from crosscoders.report.stacking import stack_seeds

    summary = stack_seeds({0: planted_circuits, 1: planted_circuits}, "circuit_")
    assert isinstance(summary, xr.Dataset)
    assert "Recall of planted persistent concepts" in prose.circuits(summary)
    figures.style()
    assert layer_figures.circuits(summary).axes[4].get_title().startswith("share of persistent concepts")
