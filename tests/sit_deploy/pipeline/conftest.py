"""Requests of builds, how they are refused, and models that are quick to export."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from sit_deploy.pipeline.build import build
from sit_deploy.pipeline.request import BuildRequest
from tests.helpers.command_line import snapshot
from tests.helpers.train import configured


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
