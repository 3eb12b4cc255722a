"""Classification: closed forms equal brute force, planted classes come out, intervals cover."""

import numpy as np
import pytest
import torch
import xarray as xr

from crosscoders import artifacts
from crosscoders.analysis import bootstrap, classification, classify_latents
from crosscoders.crosscoder import crosscoder, encode
from crosscoders.data.chats import BEHAVIOURS, ROLES
from crosscoders.study.settings.analysis import Classification


@pytest.fixture
def thresholds():
    return Classification(
        bootstrap_replicates=60,
        confidence=0.95,
        base_only_below=0.1,
        shared_between=[0.4, 0.6],
        chat_only_above=0.9,
        specific_error_below=0.2,
        specific_reconstruction_below=0.5,
        delta_quantiles=[0.0, 0.5, 0.9, 1.0],
        null_permutations=50,
        top_latents=3,
        top_examples=2,
    )


class Tokens:
    """Stands in for `feed.Activations`: normalised activations in memory."""

    def __init__(self, x: torch.Tensor):
        self.x = x

    def __len__(self) -> int:
        return len(self.x)

    def rows(self, index: np.ndarray) -> torch.Tensor:
        return self.x[torch.from_numpy(index)]


def scanned(member, activation="batchtopk", tokens=300, widths=(9, 9), latent_count=40, blocks=None):
    options = member(
        activation, penalty="l1_of_norms" if activation == "relu" else "none", latents=latent_count, blocks=blocks
    )
    coder = crosscoder.create(options, ["base", "chat"], list(widths), 3, torch.float64)
    generator = torch.Generator().manual_seed(1)
    coder.decoder += 0.3 * torch.randn(coder.decoder.shape, generator=generator, dtype=torch.float64)
    coder.decoder_bias += 0.1 * torch.randn(coder.decoder_bias.shape, generator=generator, dtype=torch.float64)
    coder.threshold = 3.0
    x = torch.randn(tokens, sum(widths), generator=generator, dtype=torch.float64)
    document = np.sort(np.random.default_rng(0).integers(0, 12, tokens))
    document = np.unique(document, return_inverse=True)[1]
    weights = bootstrap.resamples(int(document[-1]) + 1, 30, 0)
    return coder, x, document, weights, classification.scan(coder, Tokens(x), document, (0, 1), weights)


@pytest.mark.parametrize("activation", ["batchtopk", "relu"])
def test_closed_form_nu_equals_least_squares(member, activation, monkeypatch):
    monkeypatch.setattr(classification, "BATCH", 50)  # several batches
    coder, x, _, _, (scaling, pairs) = scanned(member, activation)
    f = coder.encode(x)
    assert len(pairs.value) == int((f > 0).sum())
    rebuilt = coder.decode(f)
    base, chat = coder.columns
    for direction, other, here in ((1, base, chat), (0, chat, base)):
        for j in np.flatnonzero((f > 0).sum(0).numpy() > 3):
            d = coder.decoder[j, here]
            regressor = torch.outer(f[:, j], d).reshape(-1, 1)

            def beta(target, regressor=regressor):
                return torch.linalg.lstsq(regressor, target.reshape(-1, 1)).solution.item()

            own = f[:, j, None] * coder.decoder[j]
            targets = {"error": x - rebuilt + own, "reconstruction": rebuilt, "activation": x}
            for name, target in targets.items():
                expected = beta(target[:, other]) / beta(target[:, here])
                assert scaling.nu(name, direction)[0, j] == pytest.approx(expected, rel=1e-9), (name, j)


def test_replicates_equal_recomputation_on_resampled_documents(member):
    coder, x, document, weights, (scaling, _) = scanned(member)
    counts = weights[4].astype(int)
    rows = np.concatenate([np.repeat(np.flatnonzero(document == d), n) for d, n in enumerate(counts) if n])
    rows = rows[np.argsort(document[rows], kind="stable")]
    again, _ = classification.scan(
        coder,
        Tokens(x[rows]),
        np.unique(document[rows], return_inverse=True)[1],
        (0, 1),
        np.ones((1, len(np.unique(document[rows])))),
    )
    for target in classification.TARGETS:
        np.testing.assert_allclose(scaling.nu(target, 1)[5], again.nu(target, 1)[0], rtol=1e-9, equal_nan=True)


