"""From an image to what a network takes, exactly as it was trained: the official evaluation (Pillow and NumPy only).

The preprocessing is data, not code: `Preprocessing` goes into a bundle's manifest as a dictionary, and whatever embeds
the engine (Python, C++, Triton) follows the same few numbers.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import math
import stat
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

# relative: a Triton repository, and a folder of `package python`, take these files along without the package around them
from .errors import InputError
from .resampling import resized_box

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

_RESAMPLING = {
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}
_LARGEST, _LARGEST_RESIZE = 8192, 32768  # pixels, as `sit_deploy.limits` has them
_FAR = 1e6
INTERPOLATIONS = tuple(_RESAMPLING)
# What is decoded, and nothing else: no EPS, which starts another program, nor what is rare and so rarely tested. A JPEG may
# be an MPO, of phones. Old or slim builds of Pillow lack some.
_KINDS = ("Jpeg", "Png", "WebP", "Avif", "Bmp", "Gif", "Tiff", "Ppm")
for _kind in _KINDS:
    with contextlib.suppress(ImportError):
        importlib.import_module(f"PIL.{_kind}ImagePlugin")
FORMATS = tuple(kind.upper() for kind in _KINDS if kind.upper() in Image.OPEN)
MAX_PIXELS = 178_956_970  # of an image's file; Pillow's own limit, at which it refuses
NO_IMAGE = "not an image that can be read (JPEG, PNG, WebP, AVIF, BMP, GIF, TIFF, PPM)"
# Where the resized picture had that many times the pixels of its crop, it is cropped first: the whole could take any memory.
_STRIP = 16
# what fields mean that are not there, since they came later: what was done before
OF_OLD = {"orientation": "stored", "crop_mode": "center", "crop_offset": "round"}
_FORMS = (("NCHW", "float32"), ("NHWC", "uint8"))
ORIENTATIONS = ("exif", "stored")
CROP_MODES = ("center", "squash")  # as timm calls them
# of half a pixel at the crop's edge, torchvision (and timm) take the even whole one, transformers the lower
CROP_OFFSETS = ("round", "floor")
_CHOICES = {"orientation": ORIENTATIONS, "crop_mode": CROP_MODES, "crop_offset": CROP_OFFSETS}
_ORIENTATION_TAG = 0x0112
# What a stored image needs to stand as it was seen, by its EXIF orientation; any other value asks for nothing.
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


@dataclass(frozen=True)
class Preprocessing:
    """From an image to a network's input: turn, resize, crop the centre, scale to [0, 1], normalise.

    Equal to torchvision's `Resize(resize, interpolation)`, `CenterCrop(size)`, `ToTensor()`, `Normalize(mean, std)` on
    Pillow images, and so to timm's evaluation transform of a square input; where the picture is squeezed, to
    `Resize((resize, resize), interpolation)` in place of the first. Resizing is antialiased.

    Attributes:
        size: crop in pixels, (height, width).
        resize: length in pixels that the shorter side gets; of a squeezed picture, both sides of a square input, and
            of any other the longer one, the shorter in proportion.
        mean, std: per channel R, G, B, of values in [0, 1].
        layout, dtype: what the network takes: NCHW float32, normalised here, or NHWC uint8, pixels that it normalises itself.
        orientation: "exif": a picture is first turned as its EXIF orientation says, equal to Pillow's `exif_transpose`;
            "stored": it stays as its pixels are stored, as torchvision and timm leave it. What was written before there was
            such a field was trained on pixels as stored.
        crop_mode: "center": the picture keeps its shape, and what is beyond the crop is not seen; "squash": it is squeezed
            into the crop's shape, as the image processors of transformers and SigLIP's authors do.
        crop_offset: where the crop begins if that is between two pixels: "round", at the even one, as torchvision has it;
            "floor", at the lower one, as transformers has it.
    """

    size: tuple[int, int]
    resize: int
    interpolation: str = "bicubic"
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    layout: str = "NCHW"
    dtype: str = "float32"
    orientation: str = "stored"
    crop_mode: str = "center"
    crop_offset: str = "round"

    def __post_init__(self) -> None:
        if not (_is_row(self.size, 2, int) and min(self.size) >= 1 and max(self.size) <= _LARGEST):
            raise InputError(
                f"preprocessing: size must be (height, width) of at most {_LARGEST} pixels, got {self.size!r}"
            )
        if not _is_number(self.resize, int) or not max(self.size) <= self.resize <= _LARGEST_RESIZE:
            raise InputError(
                f"preprocessing: resize must be at least the crop size {max(self.size)} and at most {_LARGEST_RESIZE}, "
                f"got {self.resize!r}"
            )
        if not isinstance(self.interpolation, str) or self.interpolation not in _RESAMPLING:
            raise InputError(
                f"preprocessing: interpolation must be one of {', '.join(_RESAMPLING)}, got {self.interpolation!r}"
            )
        # beyond these, float32 has no number for the normalised pixel; a comparison with NaN is false
        if not _is_row(self.mean, 3, float) or not all(abs(value) <= _FAR for value in self.mean):
            raise InputError(f"preprocessing: mean must be three numbers, got {self.mean!r}")
        if not _is_row(self.std, 3, float) or not all(1 / _FAR <= value <= _FAR for value in self.std):
            raise InputError(f"preprocessing: std must be three numbers above 0, got {self.std!r}")
        if (self.layout, self.dtype) not in _FORMS:
            raise InputError(
                "preprocessing: layout and dtype must be NCHW and float32, or NHWC and uint8, "
                f"got {self.layout!r} and {self.dtype!r}"
            )
        for name, known in _CHOICES.items():
            value = getattr(self, name)
            if value not in known:
                raise InputError(f"preprocessing: {name} must be one of {', '.join(known)}, got {value!r}")

    @classmethod
    def for_model(
        cls,
        size: int,
        crop_pct: float = 0.875,
        interpolation: str = "bicubic",
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
        orientation: str = "stored",
    ) -> Preprocessing:
        """The official evaluation of a model with a `size` x `size` input.

        The shorter side becomes floor(size / crop_pct) pixels; 0.875 is the official int(size * 256 / 224).
        """
        if not _is_number(size, int) or size < 1:
            raise InputError(f"image size must be at least 1 pixel, got {size!r}")
        if not _is_number(crop_pct, float) or not 0 < crop_pct <= 1:
            raise InputError(f"crop_pct must be above 0 and at most 1, got {crop_pct!r}")
        resize = int(size / crop_pct)
        return cls((size, size), resize, interpolation, tuple(mean), tuple(std), orientation=orientation)

    def at(self, size: int) -> Preprocessing:
        """The same for a `size` x `size` input: the crop keeps its share of the resized image."""
        return replace(self, size=(size, size), resize=int(size * self.resize / max(self.size)))

    @property
    def raw(self) -> Preprocessing:
        """The same for a network that normalises by itself: it ends with the pixels."""
        return replace(self, layout="NHWC", dtype="uint8")

    @property
    def takes_pixels(self) -> bool:
        """Whether the network takes pixels and normalises them by itself."""
        return self.dtype == "uint8"

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of one image as the network takes it."""
        return (*self.size, 3) if self.takes_pixels else (3, *self.size)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values, with every field."""
        return {
            key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()
        }

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> Preprocessing:
        """The inverse of `to_dict`, also of before there were the fields of `OF_OLD`.

        Raises:
            InputError: a missing, unknown or wrong field.
        """
        if not isinstance(fields, dict):
            raise InputError(f"preprocessing: expected named fields, got {fields!r}")
        known = cls.__dataclass_fields__
        fields = {**OF_OLD, **fields}
        for what, names in (("missing", known.keys() - fields), ("unknown", fields.keys() - known)):
            if names:
                raise InputError(
                    f"preprocessing: {what} field{'s' * (len(names) > 1)} {', '.join(sorted(map(str, names)))}"
                )
        return cls(**{key: tuple(v) if isinstance(v, list) else v for key, v in fields.items()})

    def upright(self, image: Image.Image) -> Image.Image:
        """The image, turned as its EXIF orientation says where that is asked for."""
        turn = turn_of(image) if self.orientation == "exif" else None
        return image if turn is None else image.transpose(turn)

    def pixels(self, image: Image.Image) -> np.ndarray:
        """The turned, resized and cropped image, uint8 (H, W, 3): the stage before any floating point."""
        image = self.upright(to_rgb(image))
        target, box = self._placed(*image.size)
        if target[0] * target[1] > _STRIP * self.size[0] * self.size[1]:
            return resized_box(image, target, box, self.interpolation)
        if image.size != target:
            image = image.resize(target, _RESAMPLING[self.interpolation])
        return np.asarray(image.crop(box))

    def seen(self, image: Image.Image) -> Image.Image:
        """The part of the turned image that the crop takes, to half a pixel of the crop, RGB: at the image's own resolution.

        One that is smaller than what it is resized to has each of its pixels several times. A long strip that is squeezed
        would take any memory so: of that, it is what the model sees.
        """
        image = self.upright(to_rgb(image))
        strip = max(image.size) > _STRIP * min(image.size)
        if self.crop_mode == "squash" and strip and min(image.size) < self.resize:
            return Image.fromarray(self.raw.pixels(image))
        target, box = self._placed(*image.size)
        edges = [edge * image.size[i % 2] / target[i % 2] for i, edge in enumerate(box)]
        corner = [math.floor(edge) for edge in edges[:2]]
        times = math.ceil(self.resize / min(image.size))
        # cut to whole pixels first: a long strip, enlarged, could take any memory
        part = image.crop((*corner, *(math.ceil(edge) for edge in edges[2:])))
        if times > 1:
            part = part.resize((part.width * times, part.height * times), Image.Resampling.NEAREST)
        left, top, right, bottom = (
            math.floor((edge - corner[i % 2]) * times + 0.5) for i, edge in enumerate(edges)
        )
        return part.crop((left, top, right, bottom))

    def _placed(self, width: int, height: int) -> tuple[tuple[int, int], tuple[int, int, int, int]]:
        """Return the (width, height) that an image is resized to, and the crop in it: left, top, right, bottom."""
        shorter, longer = min(width, height), max(width, height)
        if not shorter:
            raise InputError(f"an image of {width} x {height} pixels has nothing to see; remove it")
        crop_height, crop_width = self.size
        # Rounding down the longer side, and rounding half to even below, are torchvision's.
        if self.crop_mode == "squash":
            target = (
                self.resize * crop_width // max(self.size),
                self.resize * crop_height // max(self.size),
            )
        else:
            scaled = (self.resize, int(self.resize * longer / shorter))
            target = scaled if width <= height else scaled[::-1]
        whole = math.floor if self.crop_offset == "floor" else round
        left = whole((target[0] - crop_width) / 2)
        top = whole((target[1] - crop_height) / 2)
        return target, (left, top, left + crop_width, top + crop_height)

    def normalise(self, pixels: np.ndarray) -> np.ndarray:
        """Pixels uint8 (..., H, W, 3), scaled to [0, 1] and normalised: float32 (..., 3, H, W), contiguous."""
        scaled = np.moveaxis(pixels, -1, -3).astype(np.float32) / np.float32(255)
        mean = np.array(self.mean, np.float32).reshape(3, 1, 1)
        std = np.array(self.std, np.float32).reshape(3, 1, 1)
        return np.ascontiguousarray((scaled - mean) / std)

    def __call__(self, image: Image.Image) -> np.ndarray:
        """The network's input for one image: float32 (3, H, W), or uint8 (H, W, 3) where it normalises by itself."""
        pixels = self.pixels(image)
        return pixels if self.takes_pixels else self.normalise(pixels)


