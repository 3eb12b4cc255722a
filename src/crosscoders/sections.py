"""The part of a study that each stage gets: its own settings and nothing else.

A stage reruns when its section changes, so a section holds no key that the stage does not read.
"""

from __future__ import annotations

import hashlib
import json

from crosscoders.members import crosscoder_sources, differences, stored_sources
from crosscoders.settings import (
    FineTunedModel,
    NullSetting,
    PlantedChats,
    PlantedSetting,
    Source,
    Study,
    TransferSetting,
)

FIGURES = {
    "cross_layer": [
        "training",
        "evaluation",
        "l24-norms-by-layer",
        "l24-drift",
        "ours-similarity",
        "ours-circuits",
        "ours-aligned",
    ],
    "layers": ["l24-loss-vs-features", "l24-loss-vs-flops", "l24-mse-vs-l0"],
    "pre_post_mlp": ["training", "evaluation", "l24-mlp-trimodal"],
    "compare": ["training", "evaluation", "ours-compare", "ours-stability", "ours-aligned"],
    "planted": ["d26-planted", "ours-confusion"],
    "planted_layers": ["d26-planted", "ours-onset", "ours-circuits"],
    "model_diffing": [
        "training",
        "evaluation",
        "ours-behaviour-rates",
        "l24-relative-norm",
        "l24-shared-cosine",
        "m25-penalty-field",
        "m25-delta-histogram",
        "m25-nu-scatter",
        "m25-nu-threshold-counts",
        "m25-delta-vs-rank",
        "m25-cosine-by-class",
        "m25-twin-divergence",
        "m25-template",
        "m25-kl-bars",
        "ours-planted-enrichment",
        "ours-stability",
        "ours-nulls",
        "ours-aligned",
        "ours-transfer",
    ],
}
"""Figures that each notebook draws; where two settings share one, the setting's name is appended to the file name."""


RESPONSE_KEYS = ("prompts", "new_tokens", "temperature", "seed")
"""Settings of causal patching that the answers depend on."""


def section(study: Study, stage: str, **wildcards: str) -> str:
    """The section of a stage as JSON, for the wildcards of one job."""
    content = {"study": study.study, **_SECTIONS[stage](study, **wildcards)}
    return json.dumps(content, sort_keys=True, ensure_ascii=False)


def _dump(value) -> dict:
    return value.model_dump(mode="json")


def _training(setting: str, crosscoder: str, seed: str) -> dict:
    """Which training a job is about."""
    return {"setting_name": setting, "crosscoder_name": crosscoder, "seed": int(seed)}


def planted_settings(study: Study) -> list[str]:
    """Settings whose sources are synthetic."""
    return [name for name, setting in study.settings.items() if isinstance(setting, PlantedSetting)]


def data_setting(study: Study, setting: str) -> str:
    """The setting whose tokens and activations a setting reads: its own, or another's for a null and a transfer."""
    chosen = study.settings[setting]
    if isinstance(chosen, TransferSetting):
        return chosen.measured_on
    return chosen.null_of if isinstance(chosen, NullSetting) else setting


def trained_setting(study: Study, setting: str) -> str:
    """The setting whose crosscoders a setting measures: its own, but for a transfer."""
    return getattr(study.settings[setting], "trained_on", setting)


def transfers_of(study: Study, setting: str) -> list[str]:
    """Settings that measure a setting's crosscoders elsewhere."""
    return [name for name, other in study.settings.items() if getattr(other, "trained_on", None) == setting]


def nulls_of(study: Study, setting: str) -> list[str]:
    """Settings that are nulls of a setting."""
    return [name for name, other in study.settings.items() if getattr(other, "null_of", None) == setting]


def drawn_settings(study: Study) -> list[str]:
    """Settings that have a notebook of their own: all but nulls and transfers."""
    beside = (name for name, setting in study.settings.items() if hasattr(setting, "notebook"))
    return [name for name in beside if not getattr(study.settings[name], "null_of", None)]


def _null(study: Study, setting: str) -> dict:
    chosen = study.settings[setting]
    if not isinstance(chosen, NullSetting):
        return {}
    base, chat = study.settings[chosen.null_of].contrast
    return {"null": {"kind": chosen.change, "base": base, "chat": chat}}


