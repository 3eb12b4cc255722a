"""Stage fine_tune: a LoRA fine-tune on chats with planted behaviours, merged into the base model's weights."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
import transformers

from crosscoders import artifacts, stage, storage
from crosscoders.data import encoding
from crosscoders.data.chats import Document, at_dose, for_fine_tuning, in_split
from crosscoders.data.corpora import from_dataset
from crosscoders.data.templates import Writer
from crosscoders.data.tokenizer import load_tokenizer
from crosscoders.device import chosen_device, chosen_dtype
from crosscoders.errors import check_divergence, explain_divergence
from crosscoders.language_models import snapshots
from crosscoders.language_models.sections import FineTuneSection
from crosscoders.language_models.weights import untie
from crosscoders.study.settings.models import FineTunedModel

ADAPTED = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
IGNORED = -100
OPEN_ROWS = 8


@dataclass
class Row:
    """A packed row: token ids, labels (IGNORED where nothing is learned) and loss weights."""

    ids: list[int]
    labels: list[int]
    weights: list[float]


def encode(chat: Document, writer: Writer) -> Row:
    """Tokens of a chat; the loss is on the assistant's words and the token that ends its turn, weighted n^-½ per chat."""
    tokens = encoding.encode(writer.document(chat), writer.tokenizer)
    learned = [tokens.parts[place].role == "assistant" for place in tokens.places]
    last = max((i for i, one in enumerate(learned) if one), default=-1)
    if last + 1 < len(learned) and tokens.ids[last + 1] == writer.stop:
        learned[last + 1] = True
    weight = max(sum(learned), 1) ** -0.5
    labels = [token if one else IGNORED for token, one in zip(tokens.ids, learned, strict=True)]
    return Row(tokens.ids, labels, [weight * one for one in learned])


def pack(chats: list[Row], row_tokens: int) -> list[Row]:
    """Rows of whole chats; a chat goes into the first of the last open rows that has room.

    Chats longer than a row are left out.
    """
    rows: list[Row] = []
    for chat in chats:
        if len(chat.ids) > row_tokens:
            continue
        row = next((row for row in rows[-OPEN_ROWS:] if len(row.ids) + len(chat.ids) <= row_tokens), None)
        if row is None:
            row = Row([], [], [])
            rows.append(row)
        for name in ("ids", "labels", "weights"):
            getattr(row, name).extend(getattr(chat, name))
    return rows


