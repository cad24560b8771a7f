"""Images that were left out, as they are told of."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from PIL import Image

from sit_deploy import preprocessing
from sit_deploy.data.damaged import DamagedImages
from sit_deploy.errors import InputError
from sit_deploy.preprocessing import Preprocessing, is_image

SMALL = Preprocessing.for_model(32)


@pytest.mark.parametrize(
    ("name", "told"), [(b"caf\xe9.png", "caf\\xe9.png"), (b"two\nlines.png", "two\\nlines.png"), ("größe.png".encode(), "größe.png")]
)  # fmt: skip
def test_a_name_of_any_bytes_is_told_on_one_line(name: bytes, told: str, tmp_path: Path) -> None:
    """It goes into a manifest's notes, which are UTF-8; the image itself is found by the name that it has."""
    broken = Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + name))
    broken.write_bytes(b"none")
    Image.new("RGB", (40, 40)).save(tmp_path / "whole.png")
    damaged = DamagedImages()
    assert damaged.whole([broken, tmp_path / "whole.png"], 2, SMALL) == [tmp_path / "whole.png"]
    (found,) = damaged.found
    assert found.image == str(broken)
    assert found.reason.startswith(f"{tmp_path}/{told}: not an image that can be read")
    assert found.reason.count(str(tmp_path)) == 1 and found.reason in damaged.words
    assert "\n" not in damaged.words and damaged.words.encode()
    with pytest.raises(InputError) as refusal:
        DamagedImages(0).whole([broken], 1, SMALL)
    assert f"the last: {tmp_path}/{told}: not an image" in str(refusal.value) and str(refusal.value).encode()


def test_heads_are_looked_at_once_for_all_bundles_of_a_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each bundle opened every file of the data set anew, 50 000 of ImageNet's."""
    looked: list[Path] = []
    monkeypatch.setattr(preprocessing, "is_image", lambda file: looked.append(file) or is_image(file))
    files = [tmp_path / "a.png", tmp_path / "b.png", tmp_path / "gone.png"]
    Image.new("RGB", (40, 40)).save(files[0])
    files[1].write_bytes(b"none")
    for _ in range(3):
        damaged = DamagedImages()
        damaged.look_at_heads(files)
        assert [one.image for one in damaged.found] == [str(files[1]), str(files[2])]
    assert (looked.count(files[0]), looked.count(files[1])) == (1, 1)
    files[0].write_bytes(b"no image any more")
    damaged = DamagedImages()
    damaged.look_at_heads(files)
    assert len(damaged.found) == 3
