"""Attention is found in exported graphs, with the columns that make its queries, keys and values, and nothing else is taken for it."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from calibration.attention import find_attentions
from tests.helpers.graphs import exported


@pytest.mark.slow
@pytest.mark.parametrize(("name", "blocks", "bias"), [("sit", 6, False), ("vit", 6, True)])
def test_every_block_has_one(name: str, blocks: int, bias: bool) -> None:
    model = exported(name)
    weights = {t.name: t.dims for t in model.graph.initializer}
    products = {
        node.name: weights.get(node.input[1]) for node in model.graph.node if node.op_type == "MatMul"
    }
    found = list(find_attentions(model))
    assert len(found) == blocks > 1
    for number, attention in enumerate(found):
        path = f"blocks.{number}/attn"
        q, k, v = attention.queries, attention.keys, attention.values
        dim = q.stop - q.start
        whole = number < blocks - 1
        assert (q.layer, k.layer, v.layer) == (
            (f"{path}/qkv",) * 3 if whole else (f"{path}/q", f"{path}/kv", f"{path}/kv")
        )
        starts = (0, dim, 2 * dim) if whole else (0, 0, dim)
        assert (q.start, k.start, v.start) == starts
        assert products[v.layer][1] == v.stop and products[attention.scores] is None
        assert (q.bias is not None) == bias and k.bias is v.bias is None
        assert [n.name for n in model.graph.node if attention.merged in n.input] == [f"{path}/proj"]


def attention(
    cut: str = "cut", order: tuple[int, ...] = (0, 2, 3, 1), weights: str = "w", outputs: tuple[str, ...] = ()
) -> onnx.ModelProto:
    """x (1, 5, 6) to queries, keys and values of 2 heads; each argument makes another graph of it."""
    nodes = [
        helper.make_node("MatMul", ["x", weights], ["all"], "qkv"),
        helper.make_node("Split", ["all"], ["q", "k", "v"], "split", axis=2, num_outputs=3),
    ]
    for part, perm in (("q", (0, 2, 1, 3)), ("k", order), ("v", (0, 2, 1, 3))):
        nodes.append(helper.make_node("Reshape", [part, cut if part == "v" else "cut"], [f"{part}4"]))
        nodes.append(helper.make_node("Transpose", [f"{part}4"], [f"{part}t"], perm=perm))
    nodes += [
        helper.make_node("MatMul", ["qt", "kt"], ["s"], "scores"),
        helper.make_node("Softmax", ["s"], ["p"], axis=-1),
        helper.make_node("MatMul", ["p", "vt"], ["c"], "context"),
        helper.make_node("Transpose", ["c"], ["ct"], perm=(0, 2, 1, 3)),
        helper.make_node("Reshape", ["ct", "whole"], ["y"]),
    ]
    random = np.random.default_rng(0)
    tensors = [
        numpy_helper.from_array(random.standard_normal((6, 18)).astype(np.float32), "w"),
        numpy_helper.from_array(np.array((0, 5, 2, 3), np.int64), "cut"),
        numpy_helper.from_array(np.array((0, 5, 6), np.int64), "whole"),
    ]
    given = [("x", (1, 5, 6))] + ([] if weights == "w" else [(weights, (6, 18))])
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape) for name, shape in given],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, (1, 5, 6))]
        + [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [None] * 4) for name in outputs],
        tensors,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def test_by_its_form_and_not_by_its_names() -> None:
    (found,) = find_attentions(attention())
    assert (found.scores, found.context, found.merged) == ("scores", "context", "y")
    assert [(c.layer, c.start, c.stop) for c in (found.queries, found.keys, found.values)] == [
        ("qkv", 0, 6), ("qkv", 6, 12), ("qkv", 12, 18),
    ]  # fmt: skip


@pytest.mark.parametrize(
    "other", [{"weights": "given"}, {"outputs": ("s",)}, {"outputs": ("vt",)}, {"outputs": ("p",)}], ids=str
)
def test_what_is_none(other: dict) -> None:
    assert list(find_attentions(attention(**other))) == []
