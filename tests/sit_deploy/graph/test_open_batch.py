"""A graph written for two images is made right for any number, by comparison with one written for three."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import NodeProto, TensorProto, helper, numpy_helper

from sit_deploy.errors import InputError
from sit_deploy.graph.open_batch import open_batch_by_comparison

WIDTH = 4


def written(nodes: list[NodeProto], batch: int, constants: dict[str, np.ndarray]) -> onnx.ModelProto:
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, 6, WIDTH])
    made = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    initializers = [numpy_helper.from_array(np.asarray(v), k) for k, v in constants.items()]
    built = helper.make_graph(nodes, "test", [value], [made], initializers)
    model = helper.make_model(built, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    return onnx.shape_inference.infer_shapes(model)


def node(kind: str, inputs: str, output: str, **attributes: int | list[int]) -> NodeProto:
    return helper.make_node(kind, inputs.split(), [output], name=output, **attributes)


def opened(nodes: Callable[[], list[NodeProto]], constants: Callable[[int], dict]) -> onnx.ModelProto:
    model = written(nodes(), 2, constants(2))
    open_batch_by_comparison(model, written(nodes(), 3, constants(3)))
    del model.graph.value_info[:]
    for value in (*model.graph.input, *model.graph.output):
        if value.type.tensor_type.shape.dim:
            value.type.tensor_type.shape.dim[0].dim_param = "batch"
    del model.graph.output[:]
    model.graph.output.append(helper.make_tensor_value_info("y", TensorProto.FLOAT, None))
    return model


def same_for_any_batch(
    nodes: Callable[[], list[NodeProto]], constants: Callable[[int], dict]
) -> onnx.ModelProto:
    model = opened(nodes, constants)

    def run(graph: onnx.ModelProto, x: np.ndarray) -> np.ndarray:
        session = onnxruntime.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
        return session.run(None, {"x": x})[0]

    for batch in (1, 2, 5):
        x = np.random.default_rng(batch).standard_normal((batch, 6, WIDTH)).astype(np.float32)
        fixed = written(nodes(), batch, constants(batch))
        np.testing.assert_array_equal(run(model, x), run(fixed, x))
    return model


def test_batch_and_heads_counted_together() -> None:
    """(B, 6, 4) → (B · 6, 4) → (B, 3, 8): a -1 where the batch is counted with something, and one more where it comes back."""
    model = same_for_any_batch(
        lambda: [node("Reshape", "x one", "flat"), node("Reshape", "flat two", "y")],
        lambda batch: {"one": [batch * 6, WIDTH], "two": [batch, 3, -1]},
    )
    targets = [
        numpy_helper.to_array(t).tolist() for t in model.graph.initializer if t.name.endswith("any_batch")
    ]
    assert targets == [[-1, 4], [-1, 3, 8]]


def test_batch_behind_another_axis() -> None:
    same_for_any_batch(
        lambda: [node("Transpose", "x", "t", perm=[1, 0, 2]), node("Reshape", "t to", "y")],
        lambda batch: {"to": [6, batch, 2, 2]},
    )


def test_a_token_for_each_image_becomes_a_row_of_a_table() -> None:
    token = np.arange(WIDTH, dtype=np.float32) + 1
    model = same_for_any_batch(
        lambda: [node("Concat", "class x last", "y", axis=1)],
        lambda batch: {
            "class": np.tile(token, (batch, 1, 1)),
            "last": np.tile(-token, (batch, 2, 1)),
        },
    )
    assert [n.op_type for n in model.graph.node] == ["Pad", "Add"]


def test_copies_that_are_multiplied_or_added_become_one() -> None:
    weight = np.random.default_rng(0).standard_normal((2, 6)).astype(np.float32)
    model = same_for_any_batch(
        lambda: [node("MatMul", "queries x", "m"), node("Add", "m bias", "y")],
        lambda batch: {
            "queries": np.tile(weight, (batch, 1, 1)),
            "bias": np.full((batch, 1, 1), 2, np.float32),
        },
    )
    shapes = {
        tuple(t.dims) for t in model.graph.initializer if any(t.name in n.input for n in model.graph.node)
    }
    assert shapes == {(1, 2, 6), (1, 1, 1)}


@pytest.mark.parametrize(
    ("nodes", "constants", "message"),
    [
        (
            lambda: [node("Add", "x apart", "y")],
            lambda batch: {"apart": np.arange(batch, dtype=np.float32).reshape(-1, 1, 1)},
            "'y' of this model's graph takes images apart by their number",
        ),
        (
            lambda: [node("Slice", "x from to", "y")],
            lambda batch: {"from": [0], "to": [batch]},
            "'y' of this model's graph holds the number of images",
        ),
        (
            lambda: [node("Concat", "x copies", "y", axis=0)],
            lambda batch: {"copies": np.ones((batch, 6, WIDTH), np.float32)},
            "'y' of this model's graph reads copies for each image",
        ),
    ],
)
def test_what_no_fixed_graph_says_is_refused_by_its_node(
    nodes: Callable[[], list[NodeProto]], constants: Callable[[int], dict], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        opened(nodes, constants)


def test_graphs_of_other_operators_are_refused() -> None:
    model = written([node("Relu", "x", "y")], 2, {})
    with pytest.raises(InputError, match="depends on how many images"):
        open_batch_by_comparison(model, written([node("Sigmoid", "x", "y")], 3, {}))
