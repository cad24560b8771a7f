"""A small vision transformer as an ONNX graph, with every operator kind of the real ones and none of their size."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper


class GraphBuilder:
    """Adds named nodes and seeded weights one after the other."""

    def __init__(self, opset: int) -> None:
        self.opset = opset
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[TensorProto] = []
        self._random = np.random.default_rng(0)

    def node(self, name: str, op_type: str, *inputs: str, output: str = "", **attributes: Any) -> str:
        output = output or f"{name}:0"
        self.nodes.append(helper.make_node(op_type, list(inputs), [output], name, **attributes))
        return output

    def weight(self, name: str, *shape: int, scale: float = 0.2, offset: float = 0.0) -> str:
        values = self._random.normal(offset, scale, shape).astype(np.float32)
        self.weights.append(numpy_helper.from_array(values, name))
        return name

    def ints(self, name: str, *values: int) -> str:
        if name not in {w.name for w in self.weights}:
            self.weights.append(numpy_helper.from_array(np.array(values, np.int64), name))
        return name

    def linear(self, name: str, x: str, rows: int, columns: int) -> str:
        product = self.node(f"{name}/MatMul", "MatMul", x, self.weight(f"{name}.weight", rows, columns))
        return self.node(f"{name}/Add", "Add", product, self.weight(f"{name}.bias", columns))

    def norm(self, name: str, x: str, width: int) -> str:
        scale = self.weight(f"{name}.weight", width, offset=1.0)
        return self.node(name, "LayerNormalization", x, scale, self.weight(f"{name}.bias", width), axis=-1)

    def gelu(self, name: str, x: str) -> str:
        if self.opset >= 20:
            return self.node(name, "Gelu", x)
        if "gelu.half" not in {w.name for w in self.weights}:
            for constant, value in (("root2", 2**0.5), ("one", 1.0), ("half", 0.5)):
                self.weights.append(numpy_helper.from_array(np.float32(value), f"gelu.{constant}"))
        scaled = self.node(f"{name}/Div", "Div", x, "gelu.root2")
        erf = self.node(f"{name}/Erf", "Erf", scaled)
        one_more = self.node(f"{name}/Add", "Add", erf, "gelu.one")
        halved = self.node(f"{name}/Mul", "Mul", "gelu.half", one_more)
        return self.node(f"{name}/Mul_1", "Mul", x, halved)

    def model(self, inputs: dict[str, list[Any]], outputs: dict[str, list[Any]]) -> onnx.ModelProto:
        def values(tensors: dict[str, list[Any]]) -> list[onnx.ValueInfoProto]:
            return [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in tensors.items()]

        graph = helper.make_graph(
            self.nodes, "test", values(inputs), values(outputs), initializer=self.weights
        )
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", self.opset)], ir_version=10)


def build_transformer(opset: int = 20, batch: int | str = 2) -> onnx.ModelProto:
    """Two blocks of width 16 with 2 heads on 16 tokens and a class token, slimmed to 8 tokens between them."""
    g = GraphBuilder(opset)
    dim, heads = 16, 2
    x = g.node(
        "patch_embed/conv1",
        "Conv",
        "images",
        g.weight("conv1.weight", 8, 3, 3, 3),
        strides=[2, 2],
        pads=[1] * 4,
    )
    x = g.gelu("patch_embed/gelu", x)
    x = g.node(
        "patch_embed/conv2",
        "Conv",
        x,
        g.weight("conv2.weight", dim, 8, 1, 1),
        g.weight("conv2.bias", dim),
    )
    x = g.node("patch_embed/Reshape", "Reshape", x, g.ints("shape.patches", 0, dim, 16))
    x = g.node("patch_embed/Transpose", "Transpose", x, perm=[0, 2, 1])
    x = g.node("cls/Pad", "Pad", x, g.ints("cls.pads", 0, 1, 0, 0, 0, 0))
    x = g.node("pos_embed/Add", "Add", x, g.weight("pos_embed", 1, 17, dim))
    tokens = 17
    for i in range(2):
        name = f"blocks.{i}"
        y = g.norm(f"{name}/norm1", x, dim)
        y = g.node(f"{name}/attn/qkv", "MatMul", y, g.weight(f"{name}.qkv", dim, 3 * dim))
        y = g.node(
            f"{name}/attn/Reshape",
            "Reshape",
            y,
            g.ints(f"shape.{tokens}", 0, tokens, 3, heads, dim // heads),
        )
        y = g.node(f"{name}/attn/Transpose", "Transpose", y, perm=[2, 0, 3, 1, 4])
        part = [
            g.node(f"{name}/attn/{letter}", "Gather", y, g.ints(f"index.{j}", j), axis=0)
            for j, letter in enumerate("qkv")
        ]
        q, k, v = (g.node(f"{p.removesuffix(':0')}/Squeeze", "Squeeze", p, g.ints("axis.0", 0)) for p in part)
        k = g.node(f"{name}/attn/k/Transpose", "Transpose", k, perm=[0, 1, 3, 2])
        y = g.node(f"{name}/attn/scores", "MatMul", q, k)
        y = g.node(f"{name}/attn/Softmax", "Softmax", y, axis=-1)
        y = g.node(f"{name}/attn/mix", "MatMul", y, v)
        y = g.node(f"{name}/attn/merge/Transpose", "Transpose", y, perm=[0, 2, 1, 3])
        y = g.node(
            f"{name}/attn/merge/Reshape",
            "Reshape",
            y,
            g.ints(f"shape.{tokens}.merge", 0, tokens, dim),
        )
        x = g.node(f"{name}/Add", "Add", x, g.linear(f"{name}/attn/proj", y, dim, dim))
        y = g.linear(f"{name}/mlp/fc1", g.norm(f"{name}/norm2", x, dim), dim, 3 * dim)
        y = g.linear(f"{name}/mlp/fc2", g.gelu(f"{name}/mlp/gelu", y), 3 * dim, dim)
        x = g.node(f"{name}/Add_1", "Add", x, y)
        if i == 0:
            ends = g.ints("end", 2**31 - 1)
            cls = g.node("tsm.0/cls", "Slice", x, g.ints("axis.0", 0), g.ints("one", 1), g.ints("one", 1))
            patches = g.node("tsm.0/patches", "Slice", x, "one", ends, "one")
            y = g.norm("tsm.0/norm", patches, dim)
            y = g.gelu("tsm.0/gelu", g.linear("tsm.0/fc1", y, dim, dim // 2))
            y = g.node(
                "tsm.0/Transpose",
                "Transpose",
                g.linear("tsm.0/fc2", y, dim // 2, 8),
                perm=[0, 2, 1],
            )
            y = g.node("tsm.0/merge", "MatMul", g.node("tsm.0/Softmax", "Softmax", y, axis=-1), patches)
            x = g.node("tsm.0/Concat", "Concat", cls, y, axis=1)
            tokens = 9
    x = g.norm("norm", x, dim)
    x = g.node("select", "Gather", x, g.ints("index.0", 0), axis=1)
    x = g.node("select/Squeeze", "Squeeze", x, g.ints("one", 1))
    g.node(
        "head",
        "Gemm",
        x,
        g.weight("head.weight", dim, 10),
        g.weight("head.bias", 10),
        output="logits",
    )
    model = g.model({"images": [batch, 3, 8, 8]}, {"logits": [batch, 10]})
    onnx.checker.check_model(model, full_check=True)
    return model


@pytest.fixture(scope="session")
def transformer() -> Callable[..., onnx.ModelProto]:
    return build_transformer


@pytest.fixture(scope="session")
def builder() -> type[GraphBuilder]:
    return GraphBuilder


@pytest.fixture
def images() -> np.ndarray:
    return np.random.default_rng(1).normal(size=(2, 3, 8, 8)).astype(np.float32)


@pytest.fixture
def no_gradients_and_one_thread() -> Iterator[None]:
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # a second one gains little and spins where another process wants the core
    with torch.no_grad():
        yield
    torch.set_num_threads(threads)


@pytest.fixture
def x() -> Any:
    """Tokens float32 (2, 9, 32)."""
    import torch

    return torch.randn(2, 9, 32, generator=torch.Generator().manual_seed(2))
