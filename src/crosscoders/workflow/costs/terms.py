"""What a cost is made of, and the terms that several rules share.

Each rule has one function in this folder, which returns a :class:`Cost` for the wildcards of a job. Three kinds of terms add up:

- what a process needs before it does anything (`PLAIN` without torch, `TORCH` with it, `MODELS` with transformers),
- what follows from the study: the weights of its models, tokens times widths, latents times widths,
- a factor in front of such a term, which stands for buffers and copies. These factors are fitted to the jobs of the embedded
  study, whose measurements lie in `tests/workflow/embedded_jobs.json`; the test compares every job with them.

Time is stated as work: operations of models' forward passes, operations of other products, bytes moved through memory. A
:class:`Rates` turns it into seconds. `plan` measures those of the machine at hand, or takes those of a named GPU.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from crosscoders.study import sizes
from crosscoders.study.queries.comparisons import data_setting, trained_setting
from crosscoders.study.queries.lineage import setting_models
from crosscoders.study.settings.study import Study

MB, GB = 10**6, 10**9
PLAIN, TORCH, MODELS = 170 * MB, 420 * MB, 640 * MB
"""Memory of a process that has loaded numpy and xarray, torch besides, and transformers besides."""
START = {PLAIN: 0.5, TORCH: 0.8, MODELS: 1.5}
"""Time until such a process begins its work and after it ends, as multiples of what loading torch and transformers takes."""
LARGEST_MAPPED = 4 * GB
"""Of files that are mapped into memory, as much counts as a job's; the system takes the rest back when it needs it."""
GENERATION = 4
"""Writing a token costs so many forward passes over one, because few are written side by side."""
FLOAT32 = 3
"""A forward pass in float32 does so many times fewer operations per second than one in bfloat16."""
SPARSE = 12
"""A product over active latents alone does so many times fewer operations per second than a dense one."""


@dataclass(frozen=True)
class Rates:
    """How fast a device works.

    Attributes
    ----------
    forward, products : float
        Operations per second of language models' forward passes, and of other products.
    memory : float
        Bytes per second.
    start : float
        Seconds that a processor takes to load torch and transformers.
    """

    forward: float
    products: float
    memory: float
    start: float


REFERENCE = Rates(forward=40e9, products=40e9, memory=6e9, start=5.0)
"""About what one core of an older processor does; time limits are computed with it."""


@dataclass(frozen=True)
class Cost:
    """What a job takes.

    Attributes
    ----------
    memory : float
        Largest resident memory of the process, bytes.
    fixed : float
        Starting, text and files, as a multiple of what loading torch and transformers takes.
    forward : float
        Operations of forward passes of language models; a backward pass counts as two.
    products : float
        Operations of other products, as many as a dense float32 product would do in the time.
    moved : float
        Bytes that an optimizer moves through memory.
    disk : float
        Bytes that it writes.
    tokens : float
        Tokens that it reads.
    device : float
        Bytes on the GPU, if it runs on one.
    """

    memory: float
    fixed: float
    forward: float = 0.0
    products: float = 0.0
    moved: float = 0.0
    disk: float = 0.0
    tokens: float = 0.0
    device: float = 0.0

    @property
    def flops(self) -> float:
        """Floating-point operations."""
        return self.forward + self.products

    def seconds(self, rates: Rates = REFERENCE) -> float:
        """Time on one core, or on one GPU, at given rates."""
        return (
            self.fixed * rates.start
            + self.forward / rates.forward
            + self.products / rates.products
            + self.moved / rates.memory
        )


def weight_bytes(study: Study, name: str) -> float:
    """Bytes of a model's weights where it is loaded: four each on a processor, two each on a GPU."""
    return sizes.model_size(study, name).parameters * (2 if study.device == "cuda" else 4)


def hidden_bytes(study: Study, name: str, tokens: float) -> float:
    """Bytes of a forward pass over so many tokens at once: about 24 numbers per column of one layer."""
    return tokens * sizes.model_size(study, name).width * 24 * 4


def logit_bytes(study: Study, name: str, tokens: float) -> float:
    """Bytes of the logits of so many tokens, and of their logarithms."""
    return tokens * sizes.model_size(study, name).vocabulary * 4 * 2


def mapped_bytes(study: Study, setting: str, split: str) -> float:
    """Bytes of the activations of a split that count as a job's memory."""
    return min(sizes.split_tokens(study, setting, split) * sizes.stored_bytes(study, setting), LARGEST_MAPPED)


def applied_size(study: Study, setting: str, name: str) -> sizes.CrosscoderSize:
    """The size of a crosscoder where a setting measures it."""
    return sizes.crosscoder_size(study, trained_setting(study, setting), name)


def pass_flops(coder: sizes.CrosscoderSize, tokens: float) -> float:
    """Operations of encoding tokens, which a dense product of all latents does, and of decoding their active ones."""
    return tokens * (2.0 * coder.latents * coder.width + 2.0 * coder.active * coder.width)


def applied_bytes(coder: sizes.CrosscoderSize) -> float:
    """Bytes of a crosscoder that encodes and decodes 2,048 tokens at a time."""
    return 4 * coder.stored + 4 * 2048 * (2 * coder.latents + 8 * coder.width)


def largest_model(study: Study, setting: str, measure: Callable[[Study, str], float]) -> float:
    """The largest of a measure over the models of a setting, of which one is loaded at a time."""
    return max((measure(study, name) for name in setting_models(study, data_setting(study, setting))), default=0.0)
