"""Images in: the preprocessing of the official evaluation, image folders, and batches (Pillow and NumPy only).

The preprocessing is data, not code: `Preprocessing` goes into a bundle's manifest as a dictionary, and whatever embeds
the engine (Python, C++, Triton) follows the same few numbers.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from sit_deploy.errors import InputError

Progress = Callable[[str, int, int], None]
Source = str | Path | Image.Image

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

_RESAMPLING = {
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}
# What torchvision's ImageFolder takes for an image. A file with another ending is opened to see what it is.
_IMAGE_ENDINGS = frozenset({".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp"})
# Left behind by file managers; they say nothing about the data set.
_LITTER = frozenset({"thumbs.db", "desktop.ini", "ehthumbs.db", "icon\r"})


# ---------------------------------------------------------------------------------------------------- preprocessing


@dataclass(frozen=True)
class Preprocessing:
    """From an image to a network's input: resize the shorter side, crop the centre, scale to [0, 1], normalise.

    Equal to torchvision's `Resize(resize, interpolation)`, `CenterCrop(size)`, `ToTensor()`, `Normalize(mean, std)` on
    Pillow images, and so to timm's evaluation transform of a square input. Resizing is antialiased.

    size: crop in pixels, (height, width).  resize: length in pixels that the shorter side gets.
    mean, std: per channel R, G, B, of values in [0, 1].
    """

    size: tuple[int, int]
    resize: int
    interpolation: str = "bicubic"
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    layout: str = "NCHW"
    dtype: str = "float32"

    def __post_init__(self) -> None:
        if not (_is_row(self.size, 2, int) and min(self.size) >= 1):
            raise InputError(f"preprocessing: size must be (height, width) in pixels, got {self.size!r}")
        if not _is_number(self.resize, int) or self.resize < max(self.size):
            raise InputError(
                f"preprocessing: resize must be at least the crop size {max(self.size)}, got {self.resize!r}"
            )
        if self.interpolation not in _RESAMPLING:
            raise InputError(
                f"preprocessing: interpolation must be one of {', '.join(_RESAMPLING)}, got {self.interpolation!r}"
            )
        if not _is_row(self.mean, 3, float) or not np.isfinite(self.mean).all():
            raise InputError(f"preprocessing: mean must be three numbers, got {self.mean!r}")
        if not _is_row(self.std, 3, float) or not np.isfinite(self.std).all() or min(self.std) <= 0:
            raise InputError(f"preprocessing: std must be three numbers above 0, got {self.std!r}")
        if (self.layout, self.dtype) != ("NCHW", "float32"):
            raise InputError(
                f"preprocessing: layout and dtype must be NCHW and float32, got {self.layout!r} and {self.dtype!r}"
            )

    @classmethod
    def for_model(
        cls,
        size: int,
        crop_pct: float = 0.875,
        interpolation: str = "bicubic",
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
    ) -> Preprocessing:
        """The official evaluation of a model with a `size` x `size` input.

        The shorter side becomes floor(size / crop_pct) pixels; 0.875 is the official int(size * 256 / 224).
        """
        if not _is_number(size, int) or size < 1:
            raise InputError(f"image size must be at least 1 pixel, got {size!r}")
        if not _is_number(crop_pct, float) or not 0 < crop_pct <= 1:
            raise InputError(f"crop_pct must be above 0 and at most 1, got {crop_pct!r}")
        return cls((size, size), int(size / crop_pct), interpolation, tuple(mean), tuple(std))

    def at(self, size: int) -> Preprocessing:
        """The same for a `size` x `size` input: the crop keeps its share of the resized image."""
        return replace(self, size=(size, size), resize=int(size * self.resize / max(self.size)))

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values, with every field."""
        return {
            key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()
        }

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> Preprocessing:
        """The inverse of `to_dict`. Raises InputError for a missing, unknown or wrong field."""
        if not isinstance(fields, dict):
            raise InputError(f"preprocessing: expected named fields, got {fields!r}")
        known = cls.__dataclass_fields__
        for what, names in (("missing", known.keys() - fields), ("unknown", fields.keys() - known)):
            if names:
                raise InputError(
                    f"preprocessing: {what} field{'s' * (len(names) > 1)} {', '.join(sorted(map(str, names)))}"
                )
        return cls(**{key: tuple(v) if isinstance(v, list) else v for key, v in fields.items()})

    def pixels(self, image: Image.Image) -> np.ndarray:
        """The resized and cropped image, uint8 (H, W, 3): the stage before any floating point."""
        image = to_rgb(image)
        width, height = image.size
        shorter, longer = min(width, height), max(width, height)
        # Rounding down the longer side, and rounding half to even below, are torchvision's.
        scaled = (self.resize, int(self.resize * longer / shorter))
        target = scaled if width <= height else scaled[::-1]
        if image.size != target:
            image = image.resize(target, _RESAMPLING[self.interpolation])
        crop_height, crop_width = self.size
        left = round((image.width - crop_width) / 2)
        top = round((image.height - crop_height) / 2)
        return np.asarray(image.crop((left, top, left + crop_width, top + crop_height)))

    def __call__(self, image: Image.Image) -> np.ndarray:
        """The network's input for one image: float32 (3, H, W), contiguous."""
        scaled = self.pixels(image).transpose(2, 0, 1).astype(np.float32) / np.float32(255)
        mean = np.array(self.mean, np.float32).reshape(3, 1, 1)
        std = np.array(self.std, np.float32).reshape(3, 1, 1)
        return np.ascontiguousarray((scaled - mean) / std)


