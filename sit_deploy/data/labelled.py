"""Labelled images to measure accuracy on, numbered as the model's classes are: a folder, or a data set of timm."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from sit_deploy.data.class_names import ClassMatch, match_names
from sit_deploy.data.damaged import DamagedImages
from sit_deploy.data.image_files import find_images, has_images, skipped_note, subfolders
from sit_deploy.data.image_folder import ImageFolder
from sit_deploy.data.samples import Samples, describe
from sit_deploy.data.source import DataSource, is_named
from sit_deploy.data.splits import HELD_OUT, find_part, has_class_folders
from sit_deploy.errors import InputError
from sit_deploy.text import shown


@dataclass(frozen=True)
class Labelled(Sequence):
    """Images with the model's labels, and how these were come by.

    Attributes:
        samples: (source, label) pairs.
        name: what was taken, a part of a data set included.
        matched: its classes with the model's.
        notes: what else to know of it, in sentences.
        damaged: takes note of images that cannot be read, as they are measured; by default the first ends it.
    """

    samples: Samples
    name: str
    matched: ClassMatch
    notes: tuple[str, ...] = ()
    damaged: DamagedImages = field(default_factory=partial(DamagedImages, 0), compare=False)

    @property
    def remarks(self) -> tuple[str, ...]:
        """What is to be known of what was measured on them: the notes, and which images were left out."""
        return (*self.notes, *filter(None, (self.damaged.words,)))

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: Any) -> Any:
        return self.samples[index]

    def describe(self, index: int) -> str:
        return describe(self.samples, index)

    @property
    def files(self) -> list[tuple[Path, int]] | None:
        """The images as files, None where they are no files."""
        return self.samples if isinstance(self.samples, list) else None


class Relabelled(Sequence):
    """A data set whose labels are exchanged for the model's.

    Attributes:
        labels: by the data set's own label.
    """

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
        if not 0 <= label < len(self._labels):
            raise InputError(
                f"{self.describe(index)} has the label {label}, and there are {len(self._labels)} classes"
            )
        return image, self._labels[label]

    def describe(self, index: int) -> str:
        return self._samples.describe(index)


def open_labelled(
    data: str | Path,
    classes: Sequence[str] | None,
    num_classes: int | None,
    *,
    root: Path | None = None,
    split: str | None = None,
    image_key: str | None = None,
    label_key: str | None = None,
) -> Labelled:
    """Open held-out images as (source, label) pairs.

    Args:
        data: a folder with one subfolder a class; a folder that has such a folder called val, test or the like
            (`sit_deploy.data.splits`); or a data set of timm (torch/NAME, hfds/OWNER/NAME), or digits.
        classes: names of the model's classes in label order, None where it has none.
        num_classes: of the model; None for one without classes, to which the images' own are given.
        root: where a data set of timm lies.
        split: the part to take, of a data set or of a folder with several.
        image_key: column of the images, of a data set of the Hugging Face Hub.
        label_key: of their labels, likewise.

    Raises:
        InputError: missing, empty, streamed, or of other classes than the model's.
    """
    path = Path(data)
    if path.is_dir() or not is_named(str(data)):
        if image_key or label_key:
            raise InputError("--image-key and --label-key are for hfds/…; leave them out with a folder")
        part = find_part(path, HELD_OUT, split, classes=classes, num_classes=num_classes)
        folder = ImageFolder(part)
        labelled = match_labels(folder, classes, len(folder.classes) if num_classes is None else num_classes)
        notes = [] if part == path else [f"taken from {shown(part)}"]
        if is_named(str(data)):
            notes.append(
                f"{data} is the folder of that name here, not the data set; for that, run where there is no such folder"
            )
        return replace(labelled, notes=(*notes, *labelled.notes)) if notes else labelled
    from sit_deploy.data.datasets import open_held_out

    opened = open_held_out(
        DataSource(str(data), root, val_split=split, image_key=image_key, label_key=label_key)
    )
    values = opened.values or range(opened.num_classes)
    names = opened.classes or list(map(str, values))
    count = len(names) if num_classes is None else num_classes
    matched = match_names(str(data), names, classes, count, ordered=opened.ordered)
    labels = [-1] * opened.num_classes  # of numbers that no image has
    for value, label in zip(values, matched.labels, strict=True):
        labels[value] = label
    return Labelled(Relabelled(opened.val, labels), opened.name, matched, (*opened.notes, *matched.notes))


def check_labelled(
    data: str | Path,
    classes: Sequence[str] | None,
    num_classes: int | None,
    *,
    root: Path | None = None,
    split: str | None = None,
    image_key: str | None = None,
    label_key: str | None = None,
) -> None:
    """Refuse what `open_labelled` refuses, as far as can be told without opening a data set of timm.

    Arguments and errors as of `open_labelled`, but that classes and their number are None where the weights have to tell: then a
    folder has to have class folders with images, whatever they are called.
    """
    from sit_deploy.data.datasets import DIGITS, check_held_out

    path = Path(data)
    if path.is_dir() or not is_named(str(data)):
        if num_classes is not None or not path.is_dir():
            options = {"image_key": image_key, "label_key": label_key}
            open_labelled(data, classes, num_classes, split=split, **options)
        elif not (subfolders(path) and has_images(path)):
            ImageFolder(path)  # which says what is wrong
        return
    check_held_out(DataSource(str(data), root, val_split=split, image_key=image_key, label_key=label_key))
    if str(data) == "digits" and num_classes is not None:
        match_names(str(data), DIGITS, classes, num_classes, ordered=True)


def open_unlabelled(data: str | Path, split: str | None = None) -> Labelled | None:
    """Return the images of a folder that has no class folders, all of label 0; None of anything else.

    Args:
        data: as of `open_labelled`.
        split: likewise.

    Raises:
        InputError: several parts of a data set, or no images.
    """
    if not Path(data).is_dir():
        return None
    folder = find_part(Path(data), HELD_OUT, split)
    if has_class_folders(folder):
        return None
    found = find_images(folder)
    matched = match_names(shown(folder), ["unlabelled"], None, 1)
    return Labelled(
        [(path, 0) for path in found.images], shown(folder), matched, (found.note,) if found.note else ()
    )


def match_labels(folder: ImageFolder, classes: Sequence[str] | None, num_classes: int) -> Labelled:
    """Return the images of a folder numbered as the model's classes are; names and errors as `match_names`."""
    matched = match_names(shown(folder.root), folder.classes, classes, num_classes)
    samples = [(path, matched.labels[i]) for path, i in folder.samples]
    note = skipped_note(folder.skipped)
    return Labelled(samples, shown(folder.root), matched, (*matched.notes, *([note] if note else [])))
