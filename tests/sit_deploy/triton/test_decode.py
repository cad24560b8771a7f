"""The decoding model of a repository, without a server: what it answers to the requests that Triton gives it together."""

from __future__ import annotations

import base64
import importlib.util
import io
import json
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

import sit_deploy
from sit_deploy.preprocessing import Preprocessing, decode_image
from tests.sit_deploy.test_preprocessing import picture, turned

SEEN = Preprocessing((8, 8), 10, orientation="exif")


@dataclass
class Answer:
    """What Triton would send: tensors, or an error with its code."""

    tensors: Any = None
    error: Any = None


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The model with its own copies of our files, beside a stand-in for the module that Triton gives it."""
    backend = ModuleType("triton_python_backend_utils")
    error = type(
        "TritonError",
        (),
        {"INVALID_ARG": 400, "INTERNAL": 500, "__init__": lambda self, *a: setattr(self, "args", a)},
    )
    backend.TritonError = error
    backend.Tensor = lambda name, array: array
    backend.InferenceResponse = Answer
    backend.get_input_tensor_by_name = lambda request, _: SimpleNamespace(as_numpy=lambda: request)
    package = Path(sit_deploy.__file__).parent
    parts = ModuleType("sit_deploy_parts")
    parts.__path__ = [str(package)]
    for name, module in (("triton_python_backend_utils", backend), ("sit_deploy_parts", parts)):
        monkeypatch.setitem(sys.modules, name, module)
    spec = importlib.util.spec_from_file_location("decode_model", package / "triton/python_models/decode.py")
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    made = loaded.TritonPythonModel()
    config = {
        "input": [{"name": "image"}],
        "output": [{"name": "images"}],
        "parameters": {"preprocessing": {"string_value": json.dumps(SEEN.to_dict())}},
    }
    made.initialize({"model_config": json.dumps(config)})
    yield made
    made.finalize()
    for name in [name for name in sys.modules if name.startswith("sit_deploy_parts.")]:
        del sys.modules[name]


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
