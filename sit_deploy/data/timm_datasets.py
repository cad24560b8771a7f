"""Data sets that timm opens: torchvision's, and streamed ones of WebDataset, TensorFlow and the Hugging Face Hub."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

from engines.install import pip_install
from sit_deploy.data.source import DataSource
from sit_deploy.data.splits import held_out_part, training_part
from sit_deploy.errors import InputError, nearest
from sit_deploy.preprocessing import to_rgb
from sit_deploy.text import short_reason, shown

_PACKAGES = {"hfds": "datasets", "hfids": "datasets", "wds": "webdataset", "tfds": "tensorflow_datasets"}
# that timm.data.create_dataset makes after "torch/"
TORCHVISION = (
    *(
        "cifar10",
        "cifar100",
        "mnist",
        "kmnist",
        "fashion_mnist",
        "qmnist",
        "inaturalist",
        "inat",
        "places365",
        "imagenet",
    ),
    *("image_folder", "folder"),
)
OWN_FOLDERS = ("torch/image_folder", "torch/folder")  # torchvision's reader of class folders


class TimmImages(Sequence):
    """A random-access data set of torchvision, opened by timm."""

    def __init__(self, dataset: Any, name: str) -> None:
        self.dataset, self.name = dataset, name

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        image, label = self.dataset[index]
        return to_rgb(image), int(label)

    def describe(self, index: int) -> str:
        return f"image {index} of {self.name}"


def require_package(source: DataSource) -> None:
    """Refuse a data set whose package is not installed.

    Raises:
        InputError: names the package.
    """
    package = _PACKAGES.get(source.prefix)
    if package and find_spec(package) is None:
        raise InputError(f"{source.name} needs the package {package}; run {pip_install(package)}")


def require_known(source: DataSource) -> None:
    """Refuse a name of torchvision's that timm does not open, without importing either.

    Raises:
        InputError: names the nearest.
    """
    if source.prefix != "torch":
        return
    name = source.name.split("/", 2)[-1].lower()  # as timm takes it
    if name not in TORCHVISION:
        listing = ", ".join(f"torch/{known}" for known in TORCHVISION)
        raise InputError(
            f"{source.name} is no data set of torchvision that timm opens{nearest(name, TORCHVISION)} ({listing}); pass a folder of class folders for "
            "another"
        )


def open_timm(source: DataSource, split: str, training: bool) -> Any:
    """Open a part of a data set as timm reads it.

    Args:
        source: which data set.
        split: the part.
        training: whether it is the part to train on, whose order timm shuffles where it is streamed.

    Raises:
        InputError: a package that is not there, or a data set or part that cannot be opened.
    """
    require_package(source)
    require_known(source)
    from timm.data import create_dataset

    name, root = source.name, source.root
    options: dict[str, Any] = {"split": split, "is_training": training, "seed": source.seed}
    if source.prefix == "hfids":
        options |= {"input_key": source.image_key, "target_key": source.label_key}
    if name.lower() in OWN_FOLDERS and root is not None:
        # timm would take the whole root, parts and all, where it knows no part by this name
        named = None if split in ("train", "validation") else split
        root = training_part(root, named) if training else held_out_part(root, named)
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


def class_names_of(dataset: Any) -> list[str] | None:
    """Return the names of a data set's classes in label order, None where it has none."""
    if getattr(dataset, "classes", None):
        return [shown(c[0] if isinstance(c, tuple) else c) for c in dataset.classes]
    return None


def highest_label(images: TimmImages) -> int:
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
