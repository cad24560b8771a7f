"""A token schedule, its parts, and schedules at random: what a latency table times and predicts."""

from __future__ import annotations

import random
from dataclasses import dataclass

from sit_deploy.errors import InputError
from sit_deploy.models.config import schedule_name, token_schedule


@dataclass(frozen=True, order=True)
class Schedule:
    """How many blocks each stage has, and on how many patch tokens they compute.

    Attributes:
        stage_blocks: blocks of each stage.
        kept: patch tokens of each stage.
    """

    stage_blocks: tuple[int, ...]
    kept: tuple[int, ...]

    @classmethod
    def checked(
        cls, depth: int, patches: int, stage_blocks: tuple[int, ...], kept: tuple[int, ...]
    ) -> Schedule:
        """Return a schedule of a model.

        Args:
            depth: of the model, in blocks.
            patches: of its images.
            stage_blocks: blocks of each stage.
            kept: patch tokens of each stage.

        Raises:
            InputError: it does not fit the model: names what does not.
        """
        stages = tuple(map(int, stage_blocks))
        if sum(stages) != depth:
            raise InputError(
                f"stages {stages} add up to {sum(stages)} blocks, and the model has {depth}; give a block to one stage each"
            )
        return cls(stages, token_schedule(patches, stages, 1.0, tuple(map(int, kept))))

    @property
    def depth(self) -> int:
        """Blocks of all stages."""
        return sum(self.stage_blocks)

    @property
    def name(self) -> str:
        """Its blocks and tokens in a few characters, as 2x49-3x24-3x12."""
        return schedule_name(self.stage_blocks, self.kept)

    @property
    def tokens(self) -> int:
        """Patch tokens times blocks: what all blocks together work on."""
        return sum(blocks * kept for blocks, kept in zip(self.stage_blocks, self.kept, strict=True))


def halving_schedule(depth: int, patches: int, stages: int) -> Schedule:
    """Return a schedule of even blocks, whose tokens halve from stage to stage.

    Args:
        depth: of the model, in blocks.
        patches: of its images.
        stages: at most as many as blocks.
    """
    blocks = (depth // stages + (stage < depth % stages) for stage in range(stages))
    return Schedule(tuple(blocks), tuple(max(1, patches >> stage) for stage in range(stages)))


def random_schedule(rng: random.Random, depth: int, patches: int, stages: int) -> Schedule:
    """Return a schedule of so many stages: their ends anywhere, their token counts even on a logarithmic scale.

    Args:
        rng: that it is drawn with.
        depth: of the model, in blocks.
        patches: of its images.
        stages: at most as many as blocks.
    """
    ends = sorted(rng.sample(range(1, depth), stages - 1))
    blocks = tuple(after - before for before, after in zip((0, *ends), (*ends, depth), strict=True))
    least = max(1, patches // 32)
    kept = sorted(
        (round(patches * (least / patches) ** rng.random()) for _ in range(stages - 1)), reverse=True
    )
    return Schedule(blocks, (patches, *kept))
