"""Images that were left out, as they are told of."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from PIL import Image

from sit_deploy.data.damaged import DamagedImages
from sit_deploy.errors import InputError
from sit_deploy.preprocessing import Preprocessing

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
