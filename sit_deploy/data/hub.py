"""Data sets of the Hugging Face Hub, and folders of their files: which columns and splits of them to take."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sit_deploy.data.class_names import listed
from sit_deploy.data.source import DataSource
from sit_deploy.data.splits import Role, role_of
from sit_deploy.errors import InputError
from sit_deploy.preprocessing import decode_image, load_image
from sit_deploy.text import short_reason, shown

# how a column of labels is called whose type does not tell
_LABELS = ("label", "labels", "class", "target", "category", "class_label", "label_id", "y")
_IMAGES = ("image", "img", "picture", "photo", "pixels", "file", "image_path", "file_name", "path")


@dataclass(frozen=True)
class Columns:
    """The columns of a data set to take.

    Attributes:
        image: column of the images.
        label: of their labels.
        names: of the classes in label order, None where the labels are bare numbers.
        texts: the labels are these names themselves.
    """

    image: str
    label: str
    names: tuple[str, ...] | None = None
    texts: bool = False


class HubImages(Sequence):
    """Rows of a data set of the Hub as (Pillow image in RGB, label) pairs. label_of: by text, where labels are texts."""

    def __init__(self, rows: Any, columns: Columns, name: str) -> None:
        self.rows, self.columns, self.name = rows, columns, name
        self.classes = None if columns.names is None else list(columns.names)
        self._label_of = {text: i for i, text in enumerate(columns.names or ())} if columns.texts else None

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        row = self.rows[index]
        cell, label = row[self.columns.image], row[self.columns.label]
        if self._label_of is not None and label in self._label_of:
            label = self._label_of[label]
        elif self._label_of is not None or label is None:
            raise InputError(
                f"{self.describe(index)} has the label {label!r}, which is no class; check --label-key"
            )
        return _decoded(cell), int(label)

    def describe(self, index: int) -> str:
        return f"image {index} of {self.name}"


def open_hub(
    source: DataSource, split: str | None, roles: Sequence[Role], names: Sequence[str] | None = None
) -> tuple[HubImages, str]:
    """Open a part of a data set, hfds/OWNER/NAME or hfds/FOLDER; return its images and the name of its split.

    Args:
        source: which data set, and its columns where their types do not tell.
        split: its part, by default the first of `roles` that there is.
        roles: parts to take.
        names: of the classes, where labels are texts and another part of it said them.

    Raises:
        InputError: no such data set, split or column, columns that may each be meant, or labels that are no classes.
    """
    name, root = source.name, source.root
    path = name.split("/", 1)[1]
    split = split or _usual_split(name, path, root, roles)
    rows = _load(name, path, root, split)
    columns = find_columns(name, rows.features, source.image_key, source.label_key)
    columns = _with_labels(f"{name}, split '{split}'", rows, columns, names)
    return HubImages(_undecoded(name, rows, columns.image), columns, name), split


def find_columns(
    name: str, features: Mapping[str, Any], image_key: str | None = None, label_key: str | None = None
) -> Columns:
    """Find the columns of images and of classes by their types, and by their names where the types do not tell.

    Raises:
        InputError: none, or several that may each be meant; the message lists all columns with their types.
    """
    import datasets

    listing = ", ".join(f"{shown(key)} ({_type_of(feature)})" for key, feature in features.items())
    for option, key in (("--image-key", image_key), ("--label-key", label_key)):
        if key is not None and key not in features:
            raise InputError(f"{name} has no column {shown(key)}; pass {option} with one of: {listing}")
    images = [key for key, feature in features.items() if isinstance(feature, datasets.Image)]
    images = images or [key for key in features if key.lower() in _IMAGES and _may_hold_images(features[key])]
    image = image_key or _one(name, "images", "--image-key", images, "image", listing)
    if not _may_hold_images(features[image]):
        raise InputError(
            f"the column {shown(image)} of {name} holds no images; pass --image-key with one of: {listing}"
        )
    labels = [key for key, feature in features.items() if isinstance(feature, datasets.ClassLabel)]
    labels = labels or [
        key for key in features if key.lower() in _LABELS and key != image and _may_be_a_label(features[key])
    ]
    label = label_key or _one(name, "classes", "--label-key", labels, "label", listing)
    kind = features[label]
    if isinstance(kind, datasets.ClassLabel):
        return Columns(image, label, tuple(map(shown, kind.names)))
    if not _may_be_a_label(kind):
        raise InputError(
            f"the column {shown(label)} of {name} holds {_type_of(kind)}, and no one class an image; pass --label-key with one "
            f"of: {listing}"
        )
    return Columns(image, label, texts="string" in kind.dtype)


def _one(name: str, what: str, option: str, candidates: list[str], usual: str, listing: str) -> str:
    if len(candidates) > 1 and usual in candidates:
        return usual
    if len(candidates) != 1:
        said = "no column of" if not candidates else f"several columns of {what} ({listed(candidates)}), and"
        said = (
            f"{said} {what} that can be told" if not candidates else f"{said} not one that is called {usual}"
        )
        raise InputError(f"{name} has {said}; pass {option} with one of: {listing}")
    return candidates[0]


def _type_of(feature: Any) -> str:
    import datasets

    if isinstance(feature, datasets.Image):
        return "images"
    if isinstance(feature, datasets.ClassLabel):
        return f"{feature.num_classes} classes"
    return str(getattr(feature, "dtype", None) or type(feature).__name__)


def _may_hold_images(feature: Any) -> bool:
    import datasets

    if isinstance(feature, datasets.Image):
        return True
    if isinstance(feature, dict):
        return "bytes" in feature
    return isinstance(feature, datasets.Value) and feature.dtype in (
        "string",
        "large_string",
        "binary",
        "large_binary",
    )


def _may_be_a_label(feature: Any) -> bool:
    import datasets

    if isinstance(feature, datasets.ClassLabel):
        return True
    kinds = ("string", "large_string", "bool")
    return isinstance(feature, datasets.Value) and (feature.dtype in kinds or "int" in feature.dtype)


def _usual_split(name: str, path: str, root: Path | None, roles: Sequence[Role]) -> str:
    """Return the split that a data set's own names say is to train on, or held out."""
    import datasets

    try:
        builder = datasets.load_dataset_builder(path, cache_dir=str(root) if root else None)
        there = list(builder.info.splits or ()) or datasets.get_dataset_split_names(path)
    except Exception as error:  # of no network, a wrong name, damaged files: it raises what it likes
        raise _refused(name, error) from None
    for wanted in roles:
        matching = [split for split in there if role_of(split) == wanted]
        if len(matching) == 1:
            return matching[0]
        if matching:
            break
    option = "--train-split" if "train" in roles else "--split (or --val-split)"
    what = "to train on" if "train" in roles else "of held-out images"
    raise InputError(
        f"{name} has no split {what} that can be told by its name; pass {option} with one of: {', '.join(map(shown, there))}"
    )


