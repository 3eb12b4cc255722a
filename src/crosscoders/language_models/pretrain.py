"""Stage pretrain: a small Llama trained from scratch on the study's text, with a byte-pair vocabulary of its own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import transformers
from safetensors.torch import save_file

from crosscoders import artifacts, stage
from crosscoders.data.chats import Document, in_split, shuffled, written
from crosscoders.data.corpora import from_dataset
from crosscoders.device import chosen_device, chosen_dtype
from crosscoders.errors import UserError, check_divergence, explain_divergence
from crosscoders.language_models import snapshots
from crosscoders.language_models.sections import PretrainSection
from crosscoders.study.settings.models import TrainedModel


def byte_pairs(texts: list[str], settings: TrainedModel) -> transformers.PreTrainedTokenizerFast:
    """A byte-level BPE of `vocabulary` tokens, special tokens first."""
    from tokenizers import Tokenizer, decoders, pre_tokenizers, trainers
    from tokenizers import models as kinds

    tokenizer = Tokenizer(kinds.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=settings.vocabulary,
        special_tokens=settings.special_tokens,
        initial_alphabet=alphabet,
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    first = settings.special_tokens[0]
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token=first, eos_token=first, pad_token=first
    )


def stream(texts: list[str], tokenizer: transformers.PreTrainedTokenizerBase, sink: int) -> np.ndarray:
    """All documents one after the other, each opened by the sink."""
    encoded = tokenizer(texts, add_special_tokens=False).input_ids
    return np.concatenate([np.array([sink, *ids], np.int32) for ids in encoded])


def initial(settings: TrainedModel, vocabulary: int) -> transformers.LlamaForCausalLM:
    """The model before training."""
    torch.manual_seed(settings.seed)
    config = transformers.LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=settings.width,
        intermediate_size=4 * settings.width,
        num_hidden_layers=settings.depth,
        num_attention_heads=settings.heads,
        num_key_value_heads=settings.heads,
        max_position_embeddings=settings.context_length,
        bos_token_id=0,
        eos_token_id=0,
        tie_word_embeddings=True,
    )
    return transformers.LlamaForCausalLM(config)


def train(
    model: torch.nn.Module,
    tokens: np.ndarray,
    settings: TrainedModel,
    device: str,
    autocast: bool,
    keep: Callable[[int], None] = lambda step: None,
) -> float:
    """Train on windows at random places of the stream; returns the mean loss of the last tenth of the steps.

    `keep` is called with the number of steps taken, before the first and after every one, while the model has the weights
    of that step; it must not change them.

    Raises
    ------
    FloatingPointError
        The loss or the norm of the gradients is not finite.
    """
    generator = np.random.default_rng(settings.seed)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=settings.learning_rate, betas=(0.9, 0.95), weight_decay=0.1, fused=True
    )
    rows = max(1, settings.batch_tokens // settings.row_tokens)
    progress = stage.Progress("pretrain", settings.steps * rows * settings.row_tokens)
    losses: list[float] = []
    keep(0)
    for step in range(settings.steps):
        starts = generator.integers(0, len(tokens) - settings.row_tokens - 1, rows)
        chosen = tokens[starts[:, None] + np.arange(settings.row_tokens + 1)]
        window = torch.from_numpy(chosen.astype(np.int64)).to(device)
        warmup = min(1.0, (step + 1) / max(settings.warmup_steps, 1))
        optimizer.param_groups[0]["lr"] = settings.learning_rate * warmup * (1 - step / settings.steps)
        with torch.autocast(device, dtype=torch.bfloat16, enabled=autocast):
            logits = model(input_ids=window[:, :-1], use_cache=False).logits
        loss = torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), window[:, 1:].flatten())
        loss.backward()
        losses.append(loss.item())
        length = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        check_divergence(step, loss=losses[-1], gradient_norm=length.item())
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        keep(step + 1)
        progress.update(rows * settings.row_tokens, step=step + 1, loss=losses[-1])
    recent = losses[-max(1, len(losses) // 10) :]
    return sum(recent) / len(recent)


def keeper(model: transformers.PreTrainedModel, settings: TrainedModel, folder: Path) -> Callable[[int], None]:
    """A function of the step that keeps the model's weights in a folder, in float32, after the steps that are asked for."""

    def keep(step: int) -> None:
        if step in (settings.snapshots or ()):
            tied = set(model._tied_weights_keys or ()) if model.config.tie_word_embeddings else set()
            kept = {
                name: tensor.float().contiguous() for name, tensor in model.state_dict().items() if name not in tied
            }
            save_file(kept, folder / snapshots.step_file(step), metadata={"format": "pt"})

    return keep


def main(arguments) -> None:
    """Train vocabulary and model, save the snapshot."""
    section: PretrainSection = arguments.settings
    settings = section.model
    template = section.chat_template
    device = chosen_device(section.device)
    torch.use_deterministic_algorithms(True, warn_only=True)
    documents: list[Document] = [d for path in arguments.texts for d in from_dataset(artifacts.read(path))]
    inside = [d for d in documents if any(in_split(d, edges) for edges in section.splits)]
    if not inside:
        raise UserError(f"models.{section.name}.corpora: no document falls into the training splits")
    texts = [written(document, template) for document in shuffled(inside, f"pretrain:{settings.seed}")]
    tokenizer = byte_pairs(texts, settings)
    tokens = stream(texts, tokenizer, tokenizer.convert_tokens_to_ids(settings.special_tokens[0]))
    stage.say(f"pretrain: {len(texts):,} documents, {len(tokens):,} tokens, {len(tokenizer):,} in the vocabulary")
    if len(tokens) <= settings.row_tokens + 1:
        raise UserError(
            f"models.{section.name}.row_tokens: {settings.row_tokens} exceeds the text ({len(tokens)} tokens)"
        )
    model = initial(settings, len(tokenizer)).to(device)
    target: Path = arguments.output.parent
    with snapshots.working_folder(target) as name:
        folder = Path(name) / "snapshot"
        folder.mkdir()
        autocast, keep = chosen_dtype("auto", device) == torch.bfloat16, keeper(model, settings, folder)
        with explain_divergence(f"models.{section.name}"):
            loss = train(model, tokens, settings, device, autocast, keep)
        model.float().save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        provenance = section.provenance(settings.seed)
        licence = "trained in this study; see the corpora"
        snapshots.publish(folder, target, {**provenance, "licence": licence, "checks": {"final_loss": round(loss, 4)}})
    stage.say(f"pretrain: loss {loss:.3f}")


if __name__ == "__main__":
    stage.run(main, stage.parser(PretrainSection, __doc__, "output", lists=("texts",)).parse_args())
