"""A peer's own trainer, in its own process: `peer_trainer.py SIDE TASK` goes from a model folder and text to a saved SAE.

It needs the package of its side, torch and transformers, so that peers run in an environment of their own. The task is
JSON: model, text (a file of JSON lines), output, layer, width, latents, k, context, rows, tokens, rate.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from datasets import Dataset
from transformers import AutoTokenizer

WARMUP, DECAY = 30, 0.5
"""Steps in which the learning rate rises, and the share of steps in which it falls, as of our side."""
DEAD_STEPS = 16
"""Steps without a firing after which `sae-lens` revives a latent; by default more steps than these runs have."""
SINK = "<|endoftext|>"
"""The first token of every row, which no side trains on: its activations are a hundred times as long as others."""


def rows(task: dict) -> tuple[Dataset, int]:
    """Rows of tokens, each of which begins with the sink, as every document does, and the number of the sink."""
    tokenizer = AutoTokenizer.from_pretrained(task["model"])
    sink = tokenizer.convert_tokens_to_ids(SINK)
    length, wanted = task["context"] - 1, task["tokens"]
    ids: list[int] = []
    for line in Path(task["text"]).read_text(encoding="utf-8").splitlines():
        ids += [sink, *tokenizer(json.loads(line)["text"])["input_ids"]]
        if len(ids) >= wanted:
            break
    cut = [[sink, *ids[start : start + length]] for start in range(0, min(len(ids), wanted) - length + 1, length)]
    return Dataset.from_dict({"input_ids": cut}), sink


def sae_lens(task: dict) -> None:
    """BatchTopK by `LanguageModelSAETrainingRunner`; its threshold follows faster than by default, as steps are few."""
    from sae_lens import BatchTopKTrainingSAEConfig, LanguageModelSAERunnerConfig, LanguageModelSAETrainingRunner
    from sae_lens.config import LoggingConfig

    dataset, sink = rows(task)
    batch = task["rows"] * (task["context"] - 1)
    steps = task["tokens"] // batch
    sae = BatchTopKTrainingSAEConfig(
        d_in=task["width"],
        d_sae=task["latents"],
        k=task["k"],
        normalize_activations="expected_average_only_in",
        topk_threshold_lr=0.1,
    )
    config = LanguageModelSAERunnerConfig(
        sae=sae,
        model_class_name="AutoModelForCausalLM",
        model_name=task["model"],
        hook_name=f"model.layers.{task['layer']}",
        is_dataset_tokenized=True,
        streaming=False,
        context_size=task["context"],
        prepend_bos=False,
        exclude_special_tokens=[sink],
        training_tokens=task["tokens"],
        train_batch_size_tokens=batch,
        store_batch_size_prompts=16,
        n_batches_in_buffer=8,
        n_batches_for_norm_estimate=8,
        lr=task["rate"],
        lr_warm_up_steps=WARMUP,
        lr_decay_steps=round(DECAY * steps),
        dead_feature_window=DEAD_STEPS,
        seed=0,
        logger=LoggingConfig(log_to_wandb=False),
        checkpoint_path=None,
        output_path=task["output"],
        verbose=False,
    )
    LanguageModelSAETrainingRunner(config, override_dataset=dataset).run()


def sparsify(task: dict) -> None:
    """TopK by `sparsify.Trainer`, with its own optimizer."""
    from sparsify import SparseCoderConfig, TrainConfig, Trainer
    from transformers import AutoModel

    dataset, sink = rows(task)
    model = AutoModel.from_pretrained(task["model"], dtype=torch.float32)
    model.layers = model.layers[: task["layer"] + 1]  # its trainer runs all layers that there are
    model.config.num_hidden_layers = len(model.layers)
    output = Path(task["output"])
    config = TrainConfig(
        SparseCoderConfig(num_latents=task["latents"], k=task["k"]),
        batch_size=task["rows"],
        layers=[task["layer"]],
        lr=task["rate"],
        exclude_tokens=[sink],
        log_to_wandb=False,
        save_every=10**9,
        save_dir=str(output.parent),
        run_name=output.name,
    )
    Trainer(config, dataset.with_format("torch"), model).fit()


if __name__ == "__main__":
    {"sae-lens": sae_lens, "eai-sparsify": sparsify}[sys.argv[1]](json.loads(sys.argv[2]))