def turn_of(
    image: Image.Image, read: Callable[[Image.Image], Image.Exif] = lambda image: image.getexif()
) -> Image.Transpose | None:
    """Return what an image's EXIF orientation asks for; None where it stands, says nothing, or its EXIF is damaged.

    Args:
        image: of Pillow's.
        read: gives its EXIF.
    """
    try:
        return _TURNS.get(read(image).get(_ORIENTATION_TAG))
    except (
        Exception
    ):  # of any type, from Pillow's parsers: pixels are whole where what is said of them is not
        return None


def to_rgb(image: Image.Image) -> Image.Image:
    """Eight-bit RGB, converted as torchvision's loader does it, with 16-bit grey scaled instead of saturated.

    An EXIF orientation stays with the image and is not applied: that is `Preprocessing.upright`. Transparency is
    dropped, not blended. Integer or float samples of 32 bits have no agreed range and are refused.
    """
    if image.mode == "RGB":
        return image
    # Pillow before 11.1 decodes 16-bit grey PNG to mode I.
    # It decodes 16-bit grey PPM to mode I in every release.
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM")):
        # The high byte: what Pillow itself keeps of 16-bit colour.
        grey = np.right_shift(np.asarray(image), 8).clip(0, 255).astype(np.uint8)
        made = Image.fromarray(grey).convert("RGB")
        made.info = image.info.copy()  # which has its EXIF
        return made
    if image.mode in ("I", "F"):
        raise InputError(
            f"image has 32-bit samples (mode {image.mode}), whose range is unknown; convert it to 8 or 16 bits"
        )
    if image.mode == "P" and isinstance(image.info.get("transparency"), bytes):
        image = image.convert(
            "RGBA"
        )  # the same colours; Pillow warns of every picture that is turned at once
    try:
        return image.convert("RGB")
    except ValueError:
        raise InputError(f"an image of mode {image.mode} cannot be turned into RGB; convert it") from None


