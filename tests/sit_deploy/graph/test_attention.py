"""Attention as one operator: found where it is, left where it is something else, and lowered as the rest."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from calibration.insert_qdq import insert_qdq
from engines.base import ATTENTION_OPSET
from sit_deploy.graph.attention import write_attention
from sit_deploy.graph.inspect import count_macs
from sit_deploy.graph.lint import lint
from sit_deploy.graph.precision import Reason, to_precision
from sit_deploy.graph.simulate import simulate
from tests.helpers.graphs import exported, images_for, prepared, run


def declared(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a graph of opset 20 as one of opset 23, with attention still written out."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    copy.opset_import[0].version = ATTENTION_OPSET
    copy.ir_version = 11
    return copy


def logits(model: onnx.ModelProto) -> np.ndarray:
    return run(model, images_for(model)[0])["logits"]


def operators(model: onnx.ModelProto, name: str = "Attention") -> list[onnx.NodeProto]:
    return [node for node in model.graph.node if node.op_type == name]


@pytest.fixture(scope="module", params=["sit", pytest.param("vit", marks=pytest.mark.slow)])
def whole(request: pytest.FixtureRequest) -> tuple[onnx.ModelProto, onnx.ModelProto]:
    """A graph, and the same with attention as one operator; the one of timm has biases."""
    model = declared(exported(request.param))
    return model, write_attention(model)


def test_the_same_logits_of_fewer_nodes(whole: tuple[onnx.ModelProto, onnx.ModelProto]) -> None:
    model, one = whole
    blocks = len({node.name.split("/")[0] for node in model.graph.node if node.name.startswith("blocks.")})
    assert not operators(model)
    # the last block has a single query
    assert [node.name for node in operators(one)] == [f"blocks.{i}/attn/attention" for i in range(blocks - 1)]
    for node in operators(one):  # the scale of attention is in the queries' weights
        assert [(a.name, a.f) for a in node.attribute] == [("scale", 1.0)]
    assert len(model.graph.node) - len(one.graph.node) == 2 * (blocks - 1)
    assert lint(one, max_opset=ATTENTION_OPSET) == []
    assert count_macs(one) == count_macs(model)
    np.testing.assert_allclose(logits(one), logits(model), rtol=1e-4, atol=1e-5)
    assert write_attention(one) is one  # what slims has a softmax too, and is none


def test_in_low_precision(whole: tuple[onnx.ModelProto, onnx.ModelProto]) -> None:
    model, one = whole
    half, plan = to_precision(one, "fp16")
    kinds = {node.reason for node in plan.nodes if node.op_type == "Attention"}
    assert kinds == {Reason.ATTENTION}
    assert lint(half, max_opset=ATTENTION_OPSET) == []
    assert not [node for node in half.graph.node if node.op_type == "Cast" and "/attention/" in node.name]
    found, expected = logits(simulate(half)), logits(model)
    assert 0 < np.abs(found - expected).max() < 0.02 * np.abs(expected).max()


def test_quantized_products_stay_written_out() -> None:
    """Nothing reaches the softmax inside an operator, so attention in 8 bits keeps its form."""
    model, names, scales = prepared("sit", groups=["proj", "attention"])
    low = declared(insert_qdq(model, [n for n in names if "blocks.0/" in n or "proj" in n], scales))
    one = write_attention(low)
    assert "blocks.0/attn/attention" not in {node.name for node in operators(one)}
    assert len(operators(one)) == 4
    assert {n.name for n in one.graph.node} >= {"blocks.0/attn/matmul", "blocks.0/attn/softmax"}
    np.testing.assert_allclose(logits(one), logits(low), rtol=1e-3, atol=1e-4)