def _load(name: str, path: str, root: Path | None, split: str) -> Any:
    import datasets

    try:
        return datasets.load_dataset(path, split=split, cache_dir=str(root) if root else None)
    except Exception as error:
        raise _refused(f"{name}, split '{shown(split)}',", error) from None


def _refused(what: str, error: Exception) -> InputError:
    return InputError(
        f"{what} cannot be opened ({short_reason(error)}); check --data, --data-dir, and the names of its splits"
    )


def _undecoded(name: str, rows: Any, image: str) -> Any:
    """Return the rows with their images as they are stored: decoding, and what it says of damage, is ours."""
    import datasets

    if isinstance(rows.features[image], dict):
        return rows
    try:
        return rows.cast_column(image, datasets.Image(decode=False))
    except Exception as error:
        raise InputError(
            f"the column {shown(image)} of {name} holds no images ({short_reason(error)}); check --image-key"
        ) from None


def _with_labels(where: str, rows: Any, columns: Columns, names: Sequence[str] | None) -> Columns:
    """Look at all labels, and refuse what are none; return the columns with the classes' names where labels are texts."""
    try:
        labels = rows.unique(columns.label)
    except Exception as error:
        raise InputError(
            f"the labels of {where} cannot be read ({short_reason(error)}); check --label-key"
        ) from None
    lost = [label for label in labels if label is None or (not columns.texts and int(label) < 0)]
    if lost:
        raise InputError(
            f"{where} has images without a class ({columns.label} is {lost[0]}), as test images of a contest have; take another "
            "split"
        )
    if not columns.texts:
        return columns
    texts = sorted(map(str, labels))
    strange = sorted(set(texts) - set(names or texts))
    if strange:
        raise InputError(
            f"{where} has classes that the part to train on has not ({listed(list(map(shown, strange)))})"
        )
    return Columns(columns.image, columns.label, tuple(names or texts), texts=True)


def _decoded(cell: Any) -> Any:
    """Return the RGB image of a cell: bytes, a path, or both as the library keeps them."""
    if isinstance(cell, Mapping):
        cell = cell.get("bytes") or cell.get("path")
    if not cell:
        raise InputError("the row holds no image; remove it from the data set")
    return decode_image(bytes(cell)) if isinstance(cell, bytes | bytearray) else load_image(os.fspath(cell))
