"""Top-1 and top-5 of a reference and an engine on the same pixels, and how often the two agree."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sit_deploy.errors import GateError, InputError

if TYPE_CHECKING:
    import numpy as np

    from sit_deploy.data import ImageFolder
    from sit_deploy.preprocessing import Preprocessing

Logits = Callable[["np.ndarray"], "np.ndarray"]


@dataclass(frozen=True)
class Accuracy:
    """Shares of `images` in percent: top1, top5 of each side; agreement: same top class on both.

    drop: reference top1 − engine top1, in points. lost, gained: images that only the reference, and only the engine,
    classifies right.
    """

    images: int
    reference_top1: float
    reference_top5: float
    engine_top1: float
    engine_top5: float
    agreement: float
    lost: int = 0
    gained: int = 0

    @property
    def drop(self) -> float:
        # shares of whole images: what is beyond 9 digits is rounding, and must not break a limit kept exactly
        return round(self.reference_top1 - self.engine_top1, 9)

    @property
    def p_value(self) -> float:
        """Of the paired test whether the two differ in top-1: McNemar's, exact. Below 0.05 the difference is no chance."""
        from scipy.stats import binomtest

        discordant = self.lost + self.gained
        return float(binomtest(self.lost, discordant).pvalue) if discordant else 1.0

    def interval(self, top1: float) -> tuple[float, float]:
        """Return the 95 % interval of a top-1 of these images, in percent (Wilson's)."""
        from scipy.stats import binomtest

        found = binomtest(round(top1 * self.images / 100), self.images).proportion_ci(0.95, "wilson")
        return 100 * float(found.low), 100 * float(found.high)

    def require(self, max_drop: float | None = None, min_agreement: float | None = None) -> None:
        """Hold the engine to a largest drop of top-1, in points, and a smallest agreement, in percent.

        Raises:
            GateError: one of them is not kept; the figures are in the message.
        """
        # "not <=", so that a limit of NaN refuses rather than passes everything
        if max_drop is not None and not self.drop <= max_drop:
            raise GateError(
                f"top-1 falls by {self.drop:.2f} points, from {self.reference_top1:.2f} to {self.engine_top1:.2f} % on "
                f"{self.images} images (--max-accuracy-drop {max_drop:g}); try a higher precision"
            )
        if min_agreement is not None and not self.agreement >= min_agreement:
            raise GateError(
                f"engine and reference agree on {self.agreement:.2f} % of {self.images} images "
                f"(--min-agreement {min_agreement:g}); try a higher precision"
            )

    def to_dict(self) -> dict[str, Any]:
        return {
            **asdict(self),
            "drop": self.drop,
            "reference_top1_interval": list(self.interval(self.reference_top1)),
            "engine_top1_interval": list(self.interval(self.engine_top1)),
            "p_value": self.p_value,
        }


def match_labels(folder: ImageFolder, classes: list[str] | None, num_classes: int) -> list[tuple[Path, int]]:
    """Return (path, label) samples numbered as the model's classes are.

    Folders called as the model's classes are matched by name, and some classes may be missing. Where no folder bears a
    class's name (ImageNet's are numbers), the sorted folders must be the model's classes in order, and as many.

    Raises:
        InputError: folders that are not classes of the model, or of another number.
    """
    strange = sorted(set(folder.classes) - set(classes or ()))
    if strange and len(strange) < len(folder.classes):
        raise InputError(
            f"{folder.root} has class folders that the model has no name for ({', '.join(strange[:3])}"
            f"{', ...' if len(strange) > 3 else ''}) beside some that it has; rename or remove them"
        )
    if not strange:
        if len(set(classes)) != len(classes):
            raise InputError(
                f"some of the model's class names are the same, so the folders of {folder.root} cannot be matched by "
                "name; make the names differ, or name the folders by number (0000, 0001, ...) in label order"
            )
        label = [classes.index(name) for name in folder.classes]
        return [(path, label[i]) for path, i in folder.samples]
    if len(folder.classes) != num_classes:
        raise InputError(
            f"{folder.root} has {len(folder.classes)} class folders, the model {num_classes} classes; "
            "give a validation set of the same classes"
        )
    return folder.samples


def measure(
    reference: Logits,
    engine: Logits,
    samples: Sequence[tuple[Path, int]],
    preprocessing: Preprocessing,
    batch_size: int = 8,
    progress: Callable[[str, int, int], None] | None = None,
) -> Accuracy:
    """Classify labelled images with both sides. Memory does not grow with their number.

    Args:
        reference: normalised images float32 (n, 3, H, W) → logits (n, classes).
        engine: images as the preprocessing gives them → logits.
    Raises:
        InputError: no sample, an image that cannot be read, or a reference that gives NaN or infinity.
        GateError: the engine gives NaN or infinite logits; the image is named.
    """
    import numpy as np

    from sit_deploy.data import batches

    counts = np.zeros(7, np.int64)
    done = 0
    for images, labels in batches(samples, preprocessing, batch_size):
        normalised = preprocessing.normalise(images) if preprocessing.takes_pixels else images
        ours, theirs = engine(images), reference(normalised)
        _require_finite(theirs, samples[done:], InputError, "the PyTorch model itself")
        _require_finite(ours, samples[done:], GateError, "the engine")
        (their_best, their_five), (our_best, our_five) = (_hits(logits, labels) for logits in (theirs, ours))
        agree = ours.argmax(1) == theirs.argmax(1)
        lost, gained = their_best & ~our_best, our_best & ~their_best
        columns = (their_best, their_five, our_best, our_five, agree, lost, gained)
        counts += [int(column.sum()) for column in columns]
        done += len(images)
        if progress:
            progress("measuring accuracy", done, len(samples))
    *shares, lost, gained = counts.tolist()
    return Accuracy(done, *(100.0 * count / done for count in shares), lost, gained)


def _require_finite(
    logits: np.ndarray, samples: Sequence[tuple[Path, int]], error: type[Exception], who: str
) -> None:
    """Refuse NaN, which compares with nothing and so would count as the best class."""
    import numpy as np

    for (path, _), finite in zip(samples, np.isfinite(logits).all(axis=1), strict=False):
        if not finite:
            raise error(
                f"{who} gives NaN or infinite logits for {path}; check the weights, or try a higher precision"
            )


def _hits(logits: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Say of each row whether its label is the best, and among the five best, of its logits."""
    target = logits[range(len(labels)), labels][:, None]
    # ties go to the lower index, as argmax has it
    better = (logits > target).sum(1)
    ties_before = ((logits == target) & (_columns(logits) < labels[:, None])).sum(1)
    rank = better + ties_before
    return rank < 1, rank < 5


def _columns(logits: np.ndarray) -> np.ndarray:
    import numpy as np

    return np.arange(logits.shape[1])[None, :]