def load_image(path: str | Path) -> Image.Image:
    """Decode one file to RGB; of several frames or pages, the first.

    Raises:
        InputError: naming the file, where it is missing, damaged, too large, no regular file or no image.
    """
    try:
        mode = Path(path).stat().st_mode
    except (OSError, ValueError):
        raise InputError(f"{path}: no such image file; check the path") from None
    if not stat.S_ISREG(mode):  # opened, a pipe or a device could wait or read for ever
        raise InputError(f"{path}: no file but a folder, pipe or device; pass the path of an image file")
    return _decode(path, f"{path}: ", "remove it or move it elsewhere", "replace the file or remove it")


def decode_image(data: bytes) -> Image.Image:
    """Decode the bytes of an image file to RGB.

    Raises:
        InputError: they are damaged, too large or no image.
    """
    return _decode(io.BytesIO(data), "", "send the bytes of an image file", "send it again")


def is_image(path: str | Path) -> bool:
    """Whether a file begins as one of `FORMATS` does; its pixels are not looked at. No pipe or device is, or is opened."""
    if not Path(path).is_file():
        return False
    try:
        with Image.open(path, formats=FORMATS):
            return True
    except Image.DecompressionBombError:
        return True  # which decoding it will refuse, and say why
    except Exception:  # of any type, from Pillow's parsers
        return False


