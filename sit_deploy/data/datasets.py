"""The data set of a training, opened: the images to train on, and those held out.

A data set here is a sequence of (Pillow image in RGB, label) or, where its source can only be streamed, an iterable of
them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engines.install import pip_install
from sit_deploy.data.class_names import listed
from sit_deploy.data.hub import open_hub
from sit_deploy.data.image_files import skipped_note
from sit_deploy.data.image_folder import ImageFolder, explain_no_folder
from sit_deploy.data.source import PREFIXES, DataSource
from sit_deploy.data.splits import HELD_OUT, TRAIN, held_out_part, training_part
from sit_deploy.data.timm_datasets import (
    OWN_FOLDERS,
    TimmImages,
    class_names_of,
    highest_label,
    open_timm,
    require_known,
    require_package,
)
from sit_deploy.errors import InputError
from sit_deploy.preprocessing import load_image
from sit_deploy.text import shown

Sample = tuple[Any, int]
DIGITS = tuple(map(str, range(10)))  # names of their classes


@dataclass(frozen=True)
class Data:
    """A data set to train on.

    Attributes:
        name: what it is called.
        train, val: samples.
        classes: names in label order, or None.
        num_classes: how many there are.
        streamed: its samples come one after another, without numbers.
        notes: what to know of it, in sentences.
        ordered: its labels are its own, and not the order its classes sort in.
        values: of one without names of classes, the labels that there are, rising, where that is known.
        folders: of both parts, where they are folders with one for each class.
    """

    name: str
    train: Any
    val: Any
    classes: list[str] | None
    num_classes: int
    streamed: bool = False
    notes: tuple[str, ...] = ()
    ordered: bool = True
    values: tuple[int, ...] | None = None
    folders: tuple[Path, Path] | None = None


class FolderImages(Sequence[Sample]):
    """The images of a class-folder tree, numbered as the deployed model's labels are."""

    def __init__(self, folder: ImageFolder) -> None:
        self.samples, self.classes = folder.samples, folder.classes

    @property
    def labels(self) -> list[int]:
        return [label for _, label in self.samples]

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Sample:
        path, label = self.samples[index]
        return load_image(path), label

    def describe(self, index: int) -> str:
        return shown(self.samples[index][0])


class ArrayImages(Sequence[Sample]):
    """Grey pictures in memory.

    Attributes:
        pixels: uint8 (n, H, W).
        labels: integers (n,).
    """

    def __init__(self, pixels: Any, labels: Any) -> None:
        self.pixels, self.labels = pixels, labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> Sample:
        from PIL import Image

        return Image.fromarray(self.pixels[index]).convert("RGB"), int(self.labels[index])

    def describe(self, index: int) -> str:
        return f"picture {index}"


def open_data(source: DataSource | str) -> Data:
    """Open the images to train on and those held out.

    Args:
        source: which data set; a name alone for one whose parts are called as usual.

    Raises:
        InputError: missing, empty, of one class, or with parts whose classes differ.
    """
    if isinstance(source, str):
        source = DataSource(source)
    check_data(source)
    if source.name == "digits":
        data = _digits()
    elif source.is_folder:
        data = _folder(Path(source.name), source.train_split, source.val_split)
    elif source.prefix == "hfds":
        data = _hub_data(source)
    else:
        data = _timm_data(source)
    name, wanted = source.name, source.num_classes
    if wanted not in (None, data.num_classes):
        raise InputError(f"{name} has {data.num_classes} classes, not {wanted}; leave --num-classes out")
    if data.num_classes < 2:
        raise InputError(
            f"{name} has one class only: there is nothing to tell apart; add images of another class"
        )
    return data


def check_held_out(source: DataSource) -> None:
    """Refuse a named data set whose held-out images cannot be had, as far as can be told without opening it.

    Raises:
        InputError: columns of what has none, one that can only be streamed, a package that is not there, or an unknown name.
    """
    source.check_columns()
    if source.streamed:
        raise InputError(
            f"{source.name} can only be streamed, and accuracy is measured image by image; pass a folder, or torch/… or hfds/…"
        )
    require_package(source)
    require_known(source)


def open_held_out(source: DataSource) -> Data:
    """Open the held-out images of a named data set alone, to measure on: `val` of what it returns; `train` is the same.

    Raises:
        InputError: as `open_data`, and one that can only be streamed.
    """
    name = source.name
    check_held_out(source)
    if name == "digits":
        return _digits()
    if source.prefix == "hfds":
        images, part = open_hub(source, source.val_split, HELD_OUT)
        classes = images.classes
        values = None if classes else tuple(sorted(map(int, images.rows.unique(images.columns.label))))
        count = len(classes) if classes else max(values or ()) + 1
        note = f"taken from split '{part}', columns {images.columns.image} and {images.columns.label}"
        # texts are merely sorted, and numbers may count from 1
        ordered = classes is not None and not images.columns.texts
        return Data(
            f"{name}, {part}", images, images, classes, count, notes=(note,), ordered=ordered, values=values
        )
    opened = open_timm(source, source.val_split or "validation", training=False)
    classes = class_names_of(opened)
    samples = TimmImages(opened, name)
    count = len(classes) if classes else highest_label(samples) + 1
    return Data(name, samples, samples, classes, count, ordered=name.lower() not in OWN_FOLDERS)


