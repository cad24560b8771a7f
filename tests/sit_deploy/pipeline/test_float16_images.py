"""Which images say what FP16 can hold."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from PIL import Image

from sit_deploy.pipeline.lower import _ranges, _to_half
from sit_deploy.pipeline.request import BuildRequest
from sit_deploy.pipeline.work import Work
from sit_deploy.preprocessing import Preprocessing


def work_on(folder: Path | None, **options: Any) -> Work:
    request = BuildRequest("sit_nano", Path("m.onnx"), "fp16", calib_data=folder, **options)
    return Work(request, lambda *_: None)


@pytest.mark.parametrize(
    ("options", "reach"), [({}, 1), ({"calib_images": 4}, 0), ({"calib_images": 400}, 1), (None, 0)]
)
def test_an_outlier_in_one_image_of_many_is_seen(
    options: dict[str, int] | None, reach: int, tmp_path: Path
) -> None:
    """Twenty pictures, one of them white; eight are compared, and it is not among them."""
    for index in range(20):
        Image.new("RGB", (32, 32), "white" if index == 7 else "black").save(tmp_path / f"{index:02}.png")
    graph = onnx.parser.parse_model(
        """<ir_version: 9, opset_import: ["": 20]> g (float[1,3,32,32] images) => (float[1,3,32,32] y)
        <float large = {50000}> { [scale] y = Mul (images, large) }"""
    )
    prepare = Preprocessing.for_model(32)
    dark = np.stack([prepare(Image.new("RGB", (32, 32), "black"))] * 8)
    float_graph = SimpleNamespace(preprocessing=prepare, compared=SimpleNamespace(normalised=dark))
    work = work_on(tmp_path, **options) if options is not None else work_on(None)
    seen = _ranges(work, float_graph, graph, lambda *_: None)
    white = prepare(Image.new("RGB", (32, 32), "white")).max()
    assert seen["y"].max == pytest.approx(50000 * white if reach else 50000 * dark.max())
    assert seen["y"].min == pytest.approx(50000 * dark.min())


@pytest.mark.parametrize("size", [1418.0, 100.0])
def test_what_float16_rounds_away_stays_float32_where_that_is_needed(size: float, tmp_path: Path) -> None:
    """A constant comes to a stream of small values and goes again: at 1418 the steps of float16 are 1."""
    graph = onnx.parser.parse_model(
        """<ir_version: 9, opset_import: ["": 20]>
        g (float[1,3,4,4] images) => (float[1,48] logits)
        <float[1] come = {COME}, float[1] go = {-COME}, int64[2] flat = {1,48}>
        { [come] a = Add (images, come) [go] b = Add (a, go) [flat] logits = Reshape (b, flat) }""".replace(
            "COME", f"{size:g}"
        )
    )
    images = np.random.default_rng(0).normal(size=(4, 3, 4, 4)).astype(np.float32)
    logits = images.reshape(4, 48)
    compared = SimpleNamespace(normalised=images, reference=logits)
    float_graph = SimpleNamespace(preprocessing=None, compared=compared)
    work = work_on(None)
    low, plan, found = _to_half(work, float_graph, graph, logits, graph, tmp_path)
    held = {node.node: node.sentence for node in plan.held_back}
    if size < 256:
        assert held == {} and work.notes == []
        return
    assert set(held) == {"come", "go"} and "too coarse for this model" in held["come"]
    assert work.notes == ["fp16 rounds values above 256 too coarsely for this model: 2 more nodes stay fp32"]
    assert np.abs(found["logits"] - logits).max() < 1e-2
    assert [hop.passed for hop in work.hops] == [True]
    assert low == onnx.load(tmp_path / "model.onnx")
