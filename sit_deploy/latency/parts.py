"""The time of a schedule as the sum of its parts, whose times are told from those of whole schedules.

    time = the rest + Σ blocks(tokens) + Σ TSM(tokens → kept) + last block(tokens)

A block timed by itself is not as fast as one among others, whose weights push its own out of the caches; so whole models are timed,
and their parts are unknowns of a linear equation each. What is known before a measurement is written as a normal distribution: of a
block, that its time is nearly a parabola of the tokens (products grow with them, attention with their square, weights are read once
whatever they are), with a smooth deviation, and a jagged one where kernels work in tiles; of the rest, no more than the
multiply-accumulates say. Each measurement narrows it down (Gaussian process regression: Rasmussen and Williams, Gaussian Processes
for Machine Learning, 2006, section 2.2, gaussianprocess.org/gpml), and what stays unknown is the error bar.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sit_deploy.latency.schedule import Schedule

_SMOOTH, _JAGGED = 0.06, 0.015  # share of a block's time that it is off a parabola, smoothly, and alone
_REACH = 0.15  # of the patches: over which the smooth deviation stays alike
_KINDS = (
    6  # of parts beside the blocks: the rest, the last block's tokens, three of a TSM, and a block before any
)
_WIDE = 3.0  # times what the multiply-accumulates say that a part may well take


@dataclass(frozen=True)
class Widths:
    """What the multiply-accumulates of a model are counted by.

    Attributes:
        depth: in blocks.
        patches: of its images.
        prefix: tokens beside them, in every block.
        dim: of a token.
        hidden: width of an MLP.
    """

    depth: int
    patches: int
    prefix: int
    dim: int
    hidden: int

    def block(self, patches: float) -> float:
        """Return the multiply-accumulates of a block on so many patch tokens."""
        tokens = patches + self.prefix
        return tokens * (4 * self.dim**2 + 2 * self.dim * self.hidden) + 2 * tokens**2 * self.dim

    def work(self, schedule: Schedule) -> float:
        """Return the multiply-accumulates of all blocks of a schedule."""
        stages = zip(schedule.stage_blocks, schedule.kept, strict=True)
        return sum(blocks * self.block(kept) for blocks, kept in stages)


@dataclass(frozen=True)
class Part:
    """A part of a schedule's time.

    Attributes:
        name: "stem and head", "stage 1", "slimming 1" and so on.
        ms: milliseconds; below 0 is what could not be told from the others.
    """

    name: str
    ms: float


class PartTimes:
    """What is known of the times of all parts of a model: a normal distribution. Times are in any unit, the same throughout.

    Args:
        widths: of the model.
        schedules: that were timed; one at least.
        times: of each.
        noise: of each, the share of its time that it may be off.
    """

    def __init__(
        self,
        widths: Widths,
        schedules: Sequence[Schedule],
        times: Sequence[float],
        noise: Sequence[float],
    ) -> None:
        self._widths = widths
        measured = np.asarray(times, float)
        # the largest time a multiply-accumulate bounds what is believed before: few tokens are slow for theirs
        pace = float(np.median(measured / [widths.work(one) for one in schedules]))
        self._mean, covariance = _prior(widths, pace)
        rows = np.stack([self.row(one) for one in schedules])
        spread = rows @ covariance
        inner = spread @ rows.T + np.diag((np.asarray(noise, float) * measured) ** 2)
        off = measured - rows @ self._mean
        #: logarithm of how likely the times were, but for a constant: noise that explains them best has the largest (op. cit., 2.30)
        self.likelihood = -0.5 * float(off @ np.linalg.solve(inner, off) + np.linalg.slogdet(inner)[1])
        gain = np.linalg.solve(inner, spread).T
        #: of the parts' times, given what was timed
        self._mean = self._mean + gain @ off
        self._covariance = covariance - gain @ spread

    def row(self, schedule: Schedule) -> np.ndarray:
        """Return how often a schedule has each part, (parts,)."""
        widths, last = self._widths, schedule.kept[-1]
        row = np.zeros(_KINDS + widths.patches)
        row[0] = 1
        row[1] = last / widths.patches  # the last block makes keys and values of all tokens, and nothing else
        for tokens, kept in itertools.pairwise(schedule.kept):
            row[2:5] += 1, tokens / widths.patches, tokens * kept / widths.patches**2
        for stage, (blocks, kept) in enumerate(zip(schedule.stage_blocks, schedule.kept, strict=True)):
            whole = blocks - (stage == len(schedule.kept) - 1)
            row[_KINDS + kept - 1] += whole
            if stage > 0:  # methods of slimming may give blocks behind them something more to do
                row[5] += whole
        return row

    def predict(self, schedule: Schedule) -> tuple[float, float]:
        """Return a schedule's time, and the standard deviation of what is known of it."""
        row = self.row(schedule)
        return float(row @ self._mean), float(np.sqrt(max(row @ self._covariance @ row, 0.0)))

    def split(self, schedule: Schedule) -> tuple[Part, ...]:
        """Return a schedule's time by parts, in the order that they run, the stem and the head first."""
        widths, mean, last = self._widths, self._mean, len(schedule.kept) - 1
        found = [Part("stem and head", float(mean[0]))]
        for stage, (blocks, kept) in enumerate(zip(schedule.stage_blocks, schedule.kept, strict=True)):
            if stage:
                tokens = schedule.kept[stage - 1]
                terms = np.array([1, tokens / widths.patches, tokens * kept / widths.patches**2])
                found.append(Part(f"slimming {stage}", float(terms @ mean[2:5])))
            whole = blocks - (stage == last)
            ms = whole * (mean[_KINDS + kept - 1] + (mean[5] if stage else 0.0))
            ms += mean[1] * kept / widths.patches if stage == last else 0.0
            found.append(Part(f"stage {stage + 1}", float(ms)))
        return tuple(found)

    def informed(self, schedules: Sequence[Schedule], wanted: Sequence[Schedule], noise: float) -> np.ndarray:
        """Return how much each schedule would tell of those wanted if it were timed next: (schedules,), relative variance taken off.

        Args:
            schedules: those that may be timed.
            wanted: those that matter.
            noise: share of its time that a measurement is off.
        """
        rows, theirs = (np.stack([self.row(one) for one in some]) for some in (schedules, wanted))
        spread = rows @ self._covariance
        alone = (spread * rows).sum(axis=1) + (noise * rows @ self._mean) ** 2
        shared = (theirs @ spread.T) / np.abs(theirs @ self._mean)[:, None]
        return (shared**2 / alone[None, :]).sum(axis=0)


