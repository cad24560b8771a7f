"""Typed bfloat16 graphs on OpenVINO: what is taken out of them, what the kernels compute in, and CPUs that have none."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from engines import BuildOptions, EngineBuildError, EngineLoadError

pytest.importorskip("openvino", reason="needs OpenVINO: pip install '.[openvino]'")

import openvino as ov

from engines.openvino import bfloat16, build, runner
from engines.openvino.engine import OpenVino

OPTIONS = BuildOptions(threads=1)
SIZE = 64
needs_bf16 = pytest.mark.skipif(
    not bfloat16.has_bfloat16(ov), reason="needs a CPU with AVX512-BF16 or AMX, as OpenVINO lists them"
)


def typed(names: dict[str, str] | None = None) -> onnx.ModelProto:
    """x → Cast → first → act → Cast → LayerNormalization → Cast → second → Cast → y, products and Relu in bfloat16."""
    random = np.random.default_rng(0)
    weights = {name: random.standard_normal((SIZE, SIZE)) / 8 for name in ("w1", "w2")}
    constants = [numpy_helper.from_array(w.astype(ml_dtypes.bfloat16), name) for name, w in weights.items()]
    constants.append(numpy_helper.from_array(np.full(SIZE, 0.9, np.float32), "scale"))
    low, full = TensorProto.BFLOAT16, TensorProto.FLOAT
    nodes = [
        helper.make_node("Cast", ["x"], ["x/low"], "x/to_bf16", to=low),
        helper.make_node("MatMul", ["x/low", "w1"], ["first"], "first"),
        helper.make_node("Relu", ["first"], ["act"], "act"),
        helper.make_node("Cast", ["act"], ["act/full"], "norm/to_fp32", to=full),
        helper.make_node("LayerNormalization", ["act/full", "scale"], ["norm"], "norm"),
        helper.make_node("Cast", ["norm"], ["norm/low"], "second/to_bf16", to=low),
        helper.make_node("MatMul", ["norm/low", "w2"], ["y/low"], "second"),
        helper.make_node("Cast", ["y/low"], ["y"], "y/to_fp32", to=full),
    ]
    inner = {
        "x/low": low,
        "first": low,
        "act": low,
        "act/full": full,
        "norm": full,
        "norm/low": low,
        "y/low": low,
    }
    borders = [helper.make_tensor_value_info(name, full, [4, SIZE]) for name in "xy"]
    infos = [helper.make_tensor_value_info(name, dtype, [4, SIZE]) for name, dtype in inner.items()]
    graph = helper.make_graph(nodes, "g", borders[:1], borders[1:], constants, value_info=infos)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)


def numbers(x: np.ndarray, held: type = ml_dtypes.bfloat16) -> np.ndarray:
    """The graph's own numbers, with what it holds in bfloat16 held in a type."""

    def hold(array: np.ndarray) -> np.ndarray:
        return array.astype(held).astype(np.float32)

    w1, w2 = (
        numpy_helper.to_array(t).astype(np.float32) for t in typed().graph.initializer if t.name[0] == "w"
    )
    act = hold(np.maximum(hold(x) @ w1, 0))
    centred = act - act.mean(1, keepdims=True)
    return hold(centred / np.sqrt(act.var(1, keepdims=True) + 1e-5) * 0.9) @ w2


def test_casts_go_and_weights_stay_rounded():
    model = typed()
    assert bfloat16.widen(model)
    onnx.checker.check_model(model, full_check=True)
    kept = [node.op_type for node in model.graph.node]
    assert kept == [
        "MatMul",
        "Relu",
        "LayerNormalization",
        "MatMul",
        "Cast",
    ]  # the last one gives the output its name
    assert {tensor.data_type for tensor in model.graph.initializer} == {TensorProto.FLOAT}
    before, after = (numpy_helper.to_array(m.graph.initializer[0]) for m in (typed(), model))
    assert np.array_equal(before.astype(np.float32), after)


def test_graphs_that_are_left_alone():
    floats, borders = typed(), typed()
    bfloat16.widen(floats)
    again = onnx.ModelProto()
    again.CopyFrom(floats)
    assert not bfloat16.widen(floats) and floats == again
    borders.graph.input[0].type.tensor_type.elem_type = TensorProto.BFLOAT16
    again.CopyFrom(borders)
    assert not bfloat16.widen(borders) and borders == again


