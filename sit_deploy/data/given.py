"""What a program gives as images: one or several, each in whichever form it is at hand."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Set
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias

import numpy as np
from PIL import Image

# relative: a folder of `package python` takes this file along, without the package around it
from ..errors import InputError
from ..preprocessing import decode_image, load_image, to_rgb

# One image. An array is uint8: R, G, B (height, width, 3), with transparency (height, width, 4), or grey (height, width) or
# (height, width, 1); of four dimensions, (n, height, width, channels), it is n images.
Given: TypeAlias = (
    str | os.PathLike[str] | bytes | bytearray | memoryview | BinaryIO | Image.Image | np.ndarray
)

_KINDS = "a path, the bytes of a file, an open file, a Pillow image or a uint8 array"
_CHANNELS = (1, 3, 4)
_ORDER = "(height, width, 3)"


def is_one(images: Any) -> bool:
    """Whether what was given is one image, and no several, even if they are one: an array of four dimensions is several."""
    if isinstance(images, np.ndarray):
        return images.ndim in (2, 3)
    single = str | bytes | bytearray | memoryview | os.PathLike | Image.Image
    return isinstance(images, single) or hasattr(images, "read")


def sources_of(images: Any) -> list[Any]:
    """Return the images of one or several as a list of what `open_source` takes.

    Files are read here, by one thread and in order: they may share what they read from, and their place in it.

    Raises:
        InputError: nothing that images could be in, or no image.
    """
    if isinstance(images, np.ndarray) and images.ndim == 1 and images.dtype.kind in "OU":
        images = images.tolist()  # a column of paths
    if is_one(images):
        return [_read(images)]
    if isinstance(images, np.ndarray):
        if images.ndim != 4:
            raise InputError(_wrong_shape(images))
        check_array(images)
        return list(images)
    if _is_tensor(images):
        raise InputError(_tensor(images))
    if getattr(images, "ndim", None) in (
        2,
        3,
    ):  # h5py's and zarr's would be taken apart into rows, and a table into its columns' names
        kind = type(images).__name__
        raise InputError(
            f"a {kind} of {images.ndim} dimensions is taken for no picture; pass numpy.asarray of it, or one column of a table"
        )
    if isinstance(images, Set | Mapping):
        kind = type(images).__name__
        raise InputError(f"a {kind} of images says not which result is whose; pass a list of them")
    if not isinstance(images, Iterable):
        raise InputError(f"images must be one or a list of {_KINDS}, got {type(images).__name__}")
    held = isinstance(images, list | tuple)
    sources, seen = [], set()
    for image in images:
        if isinstance(image, tuple):
            raise InputError("images come without labels here; pass the first of each pair")
        source = _decoded_here(image, seen) if isinstance(image, Image.Image) else _read(image)
        # whoever makes images one by one may make the next in the same memory
        sources.append(source if held else _kept(source))
    if not sources:
        raise InputError("no images were given; pass at least one")
    return sources


def _decoded_here(image: Image.Image, seen: set[int]) -> Image.Image:
    """Return a Pillow image that threads may decode: one that was opened by its path, once; what else reads from a file is decoded here."""
    if id(image) in seen or not getattr(image, "filename", ""):
        open_source(
            image
        )  # two threads would decode it at once, or move the place in the file that another reads
    seen.add(id(image))
    return image


def _kept(source: Any) -> Any:
    """Return a source as it is now, whatever its memory is used for next: frames of an animation are one Pillow image."""
    if isinstance(source, Image.Image):
        return open_source(source).copy()
    if isinstance(source, bytearray | memoryview):
        return bytes(source)
    return source.copy() if isinstance(source, np.ndarray) else source


def _read(image: Any) -> Any:
    """Return the bytes of an open file, and anything else as it is."""
    if isinstance(image, Image.Image) or not callable(getattr(image, "read", None)):
        return image
    try:
        data = image.read()
    except (OSError, ValueError) as error:
        raise InputError(
            f"the file that was given cannot be read ({error}); open it again with 'rb'"
        ) from None
    if isinstance(data, str):
        raise InputError("the file that was given is open as text; open it with 'rb', or pass its path")
    if not isinstance(data, bytes | bytearray | memoryview):
        raise InputError(f"read() of what was given gives {type(data).__name__} and no bytes; pass {_KINDS}")
    if not len(data):
        raise InputError(
            "the file that was given has nothing left to read; call its seek(0) first, or pass its path"
        )
    return data


def open_source(source: Any) -> Image.Image:
    """Return the RGB image of whatever a program has at hand: the one door for what the Python interface is given.

    Args:
        source: one image, as `Given`, except an open file (`sources_of` reads those).

    Raises:
        InputError: anything else, or a file, bytes or a Pillow image that cannot be decoded.
    """
    if isinstance(source, Image.Image):
        return _decoded(source)
    if isinstance(source, bytes | bytearray | memoryview):
        return decode_image(bytes(source))
    if isinstance(source, np.ndarray):
        check_array(source)
        if source.ndim == 4:
            raise InputError(
                "an array of several images in a list; pass it alone, or its images one by one: [*array]"
            )
        pixels = source[:, :, 0] if source.ndim == 3 and source.shape[2] == 1 else source
        return to_rgb(Image.fromarray(np.ascontiguousarray(pixels)))
    if isinstance(source, str | os.PathLike):
        path = os.fsdecode(source)
        if path.partition("://")[0] in ("http", "https"):
            raise InputError(f"{path}: an address and no file; fetch it, and pass its bytes or an open file")
        return load_image(Path(path))
    if _is_tensor(source):
        raise InputError(_tensor(source))
    raise InputError(f"an image must be {_KINDS}, got {type(source).__name__}")


def _decoded(image: Image.Image) -> Image.Image:
    """Return a Pillow image in RGB. One that was opened and not read is decoded here, and says here what is wrong with it."""
    try:
        image.load()
        return to_rgb(image)
    except InputError:
        raise
    except MemoryError:
        raise InputError(
            f"too little memory to decode {image.width} x {image.height} pixels; make it smaller"
        ) from None
    except Exception as error:  # of any type, from Pillow's parsers
        said = " ".join(str(error).split()) or type(error).__name__
        raise InputError(
            f"cannot decode the Pillow image ({said}); open it again, or pass its path"
        ) from None


def check_array(array: np.ndarray) -> None:
    """Refuse an array that is no picture, or no several of them, and say what makes it one.

    Raises:
        InputError: another type than uint8, other dimensions, or no pixels.
    """
    if array.dtype != np.uint8:
        raise InputError(
            f"an image as an array must be uint8, 0 to 255, got {array.dtype} of shape {array.shape}; {_to_uint8(array)}"
        )
    if 0 in array.shape:
        raise InputError(
            f"an array of shape {array.shape} has no pixels; leave it out, or see where it was cut"
        )
    if array.ndim not in (2, 3, 4) or (array.ndim > 2 and array.shape[-1] not in _CHANNELS):
        raise InputError(_wrong_shape(array))


def _to_uint8(array: np.ndarray) -> str:
    kind = array.dtype.kind
    if kind == "f":
        return "pass (255 * array).round().astype(numpy.uint8) of values from 0 to 1; images that are prepared already go to logits()"
    if array.dtype == np.uint16:
        return "pass (array >> 8).astype(numpy.uint8), the bits that 16-bit files are cut to"
    if kind == "b":
        return "pass array * numpy.uint8(255)"
    return "pass array.astype(numpy.uint8) of values from 0 to 255" if kind in "iu" else f"pass {_KINDS}"


def _wrong_shape(array: np.ndarray) -> str:
    got = f"an image as an array must be {_ORDER}, (height, width, 4) or (height, width), got shape {array.shape}"
    if array.ndim == 3 and array.shape[0] in _CHANNELS:
        return f"{got}; pass array.transpose(1, 2, 0), which puts the channels last"
    if array.ndim == 4 and array.shape[1] in _CHANNELS:
        return f"{got}; pass array.transpose(0, 2, 3, 1), which puts the channels last"
    if array.ndim == 3 and array.shape[2] == 2:
        return f"{got}; pass array[:, :, 0], grey without its transparency"
    if array.ndim == 3:
        return f"{got}; pass list(array) if it is several grey images"
    return f"{got}; pass several images as (n, height, width, 3), or as a list"


def _is_tensor(value: Any) -> bool:
    """Whether it is an array of another library: PyTorch's, JAX's, TensorFlow's."""
    return hasattr(value, "__dlpack__") or callable(getattr(value, "numpy", None))


def _tensor(value: Any) -> str:
    return (
        f"a {type(value).__name__} is taken for no picture, since nothing says how it was scaled; pass its pixels as a NumPy array, uint8 "
        f"{_ORDER}; images that are prepared already go to logits(), as a NumPy array too"
    )