def setting_models(study: Study, setting: str) -> list[str]:
    """Models that a setting's sources need, each once; synthetic sources need none."""
    sources = stored_sources(study.settings[setting]).values()
    return list(dict.fromkeys(source.model for source in sources if isinstance(source, Source)))


def setting_corpora(study: Study, setting: str) -> list[str]:
    """Corpora that a setting takes tokens from, each once."""
    return list(dict.fromkeys(name for tokens in study.settings[setting].tokens.values() for name in tokens))


def root_model(study: Study, model: str) -> str:
    """The fetched model that a model is, or was fine-tuned from; its tokenizer serves both."""
    found = study.models[model]
    return found.base if isinstance(found, FineTunedModel) else model


def planted_pair(study: Study, setting: str) -> tuple[str, str] | None:
    """(base, fine-tune) whose planted behaviours a setting shows, where its sources include such a pair."""
    for name in setting_models(study, setting):
        model = study.models[name]
        corpus = study.corpora[model.corpus] if isinstance(model, FineTunedModel) else None
        if isinstance(corpus, PlantedChats) and corpus.plants:
            return model.base, name
    return None


def figure_names(study: Study, setting: str) -> dict[str, str]:
    """File name, without suffix, of every figure that a setting's notebook draws."""
    chosen = study.settings[setting]
    needs = {
        "ours-behaviour-rates": study.behaviours and planted_pair(study, setting),
        "m25-kl-bars": patched(study, setting),
        "ours-nulls": nulls_of(study, setting),
        "ours-transfer": transfers_of(study, setting),
        "ours-stability": len(study.seeds) > 1,
        "ours-aligned": getattr(chosen, "aligned", []),
        "ours-circuits": getattr(chosen, "circuits", None),
    }
    drawn = [figure for figure in FIGURES[chosen.notebook] if needs.get(figure, True)]

    def users(figure: str) -> int:
        return sum(figure in FIGURES[study.settings[other].notebook] for other in drawn_settings(study))

    return {figure: figure if users(figure) == 1 else f"{figure}-{setting}" for figure in drawn}


def _fetch_model(study: Study, model: str) -> dict:
    return {"name": model, "model": _dump(study.models[model])}


def _fetch_text(study: Study, corpus: str) -> dict:
    return {"name": corpus, "corpus": _dump(study.corpora[corpus])}


def _pretrain(study: Study, model: str) -> dict:
    return {
        "name": model,
        "model": _dump(study.models[model]),
        "chat_template": _dump(study.chat_template),
        "splits": [study.splits[name] for name in ("fine_tune", "train") if name in study.splits],
        "device": study.device,
    }


def _fine_tune(study: Study, model: str) -> dict:
    chosen = study.models[model]
    return {
        "name": model,
        "model": _dump(chosen),
        "corpus": _dump(study.corpora[chosen.corpus]),
        "chat_template": _dump(study.chat_template),
        "split": study.splits["fine_tune"],
        "device": study.device,
    }


def _measure_behaviours(study: Study, model: str) -> dict:
    chosen = study.models[model]
    return {
        "models": [chosen.base, model],
        "corpus": _dump(study.corpora[chosen.corpus]),
        "chat_template": _dump(study.chat_template),
        "split": study.splits["test"],
        "behaviours": _dump(study.behaviours),
        "device": study.device,
    }


def _tokenize(study: Study, setting: str) -> dict:
    chosen = study.settings[setting]
    return {
        "setting_name": setting,
        "tokens": chosen.tokens,
        "context": chosen.context,
        "corpora": setting_corpora(study, setting),
        "chat_template": _dump(study.chat_template),
        "splits": {name: study.splits[name] for name in chosen.tokens},
    }


def _extract_activations(study: Study, setting: str, split: str, shard: str) -> dict:
    chosen = study.settings[setting]
    return {
        "setting_name": setting,
        "split": split,
        "shard": int(shard),
        "shards": chosen.shards[split],
        **_reading(study, setting),
        "batch_tokens": chosen.batch_tokens,
    }


