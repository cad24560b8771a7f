"""Giving up 8 bits where they gain nothing: why, and the build in higher precision instead."""

from __future__ import annotations

from enum import Enum, auto

from sit_deploy.errors import Error
from sit_deploy.pipeline.request import BuildRequest
from sit_deploy.pipeline.work import Work


class NoGain(Enum):
    """Why 8 bits are given up."""

    ACCURACY = auto()  # no plan with enough layers in 8 bits keeps the accuracy asked for
    TOLERANCE = auto()  # the plan that keeps it is out of tolerance
    SPEED = auto()  # they are no faster


class NoGainError(Error):
    """8 bits gain nothing.

    Attributes:
        reason: why; the message says it, and what is built instead.
        instead: the precision of that; None for the one beside 8 bits.
    """

    exit_status = 1

    def __init__(self, reason: NoGain, message: str, instead: str | None = None) -> None:
        super().__init__(message)
        self.reason = reason
        self.instead = instead


def without_8_bits(work: Work, higher: BuildRequest, error: NoGainError) -> Work:
    """Return the work of building without 8 bits what was not worth building with them; the time spent counts.

    What a tuning found, and notes of the attempt, stay, as they may well be why; not those that hold for 8 bits alone.

    Args:
        work: that was given up.
        higher: what to build instead.
        error: why.
    """
    text = str(error)
    if work.request.precision in higher.output.name:
        text += f" (the folder's name is as it was asked for: {higher.output.name} holds {higher.precision})"
    notes = [*(note for note in work.notes if note not in work.of_8_bits), text]
    return Work(
        higher, work.progress, seconds=work.seconds, notes=notes, engine=work.engine, tuning=work.tuning
    )
