"""Answers of engine inspectors in the forms that have been published, a layer each cut down to what is read.

8.x: the graphs of NVIDIA's trt-engine-explorer (NVIDIA/TensorRT, release/10.13, tools/experimental/trt-engine-explorer/examples), QAT ResNets
on an A100. 10.0: NVIDIA/TensorRT, samples/sampleEditableTimingCache/README.md, and Torch-TensorRT's page on mixed precision. Later 10: the BERT
of NVIDIA/TensorRT issue 4397. 11: NVIDIA's page on migrating from 10.x to 11.x, and the "Datatype" and "Constants" that
TensorRT-Model-Connect reads (pull request 1386). No engine of ours has been asked yet.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engines import EngineError
from engines.kernels import Role, products, take_census
from engines.tensorrt.inspector import inspected_kernels
from tests.helpers.trt_rig import Rig

HALF, INT8 = "Row major linear FP16 format", "Thirty-two wide channel vectorized row major Int8 format"


def tensor(name: str, kind: str, *shape: int) -> dict:
    return {"Name": name, "Location": "Device", "Dimensions": list(shape), "Format/Datatype": kind}


def new_tensor(name: str, kind: str, *shape: int) -> dict:
    return {"Name": name, "Dimensions": list(shape), "Datatype": kind, "Format": "Row major linear format (kLINEAR)"}  # fmt: skip


def layer(name: str, kind: str, inputs: list[dict], outputs: list[dict], *nodes: str, **more: Any) -> dict:
    metadata = "\x1e".join(f"[ONNX Layer: {node}]" for node in nodes)
    return {"Name": name, "LayerType": kind, "Inputs": inputs, "Outputs": outputs, "Metadata": metadata, **more}  # fmt: skip


def answer(*layers: Any, **more: Any) -> str:
    return json.dumps({"Layers": list(layers), **more})


CONV = layer(
    "layer1.0.conv2.weight + QuantizeLinear_32 + Conv_34 + Add_36 + Relu_37", "CaskConvolution",
    [tensor("a", INT8, 32, 64, 56, 56), tensor("inputs", HALF, 32, 64, 56, 56)], [tensor("b", HALF, 32, 64, 56, 56)], "Conv_34", "Relu_37",
    ParameterType="Convolution", Weights={"Type": "Int8", "Count": 36864}, Bias={"Type": "Float", "Count": 64},
    TacticName="sm80_xmma_fprop_implicit_gemm_interleaved_i8f16_i8i32_f32_nchw_vect_c_32kcrs_vect_c_32_nchw_vect_c_32_tilesize256x64x64",
)  # fmt: skip
POOLED = layer(
    "conv1 + pool", "ConvActPool", [tensor("x", "Row major Int8 format", 32, 3, 224, 224)], [tensor("p", INT8, 32, 64, 56, 56)], "conv1", "pool",
    ConvWeights={"Type": "Int8", "Count": 9408}, ConvBias={"Type": "Float", "Count": 64},
)  # fmt: skip
REFORMAT = layer("QuantizeLinear_40", "Reformat", [tensor("b", HALF, 32, 64, 56, 56)], [tensor("c", INT8, 32, 64, 56, 56)], Origin="QDQ")  # fmt: skip
NOOP = layer("(Unnamed Layer*)", "NoOp", [tensor("c", INT8, 1)], [tensor("d", INT8, 1)])


def test_convolutions_with_their_weights() -> None:
    kernels = inspected_kernels(answer(POOLED, CONV, REFORMAT, NOOP, Bindings=["x", "a", "d"]))
    assert [kernel.role for kernel in kernels] == [
        Role.PRODUCT,
        Role.PRODUCT,
        Role.OTHER,
    ]  # NoOp launches nothing
    assert [kernel.computes_in for kernel in kernels[:2]] == ["int8", "int8"]
    conv = kernels[1]
    assert conv.nodes == ("Conv_34", "Relu_37")
    assert [str(operand) for operand in conv.reads] == [
        "int8[32,64,56,56]", "float16[32,64,56,56]", "int8[36864]", "float32[64]",
    ]  # fmt: skip
    # `inputs` is the sum's: no layer here writes it, and it is none of the engine's
    assert [operand.constant for operand in conv.reads] == [False, True, True, True]
    asked = {"Conv_34": "int8", "conv1": "int8"}
    assert products(kernels, asked).kept == ("Conv_34", "conv1")


def gemm(name: str, kind: str, constants: list[dict], tactic: str, *nodes: str) -> dict:
    inputs = [tensor("x", kind, 1, 197, 384), *constants]
    return layer(f"{name}_myl0_0", "gemm", inputs, [tensor(f"{name}_out", "Half", 1, 197, 1152)], *nodes, TacticName=tactic, StreamId=0)  # fmt: skip


SCALARS = [tensor("__mye34_alpha", "Float", 1), tensor("__mye35_beta", "Float", 1)]
MHA = layer(
    "_gemm_mha_v2_myl0_17", "kgen",
    [tensor("q", "Half", 6, 197, 64), tensor("k", "Half", 6, 64, 197), tensor("v", "Half", 6, 197, 64)], [tensor("o", "Half", 6, 197, 64)],
    "a/matmul", "a/softmax", "a/matmul_2", TacticName="_gemm_mha_v2_0x957a2fe283f77dcf35c142c1390a3e6a",
)  # fmt: skip
DEQUANTIZED = layer(
    "__myl_CastMul_myl0_1", "kgen", [tensor("__mye116_dconst", "Int8", 384, 1152), tensor("__mye117_dconst", "Half", 1152)],
    [tensor("w", "Half", 384, 1152)], "a/qkv/weight/dequantize", "a/qkv",
)  # fmt: skip


def test_products_of_myelin() -> None:
    """Weights among the inputs, as in 10.0; or not at all, as later: then the tactic tells, or nothing does."""
    qkv = gemm("a/qkv", "Half", [tensor("w", "Half", 384, 1152), *SCALARS], "sm80_xmma_gemm_f16f16_f16f32_f32_tn_n_tilesize32x32x64", "a/qkv")  # fmt: skip
    proj = gemm("a/proj", "Int8", [tensor("__mye595_dconst", "Int8", 384, 384), *SCALARS], "", "a/proj")
    fc1 = gemm("a/fc1", "Int8", [], "sm80_xmma_gemm_i8f16_i8i32_f32_tn_n_tilesize128x64x64", "a/fc1")
    fc2 = gemm("a/fc2", "FP8", [], "sm89_xmma_gemm_e4m3bf16_e4m3f32_f32_tn_n_tilesize128x64x64", "a/fc2")
    untold = gemm("b/fc1", "Int8", [], "__myl_0x1", "b/fc1")
    wait = {"Name": "wait", "LayerType": "wait", "Inputs": [], "Outputs": []}
    kernels = inspected_kernels(
        answer(DEQUANTIZED, qkv, MHA, proj, fc1, wait, fc2, untold, Bindings=["x", "q", "k", "v"])
    )
    asked = dict.fromkeys(("a/qkv", "a/proj", "a/fc1", "b/fc1"), "int8") | {"a/fc2": "float8_e4m3fn"}
    assert products(kernels, asked).to_dict() == {
        "kept": ["a/proj", "a/fc1", "a/fc2"], "widened": ["a/qkv"], "unknown": ["b/fc1"],
    }  # fmt: skip
    census = take_census(kernels, ("a/softmax",))
    assert census is not None and census.to_dict() == {
        "kernels": 7, "products": {"": 1, "float16": 1, "float8_e4m3fn": 1, "int8": 2},
        "attention_kernels": 1, "attention": 1, "attentions": 1, "widened": ["a/qkv"],
    }  # fmt: skip


def test_constants_and_types_of_release_11() -> None:
    fields = {
        "Inputs": [new_tensor("x", "Int8", 1, 50, 128)],
        "Outputs": [new_tensor("y", "Half", 1, 50, 384)],
    }
    constants = [new_tensor("w", "Int8", 1, 128, 384), new_tensor("alpha", "Float", 1)]
    qkv = {"Name": "a/qkv_myl0_6", "LayerType": "gemm", **fields, "Constants": constants, "Metadata": "[ONNX Layer: a/qkv]"}  # fmt: skip
    io = {"I/O Tensors": [{"Name": "x", "IOMode": "Input", "DataType": "Int8"}]}
    (kernel,) = inspected_kernels(answer(qkv, **io))
    assert (kernel.computes_in, [operand.constant for operand in kernel.reads]) == (
        "int8",
        [False, True, True],
    )
    assert kernel.to_dict()["writes"] == ["float16[1,50,384]"]


def test_what_else_may_be_a_product() -> None:
    fused = layer("f", "fusion", [tensor("x", "Half", 1, 8)], [], "head", TacticName="sm80_xmma_gemm_f16f16")
    pointwise = layer("p", "fusion", [tensor("x", "Half", 1, 8)], [], "gelu", TacticName="pointwise_activation_fusion")  # fmt: skip
    own = layer("__myl_MulSum_myl0_0", "kgen", [tensor("x", "Half", 1, 8)], [], "single")
    named = layer("self_mha/conv/softmax", "SoftMax", [tensor("x", "Half", 1, 8)], [], "self_mha/softmax")
    kernels = inspected_kernels(answer(fused, pointwise, own, named), ["head", "single"])
    assert [kernel.role for kernel in kernels] == [Role.PRODUCT, Role.OTHER, Role.PRODUCT, Role.OTHER]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (answer("qkv", "norm"), "tells names alone; build with --profiling detailed"),
        (answer(layer("{ForeignNode[a...b]}", "Myelin", [], [])), "tells many kernels as one layer"),
        ("", "cannot be read (JSONDecodeError)"),
        ("[]", "cannot be read (TypeError)"),
        (answer({"Name": "a"}), "cannot be read (KeyError)"),
        (answer(layer("a", "gemm", [{"Name": "x", "Dimensions": ["?"]}], [])), "cannot be read (ValueError)"),
        (answer(layer("a", "gemm", [3], [])), "cannot be read (AttributeError)"),  # type: ignore[list-item]
    ],
)
def test_what_does_not_tell(text: str, told: str) -> None:
    with pytest.raises(EngineError) as caught:
        inspected_kernels(text)
    assert told in str(caught.value)


def test_an_engine_is_asked(rig: Rig, plan: Path, tmp_path: Path) -> None:
    """On every recorded release, by its own names."""
    product = layer(
        "first_myl0_0", "gemm", [tensor("x", "Float", 2, 8), tensor("w", "Float", 8, 16)], [], "first"
    )
    rig.trt.inspector = answer(product, Bindings=["x", "y"])
    feeds = {"x": np.zeros((2, 8), np.float32)}
    rows, details = rig.engine.inspect_kernels(plan, tmp_path / "mlp.onnx", feeds)
    assert [row["role"] for row in rows] == ["product"] and details["kernels"]["products"] == {"float32": 1}
    assert (details["kernels_told_by"], details["eight_bits"], details["raised"]) == (
        "engine inspector",
        None,
        [],
    )
    rig.trt.inspector = answer("first")
    with pytest.raises(EngineError, match="names alone"):
        rig.engine.inspect_kernels(plan, tmp_path / "mlp.onnx", feeds)