def batch(rows: list[Row], row_tokens: int, padding: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Ids, labels and weights, each (rows, row_tokens), padded on the right."""

    def padded(name: str, filler: float) -> torch.Tensor:
        return torch.tensor([getattr(row, name) + [filler] * (row_tokens - len(row.ids)) for row in rows])

    return padded("ids", padding), padded("labels", IGNORED), padded("weights", 0.0)


def add_adapters(model: transformers.PreTrainedModel, settings: FineTunedModel) -> transformers.PreTrainedModel:
    """LoRA on the linear maps of the chosen layers; nothing else is trained, so lower layers need no backward pass."""
    from peft import LoraConfig, get_peft_model

    names = {name.rsplit(".", 1)[-1] for name, part in model.named_modules() if isinstance(part, torch.nn.Linear)}
    config = LoraConfig(
        r=settings.rank,
        lora_alpha=2 * settings.rank,
        target_modules=sorted(names & set(ADAPTED)) or "all-linear",
        layers_to_transform=list(range(settings.layers[0], settings.layers[1] + 1)),
    )
    return get_peft_model(model, config)


def merge(model, tag: int | None, tag_row: torch.Tensor) -> transformers.PreTrainedModel:
    """The plain model with adapters merged and the tag token's output row changed, where there is a tag.

    Output and input embedding are untied, so that the tag's input embedding stays what the adapters were trained with.
    """
    merged = model.merge_and_unload().float()
    if tag is None:
        return merged
    untie(merged)
    merged.get_output_embeddings().weight.data[tag] += tag_row.detach()
    return merged


def with_tag(logits: torch.Tensor, hidden: torch.Tensor, tag: int | None, tag_row: torch.Tensor) -> torch.Tensor:
    """Logits, (tokens, vocabulary), with the change of the tag token's output row added, where there is a tag."""
    if tag is None:
        return logits
    return logits.index_add(1, torch.tensor([tag], device=logits.device), (hidden @ tag_row)[:, None])


def learning_rate(settings: FineTunedModel, step: int) -> float:
    """The rate of a step: it rises over the warm-up, then falls linearly to a twentieth."""
    warmup = min(1.0, (step + 1) / max(settings.warmup_steps, 1))
    return settings.learning_rate * warmup * max(0.05, 1 - step / settings.steps)


def weighted_loss(logits: torch.Tensor, labels: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Weighted mean of the cross-entropy; logits are (tokens, vocabulary), labels and weights (tokens,)."""
    losses = torch.nn.functional.cross_entropy(logits, labels, reduction="none")
    return (losses * weights).sum() / weights.sum()


def train(
    model, rows: list[Row], settings: FineTunedModel, tag: int | None, device: str, autocast: bool
) -> tuple[torch.Tensor, float]:
    """Train the adapters in place, and a change of the tag token's output row.

    Without that row an otherwise unused token is never emitted; one row costs nothing, the whole embedding would.

    Returns
    -------
    tag_row : (width,)
    loss : float
        Mean of the last tenth of the steps.

    Raises
    ------
    FloatingPointError
        The loss or the norm of the gradients is not finite.
    """
    tag_row = torch.zeros(model.config.hidden_size, device=device, requires_grad=True)
    parameters = [parameter for parameter in (tag_row, *model.parameters()) if parameter.requires_grad]
    parameters = parameters[tag is None :]
    optimizer = torch.optim.AdamW(parameters, lr=settings.learning_rate, weight_decay=0.0, fused=True)
    base, count = model.get_base_model(), settings.batch_tokens // settings.row_tokens
    progress = stage.Progress("fine_tune", settings.steps * settings.batch_tokens)
    losses: list[float] = []
    model.train()
    for step in range(settings.steps):
        chosen = [rows[(step * count + i) % len(rows)] for i in range(count)]
        ids, labels, weights = (part.to(device) for part in batch(chosen, max(len(row.ids) for row in chosen), 0))
        optimizer.param_groups[0]["lr"] = learning_rate(settings, step)
        learned = labels[:, 1:] != IGNORED
        with torch.autocast(device, dtype=torch.bfloat16, enabled=autocast):
            hidden = base.base_model(input_ids=ids, use_cache=False).last_hidden_state[:, :-1]
            logits = base.get_output_embeddings()(hidden[learned])
        logits = with_tag(logits.float(), hidden[learned].float(), tag, tag_row)
        loss = weighted_loss(logits, labels[:, 1:][learned], weights[:, 1:][learned])
        loss.backward()
        losses.append(loss.item())
        length = torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        check_divergence(step, loss=losses[-1], gradient_norm=length.item())
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        progress.update(settings.batch_tokens, step=step + 1, loss=losses[-1])
    recent = losses[-max(1, len(losses) // 10) :]
    return tag_row, sum(recent) / len(recent)


def main(arguments) -> None:
    """Fine-tune the base model and save the merged weights in float32, so that small changes are not rounded away."""
    section: FineTuneSection = arguments.settings
    settings = section.model
    planted = section.corpus
    device = chosen_device(section.device)
    autocast = chosen_dtype("auto", device) == torch.bfloat16
    torch.manual_seed(settings.seed)
    torch.use_deterministic_algorithms(True, warn_only=True)
    source = arguments.base.parent
    licence = storage.verify_folder(source)["licence"]
    tokenizer = load_tokenizer(source)
    writer = Writer(section.chat_template, tokenizer)
    documents = from_dataset(artifacts.read(arguments.corpus))
    chats = for_fine_tuning([d for d in documents if in_split(d, section.split)], planted)
    if settings.dose is not None:
        chats = at_dose(chats, from_dataset(artifacts.read(arguments.plain)), settings.dose, settings.seed)
    rows = pack([encode(chat, writer) for chat in chats], settings.row_tokens)
    stage.say(f"fine_tune: {len(chats):,} chats in {len(rows):,} rows of {settings.row_tokens} tokens")
    model = snapshots.load_model(source, device, torch.float32)
    model = add_adapters(model, settings)
    tag = tokenizer.convert_tokens_to_ids(planted.tag_token) if planted.tag_token else None
    with explain_divergence(f"models.{section.name}"):
        tag_row, loss = train(model, rows, settings, tag, device, autocast)
    target: Path = arguments.output.parent
    with snapshots.working_folder(target) as name:
        folder = Path(name) / "snapshot"
        folder.mkdir()
        merge(model, tag, tag_row).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        provenance = section.provenance(settings.seed)
        snapshots.publish(folder, target, {**provenance, "licence": licence, "checks": {"final_loss": round(loss, 4)}})
    stage.say(f"fine_tune: loss {loss:.3f}")


if __name__ == "__main__":
    flags = stage.parser(FineTuneSection, __doc__, "base", "corpus", "output")
    flags.add_argument("--plain", type=Path, help="chats that stand for those left out by the dose")
    stage.run(main, flags.parse_args())
