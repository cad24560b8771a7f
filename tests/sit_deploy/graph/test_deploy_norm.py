"""The deploy form of norms: what it computes, that runtimes know its spelling, and that FP16 leaves it in float32."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from timm.layers import LayerNorm, RmsNorm, RmsNormFp32, SimpleNorm, SimpleNormFp32
from torch import nn

from sit_deploy.graph.deploy_norm import DeployRmsNorm, deploy_norm, scaled_norm
from sit_deploy.graph.patterns import written_norms
from sit_deploy.graph.precision import Reason, to_precision
from tests.helpers.graphs import exported
from tests.helpers.models import close

pytestmark = pytest.mark.usefixtures("no_gradients_and_one_thread")
NORMS: dict[str, Any] = {
    "RmsNorm": lambda: RmsNorm(24, eps=0.1),
    "RmsNorm without weights": lambda: RmsNorm(24, affine=False),
    "RmsNormFp32": lambda: RmsNormFp32(24),
    "SimpleNorm": lambda: SimpleNorm(24, eps=0.1),
    "SimpleNormFp32": lambda: SimpleNormFp32(24),
    "PyTorch's": lambda: nn.RMSNorm(24),
    "PyTorch's with its own eps": lambda: nn.RMSNorm(24, eps=0.1),
}


def tokens(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0)) * 0.5 + 0.3


def with_weights(norm: nn.Module) -> nn.Module:
    if getattr(norm, "weight", None) is not None:
        norm.weight.uniform_(0.5, 1.5, generator=torch.Generator().manual_seed(1))
    return norm


@pytest.mark.parametrize("name", NORMS)
def test_each_norm_keeps_its_result(name: str) -> None:
    norm = with_weights(NORMS[name]())
    made = deploy_norm(norm)
    assert type(made) is DeployRmsNorm
    for x in (tokens(2, 5, 24), tokens(2, 3, 5, 24), torch.zeros(1, 24)):
        close(made(x), norm(x))
    close(scaled_norm(made, 0.25)(tokens(2, 5, 24)), norm(tokens(2, 5, 24)) / 4)


def test_a_layer_norm_stays() -> None:
    norm = LayerNorm(24)
    assert deploy_norm(norm) is norm
    norm.bias.fill_(0.5)
    close(scaled_norm(norm, 3.0)(tokens(2, 24)), norm(tokens(2, 24)) * 3)


def as_onnx(module: nn.Module, path: Path) -> onnx.ModelProto:
    torch.onnx.export(module.eval(), (tokens(2, 5, 24),), path, dynamo=True, opset_version=20, verbose=False)
    return onnx.load(path)


@pytest.mark.slow
def test_onnx_runtime_makes_one_kernel_of_it(tmp_path: Path) -> None:
    kinds = {}
    for name, norm in (("ours", deploy_norm(with_weights(RmsNorm(24)))), ("timm's", RmsNorm(24))):
        as_onnx(norm, tmp_path / "norm.onnx")
        options = onnxruntime.SessionOptions()
        options.optimized_model_filepath, options.log_severity_level = str(tmp_path / "optimised.onnx"), 3
        onnxruntime.InferenceSession(tmp_path / "norm.onnx", options, ["CPUExecutionProvider"])
        kinds[name] = [node.op_type for node in onnx.load(tmp_path / "optimised.onnx").graph.node]
    assert kinds["ours"] == ["SimplifiedLayerNormalization"]
    assert len(kinds["timm's"]) > 1  # else the spelling is worth nothing any more


@pytest.mark.slow
@pytest.mark.parametrize("name", ["RmsNorm", "SimpleNorm", "PyTorch's"])
def test_a_norm_is_found_in_every_spelling(name: str, tmp_path: Path) -> None:
    norm = with_weights(NORMS[name]())
    for module in (norm, deploy_norm(norm)):
        graph = as_onnx(module, tmp_path / "norm.onnx").graph
        assert written_norms(graph) == set(range(len(graph.node)))


def test_it_stays_float32_in_fp16() -> None:
    model = exported("vit of rms norms")
    half, plan = to_precision(model, "fp16")
    types = {node.node: node for node in plan.nodes}
    found = [node for node in plan.nodes if node.reason is Reason.WRITTEN_NORM]
    kinds = {"pow", "reducemean", "add", "sqrt", "div", "mul"}
    for norm in ("norm", "norm_pre", "embed/norm", "blocks.0/norm1", "blocks.5/norm2", "blocks.0/mlp/norm"):
        assert {node.node for node in found if node.node.rpartition("/")[0] == norm} == {
            f"{norm}/{k}" for k in kinds
        }
    for norm in ("query_norm", "key_norm", "mixed_norm"):
        assert types[f"blocks.1/attn/{norm}/div"].reason is Reason.WRITTEN_NORM
    assert all(node.dtype == "float32" and not node.held_back for node in found)
    assert types["blocks.0/add"].dtype == types["blocks.0/mlp/mul"].dtype == "float16"
    weights = {tensor.name: tensor.data_type for tensor in half.graph.initializer}
    assert weights["blocks.0/norm1/mul/value"] == onnx.TensorProto.FLOAT
    assert weights["blocks.0/mlp/fc1/weight"] == onnx.TensorProto.FLOAT16


def test_other_roots_and_means_are_no_norm() -> None:
    """A root that is not of a mean of squares, one that nothing is divided by, and a mean of something else."""
    node = onnx.helper.make_node
    constant = onnx.numpy_helper.from_array(np.float32(1e-6), "eps")
    nodes = [
        node("Mul", ["x", "y"], ["xy"]), node("ReduceMean", ["xy"], ["mean"]), node("Add", ["mean", "eps"], ["sum"]),
        node("Sqrt", ["sum"], ["root"]), node("Div", ["x", "root"], ["divided"]),
        node("Mul", ["x", "x"], ["xx"]), node("ReduceMean", ["xx"], ["mean2"]), node("Add", ["mean2", "eps"], ["sum2"]),
        node("Sqrt", ["sum2"], ["root2"]), node("Div", ["root2", "x"], ["other way"]),
        node("Add", ["mean2", "mean"], ["sum3"]), node("Sqrt", ["sum3"], ["root3"]), node("Div", ["x", "root3"], ["z"]),
    ]  # fmt: skip
    assert written_norms(onnx.helper.make_graph(nodes, "g", [], [], [constant])) == set()