def three_chat_concepts(member, base_has: list[float], seed: int = 0):
    """Latents 0 to 2 read and write concepts of chat alone; latent 3 rebuilds base's share of concept 1.

    `base_has` says how much of each concept base has.
    """
    generator = torch.Generator().manual_seed(seed)
    tokens, width = 4000, 12
    f = (torch.rand(tokens, 3, generator=generator) < 0.1) * (1 + torch.rand(tokens, 3, generator=generator))
    directions = torch.eye(width, dtype=torch.float64)
    chat = f.double() @ directions[:3]
    base = (f * torch.tensor(base_has)).double() @ directions[:3]
    coder = crosscoder.create(
        member("relu", penalty="l1_of_norms", latents=4), ["base", "chat"], [width, width], 0, torch.float64
    )
    coder.encoder.zero_()
    coder.decoder.zero_()
    coder.encoder[range(3), range(width, width + 3)] = 1
    coder.decoder[range(3), range(width, width + 3)] = 1
    coder.encoder[3, 1] = coder.decoder[3, 1] = 1
    weights = bootstrap.resamples(40, 60, seed)
    scaling, _ = classification.scan(
        coder, Tokens(torch.cat([base, chat], 1)), np.repeat(np.arange(40), 100), (0, 1), weights
    )
    return scaling


DELTA = np.array([1.0, 1.0, 1.0, 0.0])


def test_shrinkage_decoupling_and_specific_latents_are_told_apart(member, thresholds):
    """Chat-only decoders over a base that has the concept in its error, in other latents, or not at all."""
    scaling = three_chat_concepts(member, [1.0, 1.0, 0.0])
    error, reconstruction = scaling.nu("error", 1)[0], scaling.nu("reconstruction", 1)[0]
    np.testing.assert_allclose(error[:3], [1, 0, 0], atol=1e-9)
    np.testing.assert_allclose(reconstruction[:3], [0, 1, 0], atol=1e-9)
    both = [np.stack([scaling.nu(t, d)[0] for d in (0, 1)]) for t in ("error", "reconstruction")]
    names = [classification.SPECIFIC[i] for i in classification.specific(*both, DELTA, thresholds)]
    assert names[:3] == ["none", "none", "chat"]


def test_what_is_specific_is_fitted_on_validation_and_counted_where_test_documents_agree(member, thresholds):
    """Validation lacks concepts 0 and 2 in base, test lacks 2 alone."""
    validation = three_chat_concepts(member, [0.0, 1.0, 0.0], seed=1)
    test = three_chat_concepts(member, [1.0, 1.0, 0.0])
    found = classification.scaling_dataset(test, validation, DELTA, thresholds)
    names = [classification.SPECIFIC[i] for i in found["specific"].values[:3]]
    assert names == ["chat", "none", "chat"]
    assert found["nu_error_validation"].values[0] == pytest.approx(0)
    assert found["nu_error"].values[0] == pytest.approx(1)
    counted = {call: found["called"].sel(call=call).item() for call in classification.CALLS}
    assert counted["alive"] == 4
    assert counted["chat-only"] == 3
    assert counted["chat-specific"] == counted["chat-only and chat-specific"] == 1
    assert (found["called_low"] <= found["called"]).all()
    assert (found["called"] <= found["called_high"]).all()


def test_counts_on_a_resample_are_those_of_its_documents(member, thresholds):
    """A latent that fires in one document alone is missing wherever that document is not drawn."""
    coder, x, document, weights, _ = scanned(member)
    coder.encoder[5], coder.encoder_bias[5] = 0, -1
    rows = document == 3
    coder.encoder_bias[5] = 0
    coder.encoder[5, 0] = 1
    x = x.clone()
    x[:, 0] = torch.where(torch.from_numpy(rows), 50.0, -50.0)
    scaling, _ = classification.scan(coder, Tokens(x), document, (0, 1), weights)
    assert ((scaling.squares[1:, 5] > 0) == (weights[:, 3] > 0)).all()
    delta = np.full(40, 0.5)
    counts = classification.count_calls(scaling, delta, np.zeros(40, int), thresholds)
    assert (counts[:, 0] == (scaling.squares > 0).sum(1)).all()
    assert (counts[:, classification.CALLS.index("shared")] == counts[:, 0]).all()