def to_rgb(image: Image.Image) -> Image.Image:
    """Eight-bit RGB, converted as torchvision's loader does it, with 16-bit grey scaled instead of saturated.

    An EXIF orientation is *not* applied: neither torchvision nor timm applies it, so the models were trained and
    measured on pixels as they are stored. Transparency is dropped, not blended. Integer or float samples of 32 bits
    have no agreed range and are refused.
    """
    if image.mode == "RGB":
        return image
    # Pillow before 11.1 decodes 16-bit grey PNG to mode I.
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PNG"):
        # The high byte: what Pillow itself keeps of 16-bit colour.
        grey = np.right_shift(np.asarray(image), 8).clip(0, 255).astype(np.uint8)
        return Image.fromarray(grey).convert("RGB")
    if image.mode in ("I", "F"):
        raise InputError(
            f"image has 32-bit samples (mode {image.mode}), whose range is unknown; convert it to 8 or 16 bits"
        )
    return image.convert("RGB")


def load_image(path: str | Path) -> Image.Image:
    """Decode one file to RGB. Raises InputError, naming the file, where it is missing, damaged or no image."""
    try:
        with Image.open(path) as image:
            image.load()
            return to_rgb(image)
    except FileNotFoundError:
        raise InputError(f"{path}: no such image file; check the path") from None
    except UnidentifiedImageError:
        raise InputError(
            f"{path}: not an image that Pillow can read; remove it or move it elsewhere"
        ) from None
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    # Pillow's decoders raise any of these for damaged data.
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        raise InputError(
            f"{path}: cannot decode the image ({error}); replace the file or remove it"
        ) from None


# ------------------------------------------------------------------------------------------------------------ files


def list_images(where: str | Path | Iterable[str | Path]) -> list[Path]:
    """Every image of a file, of a folder with all below it, or of several of these; sorted within each folder.

    Hidden files and file managers' litter are skipped. Any other file that is no image raises InputError, as do a
    missing path and a folder without images.
    """
    if isinstance(where, str | Path):
        where = [where]
    found: list[Path] = []
    for entry in map(Path, where):
        if entry.is_dir():
            images = _images_below(entry)
            if not images:
                raise InputError(f"{entry}: no images in this folder; pass one that has some")
            found += images
        elif entry.exists():
            _refuse_non_image(entry)
            found.append(entry)
        else:
            raise InputError(f"{entry}: no such file or folder; check the path")
    if not found:
        raise InputError("no images given; pass a folder or at least one file")
    return found


class ImageFolder:
    """A labelled data set: one folder a class, laid out and numbered as torchvision's ImageFolder does it.

    classes: the folders' names, sorted by code point; a class's index is its label.
    samples: (path, label) pairs, in class order. Folders below a class folder are searched too.

    Files beside the class folders are ignored, as in torchvision. Hidden folders are no classes (torchvision counts
    them). Raises InputError for a missing root, a root without class folders, a class without images, and a file in
    a class that is no image.
    """

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)
        if not self.root.is_dir():
            raise InputError(f"{self.root}: no such folder; check the path")
        self.classes = sorted(
            entry.name for entry in self.root.iterdir() if entry.is_dir() and not entry.name.startswith(".")
        )
        if not self.classes:
            raise InputError(
                f"{self.root}: no class folders; put each class's images into a folder of its own"
            )
        self.samples: list[tuple[Path, int]] = []
        empty = []
        for label, name in enumerate(self.classes):
            images = _images_below(self.root / name)
            self.samples += [(path, label) for path in images]
            if not images:
                empty.append(name)
        if empty:
            shown = ", ".join(empty[:5]) + (", ..." if len(empty) > 5 else "")
            raise InputError(
                f"{self.root}: no images for {len(empty)} of {len(self.classes)} classes ({shown}); "
                "add images, or remove the empty folders if the labels need not match a trained head"
            )

    def __len__(self) -> int:
        return len(self.samples)