def _digits() -> Data:
    """Split scikit-learn's 1797 handwritten digits, 8x8 pixels, into four fifths to train on and one held out."""
    try:
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split
    except ImportError:
        raise InputError(f"--data digits needs scikit-learn; run {pip_install('scikit-learn')}") from None
    import numpy as np

    digits = load_digits()
    pixels = np.rint(digits.images * (255 / 16)).astype(np.uint8)
    parts = train_test_split(pixels, digits.target, test_size=360, stratify=digits.target, random_state=0)
    train, val, train_labels, val_labels = parts
    classes = list(DIGITS)
    return Data(
        "digits", ArrayImages(train, train_labels), ArrayImages(val, val_labels), classes, len(classes)
    )


def check_data(source: DataSource) -> None:
    """Refuse a data set to train on that cannot be, as far as can be told without opening it.

    Raises:
        InputError: as `open_data`.
    """
    source.check_columns()
    if source.is_folder:
        _parts(Path(source.name), source.train_split, source.val_split)
    elif source.name != "digits":
        if source.streamed and source.num_classes is None:
            raise InputError(f"{source.name} is streamed and does not tell its classes; pass --num-classes")
        require_package(source)
        require_known(source)


def _parts(root: Path, train_split: str | None, val_split: str | None) -> tuple[Path, Path]:
    """Return the folders of class folders to train on and to hold out."""
    if root.exists() and not root.is_dir():
        raise InputError(f"{shown(root)}: {explain_no_folder(root)}")
    if not root.is_dir():
        known = ", ".join(f"{p}/…" for p in PREFIXES)
        raise InputError(
            f"{root}: no such folder; pass --data with a folder, digits, or a data set of timm ({known})"
        )
    return training_part(root, train_split), held_out_part(root, val_split)


def _folder(root: Path, train_split: str | None, val_split: str | None) -> Data:
    train_root, val_root = _parts(root, train_split, val_split)
    train, val = ImageFolder(train_root), ImageFolder(val_root)
    if train.classes != val.classes:
        only = [sorted(set(a.classes) - set(b.classes)) for a, b in ((train, val), (val, train))]
        parts = [
            f"{listed(n)} only in {shown(side)}"
            for n, side in zip(only, (train_root, val_root), strict=True)
            if n
        ]
        raise InputError(f"the class folders differ: {'; '.join(parts)}; make them the same")
    notes = [f"training on {shown(train_root)}, held out: {shown(val_root)}"]
    notes += [note for note in (skipped_note(train.skipped + val.skipped),) if note]
    images = FolderImages(train), FolderImages(val)
    classes, folders = train.classes, (train_root, val_root)
    return Data(
        shown(root), *images, classes, len(classes), notes=tuple(notes), ordered=False, folders=folders
    )


def _hub_data(source: DataSource) -> Data:
    require_package(source)
    name = source.name
    train, train_part = open_hub(source, source.train_split, TRAIN)
    names = train.classes if train.columns.texts else None
    val, val_part = open_hub(source, source.val_split, HELD_OUT, names)
    if train.classes and val.classes != train.classes:
        raise InputError(
            f"the classes of the splits of {name} differ ({listed(train.classes)} and {listed(val.classes or [])}); check "
            "--train-split and --val-split"
        )
    columns = train.columns
    count = (
        len(train.classes)
        if train.classes
        else max(map(max, (part.rows.unique(columns.label) for part in (train, val)))) + 1
    )
    note = f"training on split '{train_part}', held out: '{val_part}'; columns {columns.image} and {columns.label}"
    return Data(name, train, val, train.classes, int(count), notes=(note,))


def _timm_data(source: DataSource) -> Data:
    name, streamed, num_classes = source.name, source.streamed, source.num_classes
    train = open_timm(source, source.train_split or "train", training=True)
    val = open_timm(source, source.val_split or "validation", training=False)
    if streamed:
        return Data(name, train, val, None, int(num_classes or 0), streamed=True)
    classes = class_names_of(train)
    if classes and class_names_of(val) not in (None, classes):
        raise InputError(
            f"the classes of the parts of {name} differ ({listed(classes)} and {listed(class_names_of(val))}); check --data-dir, "
            "--train-split and --val-split"
        )
    images = TimmImages(train, name), TimmImages(val, name)
    count = num_classes or (len(classes) if classes else highest_label(images[0]) + 1)
    return Data(name, *images, classes, count)
