"""Requests of builds, how they are refused, tunings on made-up times, and models that are quick to export."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from sit_deploy.pipeline import tuning
from sit_deploy.pipeline.build import build
from sit_deploy.pipeline.calibration import Quantization, make_quantization
from sit_deploy.pipeline.request import BuildRequest
from sit_deploy.pipeline.work import Work
from tests.helpers.command_line import snapshot
from tests.helpers.digits import Digits, half_nano
from tests.helpers.train import configured
from tests.helpers.tuning_bench import Bench, work_for


@pytest.fixture(scope="module")
def half_the_blocks() -> Iterator[None]:
    """sit_nano and lvvit_nano have half of theirs in this module, which takes no bundle that others share."""
    with configured(sit_nano={"stage_blocks": (1, 1, 1, 1)}, lvvit_nano={"stage_blocks": (4,)}):
        yield


@pytest.fixture
def request_here(tmp_path: Path) -> BuildRequest:
    """Of sit_nano in FP32 for ONNX Runtime, in the test's own folder."""
    return BuildRequest("sit_nano", tmp_path / "out", engine="onnxruntime")


def refused(request: BuildRequest, error: type[Exception] | tuple[type[Exception], ...], match: str) -> None:
    """Build, expect the error, and nothing left behind."""
    before = snapshot(request.output.parent)
    with pytest.raises(error, match=match) as caught:
        build(request)
    assert "\n" not in str(caught.value)
    assert snapshot(request.output.parent) == before


@pytest.fixture(scope="module")
def made(digits: Digits) -> Quantization:
    """What quantizes every group of `digits`, calibrated on four images."""
    with half_nano():
        return make_quantization(work_for(digits), digits.float_graph)


@pytest.fixture
def tuned(
    digits: Digits, made: Quantization, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., tuple[Work, Any, Any]]]:
    """A function that tunes on a bench; it returns the work, the quantization and the tuning."""

    def run(bench: Bench, **fields: Any) -> tuple[Work, Any, Any]:
        work = work_for(digits, **fields)
        monkeypatch.setattr(tuning, "CandidateBench", bench)
        return work, *tuning.tune(work, digits.float_graph, made, tmp_path)

    yield run
