"""What a search refuses at once: all that its builds would refuse at the end, in the words of a build, before anything is loaded or measured."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import engines
from calibration.errors import CalibrationError
from engines.errors import EngineError
from sit_deploy.errors import InputError
from sit_deploy.pipeline.build import build
from sit_deploy.pipeline.request import BuildRequest
from sit_deploy.search.request import AUTO, SearchRequest
from sit_deploy.search.run import search

_WHY = "OpenVINO would emulate bf16 on this CPU"


@pytest.fixture(autouse=True)
def nothing_is_begun(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: Any) -> None:
        raise AssertionError("the search was begun")

    monkeypatch.setattr("sit_deploy.search.run.set_up", never)


@pytest.fixture
def without_bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    """A CPU that has neither BF16 nor INT8, whatever this one has."""
    monkeypatch.setattr(
        type(engines.get("openvino")),
        "lacks",
        lambda _, precision: _WHY if precision in ("bf16", "int8") else None,
    )


def refused(output: Path, precisions: tuple[str, ...] = (), **fields: Any) -> str:
    """Return why a search is refused."""
    one = BuildRequest("lvvit_nano", None, **{"engine": "openvino", "num_classes": 2, **fields})
    with pytest.raises((InputError, EngineError, CalibrationError)) as refusal:
        search(SearchRequest(build=one, output=output / "found", latency=1.0, precisions=precisions))
    assert list(output.iterdir()) == []
    return str(refusal.value)


@pytest.mark.parametrize(
    "fields",
    [
        {"precision": "bf16"},
        {"precision": "int8", "quantize": ("default",)},
        {"precision": "fp8", "quantize": ("default",)},
        {"precision": "bf16", "engine": "onnxruntime"},
        {"precision": "fp12"},
        {"precision": "int8", "quantize": ("default",), "rest": "bf16", "engine": "onnxruntime"},
        {"precision": "int8", "quantize": ("qkv", "everything"), "engine": "onnxruntime"},
        {"precision": "int8", "quantize": ("default",), "min_sqnr": 30.0, "engine": "onnxruntime"},
        {"quantize": ("default",)},
        {"rest": "fp16"},
        {"calib_data": Path("/nowhere/at/all")},
        {
            "precision": "int8",
            "quantize": ("default",),
            "calib_data": Path("/nowhere"),
            "engine": "onnxruntime",
        },
        {"calib_images": 10**7},
        {"image_size": 100},
        {"engine": "onnx"},
    ],
    ids=lambda fields: "-".join(map(str, fields.values())),
)
def test_a_search_refuses_what_its_builds_would(
    fields: dict[str, Any], without_bf16: None, tmp_path: Path
) -> None:
    said = refused(tmp_path, **fields)
    one = BuildRequest("lvvit_nano", tmp_path / "b", **{"engine": "openvino", "num_classes": 2, **fields})
    with pytest.raises((InputError, EngineError, CalibrationError)) as theirs:
        build(one)
    assert said == str(theirs.value)


def test_of_all_precisions_those_that_are_lacking_are_left_out(without_bf16: None, tmp_path: Path) -> None:
    one = BuildRequest("lvvit_nano", None, engine="openvino", num_classes=2)
    with pytest.raises(AssertionError, match="the search was begun"):
        search(SearchRequest(build=one, output=tmp_path / "found", latency=1.0, precisions=(AUTO,)))


def test_layers_chosen_by_the_clock_are_refused(tmp_path: Path) -> None:
    said = refused(tmp_path, precision="int8", quantize=("auto",), engine="onnxruntime")
    assert said.startswith("--quantize auto would choose other layers for every schedule")


def test_a_model_that_cannot_be_slimmed_is_refused(tmp_path: Path) -> None:
    one = BuildRequest("swinv2_tiny_window8_256", None, engine="onnxruntime")
    with pytest.raises(InputError):
        search(SearchRequest(build=one, output=tmp_path / "found", latency=1.0))
