"""Layers measured one at a time: on which images."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from sit_deploy.data.labelled import open_labelled
from sit_deploy.pipeline.request import BuildRequest
from sit_deploy.pipeline.sensitivity import Sensitivity
from sit_deploy.pipeline.work import Work
from sit_deploy.preprocessing import Preprocessing
from tests.helpers.damaged import NAMES, add_damaged


@pytest.mark.parametrize("calibrated", [True, False])
def test_labelled_images_that_cannot_be_read_are_left_out(
    calibrated: bool, make_image_folder: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of those that layers are measured on, too; and each image keeps its label."""
    folder = make_image_folder(("cat", "dog"), per_class=3)
    add_damaged(folder / "cat")
    asked: dict[str, Any] = {}

    def measure(_: Any, stream: Any, labelled: Any, __: Any) -> dict[str, dict[str, float]]:
        asked.update(images=[image for images in stream for image in images], labelled=list(labelled))
        return {"head": {"noise": 0.5}}

    monkeypatch.setattr("sit_deploy.quantize.sensitivity.measure_sensitivity", measure)
    work = Work(BuildRequest("sit_nano", precision="int8", sensitivity=True), lambda *_: None)
    work.samples = open_labelled(folder, ["cat", "dog"], 2)
    stream = SimpleNamespace(spread=lambda count: [[count]]) if calibrated else None
    lowered: Any = SimpleNamespace(
        quantization=SimpleNamespace(stream=stream, quantizer=None),
        float_graph=SimpleNamespace(preprocessing=Preprocessing.for_model(32)),
    )
    assert Sensitivity(work, lowered).noise() == {"head": 0.5}
    assert [(Path(path).parent.name, label) for path, label in asked["labelled"]] == [("cat", 0)] * 3 + [
        ("dog", 1)
    ] * 3
    assert len(asked["images"]) == (1 if calibrated else 6)
    assert sorted(Path(one.image).name for one in work.damaged.found) == sorted(NAMES)
