"""Pixels from memory of the caller's: what a picture's file gives, to the bit, whatever their format and however they lie."""

from __future__ import annotations

import io
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import PIL
import pytest
from PIL import Image

from sit_deploy.bundle import load_bundle
from sit_deploy.inference import load
from sit_deploy.preprocessing import load_image
from tests.engines.cpp.conftest import SOURCES, Programs
from tests.engines.cpp.manifests import rewrite
from tests.sit_deploy.conftest import Trained

if int(PIL.__version__.split(".")[0]) < 13:
    pytest.skip("older Pillow resizes tall images in another order", allow_module_level=True)

# in the order of PixelFormat: the mode of a file with the same picture, and its channels in memory
FORMATS = {
    "rgb": ("RGB", (0, 1, 2)),
    "bgr": ("RGB", (2, 1, 0)),
    "grey": ("L", (0,)),
    "rgba": ("RGBA", (0, 1, 2, 3)),
    "bgra": ("RGBA", (2, 1, 0, 3)),
}
SHAPES = [(160, 120), (120, 160), (61, 37), (128, 128), (129, 128), (1, 50), (333, 1001)]


def picture(name: str, width: int, height: int) -> Image.Image:
    """Noise in the mode of a file that holds what the format holds."""
    mode, order = FORMATS[name]
    noise = np.random.default_rng(width * 1009 + height + len(order)).integers(
        0, 256, (height, width, len(order))
    )
    return Image.fromarray(noise.astype(np.uint8).squeeze(2) if mode == "L" else noise.astype(np.uint8))


class Memory:
    """Pictures as they lie in one file of raw bytes, and where."""

    def __init__(self, path: Path) -> None:
        self.path, self.words = path, []
        self._data = io.BytesIO()

    def add(self, image: Image.Image, name: str, padding: int, orientation: int = 1) -> None:
        """Rows with `padding` bytes of anything behind each but the last, which ends where its pixels end."""
        order = FORMATS[name][1]
        rows = np.asarray(image).reshape(image.height, image.width, len(order))[:, :, order]
        rows = rows.reshape(image.height, -1)
        filled = np.pad(rows, ((0, 0), (0, padding)), constant_values=171)
        data = filled.tobytes()[: filled.size - padding]
        number = list(FORMATS).index(name)
        self.words.append(
            f"{self._data.tell()},{len(data)},{image.width},{image.height},{filled.shape[1]},{number},{orientation}"
        )
        self._data.write(data)
        self.path.write_bytes(self._data.getvalue())


@pytest.mark.slow
@pytest.mark.parametrize("name", FORMATS)
def test_pixels_are_prepared_as_their_lossless_file(
    name: str, checked: Programs, light: Path, trained_pixels: Path, tmp_path: Path
) -> None:
    """Of every format, with rows that end where they end and rows with something behind."""
    memory = Memory(tmp_path / "raw")
    images = [picture(name, *shape) for shape in SHAPES]
    for number, image in enumerate(images):
        image.save(tmp_path / f"{number}.png")
        memory.add(image, name, padding=(0, 1, 29)[number % 3])
    for folder in (light, trained_pixels):
        how = load_bundle(folder).preprocessing()
        found = checked.output("sit_probe", "pixels", folder, memory.path, *memory.words)
        each = len(found) // len(images)
        for number in range(len(images)):
            ours = found[number * each :][:each]
            assert ours == how(load_image(tmp_path / f"{number}.png")).tobytes(), SHAPES[number]
            assert ours == checked.output("sit_probe", "prepare", folder, tmp_path / f"{number}.png")


@pytest.mark.slow
def test_pixels_are_turned_as_an_image_is(
    checked: Programs, light: Path, copy_of: Callable[..., Path], tmp_path: Path
) -> None:
    folder = rewrite(copy_of(light), lambda m: m["preprocessing"].update(orientation="exif"))
    how, image, memory = load_bundle(folder).preprocessing(), picture("bgr", 61, 37), Memory(tmp_path / "raw")
    expected = b""
    for orientation in range(1, 9):
        memory.add(image, "bgr", 5, orientation)
        image.getexif()[0x0112] = orientation
        expected += how(image).tobytes()
    assert checked.output("sit_probe", "pixels", folder, memory.path, *memory.words) == expected


