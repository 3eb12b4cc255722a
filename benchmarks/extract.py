"""Extraction: a forward pass that ends at the deepest needed layer, over windows of similar length together.

It is compared with a full forward pass with `output_hidden_states`, and with random padded batches of the same windows.
The model is a 12-layer Llama of width 576 with random weights; lengths are drawn from a lognormal distribution; one
thread computes. The roofline is the products of the needed layers with all tokens, without padding, at the rate that
MKL reaches.
"""

from __future__ import annotations

import numpy as np
import torch
import transformers

from benchmarks import roofline
from benchmarks.sides import save, take_turns
from crosscoders.language_models.hooks import forward
from crosscoders.language_models.windows import batches, padded

LAYER, BATCH_TOKENS, WINDOWS, ROUNDS = 5, 2048, 120, 3


def model() -> transformers.PreTrainedModel:
    """A Llama with random weights."""
    config = transformers.LlamaConfig(
        vocab_size=49152,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=12,
        num_attention_heads=9,
        num_key_value_heads=3,
        tie_word_embeddings=True,
    )
    torch.manual_seed(0)
    return transformers.AutoModelForCausalLM.from_config(config).eval()


def main() -> None:
    """Measure both comparisons."""
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    generator, llama = np.random.default_rng(0), model()
    lengths = np.clip(generator.lognormal(4, 1, WINDOWS), 4, 512).astype(int)
    ids = generator.integers(1, 49152, lengths.sum())
    edges = np.r_[0, np.cumsum(lengths)]
    spans = [slice(a, b) for a, b in zip(edges, edges[1:], strict=False)]
    shuffled = [spans[i] for i in generator.permutation(len(spans))]
    count = BATCH_TOKENS // int(1 + lengths.mean())
    groups = {
        "sorted": list(batches(spans, BATCH_TOKENS)),
        "random": [shuffled[i : i + count] for i in range(0, len(shuffled), count)],
    }
    middle = groups["sorted"][len(groups["sorted"]) // 2]
    row = padded(ids, middle, 0)
    early = take_turns(
        {
            "ours": lambda: forward(llama, [(LAYER, "resid_post")], row),
            "output_hidden_states": lambda: llama(input_ids=row, output_hidden_states=True).hidden_states[LAYER + 1],
        },
        ROUNDS,
    )
    order = take_turns(
        {
            name: lambda chosen=chosen: [forward(llama, [(LAYER, "resid_post")], padded(ids, g, 0)) for g in chosen]
            for name, chosen in groups.items()
        },
        ROUNDS,
    )
    tokens = {"output_hidden_states": sum(span.stop - span.start for span in middle), "random padded batches": len(ids)}
    rows = [
        row_of("output_hidden_states", early, 3.0, early["output_hidden_states"] / early["ours"]),
        row_of("random padded batches", order, 2.2, order["random"] / order["sorted"]),
    ]
    keep(rows, tokens, llama)


def row_of(peer: str, seconds: dict[str, float], target: float, ratio: float) -> dict:
    """One row of the table."""
    return {"name": "extract", "peer": peer, "seconds": seconds, "target": target, "ratio": round(ratio, 2)}


def keep(rows: list[dict], tokens: dict[str, int], llama: torch.nn.Module) -> None:
    """Add the roofline to every row, print the rows and save them."""
    weights = sum(p.numel() for layer in llama.model.layers[: LAYER + 1] for p in layer.parameters() if p.ndim == 2)
    multiplications, _ = roofline.rates()
    for row in rows:
        row["seconds"] = {name: round(seconds, 2) for name, seconds in row["seconds"].items()}
        row |= roofline.bound_of(product=tokens[row["peer"]] * weights / multiplications)
        print(f"{row['name']}: {row['seconds']}  × {row['ratio']:.2f}", flush=True)
    save("extract", rows)


if __name__ == "__main__":
    main()
