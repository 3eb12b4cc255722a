"""Three sources in one crosscoder: subset classes, ν between every pair, and what three planted sources give back."""

import itertools
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from crosscoders import artifacts
from crosscoders.analysis import bootstrap, classification, simplex
from crosscoders.crosscoder import crosscoder
from crosscoders.planted import trial
from crosscoders.planted.sections import TrialSection
from crosscoders.study import contrasts, loading

ROOT = Path(__file__).parents[2]
NAMES = ["base", "chat", "further"]


@pytest.fixture(scope="module")
def study():
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        return loading.load("studies/three-models.yaml")


class Tokens:
    """Stands in for `Activations`: normalised activations in memory."""

    def __init__(self, x: torch.Tensor):
        self.x = x

    def rows(self, index: np.ndarray) -> torch.Tensor:
        return self.x[torch.from_numpy(index)]


@pytest.fixture
def scanned(member):
    """A crosscoder of three sources on random activations, and its sums over documents."""
    generator = torch.Generator().manual_seed(1)
    coder = crosscoder.create(member("batchtopk", penalty="none", latents=20), NAMES, [7, 7, 7], 3, torch.float64)
    coder.decoder += 0.3 * torch.randn(coder.decoder.shape, generator=generator, dtype=torch.float64)
    coder.threshold = 2.0
    x = torch.randn(200, 21, generator=generator, dtype=torch.float64)
    document = np.arange(200) // 20
    weights = bootstrap.resamples(10, 30, 0)
    return coder, x, document, weights, classification.scan(coder, Tokens(x), document, (0, 1, 2), weights)[0]


def test_nu_of_every_pair_of_sources_equals_least_squares(scanned):
    coder, x, _, _, scaling = scanned
    f = coder.encode(x)
    rebuilt = coder.decode(f)
    for origin, other in itertools.permutations(range(3), 2):
        for j in np.flatnonzero((f > 0).sum(0).numpy() > 3):
            regressor = torch.outer(f[:, j], coder.decoder[j, coder.columns[origin]]).reshape(-1, 1)
            own = f[:, j, None] * coder.decoder[j]
            for target, wanted in {"error": x - rebuilt + own, "reconstruction": rebuilt, "activation": x}.items():
                to, at = (
                    torch.linalg.lstsq(regressor, wanted[:, coder.columns[s]].reshape(-1, 1)).solution.item()
                    for s in (other, origin)
                )
                assert scaling.nu_between(target, origin, other)[0, j] == pytest.approx(to / at, rel=1e-8)


def test_the_first_and_the_last_of_three_sources_are_compared_as_a_pair_is(scanned):
    coder, x, document, weights, scaling = scanned
    alone, _ = classification.scan(coder, Tokens(x), document, (0, 2), weights)
    for target, direction in itertools.product(classification.TARGETS, (0, 1)):
        np.testing.assert_array_equal(scaling.nu(target, direction), alone.nu(target, direction))
    assert classification.compared_sources(coder, NAMES) == (0, 1, 2)
    assert classification.compared_sources(coder, ["base", "other", "further"]) == (0, 2)
    assert classification.compared_sources(coder, ["base", "further", "other"]) == ()


def test_a_latent_belongs_to_the_sources_with_a_stated_share_of_its_largest_norm():
    norms = np.array([[1.0, 0.0, 0.0], [1.0, 0.2, 0.1], [0.0, 0.5, 1.0], [1.0, 1.0, 1.0], [0.0, 0.0, 0.0]])
    members = simplex.present(norms, 0.2)
    names = contrasts.subset_names(NAMES)
    called = [names[i] for i in simplex.subset_of(members)]
    assert called == ["base", "base+chat", "chat+further", "base+chat+further", "none"]
    assert len(set(names)) == 8
    np.testing.assert_allclose(simplex.relative_norms(norms)[:4].sum(1), 1)
    assert np.isnan(simplex.relative_norms(norms)[4]).all()


def test_a_concept_that_hides_in_the_error_of_another_source_is_specific_to_none(member, study):
    """Two latents written to chat alone: base and further lack the first concept, and further has the second one."""
    generator = torch.Generator().manual_seed(0)
    f = ((torch.rand(2000, 2, generator=generator) < 0.1) * (1 + torch.rand(2000, 2, generator=generator))).double()
    chat = f @ torch.eye(6, dtype=torch.float64)[:2]
    further = chat * torch.tensor([0, 1, 0, 0, 0, 0])
    coder = crosscoder.create(member("relu", penalty="l1_of_norms", latents=2), NAMES, [6] * 3, 0, torch.float64)
    coder.encoder.zero_()
    coder.decoder.zero_()
    coder.encoder[range(2), range(6, 8)] = coder.decoder[range(2), range(6, 8)] = 1
    x, document = torch.cat([0 * chat, chat, further], 1), np.repeat(np.arange(40), 50)
    scaling, _ = classification.scan(coder, Tokens(x), document, (0, 1, 2), bootstrap.resamples(40, 30, 0))
    found = simplex.simplex_dataset(coder.decoder_norms().numpy(), NAMES, scaling, scaling, study.classification)
    assert (found["subset_class"] == artifacts.flag(found["subset_class"], "chat")).all()
    assert found["subset_specific"].values.tolist() == [1, 0]
    assert found["subset_count"].sel(subset="chat") == 2
    assert found["subset_specific_count"].sel(subset="chat") == 1
    hidden = found.sel(from_source="chat", to_source="further")["nu_error_pair"].values
    np.testing.assert_allclose(hidden, [0, 1], atol=1e-9)


def test_planted_concepts_of_every_subset_come_back_in_that_subset(study, tmp_path):
    section = TrialSection.of(study, "planted-three", "batchtopk-96", "0")
    trial.main(SimpleNamespace(settings=section, output=tmp_path / "trial.nc"))
    found = artifacts.read(tmp_path / "trial.nc")
    assert (found["recovered"] >= 0.8).all()
    assert (found["subset_agreement"] >= 0.8).all()
    assert found["subset_agreement"].mean() >= 0.9
    kinds = found["concept_class"].attrs["flag_meanings"].split()
    for label in ("shared", "base", "further", "chat+further"):
        lives = NAMES if label == "shared" else label.split("+")
        chosen = found.isel(concept=found["concept_class"].values == kinds.index(label))
        for origin, other in itertools.permutations(NAMES, 2):
            nu = chosen["concept_nu_error_pair"].sel(from_source=origin, to_source=other)
            if origin in lives:  # elsewhere the ratio is one of two numbers near 0
                assert float(nu.median()) == pytest.approx(float(other in lives), abs=0.15), (label, origin, other)
