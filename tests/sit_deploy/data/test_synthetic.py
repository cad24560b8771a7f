from __future__ import annotations

import hashlib
import itertools

import numpy as np
import pytest

from sit_deploy.data.synthetic import synthetic_images
from sit_deploy.errors import InputError


def test_pixels_are_pinned() -> None:
    """Reports are compared across machines: the same seed must be the same pixels everywhere."""
    pixels = b"".join(image.tobytes() for image in synthetic_images(2, (96, 80), seed=3))
    assert (
        hashlib.sha256(pixels).hexdigest()
        == "67d79e9f55a7e312fb1380b4edc414e03d945f62762c563a809a96a09e014247"
    )


def test_count_size_and_seed() -> None:
    images = synthetic_images(3, (64, 48))
    assert [(image.size, image.mode) for image in images] == [((64, 48), "RGB")] * 3
    assert synthetic_images(1, 64)[0].size == (64, 64)
    assert images[0].tobytes() == synthetic_images(1, (64, 48))[0].tobytes()
    assert len({image.tobytes() for image in images + synthetic_images(3, (64, 48), seed=1)}) == 6


@pytest.mark.slow
def test_statistics_are_those_of_photographs() -> None:
    images = np.stack([np.asarray(image) for image in synthetic_images(8, 256)]).astype(float)
    assert 80 < images.mean() < 150
    assert all(40 < image.std() < 90 for image in images)
    # Colour channels go together, neighbours even more so.
    red, green, blue = images.reshape(-1, 3).T
    assert np.corrcoef(red, green)[0, 1] > 0.6 and np.corrcoef(green, blue)[0, 1] > 0.6
    grey = images.mean(-1)
    assert np.corrcoef(grey[:, :, 1:].ravel(), grey[:, :, :-1].ravel())[0, 1] > 0.9

    power = (np.abs(np.fft.fft2(grey)) ** 2).mean(0)
    frequency = np.hypot(*np.meshgrid(np.fft.fftfreq(256), np.fft.fftfreq(256)))
    edges = np.geomspace(0.01, 0.4, 12)
    bands = [power[(frequency >= a) & (frequency < b)].mean() for a, b in itertools.pairwise(edges)]
    slope = np.polyfit(np.log(np.sqrt(edges[1:] * edges[:-1])), np.log(bands), 1)[0]
    assert -3.2 < slope < -1.8


@pytest.mark.parametrize("arguments", [(0, 64, 0), (1, 8, 0), (1, (64, 15), 0), (1, 64, -1)])
def test_bad_arguments(arguments: tuple) -> None:
    with pytest.raises(InputError):
        synthetic_images(*arguments)
