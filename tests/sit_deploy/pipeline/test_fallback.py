"""A build that gives 8 bits up builds without them, and keeps what was found on the way."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from engines.gpus import Gpu, GpuStatus
from sit_deploy.errors import InputError
from sit_deploy.pipeline.build import build
from sit_deploy.pipeline.fallback import NoGain, NoGainError
from sit_deploy.precisions import TOLERANCE
from tests.helpers.bundles import report_of
from tests.helpers.digits import Digits

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("calibrated_once")]


def test_notes_of_the_attempt_are_kept(
    quick_float: Digits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That the images were of no use may well be why."""
    from PIL import Image

    def give_up(*_: Any) -> Any:
        raise NoGainError(NoGain.ACCURACY, "no gain; fp32 was built instead")

    monkeypatch.setattr("sit_deploy.pipeline.build.keep_budget", give_up)
    monkeypatch.setitem(TOLERANCE, "int8", 9.0)
    (tmp_path / "grey").mkdir()
    for i in range(2):
        Image.new("RGB", (50, 50), (9 * i, 0, 0)).save(tmp_path / "grey" / f"{i}.png")
    report = report_of(
        build(quick_float.request(tmp_path / "low", calib_data=tmp_path / "grey", calib_images=2))
    )
    odd = "every calibration image is of a single colour; give pictures as the model will see them"
    assert report["notes"] == [*quick_float.notes, odd, "no gain; fp32 was built instead"]


def has_gpus(monkeypatch: pytest.MonkeyPatch, *capabilities: str) -> None:
    found = GpuStatus(tuple(Gpu("a GPU", c) for c in capabilities), "")
    monkeypatch.setattr("engines.tensorrt.engine.find_gpus", lambda: found)


def test_a_fallback_from_fp8_is_for_the_gpus_asked_for(
    quick_float: Digits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """None asked for means all that the engine is built for by default; only FP8 is for fewer."""
    pytest.importorskip("tensorrt_rtx", reason="needs TensorRT-RTX to build: pip install tensorrt-rtx")

    def give_up(*_: Any) -> Any:
        raise NoGainError(NoGain.ACCURACY, "no gain; fp16 was built instead")

    monkeypatch.setattr("sit_deploy.pipeline.build.keep_budget", give_up)
    bundle = build(
        quick_float.request(
            tmp_path / "b", precision="fp8", engine="tensorrt-rtx", calib_images=1, quantize=("proj",)
        )
    )
    assert bundle.manifest.precision == "fp16"
    assert "--target" not in bundle.manifest.command


def test_fp8_on_onnxruntime_is_refused_for_that_and_not_for_the_gpu(
    digits: Digits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    has_gpus(monkeypatch, "sm86")
    with pytest.raises(InputError, match="ONNX Runtime has no fp8 kernels for a CPU"):
        build(digits.request(tmp_path / "b", precision="fp8"))
