"""Labelled images to measure accuracy on, numbered as the model's classes are: a folder, or a data set of timm."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sit_deploy.data import ImageFolder
from sit_deploy.errors import InputError
from sit_deploy.evaluate import spread_over

if TYPE_CHECKING:
    from sit_deploy.bundle import Bundle

# what people call the folder, or the split, of held-out images
VAL_NAMES = ("val", "valid", "validation", "eval", "test")
Samples = Sequence[tuple[Any, int]]  # of (path or Pillow image, label)


class Relabelled(Sequence):
    """A data set whose labels are exchanged for the model's. labels: by the data set's own label."""

    def __init__(self, samples: Any, labels: Sequence[int]) -> None:
        self._samples, self._labels = samples, labels

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        try:
            image, label = self._samples[index]
        except (OSError, SyntaxError, ValueError) as error:  # what Pillow raises for a damaged file
            raise InputError(
                f"{self.describe(index)} cannot be decoded ({error}); repair the data set, or take another"
            ) from None
        return image, self._labels[label]

    def describe(self, index: int) -> str:
        return self._samples.describe(index)


def open_labelled(
    data: str | Path,
    classes: Sequence[str] | None,
    num_classes: int,
    *,
    root: Path | None = None,
    split: str | None = None,
) -> Samples:
    """Open held-out images as (source, label) pairs.

    Args:
        data: a folder with one subfolder a class; a folder that has such a folder called val, as ImageNet is laid out; or a
            data set of timm (torch/NAME, hfds/OWNER/NAME), or digits.
        classes: names of the model's classes in label order, None where it has none.
        root, split: where a data set of timm lies, and the part to take; also of a folder with several parts.
    Raises:
        InputError: missing, empty, streamed, or of other classes than the model's.
    """
    path = Path(data)
    if path.is_dir() or not _is_named(str(data)):
        return match_labels(ImageFolder(_held_out(path, split)), classes, num_classes)
    from training.datasets import open_held_out

    found = open_held_out(str(data), root, split)
    names = found.classes or [str(label) for label in range(found.num_classes)]
    labels = match_names(str(data), names, classes, num_classes)
    return Relabelled(found.val, labels)


def open_for(
    bundle: Bundle, data: str | Path, root: Path | None, split: str | None, images: int | None
) -> Samples:
    """Open held-out images for a bundle's classes; `images` of them, evenly spread, or all. See `open_labelled`."""
    manifest = bundle.manifest
    classes, count = manifest["classes"], manifest["model"]["num_classes"]
    return spread_over(open_labelled(data, classes, count, root=root, split=split), images)


def _is_named(data: str) -> bool:
    from training.datasets import is_named

    return is_named(data)


def _held_out(root: Path, split: str | None) -> Path:
    """Return the folder of class folders: the one given, or the part of held-out images in it."""
    if split:
        if not (root / split).is_dir():
            raise InputError(f"{root} has no subfolder {split}; check --split")
        return root / split
    inside = {entry.name for entry in root.iterdir() if entry.is_dir()} if root.is_dir() else set()
    inside = {name for name in inside if not name.startswith(".")}
    if not inside or inside - {"train", "training", *VAL_NAMES}:
        return root
    for name in VAL_NAMES:
        if name in inside:
            return root / name
    raise InputError(
        f"{root} has training images only; give the folder of held-out ones, or name its part with --split"
    )


def match_labels(
    folder: ImageFolder, classes: Sequence[str] | None, num_classes: int
) -> list[tuple[Path, int]]:
    """Return (path, label) samples numbered as the model's classes are; names and errors as `match_names`."""
    label = match_names(str(folder.root), folder.classes, classes, num_classes)
    return [(path, label[i]) for path, i in folder.samples]


def match_names(
    where: str, found: Sequence[str], classes: Sequence[str] | None, num_classes: int
) -> list[int]:
    """Return the model's label of each class of a data set.

    Classes called as the model's are matched by name, and some may be missing. Where none bears a name of the model's
    (ImageNet's folders are numbers), they must be the model's classes in order, and as many.

    Raises:
        InputError: classes that the model has not, or of another number.
    """
    strange = sorted(set(found) - set(classes or ()))
    if strange and len(strange) < len(found):
        raise InputError(
            f"{where} has class folders that the model has no name for ({', '.join(strange[:3])}"
            f"{', ...' if len(strange) > 3 else ''}) beside some that it has; rename or remove them"
        )
    if not strange:
        if len(set(classes)) != len(classes):
            raise InputError(
                f"some of the model's class names are the same, so the folders of {where} cannot be matched by "
                "name; make the names differ, or name the folders by number (0000, 0001, ...) in label order"
            )
        return [classes.index(name) for name in found]
    if len(found) != num_classes:
        raise InputError(
            f"{where} has {len(found)} class folders, the model {num_classes} classes; "
            "give a validation set of the same classes"
        )
    return list(range(num_classes))
