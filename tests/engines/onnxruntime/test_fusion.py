"""The fusions are exact, are applied where they should be, and leave anything uncertain alone."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from engines.build_options import BuildOptions
from engines.onnxruntime.engine import OnnxRuntime
from engines.onnxruntime.fusion import fuse_attention, fuse_for_cpu, fuse_gelu

ort = pytest.importorskip("onnxruntime")

TOKENS, HEADS, SIZE = 5, 2, 8
NO_INT8 = {"int8_products": 0, "float_conv_weights": 0}
DIM = HEADS * SIZE
_random = np.random.default_rng(0)
QKV = _random.standard_normal((DIM, 3 * DIM)).astype(np.float32) / 2
BIAS = _random.standard_normal(3 * DIM).astype(np.float32)


def _model(
    nodes: list, x: list, y: list, constants: dict[str, Any], more_outputs: tuple[tuple[str, int], ...] = ()
) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, x)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, y)]
        + [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, [None] * rank)
            for name, rank in more_outputs
        ],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model, full_check=True)
    return model


def _attention(
    batch: int | str = 1,
    *,
    axis: int = -1,
    split_heads: tuple[int, ...] = (0, TOKENS, HEADS, SIZE),
    mask: bool = False,
    bias: np.ndarray | None = None,
    order: str = "qkv",
    more_outputs: tuple[tuple[str, int], ...] = (),
) -> onnx.ModelProto:
    """Self-attention as an exporter writes it; every argument but the batch makes a near miss."""
    names = dict(zip(order, ("first", "second", "third"), strict=True))
    permutations = {"q": (0, 2, 1, 3), "k": (0, 2, 3, 1), "v": (0, 2, 1, 3)}
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["product"]),
        *([] if bias is None else [helper.make_node("Add", ["bias", "product"], ["biased"])]),
        helper.make_node(
            "Split", ["product" if bias is None else "biased"], ["first", "second", "third"], axis=2
        ),
    ]
    for part, permutation in permutations.items():
        nodes.append(helper.make_node("Reshape", [names[part], "heads"], [f"{part}4"]))
        nodes.append(helper.make_node("Transpose", [f"{part}4"], [f"{part}t"], perm=permutation))
    nodes.append(helper.make_node("MatMul", ["qt", "kt"], ["scores"]))
    if mask:
        nodes.append(helper.make_node("Add", ["scores", "mask"], ["masked"]))
    nodes += [
        helper.make_node("Softmax", ["masked" if mask else "scores"], ["weights"], axis=axis),
        helper.make_node("MatMul", ["weights", "vt"], ["context"]),
        helper.make_node("Transpose", ["context"], ["joined"], perm=[0, 2, 1, 3]),
        helper.make_node("Reshape", ["joined", "tokens"], ["y"]),
    ]
    constants = {
        "w": QKV,
        "heads": np.array(split_heads),
        "tokens": np.array([0, TOKENS, DIM]),
        "mask": np.full((TOKENS, TOKENS), 0.5, np.float32),
        **({} if bias is None else {"bias": bias}),
    }
    shape = [batch, TOKENS, DIM]
    return _model(nodes, shape, shape, constants, more_outputs)


def _gelu(
    root: float = 2**0.5, half: float = 0.5, last: str = "x", more_outputs: tuple[tuple[str, int], ...] = ()
) -> onnx.ModelProto:
    nodes = [
        helper.make_node("Div", ["x", "root"], ["divided"]),
        helper.make_node("Erf", ["divided"], ["erf"]),
        helper.make_node("Add", ["one", "erf"], ["plus"]),
        helper.make_node("Mul", ["half", "plus"], ["halved"]),
        helper.make_node("Mul", ["halved", last], ["y"]),
    ]
    constants = {
        name: np.float32(value)
        for name, value in {"root": root, "one": 1.0, "half": half, "other": 2.0}.items()
    }
    return _model(nodes, ["batch", 7], ["batch", 7], constants, more_outputs)


def _run(model: onnx.ModelProto | Path, x: np.ndarray) -> np.ndarray:
    source = str(model) if isinstance(model, Path) else model.SerializeToString()
    return ort.InferenceSession(source, providers=["CPUExecutionProvider"]).run(["y"], {"x": x})[0]


def _copy(model: onnx.ModelProto) -> onnx.ModelProto:
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    return copy


def _random_input(*shape: int) -> np.ndarray:
    return np.random.default_rng(1).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize(("batch", "sizes"), [(1, (1,)), (3, (3,)), ("batch", (1, 4))])
def test_attention_is_one_operator_with_the_same_result(batch: int | str, sizes: tuple[int, ...]) -> None:
    plain = _attention(batch)
    fused = _copy(plain)
    assert fuse_for_cpu(fused) == {"attention": 1, "gelu": 0, **NO_INT8}
    assert [node.op_type for node in fused.graph.node] == ["Attention"]
    for size in sizes:
        x = _random_input(size, TOKENS, DIM)
        np.testing.assert_allclose(_run(fused, x), _run(plain, x), rtol=0, atol=2e-6)


def test_bias_of_the_projection_goes_with_it() -> None:
    plain = _attention(2, bias=BIAS)
    fused = _copy(plain)
    assert fuse_for_cpu(fused) == {"attention": 1, "gelu": 0, **NO_INT8}
    (attention,) = fused.graph.node
    assert list(attention.input) == ["x", "w", "bias"]
    x = _random_input(2, TOKENS, DIM)
    np.testing.assert_allclose(_run(fused, x), _run(plain, x), rtol=0, atol=2e-6)
    assert np.abs(_run(plain, x) - _run(_attention(2), x)).max() > 0.1


def test_softmax_axis_3_is_the_last_one() -> None:
    assert fuse_attention(_attention(axis=3)) == 1


@pytest.mark.parametrize(
    "near_miss",
    [
        {"axis": 2},
        {"mask": True},
        {"order": "kqv"},
        {"more_outputs": (("weights", 4),)},
        {"more_outputs": (("second", 3),)},
        {"bias": BIAS[:1]},  # one number for all
        {"bias": np.tile(BIAS, (TOKENS, 1))},  # one row a token: a position, not a bias
        {"bias": BIAS, "more_outputs": (("product", 3),)},
        # the same sizes in another order: valid, and another meaning
        {"split_heads": (0, HEADS, TOKENS, SIZE)},
    ],
    ids=lambda changed: "-".join(changed),
)
def test_near_attention_is_left_alone(near_miss: dict[str, Any]) -> None:
    plain = _attention(**near_miss)
    fused = _copy(plain)
    assert fuse_for_cpu(fused) == {"attention": 0, "gelu": 0, **NO_INT8}
    assert fused == plain


def test_attention_with_weights_that_are_an_input_is_left_alone() -> None:
    model = _attention()
    model.graph.input.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, QKV.shape))
    assert fuse_attention(model) == 0


def test_gelu_is_one_operator_with_the_same_result() -> None:
    plain = _gelu()
    fused = _copy(plain)
    assert fuse_for_cpu(fused) == {"attention": 0, "gelu": 1, **NO_INT8}
    assert [(node.op_type, node.domain) for node in fused.graph.node] == [("Gelu", "com.microsoft")]
    x = 3 * _random_input(11, 7)
    np.testing.assert_allclose(_run(fused, x), _run(plain, x), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    "near_miss",
    [{"root": 1.414}, {"half": 0.25}, {"last": "other"}, {"more_outputs": (("erf", 2),)}],
    ids=lambda changed: "-".join(changed),
)
def test_near_gelu_is_left_alone(near_miss: dict[str, Any]) -> None:
    plain = _gelu(**near_miss)
    fused = _copy(plain)
    assert fuse_gelu(fused) == 0
    assert fused == plain


def test_build_fuses_and_the_engine_agrees_with_the_model(tmp_path: Path) -> None:
    path, engine_path = tmp_path / "model.onnx", tmp_path / "engine.onnx"
    onnx.save(_attention("batch"), path)
    engine = OnnxRuntime()
    info = engine.build(path, engine_path, BuildOptions())
    assert info.details["rewrites"]["attention"] == 1
    operators = Counter(node.op_type for node in onnx.load(engine_path).graph.node)
    assert operators == {"Attention": 1}
    x = _random_input(2, TOKENS, DIM)
    with engine.load(engine_path, threads=1) as runner:
        np.testing.assert_allclose(runner.infer({"x": x})["y"], _run(path, x), rtol=0, atol=2e-6)
