"""Every architecture goes the way of a user's model: from a folder through the loader to activations, losses and patches."""

import argparse

import numpy as np
import pytest
import torch
import transformers
from tests import architectures
from tests.architectures import ARCHITECTURES, SHIFTED, save

from crosscoders import stage
from crosscoders.activations import extraction
from crosscoders.errors import UserError
from crosscoders.interventions import patching
from crosscoders.language_models import anatomy, fetch_model, hooks, snapshots, splicing
from crosscoders.language_models.sections import FetchModelSection
from crosscoders.language_models.unembedding import promoted
from crosscoders.study.settings.models import FolderModel

DEPTH, TOKENS = 4, 24


def fetched(tmp_path, source, name="user"):
    """The snapshot that `fetch_model` makes of a user's folder."""
    section = FetchModelSection(study="s", name=name, model=FolderModel(kind="folder", path=str(source)))
    fetch_model.main(argparse.Namespace(settings=section, output=tmp_path / "models" / name / "provenance.json"))
    return tmp_path / "models" / name


@pytest.fixture(scope="module", params=ARCHITECTURES)
def loaded(request, tmp_path_factory):
    """A model that went through the loader, and its kind."""
    folder = tmp_path_factory.mktemp(request.param)
    snapshot = fetched(folder, save(folder / "user", request.param))
    torch.set_grad_enabled(True)
    return request.param, snapshots.load_model(snapshot, "cpu", torch.float32), snapshot


def ids(rows: int = 2, tokens: int = 9) -> torch.Tensor:
    return torch.randint(2, 40, (rows, tokens), generator=torch.Generator().manual_seed(1))


def test_activations_are_the_hidden_states_of_eager_attention(loaded):
    kind, model, snapshot = loaded
    eager = transformers.AutoModelForCausalLM.from_pretrained(
        snapshot, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    sites = [(0, "resid_pre"), (0, "resid_post"), (2, "resid_pre"), (2, "resid_post")]
    found = hooks.forward(model, sites, ids())
    with torch.inference_mode():
        states = eager(input_ids=ids(), output_hidden_states=True, use_cache=False).hidden_states
    for (layer, hook), values in found.items():
        place = layer + (hook == "resid_post") - (kind in SHIFTED)
        if place >= 0:
            torch.testing.assert_close(values, states[place], rtol=1e-4, atol=1e-5)


def test_extraction_reads_every_token_in_its_place(loaded):
    _, model, _ = loaded
    position = np.r_[np.arange(1, 10), np.arange(1, 16)]
    tokens = architectures.reading(ids(1, TOKENS)[0].numpy(), position)
    bits, _ = extraction.extract(model, [(1, "resid_post")], tokens, 64, stage.Progress("", TOKENS))
    rows = torch.cat([torch.zeros(1, 1, dtype=torch.long), ids(1, TOKENS)[:, :9]], dim=1)
    expected = hooks.forward(model, [(1, "resid_post")], rows)[1, "resid_post"][0, 1:]
    found = torch.from_numpy(bits[1, "resid_post"][:9]).view(torch.bfloat16).float()
    torch.testing.assert_close(found, expected, rtol=1e-2, atol=1e-2 * float(expected.abs().max()))


def test_a_source_spliced_by_itself_changes_no_loss(loaded):
    _, model, _ = loaded
    token_ids, spans = ids(1, TOKENS)[0].numpy(), [slice(0, 9), slice(9, TOKENS)]
    values = np.zeros((TOKENS, 32), np.float32)
    for span in spans:
        rows = torch.cat([torch.zeros(1, 1, dtype=torch.long), torch.from_numpy(token_ids[span])[None]], dim=1)
        values[span] = hooks.forward(model, [(1, "resid_post")], rows)[1, "resid_post"][0, 1:].numpy()
    changes = [None, ((1, "resid_post"), values), ((1, "resid_post"), np.zeros_like(values))]
    clean, spliced, ablated = splicing.token_losses(model, token_ids, spans, 0, 64, changes, np.ones(TOKENS, bool))
    np.testing.assert_allclose(spliced, clean, rtol=1e-3, atol=1e-4)
    assert np.isfinite(clean).all()
    assert np.abs(ablated - clean).max() > 1e-4, "another source changes the loss"


def test_the_upper_half_on_its_own_activations_is_the_model(loaded):
    _, model, _ = loaded
    hidden = hooks.forward(model, [(1, "resid_post")], ids())[1, "resid_post"]
    wanted = torch.ones(2, 9, dtype=torch.bool)
    found = patching.log_probabilities(model, 1, hidden, ids(), wanted)
    with torch.inference_mode():
        expected = torch.log_softmax(model(input_ids=ids(), use_cache=False).logits[wanted].float(), dim=-1)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_promoted_tokens_are_those_of_the_models_own_head(loaded):
    """A direction that is the last hidden state itself promotes what the model predicts."""
    _, model, _ = loaded
    seen = []
    handle = (
        anatomy.anatomy_of(model)
        .layers[-1]
        .register_forward_hook(lambda _, __, out: seen.append(anatomy.hidden_of(out)))
    )
    with torch.inference_mode():
        logits = model(input_ids=ids(), use_cache=False).logits[:, -1]
    handle.remove()
    top, _ = promoted(model, seen[0][:, -1], 1)
    shifted = anatomy.anatomy_of(model).final_norm
    assert shifted is not None
    if not any(getattr(part, "bias", None) is not None for part in shifted):
        assert top[:, 0].tolist() == logits.argmax(-1).tolist()


def test_depth_is_read_and_layers_are_counted(loaded):
    _, model, _ = loaded
    assert len(anatomy.decoder_layers(model)) == DEPTH


def test_an_architecture_whose_layers_give_something_else_is_a_line(tmp_path):
    with pytest.raises(UserError, match=r"user: DeepseekV4ForCausalLM: .* not supported"):
        fetched(tmp_path, save(tmp_path / "user", "deepseek_v4"))
