"""Learning rate, penalty ramp and k as functions of the step."""

from __future__ import annotations

from dataclasses import dataclass

from crosscoders.study.settings.crosscoders import AlignedSettings, CrosscoderSettings


@dataclass
class Schedule:
    """The schedule of one training."""

    settings: CrosscoderSettings | AlignedSettings

    @property
    def decay_start(self) -> int:
        """First step at which the learning rate falls."""
        training = self.settings.training
        return training.steps - round(training.decay_share * training.steps)

    def learning_rate(self, step: int) -> float:
        """Linear warm-up, constant, linear decay to 0."""
        training = self.settings.training
        rate = training.learning_rate * min(1.0, (step + 1) / max(training.warmup_steps, 1))
        if step >= self.decay_start:
            rate *= (training.steps - step) / (training.steps - self.decay_start)
        return rate

    def ramp(self, step: int) -> float:
        """Share of the penalty coefficient in force during its ramp."""
        length = self.settings.penalty.ramp_share * self.settings.training.steps
        return min(1.0, (step + 1) / max(length, 1))

    def k(self, step: int) -> int | None:
        """Latents per token, annealed linearly where asked."""
        activation = self.settings.activation
        if activation.k is None or activation.initial_k is None:
            return activation.k
        length = activation.anneal_share * self.settings.training.steps
        done = min(1.0, step / max(length, 1))
        return round(activation.initial_k + done * (activation.k - activation.initial_k))
