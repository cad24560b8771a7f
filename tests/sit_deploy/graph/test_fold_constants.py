"""What a graph would compute of its weights alone is computed once."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from sit_deploy.graph.fold_constants import fold_constants


def graph(nodes: list[onnx.NodeProto], **constants: np.ndarray) -> onnx.ModelProto:
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 3])
    made = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    initializers = [numpy_helper.from_array(v, k) for k, v in constants.items()]
    built = helper.make_graph(nodes, "test", [value], [made], initializers)
    return helper.make_model(built, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def run(model: onnx.ModelProto) -> np.ndarray:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"x": np.arange(6, dtype=np.float32).reshape(2, 3)})[0]


def test_a_table_that_is_looked_up_is_folded_and_what_reads_an_input_stays() -> None:
    model = graph(
        [
            helper.make_node("Relu", ["table"], ["positive"], name="relu"),
            helper.make_node("Gather", ["positive", "places"], ["bias"], name="gather"),
            helper.make_node("Add", ["x", "bias"], ["sum"], name="add"),
            helper.make_node("Mul", ["sum", "sum"], ["y"], name="mul"),
        ],
        table=np.array([-1, 2, 3], dtype=np.float32),
        places=np.array([2, 0, 1]),
    )
    expected = run(model)
    fold_constants(model)
    assert [node.op_type for node in model.graph.node] == ["Add", "Mul"]
    np.testing.assert_array_equal(run(model), expected)
    (bias,) = [t for t in model.graph.initializer if t.name == "bias"]
    np.testing.assert_array_equal(numpy_helper.to_array(bias), [3, 0, 2])


def test_a_graph_with_nothing_to_fold_stays_as_it_is() -> None:
    model = graph([helper.make_node("Add", ["x", "b"], ["y"], name="add")], b=np.float32([1, 2, 3]))
    before = model.SerializeToString(deterministic=True)
    fold_constants(model)
    assert model.SerializeToString(deterministic=True) == before
