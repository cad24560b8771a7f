"""The work of one build: what its steps share, from the request to the hops, notes and seconds of the report."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from engines.base import Engine, Progress
from sit_deploy.data.damaged import DamagedImages
from sit_deploy.measure.parity import Hop
from sit_deploy.pipeline.request import BuildRequest
from sit_deploy.text import WarningText

if TYPE_CHECKING:
    from sit_deploy.data.labelled import Labelled
    from sit_deploy.pipeline.tuned import Tuning


@dataclass
class Work:
    """What the steps of one build share.

    Attributes:
        request: what to build.
        progress: how it shows progress.
        seconds: that every step took.
        notes: what to tell the user; a `WarningText` is not to be missed.
        hops: every comparison so far.
        samples: the labelled images of --val-data.
        engine: that it is for; None for a graph alone.
        outputs: names of what the graph is to give; none before the model is loaded.
        of_8_bits: those of the notes that hold for what is in 8 bits alone.
        damaged: images that cannot be read, which are left out.
        tuning: how a plan for 8 bits was chosen by measuring; where they were given up for a float engine, still.
    """

    request: BuildRequest
    progress: Progress
    seconds: dict[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    hops: list[Hop] = field(default_factory=list)
    samples: Labelled | None = None
    engine: Engine | None = None
    outputs: tuple[str, ...] = ()
    of_8_bits: list[str] = field(default_factory=list)
    tuning: Tuning | None = None
    damaged: DamagedImages = field(init=False)

    def __post_init__(self) -> None:
        self.damaged = DamagedImages(self.request.max_damaged)

    @contextlib.contextmanager
    def step(self, text: str, *, passes: bool = False) -> Iterator[Progress]:
        """Show a step, time it, and give it a progress callback of its own.

        Args:
            text: its name.
            passes: what it does comes back to its beginning: what the callback is told of each pass is shown by itself.
        """
        started = time.perf_counter()
        self.progress(text, 0, 0)
        if passes:
            yield lambda what, done, total: self.progress(f"{text}: {what}", done, total)
        else:
            # one more than the inner total: the step ends with its block, not with the inner work
            yield lambda _, done, total: self.progress(text, done if total else 0, total + 1 if total else 0)
        self.progress(text, 1, 1)
        seconds = time.perf_counter() - started
        self.seconds[text] = round(self.seconds.get(text, 0.0) + seconds, 2)  # a step may be taken again

    def note(self, *texts: str) -> None:
        """Tell the user."""
        self.notes += texts

    def note_of_8_bits(self, *texts: str) -> None:
        """Tell the user what holds only as long as 8 bits are not given up."""
        self.note(*texts)
        self.of_8_bits += texts

    def warn(self, *texts: str) -> None:
        """Tell the user what must not be missed."""
        self.notes += map(WarningText, texts)
