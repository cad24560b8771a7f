from __future__ import annotations

from collections.abc import Callable, Sequence
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


def test_samples_that_are_decoded_when_they_are_fetched_are_so_once() -> None:
    """Once to see whether they can be read, and once more for who then used them."""
    from PIL import Image

    from sit_deploy.data.damaged import DamagedImages
    from sit_deploy.errors import InputError
    from sit_deploy.preprocessing import Preprocessing

    fetched: list[int] = []

    class Decoding(Sequence):
        def __len__(self) -> int:
            return 6

        def __getitem__(self, index: int) -> tuple[Image.Image, int]:
            fetched.append(index)
            if index == 3:
                raise InputError("image 3 cannot be decoded")
            return Image.new("RGB", (40, 40), (index, 0, 0)), index

        def describe(self, index: int) -> str:
            return f"image {index}"

    damaged = DamagedImages()
    chosen = damaged.whole_samples(Decoding(), 6, Preprocessing.for_model(32))
    assert [label for _, label in chosen] == [0, 1, 2, 4, 5]
    assert [image.getpixel((0, 0))[0] for image, _ in chosen] == [0, 1, 2, 4, 5]
    assert sorted(set(fetched)) == list(range(6)) and all(fetched.count(label) == 1 for _, label in chosen)
    assert [one.image for one in damaged.found] == ["image 3"]
