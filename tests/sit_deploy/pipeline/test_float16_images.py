"""Which images say what FP16 can hold."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from PIL import Image

from sit_deploy.pipeline.lower import _ranges
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