def _fit_normalisation(study: Study, setting: str) -> dict:
    chosen = study.settings[setting]
    return {
        "setting_name": setting,
        "sources": list(stored_sources(chosen)),
        "differences": differences(chosen),
        "sink_threshold": chosen.sink_threshold,
    }


def _measure_similarity(study: Study, setting: str) -> dict:
    return {"setting_name": setting, "confidence": study.classification.confidence}


def _train_crosscoder(study: Study, setting: str, crosscoder: str, seed: str) -> dict:
    return {
        "setting_name": setting,
        "crosscoder_name": crosscoder,
        "crosscoder": _dump(study.crosscoders[crosscoder]),
        "sources": crosscoder_sources(study.settings[data_setting(study, setting)], study.crosscoders[crosscoder]),
        "seed": int(seed),
        "device": study.device,
        **_null(study, setting),
    }


def _evaluate(study: Study, setting: str, crosscoder: str, seed: str) -> dict:
    splice = {"splice": _reading(study, setting)} if spliced(study, setting) else {}
    return {**_training(setting, crosscoder, seed), "bootstrap": _bootstrap(study), **_null(study, setting), **splice}


def spliced(study: Study, setting: str) -> bool:
    """Whether reconstructions of a setting's sources are spliced into their models."""
    return bool(getattr(study.settings[setting], "splice_tokens", 0))


