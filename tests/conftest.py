"""What tests share: small crosscoder settings, and no file left behind."""

import pytest
import torch

from crosscoders.members import ACTIVATIONS
from crosscoders.settings import CrosscoderSettings


@pytest.fixture(autouse=True)
def _plain_torch():
    torch.set_num_threads(1)
    torch.set_grad_enabled(True)


@pytest.fixture
def member():
    """Factory of crosscoder settings: activation, penalty and blocks of one member of the family."""

    def make(
        activation="batchtopk", k=4, penalty="none", blocks=None, latents=64, coefficient=0.3, target=None, **training
    ):
        return CrosscoderSettings.model_validate(
            {
                "latents": latents,
                "blocks": blocks or {"all": {"share": 1.0}},
                "activation": {"kind": activation} | ({"k": k} if ACTIVATIONS[activation].ranked_over else {}),
                "penalty": {"kind": penalty, "coefficient": coefficient, "target_l0": target},
                "training": {
                    "steps": 20, "batch_tokens": 32, "learning_rate": 1e-2, "warmup_steps": 2, "decay_share": 0.2,
                    "gradient_clip": 1.0, "decoder_norm": 0.5, "dead_tokens": 64,
                } | training,
            }
        )  # fmt: skip

    return make
