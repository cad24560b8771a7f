"""The estimate by hand: kernels of round numbers on the GPUs of the table."""

from __future__ import annotations

import pytest

from engines import EngineInputError
from engines.kernels import Kernel, Operand, Role
from engines.tensorrt.roofline import GPUS, LAUNCH_SECONDS, estimate, lacks

MEGA = 1_000_000


def kernel(role: Role, kind: str, elements: int, *nodes: str, name: str = "k") -> Kernel:
    """Reads two tensors of a type, and writes a third."""
    operands = (Operand(kind, (elements,)), Operand(kind, (2, elements)))
    return Kernel(name, "gemm", operands, (Operand(kind, (elements,)),), nodes, role)


PRODUCT = kernel(Role.PRODUCT, "float16", MEGA, "fc1")
EPILOGUE = kernel(Role.OTHER, "float16", MEGA, "fc1", "gelu")
ATTENTION = kernel(Role.ATTENTION, "float16", 10, "qk", "softmax", "pv", "fc1")
KERNELS = [PRODUCT, EPILOGUE, ATTENTION]
MACS = {"fc1": 312 * 10**9, "qk": 312 * 10**6, "pv": 312 * 10**6}


def test_the_longer_of_operations_and_bytes() -> None:
    """624 G operations at 312 T a second are 2 ms; 8 MB at 2.039 TB a second are 3.9 us; two products of attention 4 us."""
    found = estimate(KERNELS, MACS, "a100")
    launch = LAUNCH_SECONDS * 1e6
    moved = 8 * MEGA / 2039e9 * 1e6
    assert found.kernel_us == pytest.approx((2000 + launch, moved + launch, 4 + launch))
    assert found.products_ms == pytest.approx(2.0) and found.attention_ms == pytest.approx(4e-3)
    assert found.other_ms == pytest.approx(moved / 1e3) and found.launches_ms == pytest.approx(
        3 * launch / 1e3
    )
    assert found.ms == pytest.approx(
        found.products_ms + found.attention_ms + found.other_ms + found.launches_ms
    )
    assert found.untold == 0 and found.to_dict()["gpu"] == "a100"


def test_rates_are_those_of_the_type() -> None:
    half, whole = (
        estimate([kernel(Role.PRODUCT, kind, 8, "fc1")], MACS, "l4") for kind in ("float16", "int8")
    )
    assert half.products_ms == pytest.approx(2 * whole.products_ms, rel=0.01)
    by_tactic = Kernel("k", "gemm", (Operand("int8", (8,)),), (), ("fc1",), Role.PRODUCT, "int8")
    assert estimate([by_tactic], MACS, "l4").products_ms == pytest.approx(whole.products_ms)


def test_what_no_kernel_is_told_to_compute_is_left_out() -> None:
    untyped = Kernel(
        "k", "gemm", (Operand("int8", (8,)),), (), ("fc1",), Role.PRODUCT
    )  # one factor is not listed
    assert estimate([untyped], {"fc1": 1, "head": 3}, "l4").untold == 1.0
    assert estimate([PRODUCT], {"fc1": 1, "head": 3}, "l4").untold == pytest.approx(0.75)
    assert estimate([EPILOGUE], {}, "l4").untold == 0.0


def test_gpus_that_have_no_fp8() -> None:
    low = [kernel(Role.PRODUCT, "float8_e4m3fn", 8, "fc1")]
    assert {gpu for gpu in GPUS if lacks(low, gpu)} == {"a100", "a100-40gb"}
    with pytest.raises(EngineInputError, match=r"^A100 80GB SXM \(sm80\) has no FP8$"):
        estimate(low, MACS, "a100")
    assert lacks([kernel(Role.PRODUCT, "int32", 8, "fc1")], "l4") == "int32"
    assert lacks([kernel(Role.OTHER, "int32", 8, "fc1")], "l4") is None


@pytest.mark.parametrize(
    ("operand", "told"),
    [
        (
            Operand("float16", (-1, 8)),
            r"^the shapes of kernel odd are open \(float16\[-1,8\]\); build with a fixed batch$",
        ),
        (Operand("", (1, 8)), r"^the types of kernel odd are not known \(\?\[1,8\]\); build it again$"),
    ],
)
def test_kernels_without_shapes(operand: Operand, told: str) -> None:
    odd = Kernel("odd", "kgen", (operand,), (), ())
    with pytest.raises(EngineInputError, match=told):
        estimate([PRODUCT, odd], MACS, "l4")


@pytest.mark.parametrize(
    "operand", [Operand("float32", ()), Operand("", (2, 3)), Operand("int8", (-1, 50, 128))]
)
def test_tensors_as_text(operand: Operand) -> None:
    assert Operand.of(str(operand)) == operand


@pytest.mark.parametrize("text", ["", "int8", "int8[", "int8[1,]", "int8[a]", "[1]", "int8[1] "])
def test_what_is_no_tensor(text: str) -> None:
    with pytest.raises(ValueError, match="is no tensor"):
        Operand.of(text)


def test_the_rates_are_in_proportion() -> None:
    """Dense ones: half of what the data sheets give with sparsity; 8 bits are twice as fast as 16, or four times, summed in fewer bits."""
    for gpu, rates in GPUS.items():
        assert rates.source.startswith("https://") and "nvidia.com" in rates.source, gpu
        assert rates.tera["float16"] == rates.tera["bfloat16"] > rates.tera["float32"]
        assert rates.tera["int8"] / rates.tera["float16"] == pytest.approx(4 if "rtx" in gpu else 2, rel=0.01)
        assert ("float8_e4m3fn" in rates.tera) is (rates.capability != "sm80")
