from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from sit_deploy.data.image_folder import ImageFolder
from sit_deploy.data.samples import Subset, describe, spread_over


def test_part_of_a_data_set(make_image_folder: Callable[..., Path]) -> None:
    samples = ImageFolder(make_image_folder(("a", "b", "c"), per_class=7)).samples
    part = Subset(samples, [3, 9])
    assert len(part) == 2 and part[1] == samples[9] and describe(part, 1) == str(samples[9][0])
    assert spread_over(samples, None) is samples
    labels = [label for _, label in spread_over(part, 1)]
    assert len(labels) == 1 and {label for _, label in spread_over(samples, 3)} == {0, 1, 2}
