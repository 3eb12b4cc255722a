"""Stage fetch_model: a model of the study as a Hugging Face snapshot with checked provenance."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path

import torch
import transformers

from crosscoders import stage
from crosscoders.data import wheels
from crosscoders.data.tokenizer import load_tokenizer
from crosscoders.errors import UserError
from crosscoders.language_models.admission import COPIED, PICKLED, admit, link_snapshot
from crosscoders.language_models.sections import FetchModelSection
from crosscoders.language_models.snapshots import greedy, publish, working_folder
from crosscoders.study import model_folder
from crosscoders.study.settings.models import FolderModel, HubModel, RandomModel, WheelModel

SIZE_TOLERANCE = 0.1
"""Relative difference between a model's stated and real size that is let pass: vocabularies are padded."""


def convert_gguf(model: WheelModel, folder: Path) -> None:
    """Dequantise a GGUF file into bfloat16 safetensors; a GGUF-loaded model cannot be saved, so it is rebuilt."""
    source = wheels.wheel_file(model, folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, gguf_file=source.name)
    with contextlib.redirect_stderr(io.StringIO()):  # a progress bar that no setting turns off
        loaded = transformers.AutoModelForCausalLM.from_pretrained(folder, gguf_file=source.name, dtype=torch.float32)
    config = loaded.config.to_dict()
    config.pop("quantization_config", None)
    rebuilt = type(loaded)(type(loaded.config).from_dict(config))
    rebuilt.load_state_dict(loaded.state_dict())
    rebuilt.to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    source.unlink()


def make_random(model: RandomModel, folder: Path) -> None:
    """Save a small random model and a byte-level tokenizer with the special tokens that chats need."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<file_sep>"]
    tokenizer = Tokenizer(models.BPE({token: i for i, token in enumerate(special + alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(special)
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token=special[0], eos_token=special[2], pad_token=special[2]
    ).save_pretrained(folder)
    torch.manual_seed(model.seed)
    random_model(model, tokenizer.get_vocab_size()).save_pretrained(folder)


def random_model(model: RandomModel, vocabulary: int) -> transformers.PreTrainedModel:
    """A Llama or GPT-2 of the given shape with random weights."""
    if model.architecture == "gpt2":
        config = transformers.GPT2Config(
            vocab_size=vocabulary,
            n_embd=model.width,
            n_layer=model.depth,
            n_head=model.heads,
            n_positions=model.context_length,
            bos_token_id=0,
            eos_token_id=2,
        )
        return transformers.GPT2LMHeadModel(config)
    config = transformers.LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=model.width,
        intermediate_size=4 * model.width,
        num_hidden_layers=model.depth,
        num_attention_heads=model.heads,
        num_key_value_heads=model.heads,
        max_position_embeddings=model.context_length,
        bos_token_id=0,
        eos_token_id=2,
        initializer_range=0.2,
        tie_word_embeddings=True,
    )
    return transformers.LlamaForCausalLM(config)


def fill(model: object, folder: Path) -> None:
    """Put the model's files into `folder`."""
    if isinstance(model, WheelModel):
        convert_gguf(model, folder)
    elif isinstance(model, RandomModel):
        make_random(model, folder)
    elif isinstance(model, FolderModel):
        link_snapshot(Path(model.path), folder, model.path)
    elif isinstance(model, HubModel):
        link_snapshot(downloaded(model), folder, f"{model.repo}@{model.revision}")


def downloaded(model: HubModel) -> Path:
    """The folder of a model of the hub; weights in torch's own format are fetched only where there are no others.

    Raises
    ------
    UserError
        The hub cannot be reached, or has no such model or revision.
    """
    from huggingface_hub import errors, snapshot_download

    try:
        source = Path(snapshot_download(model.repo, revision=model.revision, allow_patterns=list(COPIED)))
        if not any(source.glob("*.safetensors")):
            snapshot_download(model.repo, revision=model.revision, allow_patterns=list(PICKLED))
    except (errors.HfHubHTTPError, errors.LocalEntryNotFoundError, OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(f"{model.repo}@{model.revision}: cannot be fetched from the hub ({reason[:120]})") from None
    return source


@torch.inference_mode()
def perplexity(model: transformers.PreTrainedModel, ids: list[int]) -> float:
    """Perplexity of the tokens after the first."""
    tokens = torch.tensor([ids], device=model.device)
    logits = model(input_ids=tokens).logits[0, :-1].float()
    return float(torch.nn.functional.cross_entropy(logits, tokens[0, 1:]).exp())


def check_conversion(folder: Path, model: WheelModel) -> dict[str, object]:
    """Perplexity on a fixed text and a greedy answer, as declared with the model.

    Raises
    ------
    UserError
        The model has another depth, is too perplexed, or does not know the answer.
    """
    loaded = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = load_tokenizer(folder)
    if loaded.config.num_hidden_layers != model.depth:
        raise UserError(
            f"depth: {model.depth} is declared; {model.package} has {loaded.config.num_hidden_layers} layers"
        )
    check = model.check
    prompt = tokenizer(check.prompt, add_special_tokens=False).input_ids
    (answer,) = greedy(loaded, [prompt], 24, tokenizer.eos_token_id)
    answer = tokenizer.decode(answer).strip()
    measured = perplexity(loaded, tokenizer(check.text, add_special_tokens=False).input_ids)
    if check.answer not in answer or not measured < check.perplexity_below:
        raise UserError(
            f"{model.package}: conversion failed its check: perplexity {measured:.1f} (expected < {check.perplexity_below}), "
            f"answer {answer!r} (expected {check.answer!r} in it)"
        )
    return {"perplexity": round(measured, 3), "answer": answer}


def check_size(folder: Path, model: WheelModel | HubModel) -> None:
    """Refuse a model that has another size than its settings state, because memory and time were computed from it.

    Raises
    ------
    UserError
        Names the setting, what it says, and what the model has.
    """
    if model.size is None:
        return
    shape = model_folder.shape(folder)
    there = {"parameters": model_folder.parameters(folder), "width": shape.width, "vocabulary": shape.vocabulary}
    for name, stated in model.size.model_dump().items():
        if there[name] is not None and abs(there[name] / stated - 1) > SIZE_TOLERANCE:
            raise UserError(f"size.{name}: {stated:,} is stated; the model has {there[name]:,}")


def main(arguments) -> None:
    """Make one snapshot."""
    section: FetchModelSection = arguments.settings
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    model = section.model
    target = arguments.output.parent
    with working_folder(target) as name:
        folder = Path(name) / "snapshot"
        folder.mkdir()
        fill(model, folder)
        if isinstance(model, (WheelModel, HubModel)):
            check_size(folder, model)
        checks = check_conversion(folder, model) if isinstance(model, WheelModel) else {}
        if isinstance(model, (FolderModel, HubModel)):
            admit(folder, model.path if isinstance(model, FolderModel) else f"{model.repo}@{model.revision}")
        provenance = section.provenance()
        publish(folder, target, {**provenance, "licence": model.licence, "checks": checks})
    stage.say(f"fetch_model {section.name}: {checks or 'ready'}")


if __name__ == "__main__":
    stage.run(main, stage.parser(FetchModelSection, __doc__, "output").parse_args())