def load_labels(path: str | Path, classes: int | None = None) -> list[str]:
    """Class names from a UTF-8 text file, one a line, in label order. Names may repeat, as ImageNet's do.

    Raises InputError where the file cannot be read, a line is empty, or there are not `classes` of them.
    """
    try:
        names = [line.strip() for line in Path(path).read_text(encoding="utf-8-sig").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"{path}: cannot read the class names ({error}); pass a UTF-8 text file, one name a line"
        ) from None
    while names and not names[-1]:
        names.pop()
    if "" in names:
        raise InputError(f"{path}: line {names.index('') + 1} is empty; give every class a name")
    if not names:
        raise InputError(f"{path}: no class names; write one a line")
    if classes is not None and len(names) != classes:
        raise InputError(
            f"{path}: {len(names)} class names for a model of {classes} classes; write one a line"
        )
    return names


# ---------------------------------------------------------------------------------------------------------- batches


def batches(
    samples: Sequence[Source] | Sequence[tuple[Source, int]],
    preprocessing: Preprocessing,
    batch_size: int,
    progress: Progress | None = None,
    *,
    workers: int | None = None,
) -> Iterator[tuple[np.ndarray, np.ndarray | list[Source]]]:
    """Decode and preprocess in a few threads, in order, holding at most two batches and one image a thread.

    samples: paths or Pillow images, or pairs of one with its label (`ImageFolder.samples`).
    Yields (images float32 (n, 3, H, W), labels int64 (n,)), or the sources themselves in place of labels where there
    are none. The last batch may be short. Raises InputError for no samples, a batch size below 1 or a bad image.
    """
    if batch_size < 1:
        raise InputError(f"batch size must be at least 1, got {batch_size}; pass --batch-size 1 or more")
    if not samples:
        raise InputError("no images to load; pass a folder or at least one file")
    # Checked before the first batch is asked for, which is why the generator is a function of its own.
    workers = workers or min(4, os.cpu_count() or 1)
    return _batches(samples, preprocessing, batch_size, progress, workers)


def _batches(
    samples: Sequence[Any],
    preprocessing: Preprocessing,
    batch_size: int,
    progress: Progress | None,
    workers: int,
) -> Iterator[tuple[np.ndarray, Any]]:
    labelled = isinstance(samples[0], tuple)
    sources = (sample[0] if labelled else sample for sample in samples)

    def prepare(source: Source) -> np.ndarray:
        image = source if isinstance(source, Image.Image) else load_image(source)
        return preprocessing(image)

    pool = ThreadPoolExecutor(workers, thread_name_prefix="images")
    pending: deque[Future[np.ndarray]] = deque()
    try:
        for start in range(0, len(samples), batch_size):
            part = samples[start : start + batch_size]
            images = np.empty((len(part), 3, *preprocessing.size), np.float32)
            for row in range(len(part)):
                while len(pending) < batch_size + workers:
                    source = next(sources, None)
                    if source is None:
                        break
                    pending.append(pool.submit(prepare, source))
                images[row] = pending.popleft().result()
            if progress:
                progress("loading images", start + len(part), len(samples))
            labels = np.array([label for _, label in part], np.int64) if labelled else list(part)
            yield images, labels
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


# ---------------------------------------------------------------------------------------------------------- helpers


def _images_below(folder: Path) -> list[Path]:
    images = []
    # os.walk, and its order, are torchvision's: samples come in the same order there and here.
    for here, _, names in sorted(_visible(folder)):
        for name in sorted(names):
            if not name.startswith(".") and name.lower() not in _LITTER:
                path = Path(here, name)
                _refuse_non_image(path)
                images.append(path)
    return images


def _visible(folder: Path) -> Iterator[tuple[str, list[str], list[str]]]:
    for here, folders, names in os.walk(folder, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith(".")]
        yield here, folders, names


def _refuse_non_image(path: Path) -> None:
    """Say early that a file is no image. Endings are believed here; a wrong one shows when the file is decoded."""
    if path.suffix.lower() in _IMAGE_ENDINGS:
        return
    try:
        with Image.open(path):
            pass
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        raise InputError(
            f"{path}: not an image that Pillow can read; remove it or move it elsewhere"
        ) from None


def _is_number(value: object, kind: type) -> bool:
    kinds = (int, np.integer) if kind is int else (int, float, np.integer, np.floating)
    return isinstance(value, kinds) and not isinstance(value, bool)


def _is_row(value: object, length: int, kind: type) -> bool:
    return isinstance(value, tuple) and len(value) == length and all(_is_number(item, kind) for item in value)
