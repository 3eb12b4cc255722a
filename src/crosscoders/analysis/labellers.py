"""Language models that write labels of latents and find out by a label alone which excerpts a latent fires in.

Detection is that of Paulo et al., "Automatically Interpreting Millions of Features in Large Language Models" (2024).
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from crosscoders.data.tokenizer import load_tokenizer
from crosscoders.language_models import snapshots
from crosscoders.language_models.endpoint import Endpoint

BATCH = 8
"""Sequences that a model of the study reads at once."""
LONGEST_LABEL = 120
"""Characters."""
WRITE = """Each group of excerpts has in common what stands between « and ». A label says in a few words what that is.

Excerpts:
- It rained in «Paris» all week
- trains to «Berlin» leave at noon
- the mayor of «Lagos» said
Label: names of cities

Excerpts:
- they «did not» answer
- there is «no» reason for it
- she has «never» seen him
Label: negation

Excerpts:
{excerpts}
Label:"""
"""Question of a label, which both kinds of labellers get."""
WRITE_ALONE = "\n\nReply with the label of the last group alone, in at most ten words."
FIND_ONE = """Does the excerpt hold what the label says?

Label: names of cities
Excerpt: trains to Berlin leave at noon
Answer: yes

Label: names of cities
Excerpt: they did not answer
Answer: no

Label: negation
Excerpt: there is no reason for it
Answer: yes

Label: negation
Excerpt: the mayor of Lagos said
Answer: no

Label: {label}
Excerpt: {excerpt}
Answer:"""
"""Question about one excerpt, to a model whose probabilities we see."""
FIND_ALL = """A feature of a text has a label. Half of the numbered excerpts below hold the feature.

Label: {label}

{excerpts}

