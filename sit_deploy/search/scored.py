"""What is known of a schedule that was tried, and which of those known are worth having."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from sit_deploy.latency.schedule import Schedule


@dataclass(frozen=True)
class Score:
    """How close a slimmed model is to the unslimmed one, before any training.

    Attributes:
        divergence: Kullback-Leibler divergence of its probabilities from those of the unslimmed model, in nats, the mean over images.
        agreement: share of the images whose first class is the unslimmed model's.
        images: it was measured on.
        top1: percent of labelled images that it tells right; None where images have no labels.
    """

    divergence: float
    agreement: float
    images: int
    top1: float | None = None


@dataclass(frozen=True)
class Scored:
    """A schedule that was tried.

    Attributes:
        schedule: of tokens.
        precision: of the engine that its latency is of.
        predicted_ms: of a batch, by the latency table.
        score: on the most images that it was tried on.
        measured_ms: of a batch, of a whole engine; None of one that was not built.
        engine_score: as `score`, of that engine's own outputs.
    """

    schedule: Schedule
    precision: str
    predicted_ms: float
    score: Score
    measured_ms: float | None = None
    engine_score: Score | None = None

    @property
    def ms(self) -> float:
        """Its latency, measured where it was."""
        return self.predicted_ms if self.measured_ms is None else self.measured_ms

    @property
    def divergence(self) -> float:
        """That of its engine where it was built, which rounds too."""
        return (self.engine_score or self.score).divergence

    def timed(self, ms: float, score: Score) -> Scored:
        """Return it as it was measured on a whole engine."""
        return replace(self, measured_ms=ms, engine_score=score)


def pareto_front(scored: Iterable[Scored]) -> list[Scored]:
    """Return those that no other is both faster and closer to the unslimmed model than, the fastest first."""
    front: list[Scored] = []
    for one in sorted(scored, key=lambda s: (s.ms, s.divergence)):
        if not front or one.divergence < front[-1].divergence:
            front.append(one)
    return front
