"""Biases of heads go to where a product ends, and the numbers stay."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from engines.head_biases import join_head_biases
from tests.helpers.graphs import run

HEADS, SIZE, TOKENS = 3, 4, 5
DIM = HEADS * SIZE
PARTS = ("q", "k", "v")
X = np.random.default_rng(1).standard_normal((1, TOKENS, DIM)).astype(np.float32)


def heads_of(
    biases: dict[str, tuple[int, ...]],
    perm: tuple[int, ...] = (0, 2, 1, 3),
    sizes: tuple[int, ...] = (DIM, DIM, DIM),
    more_readers: bool = False,
) -> onnx.ModelProto:
    """x times weights, split in q, k and v, each cut into heads; some of them plus a bias of a shape."""
    random = np.random.default_rng(0)
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["product"], "product"),
        helper.make_node("Split", ["product", "sizes"], list(PARTS), "split", axis=2),
    ]
    tensors = [
        numpy_helper.from_array(random.standard_normal((DIM, 3 * DIM)).astype(np.float32), "w"),
        numpy_helper.from_array(np.array(sizes, np.int64), "sizes"),
        numpy_helper.from_array(np.array((0, TOKENS, HEADS, SIZE), np.int64), "heads"),
    ]
    outputs = []
    for part in PARTS:
        nodes.append(helper.make_node("Reshape", [part, "heads"], [f"{part}4"], f"{part}/cut"))
        nodes.append(helper.make_node("Transpose", [f"{part}4"], [f"{part}t"], f"{part}/turn", perm=perm))
        outputs.append(f"{part}t")
        if part in biases:
            values = random.standard_normal(biases[part]).astype(np.float32)
            tensors.append(numpy_helper.from_array(values, f"{part}/bias"))
            nodes.append(helper.make_node("Add", [f"{part}t", f"{part}/bias"], [f"{part}s"], f"{part}/add"))
            outputs[-1] = f"{part}s"
    outputs += ["product"] if more_readers else []
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, (1, TOKENS, DIM))],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, [None] * (3 if name == "product" else 4)) for name in outputs], tensors,
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


BIAS = (HEADS, 1, SIZE)


@pytest.mark.parametrize("parts", ["q", "qv", "kv", "qkv"])
@pytest.mark.parametrize("more_readers", [False, True])
def test_biases_go_before_the_heads_are_cut(parts: str, more_readers: bool) -> None:
    model = heads_of(dict.fromkeys(parts, BIAS), more_readers=more_readers)
    before = run(model, X)
    assert join_head_biases(model) == len(parts)
    onnx.checker.check_model(model)
    after = run(model, X)
    assert before.keys() == after.keys()
    for name, values in before.items():
        np.testing.assert_allclose(after[name], values, rtol=1e-6, atol=1e-6)
    # behind the product in one, or behind the Split where something else reads the product
    adds = [node for node in model.graph.node if node.op_type == "Add"]
    assert len(adds) == (len(parts) if more_readers else 1)
    assert {t.name for t in model.graph.initializer}.isdisjoint(f"{part}/bias" for part in PARTS)
    assert join_head_biases(model) == 0


@pytest.mark.parametrize(
    "shape", [(HEADS, TOKENS, SIZE), (1, 1, SIZE), (SIZE,), (HEADS, TOKENS, 1), (1, HEADS, 1, SIZE)]
)
def test_other_sums_stay(shape: tuple[int, ...]) -> None:
    model = heads_of({"q": shape})
    assert join_head_biases(model) == 0 and model == heads_of({"q": shape})


def test_another_order_of_heads_stays() -> None:
    assert join_head_biases(heads_of({"q": (SIZE, 1, TOKENS)}, perm=(0, 3, 2, 1))) == 0


def test_nothing_to_move() -> None:
    model = heads_of({})
    assert join_head_biases(model) == 0 and model == heads_of({})
