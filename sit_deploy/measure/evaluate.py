"""Running a reference and what is to be like it over labelled images: once over the data, in constant memory, resumable."""

from __future__ import annotations

import hashlib
import json
import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from engines.base import Progress
from sit_deploy.data.damaged import DamagedImage
from sit_deploy.data.samples import Placed, describe
from sit_deploy.errors import GateError, InputError
from sit_deploy.measure.resume import Notebook
from sit_deploy.measure.tally import Tally
from sit_deploy.processes import WHOLE, Shard

if TYPE_CHECKING:
    import numpy as np

    from sit_deploy.data.damaged import DamagedImages
    from sit_deploy.preprocessing import Preprocessing

Logits = Callable[["np.ndarray"], "np.ndarray"]

SAVE_SECONDS = 20.0  # between two notes of how far a run has come


@dataclass
class Evaluation:
    """What was counted over the first `done` images.

    Attributes:
        tallies: of every candidate.
        guesses: how many images of a label the reference took for a class, by (label, class).
        damaged: images among them that could not be read, and are not counted.
    """

    tallies: dict[str, Tally]
    guesses: Counter[tuple[int, int]] = field(default_factory=Counter)
    done: int = 0
    damaged: tuple[DamagedImage, ...] = ()

    def merge(self, other: Evaluation) -> Evaluation:
        """Return the evaluation of the images of both."""
        tallies = {name: tally.merge(other.tallies[name]) for name, tally in self.tallies.items()}
        return Evaluation(
            tallies, self.guesses + other.guesses, self.done + other.done, self.damaged + other.damaged
        )

    def to_dict(self) -> dict[str, Any]:
        return {
            "tallies": {name: tally.to_dict() for name, tally in self.tallies.items()},
            "guesses": [[*pair, count] for pair, count in self.guesses.items()],
            "done": self.done,
            "damaged": [one.to_dict() for one in self.damaged],
        }

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> Evaluation:
        return cls(
            {name: Tally.from_dict(tally) for name, tally in fields["tallies"].items()},
            Counter({(label, best): count for label, best, count in fields["guesses"]}),
            fields["done"],
            tuple(DamagedImage(**one) for one in fields.get("damaged", ())),
        )


def run_key(*parts: Any) -> str:
    """Return what a `Notebook` knows a run by: SHA-256 of JSON values."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()


def evaluate(  # noqa: PLR0913
    reference: Logits,
    candidates: Mapping[str, Logits],
    samples: Sequence[tuple[Any, int]],
    preprocessing: Preprocessing,
    batch_size: int = 8,
    progress: Progress | None = None,
    *,
    notebook: Notebook | None = None,
    shard: Shard = WHOLE,
    damaged: DamagedImages | None = None,
) -> Evaluation:
    """Classify labelled images with the reference and every candidate. Memory does not grow with their number.

    It takes more than seven arguments: who classifies what, how, and which part of it is this process's and still to do.

    Args:
        reference: normalised images float32 (n, 3, H, W) → logits (n, classes).
        candidates: images as the preprocessing gives them → logits; by name, which messages use.
        samples: (source, label) pairs, a source being a path or a Pillow image.
        preprocessing: of the images.
        batch_size: images a call.
        progress: called with a step, how much of it is done, and of how much.
        notebook: how far an earlier run came, to go on from; noted every 20 seconds and at the end.
        shard: the share of the images that this process takes.
        damaged: takes note of images that cannot be read, which are left out; without, the first ends it.

    Raises:
        InputError: no sample, an image that cannot be read or more than may be so, or a reference that gives NaN or infinity.
        GateError: a candidate gives NaN or infinite logits; the image is named.
    """
    from sit_deploy.data.batches import batches

    mine = shard.of(range(len(samples)))
    noted = notebook.read(set(candidates), len(mine)) if notebook else None
    evaluation = Evaluation.from_dict(noted) if noted else Evaluation({name: Tally() for name in candidates})
    last = time.monotonic()
    if damaged:
        damaged.recall(evaluation.damaged)
    part = Placed(samples, mine[evaluation.done :])

    def pass_on(to: int, counted: Collection[int] = ()) -> None:
        """Take the images up to a place as done; those that were not counted are damaged."""
        if damaged:
            left_out = [describe(samples, at) for at in mine[evaluation.done : to] if at not in counted]
            evaluation.damaged += tuple(map(damaged.named, left_out))
        evaluation.done = to

    if evaluation.done and not len(part):
        return evaluation
    for images, placed in batches(part, preprocessing, batch_size, damaged=damaged):
        labels, indices = placed[:, 0], placed[:, 1].tolist()
        names = [describe(samples, index) for index in indices]
        normalised = preprocessing.normalise(images) if preprocessing.takes_pixels else images
        theirs = reference(normalised)
        _require_finite(theirs, names, InputError, "the PyTorch model itself")
        ours = {name: logits(images) for name, logits in candidates.items()}
        for name, logits in ours.items():
            _require_finite(logits, names, GateError, name)
        for name, logits in ours.items():
            evaluation.tallies[name].add(theirs, logits, labels, names, indices)
        evaluation.guesses.update(zip(labels.tolist(), theirs.argmax(1).tolist(), strict=True))
        pass_on(mine.index(indices[-1]) + 1, set(indices))
        if progress:
            progress("measuring accuracy", evaluation.done, len(mine))
        # only here is every image counted whole or not at all; a run that is stopped loses what came after the last note
        if notebook and time.monotonic() - last > SAVE_SECONDS:
            notebook.write(evaluation.to_dict())
            last = time.monotonic()
    if damaged:
        damaged.require_any(sum(evaluation.guesses.values()), len(mine))
    pass_on(len(mine))
    if notebook:
        notebook.write(evaluation.to_dict())
    return evaluation


def _require_finite(logits: np.ndarray, names: Sequence[str], error: type[Exception], who: str) -> None:
    """Refuse NaN, which compares with nothing and so would count as the best class."""
    import numpy as np

    for name, finite in zip(names, np.isfinite(logits).all(axis=1), strict=True):
        if not finite:
            raise error(
                f"{who} gives NaN or infinite logits for {name}; check the weights, or try a higher precision"
            )
