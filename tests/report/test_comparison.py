"""Members side by side: rates of alive latents, intervals over documents, and who is called best at matched L0."""

import matplotlib.pyplot as plt
import numpy as np
import pytest
import xarray as xr

from crosscoders.analysis.classification import CALLS
from crosscoders.report import budget_figures, comparison, figures, layer_figures, null_figures, prose

MEMBERS, SEEDS, REPLICATES = ["sparse", "dense", "difference"], [0, 1], 40


@pytest.fixture
def summary():
    """`dense` explains most but at another L0; `difference` has one source, so no latent of it has a relative norm."""
    shape = (len(MEMBERS), len(SEEDS))

    def spread(values, extra=()):
        found = np.broadcast_to(np.array(values, float).reshape(-1, 1, *[1] * len(extra)), shape + extra)
        return {"": found, "_low": found - 0.01, "_high": found + 0.01}

    dims, data = ("crosscoder", "seed"), {}
    for end, values in spread([0.8, 0.95, np.nan], (2,)).items():
        data[f"fraction_variance_explained{end}"] = ((*dims, "source"), values)
    for end, values in spread([48, 200, 50]).items():
        data[f"l0{end}"] = (dims, values)
    for end, values in spread([3.0, 2.0, np.nan], (2, 1)).items():
        data[f"enrichment_lift{end}"] = ((*dims, "group", "category"), values)
    data["dead_fraction"] = (dims, np.full(shape, 0.02))
    data["training_tokens"] = (dims, np.broadcast_to([[1000], [1000], [2000]], shape))
    called = np.zeros((*shape, len(CALLS)), int)
    called[:2, :, CALLS.index("alive")], called[0, :, CALLS.index("chat-only")] = 100, 10
    called[0, :, CALLS.index("chat-specific")] = 4
    data["called"] = ((*dims, "call"), called)
    drawn = np.repeat(called[:, :, None], REPLICATES, axis=2)
    drawn[0, :, ::2, CALLS.index("chat-only")] = 6
    data["called_replicate"] = ((*dims, "replicate", "call"), drawn)
    coords = {"crosscoder": MEMBERS, "seed": SEEDS, "call": list(CALLS), "category": ["planted_or_template"]}
    return xr.Dataset(data, coords=coords)


def test_measures_are_shares_of_alive_latents_with_intervals(summary):
    found = comparison.table(summary)
    np.testing.assert_allclose(
        found["sparse"]["chat_only"], [[0.1, 0.0552, 0.1744]] * 2, rtol=2e-3
    )  # Wilson's for 10 of 100
    np.testing.assert_allclose(found["sparse"]["specific"], [[0.04, 0.0157, 0.0984]] * 2, rtol=1e-2)
    np.testing.assert_allclose(found["dense"]["lift"], [[2, 1.99, 2.01]] * 2)
    assert np.isnan(found["difference"]["chat_only"]).all()
    assert len(comparison.compare(summary).axes) == len(comparison.COLUMNS)
    assert "| difference | 2,000 | – | 50.0 [50.0, 50.0] | 0.020 | – | – | – |" in comparison.as_markdown(summary)
    plt.close("all")


def test_the_answer_compares_reconstruction_at_matched_l0_alone(summary):
    reconstruction, ranking, claims, budget = comparison.answer(summary).splitlines()
    assert "sparse explains most (0.800)" in reconstruction
    assert "not matched: dense" in reconstruction
    assert "highest Δ of sparse" in ranking
    assert "sparse calls the largest share of its latents chat-only (10.00%); 4.00% pass" in claims
    assert "sparse 1,000, dense 1,000, difference 2,000" in budget


def test_the_answer_says_what_cannot_be_compared(summary):
    apart = summary.isel(crosscoder=[0, 1]).assign(enrichment_lift=summary["enrichment_lift"] * np.nan)
    reconstruction, ranking, _, budget = comparison.answer(apart).splitlines()
    assert "1,000 by each crosscoder" in budget
    assert "no member has an L0 within 20% of 124" in reconstruction
    assert "none can be ranked" in ranking
    with pytest.raises(figures.NothingToDraw, match="No member"):
        comparison.answer(summary.isel(crosscoder=[2]))


