"""What stops a build: a fold, a graph or an engine that is wrong, accuracy that falls, and numbers that are none."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

import engines
from engines.onnxruntime.engine import OnnxRuntime
from sit_deploy.errors import GateError, InputError
from sit_deploy.pipeline import float_graph
from sit_deploy.pipeline.build import export
from sit_deploy.pipeline.request import BuildRequest
from sit_deploy.precisions import TOLERANCE
from tests.helpers.command_line import snapshot
from tests.sit_deploy.conftest import GraphMade, Trained
from tests.sit_deploy.pipeline.conftest import refused


def edit_weight(model: onnx.ModelProto, name: str, change: Callable[[np.ndarray], np.ndarray]) -> None:
    (tensor,) = [t for t in model.graph.initializer if t.name == name]
    values = change(numpy_helper.to_array(tensor).copy()).astype(np.float32)
    tensor.CopyFrom(numpy_helper.from_array(values, name))


@pytest.fixture
def worse_engine(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """A function that makes ONNX Runtime engines be built with another head."""

    def install(change: Callable[[np.ndarray], np.ndarray], weight: str = "head/weight") -> None:
        def rewrite(model: onnx.ModelProto) -> dict[str, int]:
            edit_weight(model, weight, change)
            return {"worse": 1}

        select = engines.select
        monkeypatch.setattr(
            engines, "select", lambda kind: (OnnxRuntime(rewrites=[rewrite]), select("onnxruntime")[1])
        )

    return install


@pytest.mark.parametrize("fold", ["fold_batchnorm", "fold_tsm_scale"])
def test_a_wrong_fold_stops_the_build(
    fold: str, request_here: BuildRequest, trained: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sit_deploy.graph import deploy_form

    right = getattr(deploy_form, fold)

    def wrong(*args: Any) -> Any:
        layer = right(*args)
        layer.weight.data *= 1.01
        return layer

    monkeypatch.setattr(deploy_form, fold, wrong)
    request = replace(request_here, checkpoint=trained.checkpoint)
    refused(
        request,
        GateError,
        r"^deploy form is .* off the PyTorch reference \(tolerance 0\.0001\); nothing was written",
    )


def test_a_wrong_graph_stops_the_build(
    request_here: BuildRequest, graph_made: GraphMade, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph = onnx.load(graph_made.file)
    edit_weight(graph, "head/weight", lambda values: values * 1.01)
    monkeypatch.setattr(float_graph, "_export", lambda *_: graph)
    refused(request_here, GateError, r"^ONNX fp32 is .* standard deviations")


def test_a_wrong_engine_stops_the_build(
    request_here: BuildRequest, quick_graph: GraphMade, worse_engine: Callable[..., None]
) -> None:
    worse_engine(lambda values: values * 1.01)
    refused(request_here, GateError, r"^onnxruntime engine is .* standard deviations")


def test_an_engine_that_gives_nan_stops_the_build(
    request_here: BuildRequest, quick_graph: GraphMade, worse_engine: Callable[..., None]
) -> None:
    worse_engine(lambda values: values * np.nan)
    refused(
        request_here,
        GateError,
        r"^onnxruntime engine gives NaN or infinite logits for 8 of 8 images; nothing was",
    )


def test_the_tolerance_is_what_decides(request_here: BuildRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(TOLERANCE, "fp32", 1e-12)
    refused(request_here, GateError, r"^deploy form is .*\(tolerance 1e-12\)")


@pytest.mark.usefixtures("trained_graph")
def test_accuracy_that_falls_too_far(
    request_here: BuildRequest,
    trained: Trained,
    worse_engine: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The hop is let through, so that it is the accuracy that must stop it."""
    worse_engine(lambda values: values + 100 * np.eye(7)[6], "head/bias")  # a class that no image has
    monkeypatch.setitem(TOLERANCE, "fp32", 1e9)
    request = replace(
        request_here, checkpoint=trained.checkpoint, labels=trained.labels, val_data=trained.images,
        calib_data=trained.images, dynamic_batch=(2, 3, 4), max_accuracy_drop=20.0,
    )  # fmt: skip
    refused(request, GateError, r"^top-1 falls by \d+\.\d\d points, from \d+\.\d\d to 0\.00 % on 11 images")


def overflowing(trained: Trained, folder: Path) -> Path:
    """Write a checkpoint whose fourth MLP has activations beyond FP16's 65504, and takes them back in its second Linear."""
    weights = torch.load(trained.checkpoint)["model"]
    weights["blocks.3.mlp.fc1.weight"] *= 5e4
    weights["blocks.3.mlp.fc1.bias"] *= 5e4
    weights["blocks.3.mlp.fc2.weight"] /= 5e4
    torch.save(weights, folder / "overflowing.pth")
    return folder / "overflowing.pth"


@pytest.mark.slow
def test_fp16_overflow(trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The ranges seen on the images keep these nodes, and no others, in FP32: the build passes and says so.

    Without them, as with an overflow that calibration did not see, it stops and names the tensor.
    """
    request = BuildRequest(
        "sit_nano", tmp_path / "m.onnx", "fp16", overflowing(trained, tmp_path), calib_data=trained.images
    )
    exported = []
    work = float_graph._export
    monkeypatch.setattr(float_graph, "_export", lambda *args: exported.append(work(*args)) or exported[-1])
    result = export(request)
    held = {node.node: node.reason for node in result.plan.held_back}
    assert {"blocks.3/mlp/fc1", "blocks.3/mlp/fc2"} <= set(held)
    assert all(name.startswith("blocks.3/mlp/") for name in held)
    assert "above 32752 (fp16 maximum / 2)" in held["blocks.3/mlp/fc1"]
    assert result.hops[-1].name == "ONNX fp16" and result.hops[-1].passed

    monkeypatch.setattr(float_graph, "_export", lambda *_: exported[0])
    monkeypatch.setattr("sit_deploy.pipeline.lower._ranges", lambda *_: None)
    before = snapshot(tmp_path)
    message = r"^float16 overflows in 'blocks\.3/mlp/fc1.*max \|x\| .* > 65504; use bf16 or fp32.*; nothing was written$"
    with pytest.raises(GateError, match=message):
        export(replace(request, force=True))
    assert snapshot(tmp_path) == before


def test_a_model_that_gives_nan_itself(request_here: BuildRequest, trained: Trained, tmp_path: Path) -> None:
    """Its weights are finite, so that reading them finds nothing; its logits are not."""
    weights = torch.load(trained.checkpoint)["model"]
    weights["blocks.1.mlp.fc1.weight"] *= 1e25
    weights["blocks.1.mlp.fc2.weight"] *= 1e25
    torch.save(weights, tmp_path / "huge.pth")
    request = replace(request_here, checkpoint=tmp_path / "huge.pth")
    refused(request, InputError, "the PyTorch model itself gives NaN or infinite logits on these images")