def test_a_latent_is_specific_only_to_the_source_it_is_written_to_more_strongly(thresholds):
    """ν towards the source with hardly any decoder norm is noise, here below every limit."""
    low = np.full((2, 3), -0.4)
    names = [
        classification.SPECIFIC[i]
        for i in classification.specific(low, low, np.array([0.02, 0.97, np.nan]), thresholds)
    ]
    assert names == ["base", "chat", "none"]


def test_relative_norm_and_classes(thresholds):
    base, chat = np.array([0.0, 1, 1, 1, 0]), np.array([1.0, 1, 0, 0.5, 0])
    delta = classification.relative_norm(base, chat)
    np.testing.assert_allclose(delta, [1, 0.5, 0, 0.25, np.nan])
    names = [classification.NORM_CLASSES[i] for i in classification.norm_class(delta, thresholds)]
    assert names == ["chat-only", "shared", "base-only", "other", "other"]
    ratio = np.linspace(0.01, 0.99, 99)  # K24's n_chat / (n_base + n_chat): another scale, Δ ≥ 0.9 ⇔ R ≥ 0.833
    assert ((classification.relative_norm(1 - ratio, ratio) >= 0.9) == (ratio >= 5 / 6)).all()


def planted(firings: np.ndarray, category: np.ndarray, documents: int):
    token, latent = np.nonzero(firings)
    document = np.repeat(np.arange(documents), len(firings) // documents)
    return classification.Pairs(token, latent, np.ones(len(token))), document, bootstrap.resamples(documents, 200, 0)


def groups_of(delta, thresholds) -> classify_latents.Groups:
    return classify_latents.Groups.of(delta, np.ones(len(delta), bool), thresholds.delta_quantiles)


def test_enrichment_finds_planted_latents_and_nothing_under_the_null(thresholds):
    generator = np.random.default_rng(0)
    tokens, count, documents = 8000, 200, 80
    behaviour = generator.random(tokens) < 0.1
    firings = generator.random((tokens, count)) < 0.05
    delta = np.linspace(0.2, 0.8, count)
    firings[:, delta > 0.75] &= behaviour[:, None]
    category = np.array([behaviour, ~behaviour, behaviour, ~behaviour, behaviour])
    pairs, document, weights = planted(firings, category, documents)
    found = classify_latents.enrichment(groups_of(delta, thresholds), pairs, document, category, weights, thresholds)
    lift, low, high = (found[f"enrichment_lift{suffix}"].values[:, 0] for suffix in ("", "_low", "_high"))
    assert found["group_latents"].values.tolist() == [100, 80, 20]
    assert lift[2] > 3
    assert low[2] > found["enrichment_null_high"].values[2, 0]
    assert low[0] < 1 < high[0]
    share = firings[:, :100][behaviour].sum() / firings[:, :100].sum()
    assert found["enrichment_share"].values[0, 0] == pytest.approx(share)
    shuffled = generator.permutation(delta)
    null = classify_latents.enrichment(groups_of(shuffled, thresholds), pairs, document, category, weights, thresholds)
    inside = (null["enrichment_lift"] >= null["enrichment_null_low"]) & (
        null["enrichment_lift"] <= null["enrichment_null_high"]
    )
    assert inside.values[:, 0].mean() > 0.6


def test_usage_shares(member):
    metadata = xr.Dataset(
        {
            "role": ("token", np.array([ROLES.index("template"), 0, 0, 0])),
            "planted_behaviour": artifacts.flags("token", [0, 1, 3, 0], BEHAVIOURS, "behaviour"),
        }
    )
    category = classify_latents.categories(metadata)
    pairs = classification.Pairs(np.array([0, 1, 2, 3]), np.array([0, 0, 0, 1]), np.array([1.0, 2, 5, 1]))
    usage = classify_latents.usage_dataset(pairs, category, 3, 4)
    np.testing.assert_allclose(usage["density"], [0.75, 0.25, 0])
    np.testing.assert_allclose(usage["template_share"], [1 / 8, 0, np.nan])
    np.testing.assert_allclose(usage["planted_share"][0], [2 / 8, 0, 5 / 8, 0])
    assert usage["behaviour"].values.tolist() == list(BEHAVIOURS[1:])


def test_sparse_codes_never_grow_to_tokens_by_latents(member):
    coder, x, *_ = scanned(member)
    code = encode.encode_sparse(coder, x)
    assert code.values.numel() == int((coder.encode(x) > 0).sum())


def test_document_batches_hold_whole_documents_and_every_token():
    document = np.repeat(np.arange(50), np.random.default_rng(0).integers(1, 40, 50))
    slices = list(classification.document_batches(document, 100))
    assert slices[0].start == 0
    assert slices[-1].stop == len(document)
    for a, b in zip(slices, slices[1:], strict=False):
        assert a.stop == b.start
        assert document[a.stop - 1] != document[b.start]


def test_intervals_cover_the_planted_truth(member):
    """ν of a concept whose strength in base differs by document: 95% intervals cover it in 90 to 99 of 100 studies."""
    coder = crosscoder.create(member("relu", penalty="l1_of_norms", latents=1), ["base", "chat"], [3, 3], 0)
    for weights in (coder.encoder, coder.decoder, coder.encoder_bias):
        weights.zero_()
    coder.encoder[0, 3] = coder.decoder[0, 3] = 1
    coder.decoder[0, 0] = 0.1  # the norms say chat-only; ν must find the planted strength in base
    truth, documents, covered = 0.4, 80, 0
    document = np.repeat(np.arange(documents), 12)
    for replicate in range(200):
        generator = np.random.default_rng(replicate)
        strength = generator.exponential(size=len(document)) * (generator.random(len(document)) < 0.4)
        share = generator.normal(truth, 0.3, documents)[document] + generator.normal(0, 0.3, len(document))
        x = generator.normal(size=(len(document), 6)).astype(np.float32)
        x[:, 0], x[:, 3] = share * strength, strength
        weights = bootstrap.resamples(documents, 300, replicate)
        scaling, _ = classification.scan(coder, Tokens(torch.from_numpy(x)), document, (0, 1), weights)
        low, high = bootstrap.interval(scaling.nu("error", 1)[1:, 0], 0.95)
        covered += low <= truth <= high
    assert 0.90 <= covered / 200 <= 0.99


def test_intervals_equal_numpy_quantiles_and_skip_nan():
    values = np.random.default_rng(0).normal(size=(99, 3))
    values[5, 1] = np.nan
    low, high = bootstrap.interval(values, 0.9)
    np.testing.assert_allclose(low, np.nanquantile(values, 0.05, axis=0))
    np.testing.assert_allclose(high, np.nanquantile(values, 0.95, axis=0))
    assert np.isnan(bootstrap.interval(np.full((5, 1), np.nan), 0.9)[0]).all()


def test_twins_are_split_concepts_and_their_divergence_is_counted(member):
    """Latents 0 and 1 share a direction and fire together on half their tokens; 2 and 3 have directions of their own."""
    coder = crosscoder.create(member("relu", penalty="l1_of_norms", latents=5), ["base", "chat"], [6, 6], 0)
    coder.decoder.zero_()
    for j, (side, axis) in enumerate([(1, 0), (0, 0), (1, 1), (0, 2)]):
        coder.decoder[j, 6 * side + axis] = 1
    token = np.concatenate([np.arange(0, 40), np.arange(20, 60), np.arange(5)])
    latent = np.concatenate([np.full(40, 0), np.full(40, 1), np.full(5, 2)])
    value = np.where(token % 2, 1.0, 0.05)
    classes = [
        classification.NORM_CLASSES.index(name)
        for name in ("chat-only", "base-only", "chat-only", "base-only", "shared")
    ]
    chat, base, cosine, divergence = classification.twins(
        coder, classification.Pairs(token, latent, value), np.array(classes), (0, 1)
    )
    assert (chat.tolist(), base.tolist()) == ([0], [1])
    assert cosine[0] == pytest.approx(1)
    assert divergence[0] == pytest.approx(20 / 30), "odd tokens are high: 10 for either alone, 10 for both"
    nothing = classification.twins_dataset(
        classification.twins(coder, classification.Pairs(token, latent, value), np.full(5, 1), (0, 1))
    )
    assert nothing["twin_chat"].values.tolist() == [-1]
    assert np.isnan(nothing["twin_divergence"].values).all()