def _prior(widths: Widths, pace: float) -> tuple[np.ndarray, np.ndarray]:
    """Return mean (parts,) and covariance (parts, parts) of the parts' times before anything is timed."""
    patches = widths.patches
    tokens = np.arange(1, patches + 1, dtype=float)
    block = pace * np.array([widths.block(count) for count in tokens])
    full = block[-1]
    half = widths.dim // 2
    slim = pace * patches * np.array([0.0, widths.dim * half, (half + widths.dim) * patches])
    rest = np.array([full, full / 3, full / 20, *slim[1:], 0.0])
    mean = np.concatenate((rest, block))
    covariance = np.zeros((len(mean), len(mean)))
    widest = np.array([2 * full, full, full / 5, *(_WIDE * slim[1:]), full / 10])
    covariance[np.arange(_KINDS), np.arange(_KINDS)] = widest**2
    share = tokens / patches
    shapes = full * _WIDE * np.stack((np.ones(patches), share, share**2))
    apart = np.abs(tokens[:, None] - tokens[None, :]) / (_REACH * patches)
    # a block is never faster than its weights are read, so deviations are shares of something with a floor
    size = block + 0.1 * full
    smooth = (_SMOOTH * size)[:, None] * np.exp(-0.5 * apart**2) * (_SMOOTH * size)[None, :]
    covariance[_KINDS:, _KINDS:] = shapes.T @ shapes + smooth + np.diag((_JAGGED * size) ** 2)
    return mean, covariance
