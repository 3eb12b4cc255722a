"""Models whose weights differ from another's without training: by how much, where, and how the two are compared."""

import argparse
import json

import numpy as np
import pytest
import torch
import transformers

from crosscoders import artifacts, stage
from crosscoders.analysis import bootstrap, measure_divergence
from crosscoders.data.tokenizer import load_tokenizer
from crosscoders.errors import UserError
from crosscoders.language_models import fetch_model, perturb, snapshots, splicing, weights
from crosscoders.language_models.sections import PerturbSection
from crosscoders.language_models.windows import windows
from crosscoders.study.settings.models import NoisedModel, RandomModel, RoundedModel


def published(target, model, tokenizer):
    """A snapshot of a model, as stages leave it."""
    with snapshots.working_folder(target) as name:
        folder = stage.Path(name) / "snapshot"
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        snapshots.publish(folder, target, {"licence": "MIT"})


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A folder with base models of two architectures, and one like `llama` in all but two tensors, of which it unties one."""
    folder = tmp_path_factory.mktemp("models")
    for architecture in ("llama", "gpt2"):
        made = folder / "made" / architecture
        made.mkdir(parents=True)
        settings = RandomModel(kind="random", architecture=architecture, depth=2, width=16, heads=2)
        fetch_model.make_random(settings, made)
        tokenizer = load_tokenizer(made)
        published(folder / architecture, transformers.AutoModelForCausalLM.from_pretrained(made), tokenizer)
    like = snapshots.load_model(folder / "llama", "cpu", torch.float32)
    like.model.layers[1].mlp.up_proj.weight.data += 0.01 * torch.randn(64, 16)
    published(folder / "like-tied", like, tokenizer)
    weights.untie(like)
    like.get_output_embeddings().weight.data[3] += 0.5
    published(folder / "like", like, tokenizer)
    return folder


def made(models, name, settings):
    """The model that the stage makes, and what its provenance says of the change."""
    like = models / settings.like / "provenance.json" if isinstance(settings, NoisedModel) else None
    section = PerturbSection(study="s", name=name, model=settings)
    section = PerturbSection.model_validate_json(section.to_json())
    base, output = models / settings.base / "provenance.json", models / name / "provenance.json"
    perturb.main(argparse.Namespace(settings=section, base=base, like=like, output=output))
    return snapshots.load_model(models / name, "cpu", torch.float32), json.loads(output.read_text())


def test_noise_has_the_norm_of_a_change_where_there_is_one_and_only_there(models):
    settings = NoisedModel(kind="noised", base="llama", like="like", seed=1)
    noised, provenance = made(models, "noised", settings)
    base, like = (snapshots.load_model(models / name, "cpu", torch.float32) for name in ("llama", "like"))
    wanted, found = (weights.change_norms(weights.paired(base, other)) for other in (like, noised))
    changed = {name for name, (_, change) in wanted.items() if change}
    assert changed == {"model.layers.1.mlp.up_proj.weight", "lm_head.weight"}
    for name, (_, change) in wanted.items():
        assert found[name][1] == pytest.approx(change, rel=1e-5), name
    difference = noised.lm_head.weight - base.lm_head.weight
    assert (difference != 0).float().mean() > 0.99, (
        "noise lies on all of a tensor, where a fine-tune may change one row"
    )
    assert provenance["checks"]["changed_tensors"] == 2
    assert provenance["checks"]["relative_weight_change"] == pytest.approx(weights.relative_change(wanted), rel=1e-5)
    first = (models / "noised" / "model.safetensors").read_bytes()
    made(models, "noised", settings)
    assert (models / "noised" / "model.safetensors").read_bytes() == first
    made(models, "noised", settings.model_copy(update={"seed": 2}))
    assert (models / "noised" / "model.safetensors").read_bytes() != first
    tied, _ = made(models, "noised-tied", NoisedModel(kind="noised", base="llama", like="like-tied"))
    assert weights.tied(tied)
    assert not weights.tied(noised)


@pytest.mark.parametrize(
    ("like", "said"), [("gpt2", "no model of the architecture of 'llama'"), ("llama", "expected others")]
)
def test_noise_needs_another_model_of_the_same_architecture(models, like, said):
    settings = NoisedModel.model_construct(kind="noised", base="llama", like=like, seed=0)
    section = PerturbSection.model_construct(study="s", name="noised", model=settings)
    names = [models / name / "provenance.json" for name in ("llama", like, "refused")]
    with pytest.raises(UserError, match=f"models.noised.like: .*{said}"):
        perturb.main(argparse.Namespace(settings=section, base=names[0], like=names[1], output=names[2]))
    assert not names[2].exists()


def rows_of(model):
    """The linear weights of a model but for its output embedding, (outputs, inputs) each, by name."""
    linear = (torch.nn.Linear, transformers.pytorch_utils.Conv1D)
    named = {name: part for name, part in model.named_modules() if isinstance(part, linear) and "head" not in name}
    return {
        name: part.weight.detach() if isinstance(part, torch.nn.Linear) else part.weight.detach().T
        for name, part in named.items()
    }


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_rounded_weights_lie_on_few_levels_at_most_half_a_step_away(models, architecture):
    base = snapshots.load_model(models / architecture, "cpu", torch.float32)
    errors = []
    for bits in (8, 4, 2):
        rounded, provenance = made(
            models, "rounded", RoundedModel(kind="rounded", base=architecture, bits=bits, embeddings=bits == 4)
        )
        assert weights.tied(rounded)
        both = list(zip(rows_of(base).values(), rows_of(rounded).values(), strict=True))
        embeddings = (base.get_input_embeddings().weight, rounded.get_input_embeddings().weight)
        both += [embeddings] if bits == 4 else []
        assert torch.equal(*embeddings) == (bits != 4)
        assert provenance["checks"]["rounded_weights"] == sum(weight.numel() for weight, _ in both)
        for weight, near in both:
            step = weight.abs().amax(1) / (2 ** (bits - 1) - 1)
            assert ((near - weight).abs().amax(1) <= 0.5001 * step).all()
            assert max(len(row.unique()) for row in near) <= 2**bits - 1
        errors.append(provenance["checks"]["relative_weight_change"])
    assert errors == sorted(errors)
    assert errors[0] < 0.01 < errors[-1]
    assert torch.equal(perturb.round_to_levels(torch.zeros(2, 3), 2), torch.zeros(2, 3))


def test_divergence_is_that_of_the_predictions_in_float64(models):
    both = [snapshots.load_model(models / name, "cpu", torch.float32) for name in ("llama", "like")]
    generator = np.random.default_rng(0)
    position = np.concatenate([np.arange(1, 8), np.arange(1, 6)])
    ids = generator.integers(4, 200, len(position))
    spans = windows(position)
    found = measure_divergence.predictions(both, ids, spans, 0, 64)
    for row, model in zip(found, both, strict=False):
        np.testing.assert_allclose(row, splicing.token_losses(model, ids, spans, 0, 64, [None])[0], atol=1e-5)
    with torch.no_grad():
        read = torch.tensor([[0, *ids[spans[1]]]])
        first, second = (model(input_ids=read).logits[0, :-1].double().log_softmax(-1) for model in both)
    wanted = (first.exp() * (first - second)).sum(-1)
    assert wanted.min() > 1e-6
    np.testing.assert_allclose(found[2, spans[1]], wanted, rtol=1e-3, atol=1e-7)
    np.testing.assert_array_equal(found[3, spans[1]], first.argmax(-1) != second.argmax(-1))
    same = measure_divergence.predictions([both[0], both[0]], ids, spans, 0, 64)
    assert not same[2:].any()


def test_divergence_has_intervals_over_documents_and_the_norm_of_the_weights_change(models):
    sums = np.array([[4.0, 9.0], [5.0, 9.0], [0.4, 0.0], [1.0, 0.0]])
    dataset = measure_divergence.to_dataset(sums, np.array([2, 3]), bootstrap.resamples(2, 200, 0), 0.95)
    assert dataset["model_loss_difference"] == pytest.approx(0.2)
    assert dataset["model_kl_divergence"] == pytest.approx(0.08)
    assert [float(dataset[f"model_kl_divergence_{end}"]) for end in ("low", "high")] == pytest.approx([0.0, 0.2])
    changes = measure_divergence.weight_changes([models / "llama", models / "like"], bits=None)
    assert int((changes["weight_change_norm"] > 0).sum()) == 2
    assert np.isnan(changes["weight_bits"])
    other = measure_divergence.weight_changes([models / "llama", models / "gpt2"], bits=4)
    assert np.isnan(other["weight_change"]), "another architecture"
    assert other["weight_bits"] == 4
    artifacts.write(dataset.merge(changes).assign_attrs(title="t", **provenance()), models / "divergence.nc")


def provenance():
    """What every artifact says of itself."""
    return PerturbSection(study="s", name="m", model=RoundedModel(kind="rounded", base="llama", bits=4)).provenance()
