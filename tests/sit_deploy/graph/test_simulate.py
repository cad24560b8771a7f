from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, numpy_helper
from onnx.reference import ReferenceEvaluator

from sit_deploy.errors import InputError
from sit_deploy.graph.precision import to_precision
from sit_deploy.graph.simulate import first_non_finite, simulate

Make = Callable[..., onnx.ModelProto]
LEVELS = (ort.GraphOptimizationLevel.ORT_DISABLE_ALL, ort.GraphOptimizationLevel.ORT_ENABLE_ALL)


def run(
    model: onnx.ModelProto,
    images: np.ndarray,
    level: ort.GraphOptimizationLevel = LEVELS[1],
    optimized: Path | None = None,
) -> np.ndarray:
    options = ort.SessionOptions()
    options.graph_optimization_level = level
    options.log_severity_level = 4
    if optimized is not None:
        options.optimized_model_filepath = str(optimized)
    session = ort.InferenceSession(model.SerializeToString(), options, ["CPUExecutionProvider"])
    return session.run(None, {"images": images})[0]


def two_products(middle: str = "") -> onnx.ModelProto:
    """images * 1000, then an operator, then * 2**-10: exact in float32, and beyond fp16 between for |x| > 65.5."""
    body = f"[up] a = MatMul (images, w) {middle} [down] logits = MatMul ({'b' if middle else 'a'}, v)"
    model = onnx.parser.parse_model(
        f'<ir_version: 10, opset_import: ["": 20]> g (float[1,4] images) => (float[1,4] logits) {{ {body} }}'
    )
    for name, scale in (("w", 1000.0), ("v", 2.0**-10)):
        weight = numpy_helper.from_array(np.eye(4, dtype=np.float32) * np.float32(scale), name)
        model.graph.initializer.append(weight)
    return model


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize(
    ("precision", "dtype"),
    [("fp16", np.float16), ("bf16", ml_dtypes.bfloat16)],
    ids=["fp16", "bf16"],
)
@pytest.mark.parametrize("middle", ["", "[t] b = Identity (a)", "[r] b = Relu (a)"])
def test_rounding_is_done_and_is_not_optimised_away(
    precision: str, dtype: type, middle: str, level: ort.GraphOptimizationLevel
) -> None:
    # Positive, so that Relu changes nothing; one value of fp16's subnormals, one that it flushes once scaled.
    images = np.array([[1 / 3, 7.7777, 1.2345e-7, 60.0]], np.float32)
    typed, _ = to_precision(two_products(middle), precision)
    value = images.astype(dtype).astype(np.float32)
    for scale in (1000.0, 2.0**-10):
        value = (value * np.float32(dtype(scale))).astype(dtype).astype(np.float32)
    np.testing.assert_array_equal(run(simulate(typed), images, level), value)
    assert not np.array_equal(value, images * np.float32(1000 / 1024))


@pytest.mark.parametrize("level", LEVELS)
def test_overflow_shows_in_the_simulation_only(level: ort.GraphOptimizationLevel) -> None:
    images = np.array([[100.0, 0, 0, 0]], np.float32)
    typed, _ = to_precision(two_products(), "fp16")
    assert np.isinf(run(simulate(typed), images, level)[0, 0])
    # If this ever fails, ONNX Runtime has learnt to run FP16 graphs as written: simulate.py says that it does not.
    assert run(typed, images, level)[0, 0] == np.float32(100 * 1000 / 1024)


