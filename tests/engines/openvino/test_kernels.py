"""The products of a graph in the kernels of a compiled model, whatever these are called."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from engines.graph_file import GraphNodes
from engines.openvino.kernels import details, read_kernels

ov = pytest.importorskip("openvino", reason="needs OpenVINO: pip install openvino")

WIDTH = 64


def projection(bias: float | None) -> onnx.ModelProto:
    """A product in 8 bits of a reshaped input, with or without a bias, added to what came before it: as attention's projection is."""
    values = {
        "scale": np.float32(0.02),
        "zero": np.int8(0),
        "codes": np.random.default_rng(0).integers(-127, 127, (WIDTH, WIDTH)).astype(np.int8),
        "scales": np.linspace(1e-3, 2e-3, WIDTH, dtype=np.float32),
        "zeros": np.zeros(WIDTH, np.int8),
        "flat": np.array([1, 9, WIDTH], np.int64),
    }
    nodes = [
        helper.make_node("Transpose", ["heads"], ["turned"], name="turned", perm=[0, 2, 1, 3]),
        helper.make_node("Reshape", ["turned", "flat"], ["tokens"], name="tokens"),
        helper.make_node("QuantizeLinear", ["tokens", "scale", "zero"], ["quantized"], name="quantize"),
        helper.make_node("DequantizeLinear", ["quantized", "scale", "zero"], ["low"], name="dequantize"),
        helper.make_node("DequantizeLinear", ["codes", "scales", "zeros"], ["weight"], name="weight", axis=1),
        helper.make_node("MatMul", ["low", "weight"], ["product"], name="attn/proj"),
    ]
    last = "product"
    if bias is not None:
        values["bias"] = np.full(WIDTH, bias, np.float32)
        nodes.append(helper.make_node("Add", [last, "bias"], ["biased"], name="attn/proj/bias"))
        last = "biased"
    nodes.append(helper.make_node("Add", ["before", last], ["sum"], name="sum"))
    nodes.append(helper.make_node("Softmax", ["sum"], ["out"], name="end"))
    given = [
        helper.make_tensor_value_info("heads", TensorProto.FLOAT, [1, 4, 9, WIDTH // 4]),
        helper.make_tensor_value_info("before", TensorProto.FLOAT, [1, 9, WIDTH]),
    ]
    made = [helper.make_tensor_value_info("out", TensorProto.FLOAT, [1, 9, WIDTH])]
    tensors = [numpy_helper.from_array(np.asarray(value), name) for name, value in values.items()]
    graph = helper.make_graph(nodes, "projection", given, made, tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


@pytest.mark.parametrize("bias", [None, 0.0, 0.5], ids=["no bias", "zeros", "a bias"])
def test_a_product_in_8_bits_is_found(bias: float | None, tmp_path: Path) -> None:
    model, path = projection(bias), tmp_path / "model.onnx"
    onnx.save(model, path)
    compiled = ov.Core().compile_model(ov.Core().read_model(str(path)), "CPU")
    known = GraphNodes.of(path)
    kernels = read_kernels(compiled, model, known)
    (product,) = [kernel for kernel in kernels if kernel.multiplies]
    assert "attn/proj" in product.nodes
    assert details(kernels, known)["raised"] == []
