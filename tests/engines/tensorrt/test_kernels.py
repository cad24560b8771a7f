"""Lines in the form of TensorRT-RTX 1.7.1's verbose log, shortened to what is read; the real builder is asked in test_tensorrt_rtx.py."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from engines.kernels import Operand, Role, products, raised, take_census
from engines.tensorrt.kernels import is_kernel, read_kernels
from engines.tensorrt.messages import Messages, make_logger

ASKED = {
    "a/qkv": "int8",
    "a/proj": "int8",
    "a/fc1": "float8_e4m3fn",
    "a/matmul": "float16",
    "head": "float32",
}


def tensor(name: str, kind: str) -> str:
    return (
        f"{{ Name: {name}, Dimensions: [1,50,128], Strides: [6400,128,1], StrideOrder: [2,1,0], Datatype: {kind}, "
        "Format: (Linear) Row major linear format }"
    )


def line(name: str, kind: str, inputs: list[str], constants: list[str], output: str, *nodes: str) -> str:
    def group(title: str, types: list[str]) -> str:
        return f"{title}: [ {', '.join(tensor('__mye1', kind) for kind in types)}], " if types else ""

    metadata = "".join(f"[ONNX Layer: {node}]" for node in nodes)
    return (
        f"Name: {name}, LayerType: {kind}, {group('Inputs', inputs)}{group('Constants', constants)}"
        f"Outputs: [ {tensor('out', output)}], TacticName: __myelin_CASK_STUB, StreamId: 0, Metadata: {metadata}"
    )


WEIGHT = line("__myl_CastMul_6", "kgen", [], ["Half", "Int8"], "Half", "a/qkv/weight/dequantize", "a/qkv")
WIDENED = line(
    "__myl_CastMulFc_7", "runtime_fusion", ["Int8", "Half"], [], "Half", "a/qkv", "a/norm/dequantize"
)
ATTENTION = line("_gemm_mha_v2_8", "kgen", ["Half"] * 3, [], "Int8", "a/matmul", "a/softmax")
KEPT = line(
    "a/proj_U1_10", "gemm", ["Int8"], ["Int8", "Float", "Float"], "Half", "a/proj", "a/proj/weight/dequantize"
)
EPILOGUE = line(
    "__myl_MulAdd_11", "kgen", ["Half", "Int8", "Int8"], ["Float"], "Int8", "a/proj", "a/qkv", "a/add"
)
FP8 = line("a/fc1_U2_12", "gemm", ["FP8"], ["FP8", "Float"], "Half", "a/fc1")
LINES = [WEIGHT, WIDENED, ATTENTION, KEPT, EPILOGUE, FP8]


def test_what_a_kernel_is() -> None:
    kernels = read_kernels(LINES)
    roles = [Role.WIDENING, Role.PRODUCT, Role.ATTENTION, Role.PRODUCT, Role.OTHER, Role.PRODUCT]
    assert [kernel.role for kernel in kernels] == roles
    assert [kernel.computes_in for kernel in kernels if kernel.role is Role.PRODUCT] == [
        "float16", "int8", "float8_e4m3fn",
    ]  # fmt: skip
    assert kernels[3].to_dict() == {
        "role": "product", "kind": "gemm", "name": "a/proj_U1_10",
        "reads": ["int8[1,50,128]", "int8[1,50,128]", "float32[1,50,128]", "float32[1,50,128]"],
        "writes": ["float16[1,50,128]"], "nodes": ["a/proj", "a/proj/weight/dequantize"],
    }  # fmt: skip
    assert [operand.constant for operand in kernels[3].reads] == [False, True, True, True]
    scalar = Operand("float32", ())
    assert (str(scalar), str(Operand("", (2, 3)))) == ("float32[]", "?[2,3]")


MOVE = line("__myl_Move_0", "kgen", ["Float"], [], "Float")
OWN = line("__myl_ReshMulSum_1", "kgen", ["Half"], ["Half"], "Half", "head", "head/bias")


def test_what_others_name_products_or_attention() -> None:
    """Names of ONNX nodes are in kernels' names; kinds that do not multiply; kernels that cover no node."""
    pool = line("a/pool_myl0_2", "maxpool", ["Half"], [], "Half", "a/pool")
    gemm = line("self_mha/qkv_myl0_3", "gemm", ["Half"], ["Half"], "Half", "self_mha/qkv")
    kernels = read_kernels(
        [MOVE, pool, gemm, "Name: shape_call, LayerType: shape_call, Outputs: [], Metadata: "]
    )
    assert [kernel.role for kernel in kernels] == [Role.OTHER, Role.OTHER, Role.PRODUCT, Role.OTHER]
    assert kernels[0].nodes == kernels[3].reads == ()


def test_a_product_that_the_builder_writes_itself() -> None:
    """One token's: no library multiplies it. Where one does, what adds a bias is none."""
    for asked, role in ((("head",), Role.PRODUCT), ((), Role.OTHER)):
        assert read_kernels([OWN], asked)[0].role is role
    roles = [kernel.role for kernel in read_kernels([*LINES, OWN], (*ASKED, "nowhere"))]
    assert roles == [kernel.role for kernel in read_kernels(LINES)] + [Role.PRODUCT]


