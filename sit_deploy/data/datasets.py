"""The pictures to train on: a folder, scikit-learn's digits, or any data set that timm can read.

A data set here is a sequence of (Pillow image in RGB, label) or, where its source can only be streamed, an iterable of
them. Augmentation and batches are `training.loaders`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from sit_deploy.data.class_names import listed
from sit_deploy.data.hub import open_hub, short_reason
from sit_deploy.data.image_files import skipped_note
from sit_deploy.data.image_folder import ImageFolder, explain_no_folder
from sit_deploy.data.splits import HELD_OUT, Role, find_part
from sit_deploy.errors import InputError
from sit_deploy.preprocessing import load_image, to_rgb
from sit_deploy.text import shown

STREAMED = ("wds", "hfids", "tfds")
_PREFIXES = ("torch", "hfds", *STREAMED)
_PACKAGES = {"hfds": "datasets", "hfids": "datasets", "wds": "webdataset", "tfds": "tensorflow_datasets"}
_OWN_FOLDERS = ("torch/image_folder", "torch/folder")  # torchvision's reader of class folders
TRAIN: tuple[Role, ...] = ("train",)
Sample = tuple[Any, int]


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
    """

    name: str
    train: Any
    val: Any
    classes: list[str] | None
    num_classes: int
    streamed: bool = False
    notes: tuple[str, ...] = ()
    ordered: bool = True


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


class TimmImages(Sequence[Sample]):
    """A random-access data set of torchvision, opened by timm."""

    def __init__(self, dataset: Any, name: str) -> None:
        self.dataset, self.name = dataset, name

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Sample:
        image, label = self.dataset[index]
        return to_rgb(image), int(label)

    def describe(self, index: int) -> str:
        return f"image {index} of {self.name}"


def open_data(
    name: str,
    root: Path | None = None,
    train_split: str | None = None,
    val_split: str | None = None,
    num_classes: int | None = None,
    seed: int = 0,
    image_key: str | None = None,
    label_key: str | None = None,
) -> Data:
    """Open the images to train on and those held out.

    Args:
        name: "digits"; a folder with subfolders train and val (`sit_deploy.data.splits`), each with one folder a class; or a
            data set of timm: torch/NAME, hfds/OWNER/NAME, hfids/…, wds/…, tfds/NAME.
        root: where timm's data sets lie.
        train_split: name of the part to train on, where it is not a usual one.
        val_split: of the one held out, likewise.
        num_classes: needed for streamed data, which does not tell.
        seed: of the order of streamed data; all else is ordered by `training.loaders`.
        image_key: column of the images, of a data set of the Hub.
        label_key: of their labels, likewise.

    Raises:
        InputError: missing, empty, of one class, or with parts whose classes differ.
    """
    prefix = _prefix(name)
    _check_keys(name, image_key, label_key)
    if name == "digits":
        data = _digits()
    elif prefix == "hfds" and not Path(name).is_dir():
        data = _hub_data(name, root, train_split, val_split, image_key, label_key)
    elif is_named(name) and not Path(name).is_dir():
        data = _timm_data(name, prefix, root, train_split, val_split, num_classes, seed, image_key, label_key)
    else:
        data = _folder(Path(name), train_split, val_split)
    if num_classes not in (None, data.num_classes):
        raise InputError(f"{name} has {data.num_classes} classes, not {num_classes}; leave --num-classes out")
    if data.num_classes < 2:
        raise InputError(
            f"{name} has one class only: there is nothing to tell apart; add images of another class"
        )
    return data


def is_named(name: str) -> bool:
    """Whether this names a data set, and no folder."""
    return name == "digits" or (_prefix(name) in _PREFIXES and "/" in name)


def open_held_out(
    name: str,
    root: Path | None = None,
    split: str | None = None,
    image_key: str | None = None,
    label_key: str | None = None,
) -> Data:
    """Open the held-out images of a named data set alone, to measure on: `val` of what it returns; `train` is the same.

    Raises:
        InputError: as `open_data`, and one that can only be streamed.
    """
    prefix = _prefix(name)
    _check_keys(name, image_key, label_key)
    if name == "digits":
        return _digits()
    if prefix in STREAMED:
        raise InputError(
            f"{name} can only be streamed, and accuracy is measured image by image; pass a folder, or torch/… or hfds/…"
        )
    if prefix == "hfds":
        _require_package(name, prefix)
        images, part = open_hub(name, root, split, HELD_OUT, image_key, label_key)
        classes = images.classes
        count = len(classes) if classes else max(images.rows.unique(images.columns.label)) + 1
        note = f"taken from split '{part}', columns {images.columns.image} and {images.columns.label}"
        return Data(
            f"{name}, {part}", images, images, classes, count, notes=(note,), ordered=classes is not None
        )
    made = _open_part(name, prefix, root, split or "validation", False, 0)
    classes = _class_names(made)
    images = TimmImages(made, name)
    count = len(classes) if classes else _highest_label(images) + 1
    return Data(name, images, images, classes, count, ordered=name.lower() not in _OWN_FOLDERS)


def _check_keys(name: str, image_key: str | None, label_key: str | None) -> None:
    if (image_key or label_key) and (_prefix(name) not in ("hfds", "hfids") or Path(name).is_dir()):
        raise InputError(
            "--image-key and --label-key name columns of hfds/… and hfids/…; leave them out with other data"
        )


def _prefix(name: str) -> str:
    return name.split("/", 1)[0].lower()


