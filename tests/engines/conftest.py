"""Small ONNX models, made by hand, and machines with a GPU that is not there."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from tests.helpers.fake_tensorrt import make_plan
from tests.helpers.trt_rig import RELEASES, Rig, make_rig

_ONNX_TYPES = {"float32": TensorProto.FLOAT, "float16": TensorProto.FLOAT16}


def _save(path: Path, nodes: list, shapes: dict, weights: dict, dtype: str) -> Path:
    def value(name: str) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, _ONNX_TYPES[dtype], shapes[name])

    graph = helper.make_graph(
        nodes,
        "graph",
        [value("x")],
        [value("y")],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.save(model, path)
    return path


@pytest.fixture
def make_mlp(tmp_path: Path) -> Callable[..., Path]:
    """An MLP 8 → 8 → 8 with ReLU between, saved as ONNX; `second` sets the second weight's type."""

    def make(
        dtype: str = "float32", batch: int | str = 2, second: str | None = None, name: str = "mlp"
    ) -> Path:
        random = np.random.default_rng(0)
        weights = {
            "w1": random.standard_normal((8, 8)).astype(dtype),
            "w2": random.standard_normal((8, 8)).astype(second or dtype),
        }
        nodes = [
            helper.make_node("MatMul", ["x", "w1"], ["hidden"], name="first"),
            helper.make_node("Relu", ["hidden"], ["active"], name="relu"),
            helper.make_node("MatMul", ["active", "w2"], ["y"], name="second"),
        ]
        shapes = {"x": [batch, 8], "y": [batch, 8]}
        return _save(tmp_path / f"{name}.onnx", nodes, shapes, weights, dtype)

    return make


@pytest.fixture
def det_model(tmp_path: Path) -> Path:
    """A graph with an operator TensorRT has no importer for."""
    nodes = [
        helper.make_node("Relu", ["x"], ["active"], name="relu"),
        helper.make_node("Det", ["active"], ["y"], name="determinant"),
    ]
    return _save(tmp_path / "det.onnx", nodes, {"x": [2, 4, 4], "y": [2]}, {}, "float32")


@pytest.fixture
def int8_model(tmp_path: Path) -> Path:
    """A quantized 64 by 64 MatMul with every weight 127 and every scale 1."""
    weights = {
        "scale": np.ones((), np.float32),
        "zero": np.zeros((), np.int8),
        "scales": np.ones(64, np.float32),
        "zeros": np.zeros(64, np.int8),
        "w": np.full((64, 64), 127, np.int8),
    }
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["q"], name="quantize"),
        helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["d"], name="dequantize"),
        helper.make_node("DequantizeLinear", ["w", "scales", "zeros"], ["wd"], name="weight", axis=1),
        helper.make_node("MatMul", ["d", "wd"], ["y"], name="matmul"),
    ]
    shapes = {"x": [2, 64], "y": [2, 64]}
    return _save(tmp_path / "int8.onnx", nodes, shapes, weights, "float32")


@pytest.fixture
def attention_chain(tmp_path: Path) -> Callable[[int], Path]:
    """Attention blocks each of another width, so that the builder can share no kernel."""

    def make(depth: int) -> Path:
        dim, tokens = 64, 48
        random = np.random.default_rng(0)
        weights: dict[str, np.ndarray] = {
            "scale": np.ones(dim, np.float16),
            "bias": np.zeros(dim, np.float16),
        }
        nodes = []
        last = "x"

        def weight(rows: int, columns: int) -> str:
            name = f"w{len(weights)}"
            weights[name] = random.standard_normal((rows, columns)).astype(np.float16)
            return name

        def node(op: str, *inputs: str, **attributes: object) -> str:
            output = f"{op.lower()}{len(nodes)}"
            nodes.append(helper.make_node(op, inputs, [output], name=output, **attributes))
            return output

        for block in range(depth):
            width = dim + 8 * block
            normal = node("LayerNormalization", last, "scale", "bias")
            query = node("MatMul", normal, weight(dim, width))
            key = node("Transpose", node("MatMul", normal, weight(dim, width)), perm=[0, 2, 1])
            mixed = node("MatMul", node("Softmax", node("MatMul", query, key)), normal)
            hidden = node("Erf", node("MatMul", mixed, weight(dim, width)))
            last = node("Add", last, node("MatMul", hidden, weight(width, dim)))
        nodes[-1].output[0] = "y"
        shape = [1, tokens, dim]
        return _save(tmp_path / "chain.onnx", nodes, {"x": shape, "y": shape}, weights, "float16")

    return make


@pytest.fixture(params=["text", "empty", "truncated"])
def damaged_onnx(request: pytest.FixtureRequest, tmp_path: Path, make_mlp: Callable[..., Path]) -> Path:
    """A file that is not a readable ONNX model."""
    content = {
        "text": b"hello, this is not a model\n",
        "empty": b"",
        "truncated": make_mlp().read_bytes()[:300],
    }
    path = tmp_path / "damaged.onnx"
    path.write_bytes(content[request.param])
    return path


@pytest.fixture(params=RELEASES)
def rig(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Rig:
    return make_rig(monkeypatch, tmp_path / "cache", request.param)


@pytest.fixture
def rig10(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Rig:
    return make_rig(monkeypatch, tmp_path / "cache", "tensorrt-10.16.1")


@pytest.fixture
def rtx(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Rig:
    return make_rig(monkeypatch, tmp_path / "cache", "tensorrt-rtx-1.7.1")


@pytest.fixture
def plan(make_mlp: Callable[..., Path], tmp_path: Path) -> Path:
    """Batch 2, fixed."""
    path = tmp_path / "engine.plan"
    path.write_bytes(make_plan(make_mlp().read_bytes()))
    return path


@pytest.fixture
def open_plan(make_mlp: Callable[..., Path], tmp_path: Path) -> Path:
    """Batches of 1 to 8."""
    path = tmp_path / "open.plan"
    path.write_bytes(make_plan(make_mlp(batch="batch", name="open").read_bytes(), batch=(1, 4, 8)))
    return path
