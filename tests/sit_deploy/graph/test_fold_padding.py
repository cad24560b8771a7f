from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from sit_deploy.graph.fold_padding import fold_padding


def graph(
    pads: tuple[int, ...] = (0, 0, 0, 1, 0, 0, 1, 2),
    value: float = -np.inf,
    window: int = 3,
    more: tuple[onnx.NodeProto, ...] = (),
    own: tuple[int, ...] = (0, 0, 0, 0),
    **pool: object,
) -> onnx.ModelProto:
    """A MaxPool of what is padded, (1, 2, 9, 10)."""
    nodes = [
        helper.make_node("Pad", ["x", "pads", "value"], ["padded"]),
        helper.make_node(
            "MaxPool",
            ["padded"],
            ["y"],
            kernel_shape=[window] * 2,
            strides=[2, 2],
            **({"pads": own} if own else {}),
            **pool,
        ),
        *more,
    ]
    constants = [
        numpy_helper.from_array(np.array(pads, np.int64), "pads"),
        numpy_helper.from_array(np.array(value, np.float32), "value"),
    ]
    outputs = ["y", *(node.output[0] for node in more)]
    made = helper.make_graph(
        nodes,
        "pooled",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 2, 9, 10])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, [None] * 4) for name in outputs],
        constants,
    )
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)


def values(model: onnx.ModelProto) -> list[np.ndarray]:
    x = (
        np.random.default_rng(0).normal(size=(1, 2, 9, 10)).astype(np.float32) - 3
    )  # where a padded 0 would be the maximum
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"x": x})


@pytest.mark.parametrize("pool", [{}, {"own": (1, 0, 0, 0)}])
def test_the_pooling_pads_by_itself(pool: dict[str, tuple[int, ...]]) -> None:
    model = graph(**pool)
    wanted = values(model)
    fold_padding(model)
    assert [node.op_type for node in model.graph.node] == ["MaxPool"] and not model.graph.initializer
    onnx.checker.check_model(model, full_check=True)
    np.testing.assert_array_equal(values(model)[0], wanted[0])


@pytest.mark.parametrize(
    "changed",
    [
        {"value": 0.0},
        {"pads": (0, 1, 0, 0, 0, 0, 1, 1)},
        {"pads": (0, 0, 0, -1, 0, 0, 1, 1)},
        {"pads": (0, 0, 3, 0, 0, 0, 0, 0)},
        {"ceil_mode": 1},
        {"dilations": (2, 2)},
        {"auto_pad": "SAME_UPPER", "own": ()},
        {"more": (helper.make_node("Neg", ["padded"], ["z"]),)},
    ],
    ids=str,
)
def test_what_is_left_as_it_is(changed: dict[str, object]) -> None:
    model = graph(**changed)
    before = model.SerializeToString()
    fold_padding(model)
    assert model.SerializeToString() == before