def _digits() -> Data:
    """Split scikit-learn's 1797 handwritten digits, 8x8 pixels, into four fifths to train on and one held out."""
    try:
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split
    except ImportError:
        raise InputError("--data digits needs scikit-learn; pip install scikit-learn") from None
    import numpy as np

    digits = load_digits()
    pixels = np.rint(digits.images * (255 / 16)).astype(np.uint8)
    parts = train_test_split(pixels, digits.target, test_size=360, stratify=digits.target, random_state=0)
    train, val, train_labels, val_labels = parts
    classes = [str(i) for i in range(10)]
    return Data("digits", ArrayImages(train, train_labels), ArrayImages(val, val_labels), classes, 10)


def _folder(root: Path, train_split: str | None, val_split: str | None) -> Data:
    if root.exists() and not root.is_dir():
        raise InputError(f"{shown(root)}: {explain_no_folder(root)}")
    if not root.is_dir():
        known = ", ".join(f"{p}/…" for p in _PREFIXES)
        raise InputError(
            f"{root}: no such folder; pass --data with a folder, digits, or a data set of timm ({known})"
        )
    train_root, val_root = _training_part(root, train_split), _held_out_part(root, val_split)
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
    return Data(shown(root), *images, train.classes, len(train.classes), notes=tuple(notes), ordered=False)


def _training_part(root: Path, split: str | None) -> Path:
    found = find_part(root, TRAIN, split, option="--train-split")
    if found == root:
        raise InputError(
            f"{shown(root)} has no subfolder train; put the images into {shown(root)}/train/CLASS/ and "
            f"{shown(root)}/val/CLASS/, or name its parts with --train-split and --val-split"
        )
    return found


def _held_out_part(root: Path, split: str | None) -> Path:
    try:
        return find_part(root, HELD_OUT, split, option="--val-split")
    except InputError as error:
        if "training images only" not in str(error):
            raise
        raise InputError(
            f"{shown(root)} has no subfolder val or valid; put the held-out images into {shown(root)}/val/CLASS/, or name "
            "their part with --val-split"
        ) from None


def _hub_data(
    name: str,
    root: Path | None,
    train_split: str | None,
    val_split: str | None,
    image_key: str | None,
    label_key: str | None,
) -> Data:
    _require_package(name, "hfds")
    train, train_part = open_hub(name, root, train_split, TRAIN, image_key, label_key)
    names = train.classes if train.columns.texts else None
    val, val_part = open_hub(name, root, val_split, HELD_OUT, image_key, label_key, names)
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


def _timm_data(
    name: str,
    prefix: str,
    root: Path | None,
    train_split: str | None,
    val_split: str | None,
    num_classes: int | None,
    seed: int,
    image_key: str | None,
    label_key: str | None,
) -> Data:
    streamed = prefix in STREAMED
    if streamed and num_classes is None:
        raise InputError(f"{name} is streamed and does not tell its classes; pass --num-classes")
    keys = {"input_key": image_key, "target_key": label_key} if prefix == "hfids" else {}
    train = _open_part(name, prefix, root, train_split or "train", True, seed, **keys)
    val = _open_part(name, prefix, root, val_split or "validation", False, seed, **keys)
    if streamed:
        return Data(name, train, val, None, int(num_classes or 0), streamed=True)
    classes = _class_names(train)
    if classes and _class_names(val) not in (None, classes):
        raise InputError(
            f"the classes of the parts of {name} differ ({listed(classes)} and {listed(_class_names(val))}); check --data-dir, "
            "--train-split and --val-split"
        )
    images = TimmImages(train, name), TimmImages(val, name)
    count = num_classes or (len(classes) if classes else _highest_label(images[0]) + 1)
    return Data(name, *images, classes, count)


def _require_package(name: str, prefix: str) -> None:
    package = _PACKAGES.get(prefix)
    if package and find_spec(package) is None:
        raise InputError(f"{name} needs the package {package}; pip install {package}")


def _open_part(
    name: str, prefix: str, root: Path | None, split: str, training: bool, seed: int, **keys: str | None
) -> Any:
    _require_package(name, prefix)
    from timm.data import create_dataset

    options: dict[str, Any] = {"split": split, "is_training": training, "seed": seed, **keys}
    if name.lower() in _OWN_FOLDERS and root is not None:
        # timm would take the whole root, parts and all, where it knows no part by this name
        named = None if split in ("train", "validation") else split
        root = _training_part(root, named) if training else _held_out_part(root, named)
        options["search_split"] = False
    try:
        return create_dataset(name, root=str(root) if root else None, **options)
    except ImportError as error:
        raise InputError(f"{name} needs another package ({short_reason(error)}); install it") from None
    # of a missing file, a wrong name, no network, a wrong split: each reader raises what it likes
    except Exception as error:
        raise InputError(
            f"{name}, split '{split}', cannot be opened ({short_reason(error)}); check --data, --data-dir, "
            "and the names of its splits"
        ) from None


def _class_names(dataset: Any) -> list[str] | None:
    """Return the names of a data set's classes in label order, None where it has none."""
    if getattr(dataset, "classes", None):
        return [shown(c[0] if isinstance(c, tuple) else c) for c in dataset.classes]
    return None


def _highest_label(images: TimmImages) -> int:
    """Return the highest label; all images are read for it where the data set does not keep its labels apart."""
    labels = getattr(images.dataset, "targets", None)
    try:
        return max(
            int(label)
            for label in (labels if labels is not None else (images[i][1] for i in range(len(images))))
        )
    except Exception as error:  # of pictures for labels, boxes, numbers with a point: it raises what it likes
        raise InputError(
            f"{images.name} does not give one class an image ({short_reason(error)}); take another data set"
        ) from None
