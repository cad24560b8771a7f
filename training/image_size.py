"""The image size that a run takes over from the checkpoints it is given, unless it is told otherwise."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from sit_deploy.models.card import ModelCard
from sit_deploy.models.card_file import read_card
from sit_deploy.models.hub import place_of
from sit_deploy.models.positions import square_side
from training.request import TrainRequest
from training.start_checkpoints import StartCheckpoints

# tokens that have a position and are no patch: a class token, none, with a dist token, with registers
PREFIXES = (1, 0, 2, 5, 4)


@dataclass(frozen=True)
class InheritedSize:
    """The image size of a model, and where it comes from.

    Attributes:
        size: pixels of the square input.
        card: of the checkpoint that it comes from, if it has one.
        notes: what was taken from where, where it could be otherwise, a sentence each.
    """

    size: int
    card: ModelCard | None
    notes: tuple[str, ...]

    @classmethod
    def of(cls, request: TrainRequest, start: StartCheckpoints) -> InheritedSize:
        """Look at the teacher, or where there is none (or with --qat) at the checkpoint that the run starts from.

        Raises:
            InputError: a checkpoint that cannot be read.
        """
        config = start.config
        files = {"teacher": request.teacher, "checkpoint": request.init}
        if request.qat:
            files = {"checkpoint": request.init, "teacher": request.teacher}
        given = {role: path for role, path in files.items() if path}
        seen = {f"{role} {place_of(path)}": _size_of(path, start) for role, path in given.items()}
        notes = []
        size = request.image_size
        if size is None and seen:
            whose, (size, where) = next(iter(seen.items()))
            if size is None:
                size = config.image_size
                notes.append(
                    f"The image size of {whose} cannot be told: {size} pixels are taken, as {config.name} has; pass --image-size "
                    "if it is another"
                )
            elif size != config.image_size:
                notes.append(
                    f"Image size {size}, from {where} of {whose}; {config.name}'s own would be {config.image_size}"
                )
        size = config.image_size if size is None else size
        for whose, (own, where) in seen.items():
            if own not in (None, size):
                notes.append(
                    f"The {whose} is of {own} pixels, as {where} says, and {size} are taken: its positions are resampled"
                )
        first = next(iter(given), None)
        card = read_card(given[first]) if first else None
        return cls(size, card, tuple(notes))


def _size_of(path: Path, start: StartCheckpoints) -> tuple[int | None, str]:
    """Return the image size that a checkpoint is of, None where it does not tell, and what says so."""
    if card := read_card(path):
        return card.image_size, "the model card"
    side = square_side(start.read(path).state, PREFIXES)
    return (side * start.config.patch_size if side else None), "the position embedding"
