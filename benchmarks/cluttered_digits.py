"""Renders an image folder that is hard enough to tell training methods apart, out of scikit-learn's 8×8 digits.

    python benchmarks/cluttered_digits.py OUT --train 6000 --val 1000 --seed 0

One digit of random size, rotation, shear, place and colour lies over a textured background with fragments of other digits
and noise, after the "cluttered MNIST" of "Recurrent Models of Visual Attention" (Mnih et al. 2014). Images are 112×112 PNGs
in OUT/{train,val}/{0..9}; the classes take turns. Digits of val are never seen in train, as fragments neither. Image i of a
split depends on the seed and i alone, so a smaller set is the beginning of a larger one. Needs scikit-learn and Pillow.
"""

from __future__ import annotations

import argparse
import math
import os
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

SIDE = 112
CLASSES = 10
VAL_SHARE = 0.2  # of the source digits of every class
SPLITS = ("train", "val")

Digits = dict[int, np.ndarray]  # class → (n, 8, 8) uint8


def source_digits(split: str) -> Digits:
    """Return the split's share of the 1797 digits, by class. The shares are disjoint and do not depend on any seed."""
    from sklearn.datasets import load_digits

    data = load_digits()
    images = np.round(data.images * (255 / 16)).astype(np.uint8)
    digits = {}
    for label in range(CLASSES):
        members = images[data.target == label]
        members = members[np.random.default_rng(label).permutation(len(members))]
        cut = round(len(members) * VAL_SHARE)
        digits[label] = members[:cut] if split == "val" else members[cut:]
    return digits


def place(glyph: np.ndarray, size: float, angle: float, shear: float, x: float, y: float) -> np.ndarray:
    """Return the coverage (SIDE, SIDE), 0 to 1, of `glyph` (h, w) drawn about (x, y).

    size: pixels that 8 pixels of the glyph become. angle: radians. x, y: centre in pixels.
    """
    scale = 8 / size
    cos, sin = math.cos(angle) * scale, math.sin(angle) * scale
    a, b, d, e = cos, sin + shear * cos, -sin, cos - shear * sin  # output pixel → glyph pixel
    height, width = glyph.shape
    offset = (width / 2 - a * x - b * y, height / 2 - d * x - e * y)
    matrix = (a, b, offset[0] + 1, d, e, offset[1] + 1)
    image = Image.fromarray(np.pad(glyph, 1))  # an empty rim, so that strokes fade out instead of ending hard
    image = image.transform((SIDE, SIDE), Image.Transform.AFFINE, matrix, Image.Resampling.BICUBIC)
    return np.asarray(image) / 255


def texture(rng: np.random.Generator) -> np.ndarray:
    """Return a background (SIDE, SIDE, 3), roughly 0 to 1: a colour, blotches of three sizes, and stripes."""
    image = np.broadcast_to(rng.uniform(0.1, 0.5, 3), (SIDE, SIDE, 3)).copy()
    for cells in (4, 9, 20):
        blotches = rng.integers(0, 256, (cells, cells, 3), dtype=np.uint8)
        smooth = Image.fromarray(blotches).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
        image += rng.uniform(0.05, 0.3) * (np.asarray(smooth) / 255 - 0.5)
    angle, wavelength, phase = rng.uniform(0, math.pi), rng.uniform(5, 25), rng.uniform(0, 2 * math.pi)
    y, x = np.mgrid[:SIDE, :SIDE]
    wave = np.sin((x * math.cos(angle) + y * math.sin(angle)) * (2 * math.pi / wavelength) + phase)
    return image + rng.uniform(0, 0.12) * wave[..., None] * rng.uniform(-1, 1, 3)


def paint(image: np.ndarray, coverage: np.ndarray, contrast: float, rng: np.random.Generator) -> None:
    """Draw `coverage` in place, in a random colour that is brighter by about `contrast` than what lies beneath."""
    beneath = (image * coverage[..., None]).sum((0, 1)) / max(float(coverage.sum()), 1e-6)
    tint = rng.uniform(0.2, 1, 3)
    colour = beneath + contrast * tint / tint.mean()
    image += coverage[..., None] * (colour - image)


def fragment(digits: Digits, rng: np.random.Generator) -> np.ndarray:
    """Return a random 4×4 or 5×5 piece of a random digit."""
    of_class = digits[int(rng.integers(CLASSES))]
    digit = of_class[rng.integers(len(of_class))]
    side = int(rng.integers(4, 6))
    top, left = rng.integers(0, 9 - side, 2)
    return digit[top : top + side, left : left + side]


def render(digits: Digits, label: int, rng: np.random.Generator) -> np.ndarray:
    """Return one image uint8 (SIDE, SIDE, 3) of a digit of class `label`."""

    def pose(size: float, margin: float, turn: float) -> tuple[float, float, float, float, float]:
        x, y = rng.uniform(margin, SIDE - margin, 2)
        return size, rng.uniform(-turn, turn), rng.uniform(-0.3, 0.3), x, y

    image = texture(rng)
    for _ in range(int(rng.integers(3, 8))):
        piece = place(fragment(digits, rng), *pose(rng.uniform(28, 60), 0, math.pi))
        paint(image, piece, rng.uniform(0.1, 0.35), rng)
    size = rng.uniform(56, 92)
    glyph = digits[label][rng.integers(len(digits[label]))]
    paint(image, place(glyph, *pose(size, size * 0.45, math.radians(20))), rng.uniform(0.28, 0.45), rng)
    image += rng.normal(scale=rng.uniform(0.01, 0.08), size=image.shape)
    return np.round(np.clip(image, 0, 1) * 255).astype(np.uint8)


def write(out: Path, counts: dict[str, int], seed: int) -> None:
    """Render every split into `out`, which must not exist; it appears whole or not at all."""
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent) as scratch:
        whole = Path(scratch) / out.name
        for number, split in enumerate(SPLITS):
            digits = source_digits(split)
            for label in range(CLASSES):
                (whole / split / str(label)).mkdir(parents=True)
            for i in range(counts[split]):
                label = i % CLASSES
                image = render(digits, label, np.random.default_rng((seed, number, i)))
                Image.fromarray(image).save(whole / split / str(label) / f"{i:06}.png", compress_level=1)
        whole.replace(out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, help="folder to make")
    parser.add_argument("--train", type=int, default=6000, help="images to train on (default: %(default)s)")
    parser.add_argument("--val", type=int, default=1000, help="images to test on (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="(default: %(default)s)")
    options = parser.parse_args()
    if min(options.train, options.val) < CLASSES or options.seed < 0:
        parser.error(f"a split needs at least {CLASSES} images, one a class, and a seed is 0 or more")
    if os.path.lexists(options.out):
        parser.error(f"{options.out} exists already; name a new folder")
    write(options.out, {"train": options.train, "val": options.val}, options.seed)
    print(f"{options.out}: {options.train} training and {options.val} validation images", file=sys.stderr)


if __name__ == "__main__":
    main()
