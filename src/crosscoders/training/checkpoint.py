"""The checkpoint of a training: a sealed file from which an interrupted training goes on with the same bytes."""

from __future__ import annotations

import hashlib
import io
import json
from pathlib import Path

import torch

from crosscoders import stage, storage
from crosscoders.errors import UserError
from crosscoders.training.state import State

FORMAT = 3
"""Version of the content of a checkpoint; checkpoints of other versions are not used."""


class Checkpoint:
    """A sealed file that belongs to one training: other settings, inputs or package versions do not match it.

    Parameters
    ----------
    path : Path
    identity : dict
        All that decides the bytes of the training.
    """

    def __init__(self, path: Path, identity: dict):
        self.path = path
        content = json.dumps(identity | {"format": FORMAT}, sort_keys=True)
        self.identity = hashlib.sha256(content.encode()).hexdigest()

    def save(self, state: State) -> None:
        """Write the state atomically, with its checksum; of several processes the first one writes."""
        content = state.to_dict()
        if not state.backend.mesh.first:
            return
        buffer = io.BytesIO()
        torch.save({"identity": self.identity, **content}, buffer)
        storage.write_sealed(buffer.getvalue(), self.path, flush=False)

    def restore(self, state: State) -> bool:
        """Take over the saved state and return True; False where the file is absent, damaged or of another training.

        Of several processes the first one reads.
        """
        mesh = state.backend.mesh
        saved = self._saved() if mesh.first else None
        if not mesh.told(saved is not None):
            return False
        state.restore(saved)
        if mesh.first:
            stage.say(f"resuming at step {state.step}")
        return True

    def _saved(self) -> dict | None:
        """The content of the file; None where it is absent, damaged or of another training."""
        if not self.path.exists():
            return None
        try:
            saved = torch.load(io.BytesIO(storage.read_sealed(self.path)), weights_only=True, map_location="cpu")
        except UserError as error:
            stage.say(f"checkpoint not used: {error}")
            return None
        if saved.pop("identity") != self.identity:
            stage.say(f"{self.path}: checkpoint not used: it belongs to other settings or inputs")
            return None
        return saved