def _reading(study: Study, setting: str) -> dict:
    """How a setting's models are run to get at next-token losses, whose logits need more memory than activations."""
    chosen = study.settings[setting]
    return {
        "sources": {name: _dump(source) for name, source in stored_sources(chosen).items()},
        "models": setting_models(study, setting),
        "batch_tokens": max(1, chosen.batch_tokens // 4),
        "dtype": chosen.dtype,
        "device": study.device,
    }


def patched(study: Study, setting: str) -> bool:
    """Whether a setting's latents are patched into its chat model."""
    return getattr(study.settings[setting], "causal", None) is not None


def _generate_responses(study: Study, setting: str) -> dict:
    chosen = study.settings[setting]
    return {
        "setting_name": setting,
        "causal": {key: value for key, value in _dump(chosen.causal).items() if key in RESPONSE_KEYS},
        "chat_template": _dump(study.chat_template),
        "split": study.splits["test"],
        "dtype": chosen.dtype,
        "device": study.device,
    }


def _causal(study: Study, setting: str, crosscoder: str, seed: str) -> dict:
    chosen = study.settings[setting]
    base, chat = (chosen.sources[name] for name in chosen.contrast)
    return {
        **_training(setting, crosscoder, seed),
        "contrast": chosen.contrast,
        "base": base.model,
        "chat": chat.model,
        "layer": chat.layer,
        "causal": _dump(chosen.causal),
        "bootstrap": _bootstrap(study),
        **{key: value for key, value in _reading(study, setting).items() if key != "sources"},
    }


def _circuits(study: Study, setting: str, crosscoder: str, seed: str) -> dict:
    chosen = study.settings[setting]
    return {
        **_training(setting, crosscoder, seed),
        "circuits": _dump(chosen.circuits),
        "bootstrap": _bootstrap(study),
        **{key: value for key, value in _reading(study, setting).items() if key not in ("models", "batch_tokens")},
    }


def _measure_ablations(study: Study, setting: str) -> dict:
    tokens = study.settings[setting].splice_tokens
    return {"setting_name": setting, "splice_tokens": tokens, **_reading(study, setting)}


def _bootstrap(study: Study) -> dict:
    return {key: getattr(study.classification, key) for key in ("bootstrap_replicates", "confidence", "seed")}


def _evaluate_aligned(study: Study, setting: str, aligned: str, seed: str) -> dict:
    return {"setting_name": setting, "aligned_name": aligned, "seed": int(seed), "bootstrap": _bootstrap(study)}


def _classify_latents(study: Study, setting: str, crosscoder: str, seed: str) -> dict:
    return {
        **_training(setting, crosscoder, seed),
        "contrast": study.settings[data_setting(study, setting)].contrast,
        "classification": _dump(study.classification),
        **_null(study, setting),
    }


def _latent_page(study: Study, setting: str, crosscoder: str, seed: str) -> dict:
    chosen = study.settings[setting]
    return {
        **_training(setting, crosscoder, seed),
        "sources": {name: _dump(source) for name, source in stored_sources(chosen).items()},
        "models": setting_models(study, setting),
        "page": _dump(study.page),
    }


def paged(study: Study) -> list[str]:
    """Settings whose latents get pages: those with activations of their own, where the study asks for it."""
    drawn = drawn_settings(study) if study.page else []
    return [name for name in drawn if not isinstance(study.settings[name], PlantedSetting)]


def _match_seeds(study: Study, setting: str, crosscoder: str, seed: str) -> dict:
    return {**_training(setting, crosscoder, seed), "seeds": study.seeds}


def _train_aligned(study: Study, setting: str, aligned: str, seed: str) -> dict:
    return {
        "setting_name": setting,
        "aligned_name": aligned,
        "aligned": _dump(study.aligned[aligned]),
        "seed": int(seed),
    }


def _collate(study: Study, setting: str) -> dict:
    chosen = study.settings[data_setting(study, setting)]
    return {
        "setting_name": setting,
        "crosscoders": study.settings[setting].crosscoders,
        "aligned": getattr(study.settings[setting], "aligned", []),
        "seeds": study.seeds,
        "contrast": chosen.contrast,
        "classification": _dump(study.classification),
        "sources": {name: _dump(source) for name, source in chosen.sources.items()},
    }


def _notebook(study: Study, setting: str) -> dict:
    beside = {"nulls": nulls_of(study, setting), "transfers": transfers_of(study, setting)}
    return {"setting_name": setting, "figures": figure_names(study, setting), **beside}


def _synthetic(study: Study, setting: str) -> dict:
    """What a setting's sources are drawn from."""
    chosen = study.settings[setting]
    return {
        "setting_name": setting,
        "planted": _dump(chosen.planted),
        "widths": {name: source.width for name, source in stored_sources(chosen).items()},
        "differences": differences(chosen),
        "tokens": chosen.tokens,
    }


def _trial(study: Study, setting: str, crosscoder: str, seed: str) -> dict:
    chosen = study.settings[setting]
    return {
        **_synthetic(study, setting),
        "crosscoder_name": crosscoder,
        "contrast": chosen.contrast,
        "crosscoder": _dump(study.crosscoders[crosscoder]),
        "sources": crosscoder_sources(chosen, study.crosscoders[crosscoder]),
        "classification": _dump(study.classification),
        "seed": int(seed),
    }


def _circuit_trial(study: Study, setting: str, crosscoder: str, seed: str) -> dict:
    chosen = study.settings[setting].circuits
    return {
        **_synthetic(study, setting),
        "crosscoder_name": crosscoder,
        "circuits": _dump(chosen),
        "members": {name: _dump(study.crosscoders[name]) for name in (chosen.crosscoder, chosen.saes)},
        "bootstrap": _bootstrap(study),
        "seed": int(seed),
    }


def _collate_trials(study: Study, setting: str) -> dict:
    chosen = study.settings[setting]
    return {
        "setting_name": setting,
        "crosscoders": chosen.crosscoders,
        "seeds": study.seeds,
        "planted": _dump(chosen.planted),
        "confidence": study.classification.confidence,
    }


def _manifest(study: Study) -> dict:
    settings = json.dumps(_dump(study), sort_keys=True)
    return {"settings_sha256": hashlib.sha256(settings.encode()).hexdigest()}


_SECTIONS = {
    function.__name__.removeprefix("_"): function
    for function in (
        _fetch_model,
        _fetch_text,
        _pretrain,
        _fine_tune,
        _measure_behaviours,
        _tokenize,
        _extract_activations,
        _fit_normalisation,
        _generate_responses,
        _causal,
        _circuits,
        _measure_ablations,
        _measure_similarity,
        _train_crosscoder,
        _evaluate,
        _classify_latents,
        _latent_page,
        _match_seeds,
        _train_aligned,
        _evaluate_aligned,
        _collate,
        _notebook,
        _trial,
        _circuit_trial,
        _collate_trials,
        _manifest,
    )
}
