"""Which builds are tuned, and what is asked for that contradicts itself."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import engines
from sit_deploy.errors import InputError
from sit_deploy.pipeline import tuning
from sit_deploy.pipeline.engine import fit_request, untuned
from sit_deploy.pipeline.request import AUTO, BuildRequest
from sit_deploy.pipeline.request_check import check_request
from tests.helpers.digits import Digits, trained_checkpoint


def request_for(**fields: Any) -> BuildRequest:
    return BuildRequest("sit_nano", Path("out"), "int8", **fields)


def test_auto_is_the_default_where_the_engine_runs_here() -> None:
    for kind in ("onnxruntime", "openvino"):
        engine = engines.get(kind)
        fitted = fit_request(request_for(), engine)
        assert fitted.tunes and fitted.rest is None
        assert fit_request(request_for(quantize=("default",)), engine).quantize == ("default",)
        assert fit_request(request_for(rest="fp32"), engine).rest == "fp32"
        assert not fit_request(replace(request_for(), precision="fp32"), engine).tunes


def test_what_is_not_tuned(quick_float: Digits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runtime, gpu = engines.get("onnxruntime"), engines.get("tensorrt-rtx")
    assert "CPU engines" in untuned(request_for(), gpu) and "CPU engines" in untuned(
        replace(request_for(), precision="fp8"), runtime
    )
    seen = runtime.probe()
    monkeypatch.setattr(type(runtime), "probe", lambda _: replace(seen, can_run=False))
    assert untuned(request_for(), runtime) == "ONNX Runtime does not run here"
    monkeypatch.undo()
    cached = request_for(calib_cache=Path("c.json"))
    assert "--calib-data" in untuned(cached, runtime) and fit_request(cached, runtime).quantize is None
    trained = quick_float.request(
        tmp_path, checkpoint=trained_checkpoint(quick_float, tmp_path, {"head": 1.0}), quantize=None
    )
    for groups in (None, AUTO):
        fitted = fit_request(replace(trained, quantize=groups), runtime)
        assert fitted.quantize is None and fitted.trained_thresholds and fitted.rest == "fp32"


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"quantize": ("auto", "stem")}, "--quantize auto chooses the groups itself; pass --quantize auto, or --quantize stem"),
        ({"quantize": ("auto",), "precision": "fp8"}, "--quantize auto is for int8"),
        ({"quantize": ("auto",), "precision": "fp32"}, "--quantize is for 8 bits"),
        ({"tune_seconds": 9.0, "precision": "fp32"}, "--tune-seconds is for 8 bits"),
        ({"min_sqnr": 30.0, "precision": "fp16"}, "--min-sqnr is for 8 bits"),
        ({"min_sqnr": 0.0, "precision": "fp16"}, "--min-sqnr is for 8 bits"),
        ({"min_sqnr": 30.0, "quantize": ("fc1",)}, "--min-sqnr is for --quantize auto; leave it out, or --quantize fc1"),
        ({"tune_seconds": 9.0, "quantize": ("default",)}, "--tune-seconds is for --quantize auto"),
        ({"tune_seconds": 0.0}, "--tune-seconds must be above 0"),
        ({"tune_seconds": -1.0}, "--tune-seconds must be above 0"),
        ({"tune_seconds": float("nan")}, "--tune-seconds must be a number"),
        ({"tune_seconds": 1e9}, "--tune-seconds must be a number up to"),
        ({"min_sqnr": -1.0}, "--min-sqnr must be 0 to 200 dB"),
        ({"min_sqnr": float("nan")}, "--min-sqnr must be a number"),
    ],
)  # fmt: skip
def test_contradictions(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError) as caught:
        check_request(replace(request_for(), **fields))
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_auto_by_name_where_it_cannot_be_done() -> None:
    gpu = engines.get("tensorrt-rtx")
    with pytest.raises(
        InputError, match=r"--quantize auto cannot be done: plans are tuned for int8 on CPU engines"
    ):
        fit_request(request_for(quantize=AUTO), gpu)
    with pytest.raises(InputError, match=r"--min-sqnr is for --quantize auto, and plans are tuned for"):
        fit_request(request_for(min_sqnr=30.0), gpu)


@pytest.mark.parametrize(("usual", "least"), [(47.0, 30.0), (31.0, 30.0), (28.0, 27.0)])
def test_what_a_plan_must_keep_where_nobody_says(usual: float, least: float) -> None:
    """Enough is enough; a model that has less with the usual plan keeps nearly that."""
    assert tuning.least_db(usual) == least