def test_onnxruntime_has_no_bf16_on_cpu() -> None:
    typed, _ = to_precision(two_products(), "bf16")
    with pytest.raises(ort.capi.onnxruntime_pybind11_state.NotImplemented):
        run(typed, np.ones((1, 4), np.float32))


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
@pytest.mark.parametrize("opset", [17, 20])
def test_every_low_tensor_is_rounded_and_every_round_is_kept(
    transformer: Make, images: np.ndarray, tmp_path: Path, opset: int, precision: str
) -> None:
    typed, plan = to_precision(transformer(opset), precision)
    model = simulate(typed)
    onnx.checker.check_model(model, full_check=True)
    low = TensorProto.FLOAT16 if precision == "fp16" else TensorProto.BFLOAT16

    def rounds(of: onnx.ModelProto) -> int:
        return Counter(
            a.i for n in of.graph.node if n.op_type == "Cast" for a in n.attribute if a.name == "to"
        )[low]

    run(model, images, optimized=tmp_path / "optimized.onnx")
    movers = ("Transpose", "Reshape", "Slice", "Gather", "Squeeze", "Concat", "Pad")
    computing = [n for n in typed.graph.node if n.op_type not in (*movers, "Cast")]
    low_by_name = {
        n.node for n in plan.nodes if n.dtype == ("float16" if precision == "fp16" else "bfloat16")
    }
    expected = sum(n.name in low_by_name for n in computing)
    expected += sum(n.op_type == "Cast" and n.attribute[0].i == low for n in typed.graph.node)
    assert rounds(model) == expected
    assert rounds(onnx.load(tmp_path / "optimized.onnx")) == expected


def test_simulation_agrees_with_a_run_in_the_written_types(transformer: Make, images: np.ndarray) -> None:
    # ONNX's reference evaluator computes in the types of the graph (bfloat16 not in all releases). Its sums round
    # elsewhere than ours, so the two agree to a few roundings of FP16.
    typed, _ = to_precision(transformer(20), "fp16")
    written = ReferenceEvaluator(typed).run(None, {"images": images})[0]
    simulated = run(simulate(typed), images)
    assert np.abs(simulated - written).max() < 4e-3 * np.abs(written).max()
    assert np.abs(simulated - run(transformer(20), images)).max() > 0


def test_bf16_is_eight_times_coarser_than_fp16(transformer: Make, images: np.ndarray) -> None:
    exact = run(transformer(20), images)
    error = {}
    for precision in ("fp16", "bf16"):
        simulated = run(simulate(to_precision(transformer(20), precision)[0]), images)
        error[precision] = np.sqrt(np.mean((simulated - exact) ** 2))
    assert 3 < error["bf16"] / error["fp16"] < 20
    assert error["bf16"] < 0.03 * np.abs(exact).max()


def test_fp32_graph_is_simulated_as_itself(transformer: Make) -> None:
    model = transformer(20)
    assert simulate(model).graph.node == model.graph.node


def test_low_border_is_refused() -> None:
    model = onnx.parser.parse_model(
        '<ir_version: 10, opset_import: ["": 20]> g (float16[2] x) => (float16[2] y) { [a] y = Relu (x) }'
    )
    with pytest.raises(InputError, match="'x' is float16"):
        simulate(model)


def test_first_non_finite_names_the_node_and_the_value() -> None:
    images = np.array([[100.0, 1, 1, 1]], np.float32)
    typed, _ = to_precision(two_products("[r] b = Relu (a)"), "fp16")
    found = first_non_finite(typed, images)
    assert found is not None
    assert (found.tensor, found.node, found.op_type, found.dtype) == (
        "a",
        "up",
        "MatMul",
        "float16",
    )
    assert found.absmax == 100_000
    assert str(found) == (
        "float16 overflows in 'a' (MatMul 'up'): max |x| 100000 > 65504; use bf16 or fp32, "
        "or calibrate so that this node stays fp32"
    )
    assert first_non_finite(typed, images / 10) is None
    assert first_non_finite(to_precision(two_products(), "bf16")[0], images) is None


def test_first_non_finite_in_float32() -> None:
    model = onnx.parser.parse_model(
        """<ir_version: 10, opset_import: ["": 20]> g (float[1,4] images) => (float[1,4] logits)
        { [l] a = Log (images) [r] logits = Relu (a) }"""
    )
    found = first_non_finite(model, np.array([[1, 1, -1, 1]], np.float32))
    assert str(found) == "'a' (Log 'l') is NaN or infinite"
    found = first_non_finite(model, np.array([[1, np.nan, 1, 1]], np.float32))
    assert str(found) == "'images' (the graph's input) is NaN or infinite"
