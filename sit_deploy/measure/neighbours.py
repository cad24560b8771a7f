"""Nearest neighbours of embeddings: does an engine put images beside the same ones as PyTorch does?

What embeddings are used for: retrieval, and on labelled images k-NN classification (arXiv 2104.14294, section 4.1), where every image
is given the label of its nearest other, by cosine.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from engines.base import Progress
from sit_deploy.errors import GateError, InputError
from sit_deploy.measure.accuracy import ENGINE
from sit_deploy.measure.parity import cosines

if TYPE_CHECKING:
    import numpy as np

    from sit_deploy.data.damaged import DamagedImages
    from sit_deploy.preprocessing import Preprocessing

NEEDS_LABELS = (
    "--max-accuracy-drop of embeddings needs images of two labels at least, and two images of one; pass --data a folder with one subfolder a class, or "
    "--min-agreement, of the images whose nearest neighbour stays the same"
)
Vectors = Callable[["np.ndarray"], "np.ndarray"]
_ROWS = 1024  # of the table of cosines that is held at once


@dataclass(frozen=True)
class Neighbours:
    """What images say of an output's vectors.

    Attributes:
        output: its name.
        images: how many.
        classes: of them; None, as all that labels tell, where these tell nothing (`labels_tell`).
        reference: percent of images whose nearest other, by PyTorch's vectors, has their label.
        engine: by the engine's vectors.
        same_label: percent of images to which both give the same label.
        same_neighbour: percent of images whose nearest other is the same image; None of a single image.
        cosine_min: least cosine of an image's two vectors, and cosine_mean the mean.
        farthest: the image that has the least.
        lost, gained: images whose nearest other has their label by PyTorch's vectors alone, and by the engine's alone.
        majority: percent of images that have the commonest label.
        alone: images that are the only ones of their label, which no neighbour can have.
    """

    output: str
    images: int
    classes: int | None
    reference: float | None
    engine: float | None
    same_label: float | None
    same_neighbour: float | None
    cosine_min: float
    cosine_mean: float
    farthest: str
    lost: int | None = None
    gained: int | None = None
    majority: float | None = None
    alone: int = 0

    @property
    def agreement(self) -> float | None:
        """Percent of images to which both give the same label, or whose nearest other is the same where labels tell nothing."""
        return self.same_neighbour if self.same_label is None else self.same_label

    @property
    def drop(self) -> float | None:
        """Points that the engine lost."""
        return None if self.reference is None or self.engine is None else self.reference - self.engine

    def require(self, max_drop: float | None = None, min_agreement: float | None = None) -> None:
        """Hold the engine to limits.

        Raises:
            GateError: it loses more than `max_drop` points, or gives fewer than `min_agreement` percent of images the same label,
                or the same neighbour where there are no labels.
            InputError: `max_drop`, and no labels; `min_agreement`, and a single image.
        """
        if max_drop is not None and self.drop is None:
            raise InputError(NEEDS_LABELS)
        if max_drop is not None and self.drop > max_drop:
            raise GateError(
                f"the engine's nearest neighbours are right for {self.engine:.2f} % of images and PyTorch's for {self.reference:.2f} %, "
                f"{self.drop:.2f} points more, over the {max_drop:g} allowed; try a higher precision"
            )
        if min_agreement is None:
            return
        same = self.agreement
        if same is None:
            raise InputError("a single image has no neighbours to agree on; pass --data a folder of more")
        if same < min_agreement:
            what = (
                "have the same nearest neighbour"
                if self.same_label is None
                else "get the same label by their nearest neighbours"
            )
            raise GateError(
                f"{same:.2f} % of images {what}, under the {min_agreement:g} asked for; try a higher precision"
            )

    def to_dict(self) -> dict[str, Any]:
        """Return plain types, for JSON."""
        return {**asdict(self), "drop": self.drop}


def measure_neighbours(  # noqa: PLR0913
    output: str,
    reference: Vectors,
    engine: Vectors,
    samples: Sequence[tuple[Any, int]],
    preprocessing: Preprocessing,
    batch_size: int = 8,
    progress: Progress | None = None,
    *,
    damaged: DamagedImages | None = None,
) -> Neighbours:
    """Compute the vectors of images with both, and compare them and their neighbours.

    Arguments and errors are `compare_neighbours`'s; `engine` is its one candidate.
    """
    compared = compare_neighbours(
        output, reference, {ENGINE: engine}, samples, preprocessing, batch_size, progress, damaged=damaged
    )
    return compared[ENGINE]


def compare_neighbours(  # noqa: PLR0913
    output: str,
    reference: Vectors,
    candidates: Mapping[str, Vectors],
    samples: Sequence[tuple[Any, int]],
    preprocessing: Preprocessing,
    batch_size: int = 8,
    progress: Progress | None = None,
    *,
    damaged: DamagedImages | None = None,
) -> dict[str, Neighbours]:
    """Compare several candidates with the reference, on the same images in one pass; a vector an image of each is held in memory.

    It takes more than seven arguments, as `evaluate` does: who gives which vectors of what, how, and what may be left out.

    Args:
        output: what the vectors are, for people.
        reference: normalised images float32 (n, 3, H, W) → vectors (n, dim).
        candidates: images as the preprocessing gives them → vectors; by name, which messages use.
        samples: (source, label) pairs; labels that tell nothing (`labels_tell`) are none.
        preprocessing: of the images.
        batch_size: images a call.
        progress: called with a step, how much of it is done, and of how much.
        damaged: takes note of images that cannot be read, which are left out; without, the first ends it.

    Raises:
        InputError: no image, one that cannot be read or more than may be so, or a reference that gives NaN or infinity.
        GateError: a candidate that does.
    """
    import numpy as np

    from sit_deploy.data.batches import batches
    from sit_deploy.data.samples import Placed, describe

    theirs: list[np.ndarray] = []
    ours: dict[str, list[np.ndarray]] = {name: [] for name in candidates}
    placed: list[np.ndarray] = []  # labels, and places in the data set
    part = Placed(samples, range(len(samples)))
    for images, found in batches(part, preprocessing, batch_size, damaged=damaged):
        theirs.append(reference(preprocessing.normalise(images) if preprocessing.takes_pixels else images))
        for name, vectors in candidates.items():
            ours[name].append(vectors(images))
        placed.append(found)
        if progress:
            progress("embedding images", int(found[-1, 1]) + 1, len(samples))
    if damaged:
        damaged.require_any(len(placed), len(samples))
    label, place = np.concatenate(placed).T
    names = [describe(samples, at) for at in place.tolist()]
    first = _unit(np.concatenate(theirs), InputError, "the PyTorch model itself")
    nearest = nearest_other(first)
    return {
        name: _neighbours(
            output, (first, nearest), _unit(np.concatenate(parts), GateError, name), label, names
        )
        for name, parts in ours.items()
    }


def _neighbours(
    output: str,
    reference: tuple[np.ndarray, np.ndarray],
    second: np.ndarray,
    label: np.ndarray,
    names: Sequence[str],
) -> Neighbours:
    """Compare unit vectors with the reference's, which come with the index of the nearest other of each."""
    import numpy as np

    first, theirs = reference
    nearest = [theirs, nearest_other(second)]
    given = [label[indices] for indices in nearest]
    right = [one == label for one in given]
    cosine, told = cosines(second, first), labels_tell(label.tolist())
    of_label = np.unique(label, return_counts=True)[1]
    return Neighbours(
        output,
        len(label),
        len(of_label) if told else None,
        *(_percent(one) if told else None for one in right),
        _percent(given[0] == given[1]) if told else None,
        _percent(nearest[0] == nearest[1]) if len(label) > 1 else None,
        float(cosine.min()),
        float(cosine.mean()),
        names[int(cosine.argmin())],
        lost=int((right[0] & ~right[1]).sum()) if told else None,
        gained=int((right[1] & ~right[0]).sum()) if told else None,
        majority=100 * float(of_label.max()) / len(label) if told else None,
        alone=int((of_label == 1).sum()) if told else 0,
    )


def labels_tell(labels: Sequence[int]) -> bool:
    """Return whether a nearest other image can have the right label and can have a wrong one: two labels, and two images of one."""
    return 1 < len(set(labels)) < len(labels)


def _percent(which: np.ndarray) -> float:
    return float(100 * which.mean())


def nearest_other(vectors: np.ndarray) -> np.ndarray:
    """Return for each of n unit vectors (n, dim) the index of the nearest other one by cosine, int64 (n,)."""
    import numpy as np

    found = np.empty(len(vectors), dtype=np.int64)
    for start in range(0, len(vectors), _ROWS):
        cosines = vectors[start : start + _ROWS] @ vectors.T
        cosines[np.arange(len(cosines)), start + np.arange(len(cosines))] = -np.inf
        found[start : start + _ROWS] = cosines.argmax(axis=1)
    return found


def _unit(vectors: np.ndarray, error: type[Exception], who: str) -> np.ndarray:
    import numpy as np

    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    if not (np.isfinite(length).all() and length.all()):
        raise error(
            f"{who} gives vectors of NaN, infinity or length 0; check the weights, or try a higher precision"
        )
    return vectors / length
