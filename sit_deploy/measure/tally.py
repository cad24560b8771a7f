"""What logits are beside those of the reference, counted as they come: sums, so that the parts of a data set can be added."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

KEPT_FLIPS = 24  # of the images whose class changed, those where the reference was surest

_COUNTS = ("reference_top1", "reference_top5", "top1", "top5", "agree", "lost", "gained", "ties")
_ALIKE = 1e-4  # standard deviations that logits of one picture may differ by, in batches of other sizes


@dataclass(frozen=True)
class Flip:
    """An image that the two give different classes.

    Attributes:
        index: in the data set.
        label, reference, engine: its class, and what each side takes it for.
        reference_probability, engine_probability: of each side's own class.
        margin: how much likelier the reference finds its class than the engine's; the larger, the surer was what the engine
            overturned.
    """

    image: str
    index: int
    label: int
    reference: int
    engine: int
    reference_probability: float
    engine_probability: float
    margin: float


@dataclass
class Tally:
    """One candidate beside the reference, over the images so far.

    Attributes:
        counts: images by `_COUNTS`.
        by_class: for each label its images, those that the reference has right, and those that the candidate has.
        signal, noise: power of the reference's logits and of the difference, summed.
        cosine: of each image's logits with the reference's, summed.
        lowest_cosine: the least.
        classes: that there are logits of.
        reference_given, given: images by the class that each side gives.
        first: the reference's logits of the first image.
        alike: all have been those.
    """

    images: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    by_class: dict[int, list[int]] = field(default_factory=dict)
    signal: float = 0.0
    noise: float = 0.0
    cosine: float = 0.0
    lowest_cosine: float = 1.0
    flips: list[Flip] = field(default_factory=list)
    classes: int = 0
    reference_given: Counter[int] = field(default_factory=Counter)
    given: Counter[int] = field(default_factory=Counter)
    first: list[float] = field(default_factory=list)
    alike: bool = True

    def add(
        self,
        reference: np.ndarray,
        logits: np.ndarray,
        labels: np.ndarray,
        names: Sequence[str],
        indices: Sequence[int],
    ) -> None:
        """Count a batch: finite logits (n, classes) of both sides, labels (n,), and what to call the images."""
        import numpy as np

        best, ours = reference.argmax(1), logits.argmax(1)
        (reference_best, reference_five), (top1, top5) = (hits(side, labels) for side in (reference, logits))
        columns = (
            *(reference_best, reference_five, top1, top5),
            *(best == ours, reference_best & ~top1, top1 & ~reference_best),
            _tied(reference) | _tied(logits),
        )
        for name, column in zip(_COUNTS, columns, strict=True):
            self.counts[name] += int(column.sum())
        for label, theirs, mine in zip(labels.tolist(), reference_best, top1, strict=True):
            row = self.by_class.setdefault(label, [0, 0, 0])
            row[0] += 1
            row[1] += int(theirs)
            row[2] += int(mine)
        wide, other = reference.astype(np.float64), logits.astype(np.float64)
        self.signal += float(np.square(wide).sum())
        self.noise += float(np.square(other - wide).sum())
        lengths = np.linalg.norm(wide, axis=1) * np.linalg.norm(other, axis=1)
        # logits that are all 0 have no direction: on both sides they are the same, on one they are not
        same = np.where((wide == other).all(axis=1), 1.0, 0.0)
        cosines = np.where(lengths > 0, (wide * other).sum(1) / np.where(lengths > 0, lengths, 1), same)
        self.cosine += float(cosines.sum())
        self.lowest_cosine = min(self.lowest_cosine, float(cosines.min()))
        self.images += len(labels)
        self.classes = reference.shape[1]
        self.reference_given.update(best.tolist())
        self.given.update(ours.tolist())
        self.first = self.first or wide[0].tolist()
        self.alike = self.alike and _same(wide, np.asarray(self.first))
        changed = np.flatnonzero(best != ours)
        if len(changed):
            theirs, mine = _softmax(wide[changed]), _softmax(other[changed])
            for row, at in enumerate(changed.tolist()):
                was, now = int(best[at]), int(ours[at])
                sure = float(theirs[row, was])
                self.flips.append(
                    Flip(
                        names[at],
                        int(indices[at]),
                        int(labels[at]),
                        was,
                        now,
                        sure,
                        float(mine[row, now]),
                        sure - float(theirs[row, now]),
                    )
                )
            self._keep_the_surest()

    def merge(self, other: Tally) -> Tally:
        """Return the tally of the images of both."""
        by_class = {label: list(row) for label, row in self.by_class.items()}
        for label, row in other.by_class.items():
            by_class[label] = [a + b for a, b in zip(by_class.get(label, [0, 0, 0]), row, strict=True)]
        merged = Tally(
            self.images + other.images,
            self.counts + other.counts,
            by_class,
            self.signal + other.signal,
            self.noise + other.noise,
            self.cosine + other.cosine,
            min(self.lowest_cosine, other.lowest_cosine),
            [*self.flips, *other.flips],
            max(self.classes, other.classes),
            self.reference_given + other.reference_given,
            self.given + other.given,
            self.first or other.first,
            self._alike_with(other),
        )
        merged._keep_the_surest()
        return merged

    def _alike_with(self, other: Tally) -> bool:
        import numpy as np

        both = self.first and other.first
        return (
            self.alike
            and other.alike
            and not (both and not _same(np.asarray([other.first]), np.asarray(self.first)))
        )

    @property
    def sqnr_db(self) -> float | None:
        """Power of the reference's logits over that of the difference, in dB.

        None where there is no difference, and where all the reference's logits are 0.
        """
        if not self.noise or not self.signal:
            return None
        return 10 * math.log10(self.signal / self.noise)

    def _keep_the_surest(self) -> None:
        self.flips.sort(key=lambda flip: (-flip.margin, flip.index))
        del self.flips[KEPT_FLIPS:]

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values that `from_dict` takes."""
        return {
            **vars(self),
            "counts": dict(self.counts),
            "by_class": {str(label): row for label, row in self.by_class.items()},
            "reference_given": [*self.reference_given.items()],
            "given": [*self.given.items()],
            "flips": [asdict(flip) for flip in self.flips],
        }

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> Tally:
        return cls(
            **{
                **fields,
                "counts": Counter(fields["counts"]),
                "by_class": {int(label): row for label, row in fields["by_class"].items()},
                **{name: Counter(dict(fields[name])) for name in ("reference_given", "given")},
                "flips": [Flip(**flip) for flip in fields["flips"]],
            }
        )


def hits(logits: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Say of each row whether its label is the best, and among the five best, of its logits; ties go to the lower index."""
    import numpy as np

    target = logits[range(len(labels)), labels][:, None]
    better = (logits > target).sum(1)
    before = np.arange(logits.shape[1])[None, :] < labels[:, None]
    rank = better + ((logits == target) & before).sum(1)
    return rank < 1, rank < 5


def _tied(logits: np.ndarray) -> np.ndarray:
    """Say of each row whether several of its logits are the highest."""
    return (logits == logits.max(axis=1, keepdims=True)).sum(1) > 1


def _same(logits: np.ndarray, first: np.ndarray) -> bool:
    """Say whether all rows are, but for rounding, one given row."""
    import numpy as np

    return bool(np.abs(logits - first).max() <= _ALIKE * first.std())


def _softmax(logits: np.ndarray) -> np.ndarray:
    import numpy as np

    shifted = np.exp(logits - logits.max(axis=1, keepdims=True))
    return shifted / shifted.sum(axis=1, keepdims=True)