def test_a_line_that_cannot_be_read_leaves_no_count() -> None:
    assert read_kernels([*LINES, "Name: a, LayerType: gemm"]) == ()


def test_the_census() -> None:
    census = take_census(read_kernels(LINES), ("a/softmax", "b/softmax"))
    assert census is not None and census.to_dict() == {
        "kernels": 6, "products": {"float16": 1, "float8_e4m3fn": 1, "int8": 1}, "attention_kernels": 1, "attention": 1, "attentions": 2,
        "widened": ["a/qkv"],
    }  # fmt: skip
    assert take_census(read_kernels(["a/proj: 0.1 ms"]), ("a/softmax",)) is None


def test_what_is_multiplied_in_8_bits() -> None:
    found = products(read_kernels(LINES), ASKED)
    assert found.to_dict() == {"kept": ["a/proj", "a/fc1"], "widened": ["a/qkv"], "unknown": []}
    assert products(read_kernels(LINES), {"head": "float32", "a/matmul": "float16"}) is None


@pytest.mark.parametrize(
    "lines",
    [
        [],
        ["Name: a/proj_U1_10, LayerType: gemm"],  # --profiling names
        ["a/proj: 0.1 ms"],
        [text.replace("Datatype: ", "Type: ") for text in LINES],
        [
            text.replace("Datatype: Int8", "Datatype: Whole").replace("LayerType: gemm", "LayerType: kgen")
            for text in LINES
        ],
        [text.replace("ONNX Layer", "Node") for text in LINES],
        [text.replace("Outputs", "Results") for text in LINES],
        [WEIGHT, EPILOGUE],  # what multiplies is missing
    ],
)
def test_another_form_is_unknown(lines: list[str]) -> None:
    found = products(read_kernels(lines), {"a/proj": "int8", "a/fc1": "float8_e4m3fn"})
    assert (found.kept, found.widened, found.unknown) == ((), (), ("a/proj", "a/fc1"))


def test_weight_only_is_not_in_8_bits() -> None:
    """A fused product of a weight in 8 bits with activations in 16 has one operand in 8 bits."""
    fused = line("a/proj_U1_10", "gemm", ["Half"], ["Int8", "Half"], "Half", "a/proj")
    assert products(read_kernels([fused]), {"a/proj": "int8"}).widened == ("a/proj",)
    both_wide = line("a/proj_U1_10", "gemm", ["Half"], ["Half"], "Half", "a/proj")
    assert products(read_kernels([both_wide]), {"a/proj": "int8"}).widened == ("a/proj",)


def test_attention_that_quantizes_inside_does_not_tell() -> None:
    asked = {"a/matmul": "float8_e4m3fn", "a/matmul_2": "float8_e4m3fn"}
    for kind, words in (("Half", "unknown"), ("FP8", "kept")):
        whole = line("_gemv_mha_v1_1", "kgen", [kind] * 3, [], "FP8", "a/matmul", "a/softmax", "a/matmul_2")
        assert getattr(products(read_kernels([whole]), asked), words) == tuple(asked)


def test_what_is_multiplied_in_32_bits() -> None:
    """One operand of 16 bits is enough: a kernel may convert the other, an image for example, by itself."""
    asked = {
        "stem": "float16",
        "head": "float16",
        "rest": "bfloat16",
        "kept": "float32",
        "nowhere": "float16",
    }
    kernels = read_kernels(
        [
            line("__myl_CastCorr_0", "runtime_fusion", ["Float"], ["Half"], "Half", "stem"),
            line("head_U1", "gemm", ["Float"], ["Float"], "Float", "head"),
            line("rest_U1", "gemm", ["Float"], ["Float"], "BFloat16", "rest"),
            line("__myl_AddMul", "kgen", ["Float"], [], "Float", "nowhere"),
            line("kept_U1", "gemm", ["Float"], ["Float"], "Float", "kept"),
            line("odd_U1", "gemm", ["Whole"], ["Whole"], "Float", "stem"),
        ]
    )
    assert raised(kernels, asked) == ("head", "rest")
    assert raised(read_kernels(LINES), ASKED) == raised((), asked) == ()


def test_the_log_keeps_these_lines_alone() -> None:
    assert is_kernel(KEPT) and not is_kernel(f"Engine {KEPT}") and not is_kernel("Name: x")
    severities = SimpleNamespace(INTERNAL_ERROR=0, ERROR=1, WARNING=2, INFO=3, VERBOSE=4)
    trt = SimpleNamespace(ILogger=type("ILogger", (), {"Severity": severities}))
    messages = Messages()
    logger = make_logger(trt, messages)
    logger.log(trt.ILogger.Severity.VERBOSE, "Engine Layer Information:\n" + "\n".join(LINES) + "\nbye")
    logger.log(trt.ILogger.Severity.VERBOSE, "Tactic 5 took 1 ms")
    logger.log(trt.ILogger.Severity.INFO, KEPT)
    assert messages.kernels == LINES and messages.notes == [KEPT]
