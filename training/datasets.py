"""The pictures to train on: a folder, scikit-learn's digits, or any data set that timm can read.

A data set here is a sequence of (Pillow image in RGB, label) or, where its source can only be streamed, an iterable of
them. Augmentation and batches are `training.loading`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from sit_deploy.data import ImageFolder
from sit_deploy.errors import InputError
from sit_deploy.labelled import VAL_NAMES
from sit_deploy.preprocessing import load_image, to_rgb

STREAMED = ("wds", "hfids", "tfds")
_PREFIXES = ("torch", "hfds", *STREAMED)
_PACKAGES = {"hfds": "datasets", "hfids": "datasets", "wds": "webdataset", "tfds": "tensorflow_datasets"}
Sample = tuple[Any, int]


@dataclass(frozen=True)
class Data:
    """train, val: samples. classes: names in label order, or None. num_classes: how many there are."""

    name: str
    train: Any
    val: Any
    classes: list[str] | None
    num_classes: int
    streamed: bool = False


class FolderImages(Sequence[Sample]):
    """The images of a class-folder tree, numbered as the deployed model's labels are."""

    def __init__(self, folder: ImageFolder) -> None:
        self.samples, self.classes = folder.samples, folder.classes

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Sample:
        path, label = self.samples[index]
        return load_image(path), label

    def describe(self, index: int) -> str:
        return str(self.samples[index][0])


class ArrayImages(Sequence[Sample]):
    """Grey pictures in memory. pixels: uint8 (n, H, W). labels: integers (n,)."""

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
    """A random-access data set of timm: torchvision's, or one of the Hugging Face Hub."""

    def __init__(self, dataset: Any, name: str) -> None:
        self.dataset, self.name = dataset, name

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Sample:
        from PIL import Image

        if not hasattr(self.dataset, "reader"):
            image, label = self.dataset[index]
        else:  # past timm's own handling of damaged images, which neither counts nor names them
            image, label, *_ = self.dataset.reader[index]
            if not isinstance(image, Image.Image):
                with Image.open(image) as opened:
                    opened.load()
                    image = opened
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
) -> Data:
    """Open the images to train on and those held out.

    Args:
        name: "digits"; a folder with subfolders train and val, each with one folder a class; or a data set of timm:
            torch/NAME, hfds/OWNER/NAME, hfids/…, wds/…, tfds/NAME.
        root: where timm's data sets lie.
        train_split, val_split: names of the two parts, where they are not the usual ones.
        num_classes: needed for streamed data, which does not tell.
        seed: of the order of streamed data; all else is ordered by `training.loading`.
    Raises:
        InputError: missing, empty, of one class, or with parts whose classes differ.
    """
    prefix = _prefix(name)
    if name == "digits":
        data = _digits()
    elif is_named(name) and not Path(name).is_dir():
        data = _timm_data(name, prefix, root, train_split or "train", val_split, num_classes, seed)
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


def open_held_out(name: str, root: Path | None = None, split: str | None = None) -> Data:
    """Open the held-out images of a named data set alone, to measure on: `val` of what it returns; `train` is the same.

    Raises:
        InputError: as `open_data`, and one that can only be streamed.
    """
    if name == "digits":
        return _digits()
    prefix = _prefix(name)
    if prefix in STREAMED:
        raise InputError(
            f"{name} can only be streamed, and accuracy is measured image by image; pass a folder, or torch/… or hfds/…"
        )
    made = _open_part(name, prefix, root, split or "validation", False, 0)
    classes = _class_names(made)
    images = TimmImages(made, name)
    return Data(name, images, images, classes, len(classes) if classes else _highest_label(made) + 1)


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
    if not root.is_dir():
        known = ", ".join(f"{p}/…" for p in _PREFIXES)
        raise InputError(
            f"{root}: no such folder; pass --data with a folder, digits, or a data set of timm ({known})"
        )
    train_root = root / (train_split or "train")
    names = (val_split,) if val_split else VAL_NAMES
    val_root = next((root / n for n in names if (root / n).is_dir()), None)
    if not train_root.is_dir() or val_root is None:
        missing = train_root.name if not train_root.is_dir() else " or ".join(names[:2])
        raise InputError(
            f"{root} has no subfolder {missing}; put the images into {root}/train/CLASS/ and {root}/val/CLASS/, or name "
            "its parts with --train-split and --val-split"
        )
    train, val = ImageFolder(train_root), ImageFolder(val_root)
    if train.classes != val.classes:
        only = [sorted(set(a.classes) - set(b.classes)) for a, b in ((train, val), (val, train))]
        parts = [
            f"{', '.join(n[:3])}{', ...' if len(n) > 3 else ''} only in {root / side}"
            for n, side in zip(only, (train_root.name, val_root.name), strict=True)
            if n
        ]
        raise InputError(f"the class folders differ: {'; '.join(parts)}; make them the same")
    return Data(str(root), FolderImages(train), FolderImages(val), train.classes, len(train.classes))


def _timm_data(
    name: str,
    prefix: str,
    root: Path | None,
    train_split: str,
    val_split: str | None,
    num_classes: int | None,
    seed: int,
) -> Data:
    streamed = prefix in STREAMED
    if streamed and num_classes is None:
        raise InputError(f"{name} is streamed and does not tell its classes; pass --num-classes")
    train = _open_part(name, prefix, root, train_split, True, seed)
    val = _open_part(name, prefix, root, val_split or "validation", False, seed)
    if streamed:
        return Data(name, train, val, None, int(num_classes or 0), streamed=True)
    classes = _class_names(train)
    if classes and _class_names(val) not in (None, classes):
        raise InputError(
            f"the classes of the parts of {name} differ ({', '.join(classes[:3])}, ... and "
            f"{', '.join(_class_names(val)[:3])}, ...); check --data-dir, --train-split and --val-split"
        )
    count = num_classes or (len(classes) if classes else _highest_label(train) + 1)
    return Data(name, TimmImages(train, name), TimmImages(val, name), classes, count)


def _open_part(name: str, prefix: str, root: Path | None, split: str, training: bool, seed: int) -> Any:
    from timm.data import create_dataset

    package = _PACKAGES.get(prefix)
    if package and find_spec(package) is None:
        raise InputError(f"{name} needs the package {package}; pip install {package}")
    try:
        return create_dataset(
            name, root=str(root) if root else None, split=split, is_training=training, seed=seed
        )
    except ImportError as error:
        raise InputError(f"{name} needs another package ({error}); install it") from None
    # of a missing file, a wrong name, no network, a wrong split: each reader raises what it likes
    except Exception as error:
        raise InputError(
            f"{name}, split '{split}', cannot be opened ({type(error).__name__}: {error}); check --data, --data-dir, "
            "and the names of its splits"
        ) from None


def _class_names(dataset: Any) -> list[str] | None:
    """Return the names of a timm data set's classes in label order, None where it has none."""
    reader = getattr(dataset, "reader", None)
    if getattr(dataset, "classes", None):
        return [c[0] if isinstance(c, tuple) else str(c) for c in dataset.classes]
    if getattr(reader, "class_to_idx", None):
        return sorted(reader.class_to_idx, key=reader.class_to_idx.get)
    features = getattr(getattr(reader, "dataset", None), "features", None) or {}
    label = features.get(getattr(reader, "label_key", "label"))
    return list(label.names) if hasattr(label, "names") else None


def _highest_label(dataset: Any) -> int:
    return max(int(dataset[i][1]) for i in range(len(dataset)))
