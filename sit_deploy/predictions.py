"""What logits mean: the most probable classes of an image, by name. With NumPy alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, overload

# relative: a folder of `package python` takes this file along, without the package around it
from .errors import GateError

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class ClassProbability:
    """A class, and how probable the model finds it.

    Attributes:
        index: of the class in the logits.
        name: as the bundle has it; the index as text where it has no names.
        probability: by softmax over all classes, 0 to 1.
    """

    index: int
    name: str
    probability: float

    def __str__(self) -> str:
        return f"{self.name} {self.probability:.1%}"

    def to_dict(self) -> dict[str, Any]:
        """Return plain types, for JSON."""
        return {"index": self.index, "name": self.name, "probability": self.probability}


@dataclass(frozen=True)
class Prediction:
    """The most probable classes of one image, the best first. It is listed, counted and indexed as `classes` is; its own fields are the best's.

    Attributes:
        classes: as many as were asked for, at least one.
    """

    classes: tuple[ClassProbability, ...]

    @property
    def index(self) -> int:
        """Of the most probable class in the logits."""
        return self.classes[0].index

    @property
    def name(self) -> str:
        """Of the most probable class."""
        return self.classes[0].name

    @property
    def probability(self) -> float:
        """Of the most probable class, 0 to 1."""
        return self.classes[0].probability

    @overload
    def __getitem__(self, place: int) -> ClassProbability: ...

    @overload
    def __getitem__(self, place: slice) -> tuple[ClassProbability, ...]: ...

    def __getitem__(self, place: int | slice) -> ClassProbability | tuple[ClassProbability, ...]:
        return self.classes[place]

    def __len__(self) -> int:
        return len(self.classes)

    def __iter__(self) -> Iterator[ClassProbability]:
        return iter(self.classes)

    def __str__(self) -> str:
        return ", ".join(map(str, self.classes))

    def to_dict(self) -> dict[str, Any]:
        """Return plain types, for JSON: those of `sit-deploy predict --json`, without the path."""
        return {"classes": [one.to_dict() for one in self.classes]}


def predictions(logits: np.ndarray, classes: Sequence[str], top: int = 5) -> list[Prediction]:
    """Return for each row of logits (n, classes) its `top` most probable classes; of equal ones the lower index first.

    Raises:
        GateError: logits that are NaN or infinite.
    """
    import numpy as np

    if not np.isfinite(logits).all():
        bad = int((~np.isfinite(logits).all(axis=1)).sum())
        raise GateError(
            f"the engine gives NaN or infinite logits for {bad} of {len(logits)} images; check it with sit-deploy validate"
        )
    shifted = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
    probabilities = shifted / shifted.sum(axis=1, keepdims=True)
    best = np.argsort(-logits, axis=1, kind="stable")[:, :top]
    return [
        Prediction(tuple(ClassProbability(int(i), classes[i], float(row[i])) for i in order))
        for row, order in zip(probabilities, best, strict=True)
    ]


def top_classes(logits: np.ndarray, classes: Sequence[str], count: int = 5) -> list[list[dict[str, Any]]]:
    """Return what `predictions` gives as plain types, for JSON: index, name and probability."""
    return [[one.to_dict() for one in found] for found in predictions(logits, classes, count)]
