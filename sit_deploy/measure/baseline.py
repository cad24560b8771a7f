"""Whether an accuracy can be believed: the labels are the model's, and the reference is what it was when it was trained.

Whether there is anything to tell apart, `chance` says.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from sit_deploy.errors import GateError
from sit_deploy.manifest import Weights
from sit_deploy.measure.accuracy import Accuracy
from sit_deploy.measure.label_order import Guesses, Order, better_order, confirmed

FAR = 2.0  # points below what it had, beyond chance, that are worth a warning
FEWEST = 50  # images that say something of a share


class Known(Protocol):
    """What is known of a model before anything is measured, as `sit_deploy.manifest.Model` has it."""

    @property
    def num_classes(self) -> int: ...
    @property
    def published_top1(self) -> float | None: ...


@dataclass(frozen=True)
class Doubt:
    """What speaks against an accuracy.

    Attributes:
        warning: why what was measured is doubtful, None where it is not.
        unsound: why no limit can be judged by it, None where one can.
    """

    warning: str | None = None
    unsound: str | None = None

    def require_sound(self, option: str) -> None:
        """Refuse to judge a limit by accuracies that say nothing.

        Raises:
            GateError: names the option that set it, and the reason.
        """
        if self.unsound:
            raise GateError(f"{option} cannot be judged here: {self.unsound}")


def expected_top1(weights: Weights, model: Known) -> tuple[float, str] | None:
    """Return the top-1 in percent that a bundle's weights were known to have, and by whom; None where nobody measured it."""
    if weights.is_random:
        return None
    if weights.top1 is not None:
        return weights.top1, "its training"
    if model.published_top1 and model.num_classes == 1000:
        return model.published_top1, "its publication"
    return None


def find_doubts(
    accuracy: Accuracy,
    weights: Weights,
    model: Known,
    guesses: Guesses,
    samples: Sequence[tuple[Any, int]] = (),
) -> Doubt:
    """Return what makes an accuracy doubtful.

    Args:
        accuracy: as measured.
        weights: of the bundle, as its model.
        model: of the bundle, or what is known of one.
        guesses: images by (label, class the reference took them for).
        samples: the images, a `Labelled` where how they were matched is known.
    """
    if weights.is_random:  # which are told for what they are
        return Doubt()
    count = model.num_classes
    matched = getattr(samples, "matched", None)
    names = matched.names if matched and len(matched.names) == count else tuple(map(str, range(count)))
    unsound = None
    order = better_order(guesses, names)
    if order is not None:
        unsound = _order_words(order, accuracy, guesses)
    elif matched and matched.doubt and not confirmed(guesses, names):
        unsound = matched.doubt
    warning, far = unsound, _far_off(accuracy, expected_top1(weights, model))
    if far:
        usually = "usually the images are prepared otherwise than in training (mean, std, crop), or are other images"
        warning = f"{far}: {unsound or usually}"
    return Doubt(warning, unsound)


def _far_off(accuracy: Accuracy, known: tuple[float, str] | None) -> str | None:
    """Say so where the reference is clearly worse here than it was known to be."""
    if known is None or accuracy.images < FEWEST:
        return None
    expected, who = known
    if accuracy.interval(accuracy.reference_top1)[1] >= expected - FAR:
        return None
    return (
        f"the PyTorch reference itself has {accuracy.reference_top1:.1f} % top-1 on these images, and by {who} "
        f"{expected:.1f} %"
    )


def _order_words(order: Order, accuracy: Accuracy, guesses: Guesses) -> str:
    moved = [
        (count, -label, guess)
        for (label, guess), count in guesses.items()
        if label != order.to[label] == guess
    ]
    count, label, guess = max(moved)
    how = f"with them {order.name}" if order.name else "with the order it sees"
    return (
        f"the classes seem to be in another order than the model's ({100 * order.right / accuracy.images:.1f} % {how}, "
        f"{accuracy.reference_top1:.1f} % as they are; {count} images of class {-label} are taken for class {guess}); name the folders "
        "as the model's classes, or pass --labels when building"
    )
