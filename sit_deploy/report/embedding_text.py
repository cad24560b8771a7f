"""What a report says of vectors: the sentences of a verdict, and the part of a page."""

from __future__ import annotations

from typing import Any

from sit_deploy.report.figure import figure
from sit_deploy.report.types import EmbeddingRecord
from sit_deploy.report.verdict_text import change, sentence

NO_LABELS = "Whether nearest neighbours stay right was not measured: give images of two labels at least, and two images of one, with --data."
NO_AGREEMENT = "Whether nearest neighbours stay the same was not measured: give images with --data."
HEAD = ("", "nearest right %", "95 %", "same label %", "same neighbour %", "cosine", "least")


def cosine(found: EmbeddingRecord, least: float) -> str:
    """Return how near the directions of vectors are, and what was asked of them."""
    text = (
        f"the cosine of the {found.output} of {side(found)} and of PyTorch is {found.cosine_min:.6f} at the least and {found.cosine_mean:.6f} in the "
        f"mean, on {_images(found)}"
    )
    return sentence(f"{text}; at least {least:g} is asked of this precision")


def side(found: EmbeddingRecord) -> str:
    """Return whose vectors are compared with PyTorch's: the engine's, or those of the last graph before it where it did not run."""
    return "the engine" if found.measured_on.endswith(" engine") else found.measured_on


def equal(found: EmbeddingRecord) -> str:
    """Return that the vectors are the reference's, and so are their neighbours."""
    return sentence(
        f"the {found.output} of {side(found)} are PyTorch's but for float rounding on all {_images(found)}: nearest neighbours stay right for "
        f"{figure(found.reference, '.2f')} %"
    )


def agreement(found: EmbeddingRecord, limit: float) -> str:
    """Return that too few images keep their neighbour, or its label."""
    what = (
        "get the same label by their nearest neighbours"
        if found.classes
        else "have the same nearest neighbour"
    )
    return sentence(f"{figure(found.agreement, '.2f')} % of the images {what}; {limit:g} is asked for")


def by_chance(who: str, right: float, guess: float, *, grave: bool) -> str:
    """Return that neighbours are right no oftener than guessing is."""
    text = f"by {who} nearest neighbours have the right label for {right:.2f} % of images, and guessing has it for {guess:.2f} %"
    if grave:
        return sentence(f"{text}: that says nothing for them; check weights, labels and preprocessing")
    return sentence(f"{text}, which chance alone may explain: measure on more images")


def alone_words(alone: int) -> str:
    """Return that some images' neighbours cannot be right."""
    those = (
        "image is the only one of its class" if alone == 1 else "images are the only ones of their classes"
    )
    return f"{alone} {those}: no neighbour can have their label"


def neighbours_drop(found: EmbeddingRecord) -> str:
    """Return what the engine's vectors lose against PyTorch's, as a clause."""
    assert found.paired is not None
    return (
        f"the share of images whose nearest other has their label {change(found.paired.drop)}, from {figure(found.reference, '.2f')} to "
        f"{figure(found.engine, '.2f')} %, on {_images(found)}"
    )


def _images(found: EmbeddingRecord) -> str:
    kind = "" if found.is_data else "synthetic "
    return f"{found.images} {kind}image{'s' * (found.images != 1)}" + (
        f" of {found.classes} classes" if found.classes else ""
    )


def embedding_view(found: EmbeddingRecord) -> dict[str, Any]:
    """Return what a page says of vectors, in the form of `view.accuracy_view`."""
    of = f" of {found.classes} classes" if found.classes else ", without labels to compare"
    where = f"{found.images} images{of} in {found.data}" if found.is_data else _images(found)
    paired = found.paired
    return {
        "heading": "Nearest neighbours",
        "what": " ".join(
            (
                f"By {found.output}: whether the nearest other image, by cosine, has the label of an image; {where}.",
                *map(sentence, found.notes),
            )
        ),
        "head": HEAD,
        "rows": [
            ("PyTorch", figure(found.reference, ".2f"), _interval(found.reference_interval), "", "", "", ""),
            (
                found.measured_on,
                figure(found.engine, ".2f"),
                _interval(found.engine_interval),
                figure(found.same_label, ".2f"),
                figure(found.same_neighbour, ".2f"),
                f"{found.cosine_mean:.6f}",
                f"{found.cosine_min:.6f}",
            ),
        ],
        "difference": (
            f"Right by PyTorch's vectors alone: {paired.lost} images, by those of {side(found)} alone: {paired.gained}. "
            if paired
            else ""
        )
        + (f"{alone_words(found.alone)}. " if found.alone else "")
        + f"The cosine is least for {found.farthest}.",
        "warning": None,
        "doubts": [],
        "classes": [],
        "flips": [],
    }


def _interval(interval: tuple[float, float] | None) -> str:
    return "—" if interval is None else f"{interval[0]:.1f} to {interval[1]:.1f}"


def key_figures(found: EmbeddingRecord) -> list[tuple[str, str]]:
    """Return the figures that stand at the head of a page."""
    figures = [(f"{found.cosine_min:.6f}", f"least cosine with PyTorch's, mean {found.cosine_mean:.6f}")]
    if found.classes:
        figures.insert(
            0, (f"{found.engine:.2f} %", f"nearest neighbours right, PyTorch {found.reference:.2f} %")
        )
    return figures
