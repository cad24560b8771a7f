"""The checkpoints that a run starts from or learns from, each read once."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from sit_deploy.models import ModelConfig, read_checkpoint
from sit_deploy.models.checkpoint import Checkpoint
from sit_deploy.models.load import looks_like
from training.request import TrainRequest


class StartCheckpoints:
    """Reads the checkpoints of a run, and keeps what it has read.

    Attributes:
        config: of the model that is trained.
    """

    def __init__(self, request: TrainRequest, config: ModelConfig) -> None:
        self.config = config
        self._request = request
        self._read: dict[Path, Checkpoint] = {}

    def read(self, path: Path) -> Checkpoint:
        """Return the weights in a checkpoint that the model may start from: slimmed or not. Not to be written into.

        Raises:
            InputError: as `read_checkpoint`.
        """
        if path not in self._read:
            unslimmed = replace(self.config, stage_blocks=(self.config.depth,))
            self._read[path] = read_checkpoint(
                path,
                key=self._request.checkpoint_key,
                key_is_shared=self._request.key_is_shared,
                fits=lambda names: looks_like(names, self.config) or looks_like(names, unslimmed),
            )
        return self._read[path]
