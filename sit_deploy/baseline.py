"""Is the reference itself what it was when it was trained? If not, accuracies compared on these images mean little."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from sit_deploy.accuracy import Accuracy

FAR = 2.0  # points below what it had, beyond chance, that are worth a warning
FEWEST = 50  # images that say something


def expected_top1(manifest: Mapping[str, Any]) -> tuple[float, str] | None:
    """Return the top-1 in percent that a bundle's weights were known to have, and by whom; None where nobody measured it."""
    weights, model = manifest["weights"], manifest["model"]
    if weights["source"] == "random":
        return None
    trained = weights.get("top1")
    if trained is not None:
        return float(trained), "its training"
    published = model.get("published_top1")
    return (float(published), "its publication") if published and model["num_classes"] == 1000 else None


def baseline_warning(
    accuracy: Accuracy, manifest: Mapping[str, Any], guesses: Counter[tuple[int, int]]
) -> str | None:
    """Return a sentence where the reference is clearly worse here than it was, with the likeliest cause.

    Args:
        guesses: images by (label, class the reference took them for).
    """
    known = expected_top1(manifest)
    if known is None or accuracy.images < FEWEST:
        return None
    expected, who = known
    if accuracy.interval(accuracy.reference_top1)[1] >= expected - FAR:
        return None
    cause = _other_order(accuracy, guesses) or (
        "usually the images are prepared otherwise than in training (mean, std, crop), or are other images"
    )
    return (
        f"the PyTorch reference itself has {accuracy.reference_top1:.1f} % top-1 on these images, and by {who} "
        f"{expected:.1f} %: {cause}"
    )


def _other_order(accuracy: Accuracy, guesses: Counter[tuple[int, int]]) -> str | None:
    """Say so if the reference would be right with its classes in another order: then it is the labels that are wrong."""
    best: dict[int, tuple[int, int]] = {}  # label → (images, class) that it is taken for most
    for (label, guess), count in guesses.items():
        best[label] = max(best.get(label, (0, 0)), (count, -guess))
    classes = {-guess for _, guess in best.values()}
    renamed = 100 * sum(count for count, _ in best.values()) / accuracy.images
    # labels of a model that only guesses share a few classes
    if len(classes) < 0.8 * len(best) or renamed < accuracy.reference_top1 + 20:
        return None
    moved = [(count, label, -guess) for label, (count, guess) in best.items() if -guess != label]
    if not moved:
        return None
    count, label, guess = max(moved)
    return (
        f"the classes seem to be in another order than the model's ({renamed:.1f} % with the order it sees; {count} images "
        f"of class {label} are taken for class {guess}); name the folders as the model's classes, or pass --labels when "
        "building"
    )
