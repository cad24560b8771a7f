"""The decoding model of a repository, without a server: what it answers to the requests that Triton gives it together."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from engines import cpu
from sit_deploy.preprocessing import Preprocessing, decode_image
from tests.helpers.noise_pictures import picture
from tests.helpers.triton_decoding import decoding_model
from tests.sit_deploy.test_preprocessing import turned

SEEN = Preprocessing((8, 8), 10, orientation="exif")


@pytest.fixture
def model() -> Iterator[Any]:
    with decoding_model(SEEN) as made:
        yield made


def request(*data: bytes) -> np.ndarray:
    return np.array(data, object).reshape(-1, 1)


def png(image: Image.Image) -> bytes:
    out = io.BytesIO()
    image.save(out, "png")
    return out.getvalue()


def test_a_bad_image_fails_its_own_request_alone(model: Any) -> None:
    good = png(picture(20, 30))
    bomb = png(Image.new("1", (30000, 6000)))
    answers = model.execute(
        [
            request(good),
            request(good, b"no image"),
            request(good[:90]),
            request(good, good),
            request(bomb),
            request(),
        ]
    )
    assert [a.tensors is not None for a in answers] == [True, False, False, True, False, True]
    assert np.array_equal(answers[3].tensors[0][1], SEEN(picture(20, 30)))
    assert answers[5].tensors[0].shape == (0, 3, 8, 8)
    errors = [a.error.args for a in answers if a.error]
    assert {code for _, code in errors} == {400}
    assert errors[0][0].startswith("image 1 of 2: not an image") and "cannot decode" in errors[1][0]
    assert "more than the 178,956,970 pixels" in errors[2][0]


def test_a_fault_of_ours_fails_its_own_request_alone(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(image: Image.Image) -> np.ndarray:
        if image.width == 7:
            raise MemoryError("too much")
        return SEEN(image)

    monkeypatch.setattr(type(model._preprocessing), "__call__", lambda _, image: fail(image))
    bad, good = model.execute([request(png(picture(7, 9))), request(png(picture(9, 9)))])
    assert bad.error.args == ("cannot be prepared (MemoryError: too much)", 500)
    assert good.error is None


def test_threads_that_decode_are_no_more_than_a_container_has_time_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(cpu, "cpu_count", lambda: 2)
    monkeypatch.setattr("os.cpu_count", lambda: 64)
    with decoding_model(SEEN) as model:
        assert model._pool._max_workers == 2


def test_pictures_are_turned_and_strips_cost_nothing(model: Any, tmp_path: Path) -> None:
    data = turned(picture(40, 20), 6, tmp_path / "turned.jpg").read_bytes()
    strip = png(Image.new("1", (1, 60000), 1))
    for given in (data, base64.b64encode(data), strip):
        (answer,) = model.execute([request(given)])
        image = decode_image(data if given is not strip else strip)
        assert np.array_equal(answer.tensors[0][0], SEEN(image))
    assert not np.array_equal(
        SEEN(decode_image(data)), replace(SEEN, orientation="stored")(decode_image(data))
    )
