"""A dictionary that is applied by blocks of latents gives what it gives as a whole."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tests.project import ROOT
from tests.training import meshes

from crosscoders.analysis import classification, reconstruction
from crosscoders.analysis.sections import ClassifyLatentsSection, EvaluateSection
from crosscoders.crosscoder import crosscoder, encode
from crosscoders.kernels import backends
from crosscoders.kernels.streamed import StreamedBackend
from crosscoders.study import loading

DOCUMENT = np.repeat(np.arange(10), 10)


class Tokens:
    """Activations in memory, with what evaluation reads of a split."""

    def __init__(self, x: torch.Tensor):
        self.x = x

    def __len__(self) -> int:
        return len(self.x)

    def rows(self, index: np.ndarray) -> torch.Tensor:
        return self.x[index]

    def batches(self, count: int):
        for start in range(0, len(self.x), count):
            yield slice(start, min(start + count, len(self.x))), self.x[start : start + count]


@pytest.fixture(params=["batchtopk", "topk", "l1", "jumprelu", "dedicated"])
def coder(request):
    """A member with 28 latents; half of the rows of topk stand twice, so that scores tie."""
    torch.set_grad_enabled(False)
    settings, widths = meshes.recipe(request.param, 10).settings, meshes.MEMBERS[request.param][3]
    made = crosscoder.create(settings, [*widths], [*widths.values()], 0, torch.float64)
    made.threshold = 1.0
    if request.param == "topk":
        made.encoder[14:], made.decoder[14:] = made.encoder[:14], made.decoder[:14]
    return made


@pytest.mark.parametrize("rows", [1, 5, 28, 100])
def test_blocks_of_latents_give_the_codes_and_sums_of_all(coder, rows):
    x = torch.randn(100, 12, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    streamed = StreamedBackend(backends.choose(), "cpu", rows)
    code, expected = encode.encode_sparse(coder, x, streamed), coder.encode(x)
    assert 0 < len(code.values) == int((expected > 0).sum())
    torch.testing.assert_close(code.dense(), expected, rtol=1e-12, atol=1e-12)
    rebuilt = streamed.decode(code, coder.decoder, coder.decoder_bias)
    torch.testing.assert_close(rebuilt, coder.decode(expected), rtol=1e-12, atol=1e-12)
    sums = [reconstruction.reconstruction(coder, Tokens(x), DOCUMENT, None, chosen) for chosen in (streamed, None)]
    for name, values in sums[1].items():
        np.testing.assert_allclose(sums[0][name], values, rtol=1e-12, atol=1e-12, err_msg=name)
    scans = [classification.scan(coder, Tokens(x), DOCUMENT, (0, 1), None, chosen) for chosen in (streamed, None)]
    for found, whole in zip(*scans, strict=True):
        for name, values in vars(whole).items():
            np.testing.assert_allclose(getattr(found, name), values, rtol=1e-11, atol=1e-11, err_msg=name)


def test_blocks_are_taken_where_the_dictionary_does_not_fit(monkeypatch):
    monkeypatch.setattr(backends, "choose", lambda device: SimpleNamespace(device=device))
    assert backends.choose_for_evaluation("cpu", 73_728).device == "cpu"
    on_gpu = backends.choose_for_evaluation("cuda", 128)
    assert (on_gpu.device, on_gpu.local.device) == ("cuda", "cuda")
    assert backends.choose_for_evaluation("cpu", 1 << 20).rows_at_once == 1 << 17


def test_sections_name_a_gpu_only_where_the_study_asks_for_one():
    content = loading.read(ROOT / "studies/planted.yaml")
    for device in ("cpu", "auto", "cuda"):
        study = loading.check(content | {"device": device}, ROOT / "studies/planted.yaml", {})
        for section in (EvaluateSection, ClassifyLatentsSection):
            made = section.of(study, "pair", "l1-128", "0")
            assert ("device" in made.model_dump()) == (device == "cuda")
            assert section.model_validate_json(made.to_json()) == made