Reply with the numbers of the excerpts that hold the feature, as a JSON list like [1, 4], and with nothing else."""
"""Question about all excerpts at once, to a model behind an endpoint."""


@dataclass
class Found:
    """What a labeller says of the excerpts of one label.

    Attributes
    ----------
    said : (N,) bool
        Whether it says that the excerpt holds the feature.
    log_odds : (N,) float
        Logarithm of the odds of "yes" against "no"; NaN where the labeller shows no probabilities.
    reply : str
        Its answer as text; empty where it shows probabilities.
    understood : bool
        Whether the reply lists excerpts. One that does not counts as naming none.
    """

    said: np.ndarray
    log_odds: np.ndarray
    reply: str = ""
    understood: bool = True


def write_prompt(excerpts: list[str]) -> str:
    """The question of a label."""
    return WRITE.format(excerpts="\n".join(f"- {text}" for text in excerpts))


def label_of(reply: str) -> str:
    """The label in a reply: its first line that is not empty, without quotation marks around it."""
    lines = [line.strip() for line in reply.splitlines() if line.strip()]
    return lines[0].removeprefix("Label:").strip().strip("\"'`*").strip()[:LONGEST_LABEL] if lines else ""


class LocalLabeller:
    """A model of the study.

    It writes labels greedily. An excerpt counts as found where its log odds of " yes" against " no" exceed the median over
    the excerpts asked about with the same label; half of them hold the feature, and a bias towards either answer cancels.

    Parameters
    ----------
    folder : Path
        Its snapshot.
    device : str
    dtype : torch.dtype
    label_tokens : int
        Longest label.
    """

    def __init__(self, folder: Path, device: str, dtype: torch.dtype, label_tokens: int):
        self.model, self.tokenizer = snapshots.load_model(folder, device, dtype), load_tokenizer(folder)
        self.label_tokens, self.shortened = label_tokens, 0
        self.longest = getattr(self.model.config, "max_position_embeddings", None) or 1 << 30
        self.stop = self.tokenizer.eos_token_id if self.tokenizer.eos_token_id is not None else 0
        self.name = folder.name

    def write(self, groups: list[list[str]], done: Callable[[int], None]) -> list[str]:
        """What it writes as labels of groups of excerpts."""
        prompts = [self._fitting(self._ids(write_prompt(group)), self.label_tokens) for group in groups]
        replies = []
        for first in range(0, len(prompts), BATCH):
            rows = snapshots.greedy(self.model, prompts[first : first + BATCH], self.label_tokens, self.stop)
            replies += [self.tokenizer.decode(row, skip_special_tokens=True) for row in rows]
            done(len(rows))
        return replies

    def find(self, labels: list[str], excerpts: list[list[str]], done: Callable[[int], None]) -> list[Found]:
        """Which excerpts each label fits."""
        found = []
        for label, texts in zip(labels, excerpts, strict=True):
            odds = np.array(self._log_odds([FIND_ONE.format(label=label, excerpt=text) for text in texts]))
            found.append(Found(odds > np.median(odds), odds))
            done(1)
        return found

    def _ids(self, text: str) -> list[int]:
        """Token ids of a text, in which the names of control tokens are words like any other."""
        options = {"split_special_tokens": True} if self.tokenizer.is_fast else {}
        return self.tokenizer(text, add_special_tokens=False, **options).input_ids

    def _fitting(self, ids: list[int], further: int = 0) -> list[int]:
        """A prompt that the model can read and continue; one that is too long loses its beginning."""
        start = [] if self.tokenizer.bos_token_id is None else [self.tokenizer.bos_token_id]
        room = max(self.longest - further - len(start), 1)
        self.shortened += len(ids) > room
        return start + ids[-room:]

    @torch.inference_mode()
    def _log_odds(self, prompts: list[str]) -> list[float]:
        """Log odds of " yes" against " no" as continuations of prompts."""
        sums = []
        for answer in (" yes", " no"):
            whole = [self._ids(prompt + answer) for prompt in prompts]
            lengths = [len(row) - _shared(row, self._ids(prompt)) for row, prompt in zip(whole, prompts, strict=True)]
            rows, each = [self._fitting(row) for row in whole], []
            for first in range(0, len(rows), BATCH):
                each += self._log_probabilities(rows[first : first + BATCH], lengths[first : first + BATCH])
            sums.append(each)
        return [yes - no for yes, no in zip(*sums, strict=True)]

    def _log_probabilities(self, rows: list[list[int]], lengths: list[int]) -> list[float]:
        """Log probability of the last `lengths` tokens of every row after those before."""
        longest = max(map(len, rows))
        ids = torch.tensor([row + [self.stop] * (longest - len(row)) for row in rows], device=self.model.device)
        mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows], device=self.model.device)
        logits = self.model(input_ids=ids, attention_mask=mask).logits
        sums = []
        for i, (row, length) in enumerate(zip(rows, lengths, strict=True)):
            place = torch.arange(len(row) - length, len(row), device=ids.device)
            chosen = torch.log_softmax(logits[i, place - 1].float(), dim=-1)
            sums.append(float(chosen.gather(1, ids[i, place, None]).sum()))
        return sums


def _shared(row: list[int], prompt: list[int]) -> int:
    """Tokens at the start of a prompt with its answer that are those of the prompt alone."""
    pairs = enumerate(zip(row, prompt, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(row), len(prompt)))


class RemoteLabeller:
    """A model behind an endpoint, which answers in text."""

    def __init__(self, endpoint: Endpoint):
        self.endpoint, self.name, self.models = endpoint, endpoint.model, set()

    def write(self, groups: list[list[str]], done: Callable[[int], None]) -> list[str]:
        """What it writes as labels of groups of excerpts."""
        return self._ask([write_prompt(group) + WRITE_ALONE for group in groups], done)

    def find(self, labels: list[str], excerpts: list[list[str]], done: Callable[[int], None]) -> list[Found]:
        """Which excerpts each label fits."""
        prompts = [
            FIND_ALL.format(label=label, excerpts="\n".join(f"{i}. {text}" for i, text in enumerate(texts, start=1)))
            for label, texts in zip(labels, excerpts, strict=True)
        ]
        replies = self._ask(prompts, done)
        return [found_in(reply, len(texts)) for reply, texts in zip(replies, excerpts, strict=True)]

    def _ask(self, prompts: list[str], done: Callable[[int], None]) -> list[str]:
        replies = self.endpoint.ask(prompts, done)
        self.models |= {reply.model for reply in replies}
        return [reply.text for reply in replies]


def found_in(reply: str, count: int) -> Found:
    """The excerpts that a reply lists, by numbers from 1; the last list counts."""
    lists = re.findall(r"\[[\d,\s]*\]", reply)
    said = np.zeros(count, bool)
    try:
        numbers = json.loads(lists[-1])
        said[[number - 1 for number in numbers]] = True
        understood = all(1 <= number <= count for number in numbers)
    except (IndexError, ValueError):
        understood = False
    return Found(said & understood, np.full(count, np.nan), reply, understood)
