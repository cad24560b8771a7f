"""How close slimmed models are to the unslimmed one, without training: on few images for many of them, on all for the best."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from sit_deploy.errors import InputError
from sit_deploy.latency.schedule import Schedule
from sit_deploy.search.explore import LEVELS
from sit_deploy.search.scored import Score

if TYPE_CHECKING:
    from sit_deploy.preprocessing import Preprocessing

_BATCH = 16  # images that a model is run on at a time
LEAST_IMAGES = 16  # that anything is told from
# of the time that judging may take: what the first, second and last level's judgements get, of about so many
_SHARES, _JUDGEMENTS = (0.4, 0.4, 0.2), (110, 40, 4)


def closeness(reference: np.ndarray, logits: np.ndarray, labels: Sequence[int] | None = None) -> Score:
    """Return how close logits are to a reference's, both (n, classes), float32.

    Args:
        reference: of the unslimmed model.
        logits: of the slimmed one. One that is not finite is as far off as can be.
        labels: of the images, where they have some.
    """
    if not np.isfinite(logits).all():
        return Score(float(np.finfo(np.float32).max), 0.0, len(logits), None if labels is None else 0.0)
    theirs, ours = _log_softmax(reference), _log_softmax(logits)
    divergence = float((np.exp(theirs) * (theirs - ours)).sum(axis=1).mean())
    first = logits.argmax(axis=1)
    top1 = None if labels is None else 100 * float((first == np.asarray(labels)).mean())
    # rounding makes nothing of the same logits a little less than nothing
    return Score(max(0.0, divergence), float((first == reference.argmax(axis=1)).mean()), len(logits), top1)


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


@dataclass
class Judge:
    """Runs slimmed models on images, and compares them with the unslimmed one.

    Attributes:
        make: gives the model of a schedule, images (B, 3, H, W) float32 → logits; that of one stage is the reference.
        unslimmed: the schedule of the reference.
        pixels: uint8 (n, H, W, 3).
        preprocessing: that normalises them.
        labels: of the images, where they have some.
        counts: images of each level.
        kept: scores that are known, by schedule and level; what is judged is put there too.
    """

    make: Callable[[Schedule], Any]
    unslimmed: Schedule
    pixels: np.ndarray
    preprocessing: Preprocessing
    labels: Sequence[int] | None
    counts: tuple[int, ...] = ()
    kept: dict[tuple[Schedule, int], Score] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._order = _spread_order(len(self.pixels))
        self._reference = np.empty((0, 0))
        #: of the unslimmed model by itself: what it tells right, where there are labels; known once it was prepared
        self.own = Score(0.0, 1.0, len(self.pixels))

    def prepare(self, seconds: float) -> None:
        """Run the unslimmed model on all images, and choose how many each level takes, so that judging keeps about so many seconds.

        Raises:
            InputError: it gives logits that are no numbers.
        """
        began = time.perf_counter()
        self._reference = self._run(self.make(self.unslimmed), len(self.pixels))
        pace = (time.perf_counter() - began) / len(self.pixels)
        if not self.counts:
            self.counts = level_counts(len(self.pixels), pace, seconds)
        if not np.isfinite(self._reference).all():
            raise InputError(
                "the unslimmed model itself gives NaN or infinite logits; look at the checkpoint, and at --mean and --std"
            )
        self.own = closeness(self._reference, self._reference, self._labels(len(self.pixels)))

    @property
    def reference(self) -> tuple[np.ndarray, np.ndarray | None]:
        """The unslimmed model's logits (n, classes) of all images, and their labels, in the order that images are judged in."""
        labels = self._labels(len(self.pixels))
        return self._reference, None if labels is None else np.asarray(labels)

    def __call__(self, schedule: Schedule, level: int) -> Score:
        """Judge a schedule on as many images as a level has."""
        if (schedule, level) not in self.kept:
            self.kept[schedule, level] = self._on(schedule, self.counts[level])
        return self.kept[schedule, level]

    def on_all(self, schedule: Schedule) -> Score:
        """Judge a schedule on all images, however few the time allowed for the last level."""
        return self._on(schedule, len(self.pixels))

    def _on(self, schedule: Schedule, count: int) -> Score:
        logits = self._run(self.make(schedule), count)
        return closeness(self._reference[:count], logits, self._labels(count))

    def of_outputs(self, run: Callable[[np.ndarray], np.ndarray]) -> Score:
        """Judge what gives logits (n, classes) for images float32 (n, 3, H, W), as an engine does, on all images."""
        parts = [run(images) for images in self._batches(len(self.pixels))]
        return closeness(self._reference, np.concatenate(parts), self._labels(len(self.pixels)))

    def _labels(self, count: int) -> list[int] | None:
        return None if self.labels is None else [self.labels[i] for i in self._order[:count]]

    def _batches(self, count: int) -> Any:
        for start in range(0, count, _BATCH):
            yield self.preprocessing.normalise(self.pixels[self._order[start : min(start + _BATCH, count)]])

    def _run(self, model: Any, count: int) -> np.ndarray:
        import torch

        model.eval()
        with torch.inference_mode():
            return np.concatenate([model(torch.from_numpy(part)).numpy() for part in self._batches(count)])


def level_counts(images: int, seconds_an_image: float, seconds: float) -> tuple[int, ...]:
    """Return how many images each level takes: more with each, what the seconds allow, and as many as there are at most."""
    counts: list[int] = []
    for share, judgements in zip(_SHARES, _JUDGEMENTS, strict=True):
        most = int(seconds * share / (judgements * max(seconds_an_image, 1e-9)))
        least = counts[-1] if counts else min(LEAST_IMAGES, images)
        counts.append(max(least, min(images, most)))
    assert len(counts) == LEVELS
    return tuple(counts)


def _spread_order(count: int) -> np.ndarray:
    """Return an order of which every beginning is spread over all: folders are sorted by class."""
    return np.random.default_rng(0).permutation(count)
