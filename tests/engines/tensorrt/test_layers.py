"""Inspector answers written by hand in the documented format, one in the spelling of each generation."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from engines import EngineError, LayerTime
from engines.graph_file import product_types
from engines.layer_types import check_precision
from engines.tensorrt.layers import make_profiler, read_layers, timed


def tensor(spelling: str) -> dict:
    return {"Name": "t", "Dimensions": [1, 8], "Format/Datatype": spelling}


def layer(name: str, given: str, put_out: str, nodes: str, **more: object) -> dict:
    metadata = "\x1e".join(f"[ONNX Layer: {node}]" for node in nodes.split())
    return {
        "Name": name,
        "LayerType": "gemm",
        "Inputs": [tensor(given)],
        "Outputs": [tensor(put_out)],
        "Metadata": metadata,
        **more,
    }


OLD = [
    layer("qkv", "Row major linear FP16 format", "Row major linear FP16 format", "b.0/qkv", TacticValue="0x7"),
    layer("norm", "Row major linear FP32", "Row major linear FP32", "b.0/norm"),
    layer("fc1", "Thirty-two wide channel vectorized row major Int8 format", "Row major linear FP16 format", "b.0/fc1 b.0/gelu"),
    layer("fc2", "Row major linear FP32", "Row major linear FP32", "b.0/fc2"),
]  # fmt: skip
NEW = [
    layer("__myl_Gemm_1", "Half", "Half", "b.0/qkv", TacticName="sm90_gemm_f16"),
    layer("__myl_Norm_2", "Float", "Float", "b.0/norm"),
    layer("__myl_Gemm_3", "Int8", "Half", "b.0/fc1 b.0/gelu"),
    layer("__myl_Gemm_4", "Float", "Float", "b.0/fc2"),
]
ASKED = {
    "b.0/qkv": "float16",
    "b.0/fc1": "int8",
    "b.0/fc2": "float16",
    "head": "float16",
    "stem": "float32",
}


@pytest.mark.parametrize("layers", [OLD, NEW])
def test_both_spellings(layers: list[dict]):
    found = read_layers(json.dumps({"Layers": layers, "Bindings": ["x"]}))
    assert [x.types for x in found] == [("float16",), ("float32",), ("int8", "float16"), ("float32",)]
    assert found[2].nodes == ("b.0/fc1", "b.0/gelu")
    assert found[0].tactic in ("0x7", "sm90_gemm_f16")
    checked = check_precision(found, ASKED)
    assert checked.kept == ("b.0/qkv", "b.0/fc1")
    assert checked.raised == ("b.0/fc2",)
    assert checked.unknown == ("head",)  # and never counted as right; float32 products are not asked about


@pytest.mark.parametrize(
    ("spelling", "types"),
    [("BF16", ("bfloat16",)), ("FP8 E4M3", ("float8_e4m3fn",)), ("N/A due to dynamic shapes", ()), ("BFloat16", ("bfloat16",))],
)  # fmt: skip
def test_other_spellings(spelling: str, types: tuple):
    (found,) = read_layers(json.dumps({"Layers": [layer("a", spelling, spelling, "n")]}))
    assert found.types == types


def test_a_whole_transformer_as_one_layer_tells_nothing_of_its_products():
    fused = {
        **layer(
            "{ForeignNode[stem...head]}", "Row major linear FP32", "Row major linear FP32", " ".join(ASKED)
        ),
        "LayerType": "Myelin",
    }
    found = read_layers(json.dumps({"Layers": [fused], "Bindings": []}))
    checked = check_precision(found, ASKED)
    assert (checked.kept, checked.raised) == ((), ())
    assert checked.unknown == ("b.0/qkv", "b.0/fc1", "b.0/fc2", "head")


def test_names_only_tell_no_types():
    found = read_layers(json.dumps({"Layers": ["qkv", "norm"], "Bindings": []}))
    assert found == [LayerTime("qkv", "", None), LayerTime("norm", "", None)]
    assert check_precision(found, {"qkv": "float16"}).unknown == ("qkv",)


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"Layers": 3}', '{"Layers": [{}]}', '{"Layers": [3]}'])
def test_what_is_no_inspector_s_answer(text: str):
    with pytest.raises(EngineError, match="--profiling detailed"):
        read_layers(text)


def test_profiler_and_times():
    trt = SimpleNamespace(IProfiler=type("IProfiler", (), {"__init__": lambda self: None}))
    profiler = make_profiler(trt)
    for _ in range(2):
        profiler.report_layer_time("a", 1.0)
        profiler.report_layer_time("b", 3.0)
    assert (profiler.milliseconds, profiler.runs) == ({"a": 2.0, "b": 6.0}, {"a": 2, "b": 2})
    assert profiler.mean_milliseconds() == {"a": 1.0, "b": 3.0}
    half = LayerTime("a", "gemm", None, ("float16",))
    assert timed([half, LayerTime("c", "", None)], {"a": 1.0, "b": 3.0}) == (
        LayerTime("a", "gemm", 1.0, ("float16",)),
        LayerTime("c", "", None),
        LayerTime("b", "", 3.0),
    )


def test_types_that_a_graph_asks_for(make_mlp, int8_model: Path):
    assert product_types(onnx.load(make_mlp("float16"))) == {"first": "float16", "second": "float16"}
    assert product_types(onnx.load(int8_model)) == {"matmul": "int8"}


def test_half_quantized_is_not_int8():
    """Only the weight is quantized: the product is in float32."""
    weights = [
        numpy_helper.from_array(np.ones((4, 4), np.int8), "w"),
        numpy_helper.from_array(np.float32(1), "s"),
    ]
    nodes = [
        helper.make_node("DequantizeLinear", ["w", "s"], ["wd"]),
        helper.make_node("MatMul", ["x", "wd"], ["y"], name="product"),
    ]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [2, 4]) for name in "xy"]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], weights)
    assert product_types(helper.make_model(graph)) == {"product": "float32"}
