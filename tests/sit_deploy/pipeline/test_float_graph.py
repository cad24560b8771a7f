"""What is told of the images that every graph is compared on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sit_deploy.pipeline import float_graph
from sit_deploy.pipeline.request import BuildRequest
from sit_deploy.pipeline.work import Work
from sit_deploy.preprocessing import Preprocessing


@pytest.mark.parametrize("raw", [False, True])
@pytest.mark.parametrize(
    ("pictures", "said"),
    [
        ([np.zeros((9, 9, 3))] * 3, "they are all one picture"),
        ([np.random.default_rng(0).integers(0, 256, (9, 9, 3))] * 2, "they are all one picture"),
        ([np.full((9, 9, 3), (i, 40, 90 - i)) for i in range(3)], "each is of one colour all over"),
        ([np.random.default_rng(i).integers(0, 256, (9, 9, 3)) for i in range(2)], None),
        ([np.random.default_rng(0).integers(0, 256, (9, 9, 3))], None),
    ],
)
def test_images_that_tell_nothing_are_warned_of(
    pictures: list[Any], said: str | None, raw: bool, tmp_path: Path
) -> None:
    """Black frames, or one picture many times: every graph agrees on them."""
    for i, pixels in enumerate(pictures):
        Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / f"{i}.png")
    prepare = Preprocessing.for_model(112)
    work = Work(BuildRequest("sit_nano", Path("out"), calib_data=tmp_path), print)
    float_graph._images(work, prepare.raw if raw else prepare)
    assert [said in str(note) for note in work.notes if said] == [True] * bool(said)
    assert len(work.notes) == bool(said)


def test_of_images_to_calibrate_on_the_calibration_says_it(tmp_path: Path) -> None:
    for i in range(2):
        Image.new("RGB", (9, 9)).save(tmp_path / f"{i}.png")
    work = Work(BuildRequest("sit_nano", Path("out"), precision="int8", calib_data=tmp_path), print)
    float_graph._images(work, Preprocessing.for_model(112))
    assert work.notes == []