@pytest.mark.slow
def test_a_batch_of_pixels_is_classified_as_its_files(
    checked: Programs, trained: Trained, tmp_path: Path
) -> None:
    """Of five sizes and formats at once, more than the engine takes: classes and probabilities to the bit."""
    memory, files = Memory(tmp_path / "raw"), []
    for number, name in enumerate(FORMATS):
        image = picture(name, 160 - 9 * number, 128 + number)
        files.append(tmp_path / f"{name}.png")
        image.save(files[-1])
        memory.add(image, name, number)
    found = checked.output("sit_probe", "look", trained.bundle, memory.path, *memory.words)
    assert found == checked.output("sit_probe", "classify", trained.bundle, *files)
    with load(trained.bundle) as classify:
        best = classify(files).argmax(1).tolist()
    assert [int(line.split()[0]) for line in found.splitlines()[::3]] == best


def test_what_is_wrong_with_pixels_is_said(
    checked: Programs, light: Path, nano_fp32: Path, tmp_path: Path
) -> None:
    (tmp_path / "raw").write_bytes(bytes(100))
    for words, said in {
        "0,100,0,5,15,0,1": "an image of 0 x 5 pixels has nothing to see; pass its width and height",
        "0,100,-5,5,15,0,1": "an image of -5 x 5 pixels has nothing to see; pass its width and height",
        "0,100,4294967296,4294967296,15,0,1": "an image of 4294967296 x 4294967296 pixels is too large to trust; are width and height right?",
        "0,100,5,5,14,1,1": "a stride of 14 bytes is less than the 15 of a row of 5 pixels of 3; pass the bytes from the start of a row to the next",
        "0,100,5,5,15,3,1": "a stride of 15 bytes is less than the 20 of a row of 5 pixels of 4; pass the bytes from the start of a row to the next",
        "0,74,5,5,15,0,1": "an image of 5 x 5 pixels with a stride of 15 bytes does not fit into 74 bytes; pass the size of its whole memory, and its true stride",
        "0,100,5,5,15,5,1": "the pixel format 5 is unknown here; it must be rgb, bgr, grey, rgba or bgra",
        "0,100,5,5,15,0,9": "an image's orientation is 1 to 8, not 9",
    }.items():  # fmt: skip
        assert checked.refusal("sit_probe", "pixels", light, tmp_path / "raw", words) == said
    good = "0,75,5,5,15,0,1"
    line = checked.refusal("sit_probe", "look", nano_fp32, tmp_path / "raw", good, "0,74,5,5,15,0,1")
    assert line.startswith("image 2 of 2: an image of 5 x 5 pixels with a stride")


@pytest.mark.slow
def test_a_mat_of_opencv_is_viewed(tmp_path: Path) -> None:
    """With OpenCV's own headers where they are, else with declarations of ours that have what is used of it."""
    compiler, finder = shutil.which("c++"), shutil.which("pkg-config")
    if compiler is None:
        pytest.skip("needs c++: apt-get install g++")
    found = finder and subprocess.run(
        [finder, "--cflags", "--libs", "opencv4"], capture_output=True, text=True
    )
    if found and found.returncode == 0:
        opencv = [
            word
            for word in found.stdout.split()
            if not word.startswith("-lopencv") or word == "-lopencv_core"
        ]
    else:
        opencv = ["-isystem", str(Path(__file__).parent / "declarations")]
    done = subprocess.run(
        [compiler, "-std=c++17", "-Wall", "-Wextra", "-Wconversion", "-Werror", f"-I{SOURCES / 'include'}",
         str(SOURCES / "tests/sit_mat.cpp"), "-o", str(tmp_path / "sit_mat"), *opencv],
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    out = subprocess.run([str(tmp_path / "sit_mat")], capture_output=True, text=True, check=True).stdout
    assert out.splitlines() == [
        "whole 0 144 8 6 24 1",
        "part 30 114 4 3 24 1",
        "column 3 141 1 6 24 1",
        "grey 0 48 8 6 8 2",
        "four 0 48 2 6 8 4",
        "filled up 0 118 1 6 23 1",
        "empty: the cv::Mat is empty; was the frame read?",
        "16 bits: the cv::Mat does not have 8 bits a channel (its depth is 2, and CV_8U is 0); scale it to 0 to 255 with "
        "convertTo(mat, CV_8U, scale)",
        "two channels: the cv::Mat has 2 channels; turn it into one, three or four with cv::cvtColor",
        "cube: the cv::Mat has 3 dimensions; pass one image of two",
    ]