def is_turned(path: str | Path) -> bool:
    """Whether a file's EXIF asks for a turn that decoding it does not apply; its pixels are not looked at."""
    if not Path(path).is_file():
        return False
    try:
        with Image.open(path, formats=FORMATS) as image:
            # Pillow turns a TIFF itself; a PNG's own getexif would decode it
            return image.format != "TIFF" and turn_of(image, Image.Image.getexif) is not None
    except Exception:  # of any type, from Pillow's parsers; decoding it says what is wrong
        return False


def _decode(source: Any, where: str, foreign: str, damaged: str) -> Image.Image:
    size = ""
    try:
        with Image.open(source, formats=FORMATS) as image:
            size = f"{image.width} x {image.height} pixels"
            if image.width * image.height > MAX_PIXELS:
                raise Image.DecompressionBombError
            if not image.width * image.height:
                raise ValueError(f"it has {size}")
            image.load()
            return to_rgb(image)
    except UnidentifiedImageError:
        raise InputError(f"{where}{NO_IMAGE}; {foreign}") from None
    except InputError as error:
        raise InputError(f"{where}{error}") from None
    except Image.DecompressionBombError:
        limit = min(MAX_PIXELS, 2 * (Image.MAX_IMAGE_PIXELS or MAX_PIXELS))
        raise InputError(
            f"{where}the image{f' of {size}' if size else ''} has more than the {limit:,} pixels that are decoded; make it smaller"
        ) from None
    except MemoryError:
        raise InputError(
            f"{where}too little memory to decode {size or 'the image'}; make it smaller"
        ) from None
    except Exception as error:  # Pillow's decoders raise whatever comes to hand for damaged data
        said = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"{where}cannot decode the image ({said}); {damaged}") from None


def _is_number(value: object, kind: type) -> bool:
    kinds = (int, np.integer) if kind is int else (int, float, np.integer, np.floating)
    return isinstance(value, kinds) and not isinstance(value, bool)


def _is_row(value: object, length: int, kind: type) -> bool:
    return isinstance(value, tuple) and len(value) == length and all(_is_number(item, kind) for item in value)