def test_pixels_are_cast_to_float32():
    """A Cast of what is no float stays, to the type that everything has now."""
    model = typed()
    model.graph.input[0].type.tensor_type.elem_type = TensorProto.UINT8
    assert bfloat16.widen(model)
    assert (model.graph.node[0].op_type, model.graph.node[0].attribute[0].i) == ("Cast", TensorProto.FLOAT)
    onnx.checker.check_model(model, full_check=True)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    onnx.save(typed(), tmp_path / "model.onnx")
    return tmp_path / "model.onnx"


@needs_bf16
def test_what_runs_is_bfloat16_wherever_the_file_goes(source: Path, tmp_path: Path):
    info = OpenVino().build(source, tmp_path / "engine.xml", OPTIONS)
    assert info.details["kernels"]["products"] == {"bfloat16": 2}
    assert info.details["kernels_told_by"] == "compiled model" and not info.details["raised"]
    assert info.details["rewrites"]["casts to and from bfloat16 taken out"] == 3
    products = [kernel for kernel in info.kernels if kernel["role"] == "product"]
    assert [kernel["nodes"][0] for kernel in products] == ["first", "second"]
    assert {kernel["factors"] for kernel in products} == {"bfloat16"}
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    for name in ("engine.xml", "engine.bin"):  # alone, without what a manifest says of them
        shutil.copy(tmp_path / name, moved / name)
    x = np.random.default_rng(1).standard_normal((4, SIZE)).astype(np.float32)
    with OpenVino().load(moved / "engine.xml", threads=1) as runner:
        y = runner.infer({"x": x})["y"]
    error, coarse = (np.abs(array - numbers(x, np.float32)).max() for array in (y, numbers(x)))
    assert 0.3 * coarse < error < 2 * coarse  # rounded as the graph rounds
    times = OpenVino().layer_times(moved / "engine.xml", {"x": x}, runs=1, threads=1)
    assert any("first" in layer.layer for layer in times)


def test_float32_graphs_keep_float32_kernels(make_mlp: Callable[..., Path], tmp_path: Path):
    info = OpenVino().build(make_mlp(), tmp_path / "engine.xml", OPTIONS)
    assert info.details["kernels"]["products"] == {"float32": 1}  # small products may be one kernel
    assert {"first", "second"} <= set(info.kernels[0]["nodes"])
    assert info.details["lowered"] == [] and info.details["eight_bits"] is None


def test_kernels_that_lack_the_type_are_named(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """What counts is what was compiled, not what was asked for."""
    settings = build.settings
    monkeypatch.setattr(build, "settings", lambda ov, threads, *, low: settings(ov, threads))
    details = OpenVino().build(source, tmp_path / "engine.xml", OPTIONS).details
    assert details["raised"] == ["first", "second"]
    assert details["kernels"]["products"] == {"float32": 2}


def test_a_cpu_without_bfloat16(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    OpenVino().build(source, tmp_path / "engine.xml", OPTIONS)
    told = ["FP32", "INT8", "BIN", "EXPORT_IMPORT"]
    get = ov.Core.get_property

    def without(core: Any, *asked: str) -> Any:
        return told if asked == ("CPU", "OPTIMIZATION_CAPABILITIES") else get(core, *asked)

    monkeypatch.setattr(ov.Core, "get_property", without)
    assert OpenVino().lacks("int8") is None
    assert OpenVino().lacks("bf16") == (
        "this CPU does not multiply bf16 (OpenVINO lists FP32, INT8), and emulating it is slower than fp32"
    )
    with pytest.raises(
        EngineLoadError, match=r"computes in bf16, which this CPU has no kernels for \(it has FP32, INT8\)"
    ):
        OpenVino().load(tmp_path / "engine.xml")
    for saturates, precisions in ((False, "fp32 or int8"), (True, "fp32")):  # which would be refused next
        monkeypatch.setattr(runner, "int8_saturates", lambda _, saturates=saturates: saturates)
        with pytest.raises(EngineLoadError, match=f"with --precision {precisions}$"):
            OpenVino().load(tmp_path / "engine.xml")
    with pytest.raises(
        EngineBuildError, match=r"model\.onnx is in bf16, and this CPU does not multiply bf16"
    ):
        OpenVino().build(source, tmp_path / "again.xml", OPTIONS)


def test_a_precision_that_a_later_release_may_write(source: Path, tmp_path: Path):
    OpenVino().build(source, tmp_path / "engine.xml", OPTIONS)
    written = (tmp_path / "engine.xml").read_text()
    (tmp_path / "engine.xml").write_text(
        written.replace('<inference_precision value="bf16"', '<inference_precision value="f8"')
    )
    with pytest.raises(EngineLoadError, match=r"to be inferred in 'f8', which this release does not know"):
        OpenVino().load(tmp_path / "engine.xml")