def test_members_are_followed_over_the_tokens_that_they_saw(summary):
    """Two members at two numbers of tokens each: `slow` overtakes `fast` in variance explained, and its lift stays below."""
    first = summary.isel(crosscoder=[0, 1]).assign_coords(crosscoder=["fast-1x", "slow-1x"])
    later = first.assign_coords(crosscoder=["fast-2x", "slow-2x"])
    explained = xr.DataArray([[0.9, 0.8], [0.91, 0.95]], dims=("budget", "crosscoder"))
    parts = []
    for i, part in enumerate((first, later)):
        part = part.assign(training_tokens=part["training_tokens"] * (i + 1), member=("crosscoder", ["fast", "slow"]))
        names = {
            f"fraction_variance_explained{end}": part["fraction_variance_explained"] for end in ("", "_low", "_high")
        }
        parts.append(
            part.assign({n: v * 0 + explained[i].drop_vars("crosscoder", errors="ignore") for n, v in names.items()})
        )
    both = xr.concat(parts, "crosscoder", data_vars="all").isel(crosscoder=[2, 0, 3, 1])
    assert comparison.series(both) == {"fast": ["fast-1x", "fast-2x"], "slow": ["slow-1x", "slow-2x"]}
    figures.style()
    figure = budget_figures.budgets(both)
    assert [
        line.get_xdata().tolist() for line in figure.axes[0].get_lines() if line.get_label() in ("fast", "slow")
    ] == [[1000, 2000]] * 2
    said = budget_figures.sentences(both).splitlines()
    assert "at 1,000 and at 2,000 tokens" in said[0]
    assert said[0].endswith("the order changes from fast, slow to slow, fast.")
    assert "**lift**" in said[2] and said[2].endswith("the order stays: fast, slow.")
    answer = comparison.answer(both)
    assert "-1x" not in answer, "the longest training of each member counts"
    assert "2,000 by each crosscoder" in answer
    with pytest.raises(figures.NothingToDraw, match="one number of tokens"):
        budget_figures.budgets(summary)
    plt.close("all")


def test_a_transfer_shows_both_places(summary):
    """Aligned crosscoders by pair of sources, plain ones by source."""
    summary = summary.sel(crosscoder=["sparse", "dense"]).assign_coords(source=["base", "chat"])
    matrix = ("aligned", "seed", "source", "other_source"), np.full((1, 2, 2, 2), 0.6)
    aligned = {f"aligned_fraction_variance_explained{end}": matrix for end in ("", "_low", "_high")}
    summary = summary.assign(aligned).assign_coords(aligned=["aligned"], other_source=["base", "chat"])
    figure = null_figures.transfer(summary, {"further": summary})
    rows = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert rows == [
        "sparse: base",
        "sparse: chat",
        "dense: base",
        "dense: chat",
        "aligned: base → base",
        "aligned: base → chat",
        "aligned: chat → base",
        "aligned: chat → chat",
    ]
    assert [label.get_text() for label in figure.axes[0].get_legend().get_texts()] == ["where trained", "further"]
    assert "0.800 to 0.800" in null_figures.transfer_sentences(summary, {"further": summary})
    plt.close("all")


def test_what_a_shared_dictionary_saves_is_read_off_between_measured_sizes():
    sizes = {"small": (100, 5, 12.0), "large": (200, 5, 9.0), "saes-a": (200, 1, 15.0), "saes-b": (800, 1, 9.0)}
    names = list(sizes)
    one = lambda values, **attributes: (("crosscoder", "seed"), np.array(values, float)[:, None], attributes)  # noqa: E731
    summary = xr.Dataset(
        {
            "dictionary_size": one([size for size, _, _ in sizes.values()], long_name="latents"),
            "training_flops": one([size * sources for size, sources, _ in sizes.values()], long_name="operations"),
            "written_sources": one([sources for _, sources, _ in sizes.values()]),
            "loss": one([loss for *_, loss in sizes.values()]),
            "penalty_coefficient": one([3.0] * 4),
            "l0": one([10, 12, 40, 48]),
            "fraction_variance_explained": (
                ("crosscoder", "seed", "source"),
                np.array([0.7, 0.8, 0.7, 0.8])[:, None, None],
            ),
        },
        coords={"crosscoder": np.array(names, dtype=object), "seed": [0]},
    )
    said = prose.sizes(summary)
    assert "takes the crosscoder 100 latents, SAEs per source 400: 4 times as many" in said
    assert "takes the crosscoder 200 latents, SAEs per source 800: 4 times as many" in said
    assert "takes the crosscoder 500 floating-point operations of training, SAEs per source 400: 0.8 times" in said
    assert "crosscoder 10 latents per token, SAEs per source 40 together (4.0 times as many)" in prose.sparsities(
        summary
    )
    assert [layer_figures.kind(summary.sel(crosscoder=name)) for name in names] == ["crosscoder"] * 2 + [
        "SAEs per source"
    ] * 2
    figures.style()
    axis = layer_figures.loss_curve(summary, "dictionary_size").axes[0]
    assert [line.get_xdata().tolist() for line in axis.get_lines()[:1]] == [[100, 200]]
    drawn = layer_figures.error_against_l0(
        summary.assign(
            **{f"fraction_variance_explained_{end}": summary["fraction_variance_explained"] for end in ("low", "high")}
        )
    )
    assert drawn.axes[0].get_xlabel().startswith("latents per token")
