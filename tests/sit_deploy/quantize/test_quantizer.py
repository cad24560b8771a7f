from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from calibration.cache import Calibration
from calibration.formats import GRIDS, broadcast_along, float16_scale, weight_scale
from calibration.plan import make_plan
from sit_deploy.errors import InputError
from sit_deploy.graph.deploy_form import to_deploy_form
from sit_deploy.graph.export import export_onnx
from sit_deploy.quantize.calibrate import CalibrationMethod, calibrate
from sit_deploy.quantize.image_stream import ImageStream
from sit_deploy.quantize.logits import run_logits
from sit_deploy.quantize.quantizer import LEAST_DB, Quantizer, make_quantizer, trained_quantizer
from tests.helpers.digits import Digits
from tests.helpers.graphs import sqnr_db

pytestmark = pytest.mark.slow


def initializers(graph: onnx.ModelProto) -> dict[str, np.ndarray]:
    return {t.name: numpy_helper.to_array(t) for t in graph.graph.initializer}


def test_rounding_against_the_inputs_is_better_than_to_nearest(
    digits: Digits, calibration: Calibration, stream: ImageStream, quantizer: Quantizer
) -> None:
    plain = make_quantizer(digits.float_graph.graph, calibration, None)
    reference = run_logits(digits.float_graph.graph, stream)
    rounded = sqnr_db(run_logits(quantizer.quantized(), stream), reference)
    assert rounded > sqnr_db(run_logits(plain.quantized(), stream), reference) + 1


def test_without_images(digits: Digits, calibration: Calibration) -> None:
    plain = make_quantizer(digits.float_graph.graph, calibration, None)
    assert plain.notes == (
        "no images were given beside the calibration: weights are rounded to nearest and layers are not measured",
    )
    assert plain.errors == {} and not plain.corrected
    assert all(row["sqnr_db"] is None for row in plain.rows())
    weight = initializers(plain.graph)["blocks.1/mlp/fc2/weight"]
    scale = weight_scale(weight, 1, GRIDS["int8"])
    nearest = np.rint(weight / broadcast_along(scale, 1, 2)).clip(-127, 127)
    np.testing.assert_array_equal(initializers(plain.quantized())["blocks.1/mlp/fc2/weight/codes"], nearest)


def test_biases_are_corrected_only_where_that_is_better(
    digits: Digits, calibration: Calibration, stream: ImageStream, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The two forms are measured, the plain one second; the better is taken."""
    from sit_deploy.quantize import quantizer

    graph = digits.float_graph.graph
    for errors, better in (((1.0, 2.0), True), ((2.0, 1.0), False), ((1.0, 1.0), False)):
        left = list(errors)
        monkeypatch.setattr(quantizer, "logits_error", lambda *_, left=left: left.pop(0))
        made = make_quantizer(graph, calibration, stream, ["tsm"])
        assert made.corrected == better
        plain = replace(made, corrected=False)
        a, b = (form.quantized().SerializeToString() for form in (made, plain))
        assert (a != b) == better


def with_massive_neuron(graph: onnx.ModelProto, block: int = 1) -> onnx.ModelProto:
    """Let a neuron of an MLP be 300 in every token, and write 1418 into one channel of the residual stream.

    As a few neurons of public vision transformers do: nothing else of the MLP is changed.
    """
    planted = onnx.ModelProto()
    planted.CopyFrom(graph)
    tensors = {tensor.name: tensor for tensor in planted.graph.initializer}
    values = initializers(planted)
    for name, change in (
        ("fc1/weight", lambda v: v[:, 11].fill(0)),
        ("fc1/bias/value", lambda v: v[11:12].fill(300)),
        ("fc2/weight", lambda v: (v[11].fill(0), v[11, 7:8].fill(1418 / 300))),
    ):
        value = values[f"blocks.{block}/mlp/{name}"].copy()
        change(value)
        tensors[f"blocks.{block}/mlp/{name}"].CopyFrom(
            numpy_helper.from_array(value, f"blocks.{block}/mlp/{name}")
        )
    return planted


@pytest.mark.parametrize("grid", ["int8", "fp8"])
def test_a_layer_that_reads_outliers_stays_high(
    grid: str, digits: Digits, stream: ImageStream, quantizer: Quantizer
) -> None:
    """In int8 the neuron would take the codes of all others; fp8 has codes for both."""
    assert quantizer.plan.kept_for_outliers == () and quantizer.notes == ()
    graph = with_massive_neuron(digits.float_graph.graph)
    calibration = calibrate(graph, stream, CalibrationMethod(grid, "minmax"))[0]
    assert max(seen.absmax for seen in calibration.tensors.values()) == pytest.approx(300)
    made = make_quantizer(graph, calibration, stream)
    layer = "blocks.1/mlp/fc2"
    if grid == "fp8":
        assert made.plan.kept_for_outliers == () and made.errors[layer].worst_db > LEAST_DB
        return
    assert made.plan.kept_for_outliers == (layer,)
    assert made.notes == (
        f"{layer} stays high: it reads outliers, and 8 bits hold them or the rest, not both",
    )
    error = made.errors[layer]
    assert error.sqnr_db > error.channel_db + 10  # the neuron alone has most of the power
    (row,) = (row for row in made.rows() if row["layer"] == layer)
    assert row["precision"] == "high" and row["reason"].startswith("outliers")
    reference = run_logits(graph, stream)
    everything = made.with_plan(make_plan(made.layers))
    kept, lost = (sqnr_db(run_logits(q.quantized(), stream), reference) for q in (made, everything))
    assert kept > lost + 6


def test_rows(quantizer: Quantizer) -> None:
    rows = {row["layer"]: row for row in quantizer.rows({"head": {"alone_db": 9.0}})}
    assert list(rows) == [layer.name for layer in quantizer.plan.layers]
    fc2 = rows["blocks.0/mlp/fc2"]
    source = quantizer.layers["blocks.0/mlp/fc2"].inputs[0]
    assert fc2["scale"] == quantizer.scales.activations[source]
    assert fc2["shift"] == quantizer.scales.shifts[source] > 0
    assert fc2["sqnr_db"] == quantizer.errors["blocks.0/mlp/fc2"].sqnr_db > 20
    assert (rows["head"]["precision"], rows["head"]["alone_db"]) == ("high", 9.0)


def test_fewer_layers(quantizer: Quantizer) -> None:
    plan = quantizer.plan.keep_high(["blocks.0/mlp/fc2"])
    names = initializers(quantizer.with_plan(plan).quantized())
    assert "blocks.0/mlp/fc2/weight" in names and "blocks.0/mlp/fc2/weight/codes" not in names
    assert "blocks.0/mlp/fc1/weight/codes" in names
    (row,) = [r for r in quantizer.with_plan(plan).rows() if r["layer"] == "blocks.0/mlp/fc2"]
    assert (row["precision"], row["scale"], row["sqnr_db"]) == ("high", None, None)
    assert row["reason"] == "kept high for accuracy: number 1 by harm for its work"


def test_another_method_than_the_calibrations(digits: Digits, calibration: Calibration) -> None:
    graph = digits.float_graph.graph
    asked = make_quantizer(graph, calibration, None, ["proj"], "mse")
    assert (asked.method, make_quantizer(graph, calibration, None, ["proj"]).method) == ("mse", "minmax")
    (source,) = asked.layers["blocks.0/attn/proj"].inputs
    wanted = float(float16_scale(calibration.threshold(source, "mse") / 127))
    assert asked.scales.activations[source] <= wanted < calibration.threshold(source, "minmax") / 127


# --------------------------------------------------------------------------------------------- trained to be rounded


def test_trained_thresholds_are_used_as_they_are(digits: Digits) -> None:
    thresholds = {"blocks.0/mlp/fc1": 3.0, "blocks.2/attn/proj": 0.123, "head": 20.0}
    made = trained_quantizer(digits.float_graph.graph, thresholds)
    assert made.plan.quantized == tuple(thresholds)
    assert (made.method, made.corrected, made.scales.shifts, made.scales.weights) == (
        "trained",
        False,
        {},
        {},
    )
    low: dict[str, Any] = initializers(made.quantized())
    for name, limit in thresholds.items():
        (source,) = made.layers[name].inputs
        assert low[f"{source}/scale"] == float16_scale(limit / 127)
        assert 0 <= low[f"{source}/scale"] - limit / 127 < limit / 127 * 1e-3
        assert f"{name}/weight/codes" in low
    rows = {row["layer"]: row["reason"] for row in made.rows()}
    assert (rows["head"], rows["blocks.1/mlp/fc1"]) == ("trained in 8 bits", "trained in float")
    assert made.graph is digits.float_graph.graph  # nothing smoothed


def test_trained_thresholds_of_unknown_layers(digits: Digits) -> None:
    with pytest.raises(
        InputError, match=r"has a threshold for 'blocks\.9/mlp/fc1', which the deployed graph does not have"
    ):
        trained_quantizer(digits.float_graph.graph, {"blocks.9/mlp/fc1": 1.0})


def test_trained_thresholds_of_other_outputs(digits: Digits) -> None:
    """q and kv of the last block are one layer where all its tokens are read, of the same input; and there is no head then."""
    model = digits.float_graph.loaded.model
    graph = export_onnx(to_deploy_form(model, ("features", "patches")), model.img_size)
    last = f"blocks.{model.depth - 1}"
    thresholds = {f"{last}/attn/q": 3.4, f"{last}/attn/kv": 3.4, f"{last}/mlp/fc1": 2.0, "head": 20.0}
    made = trained_quantizer(graph, thresholds)
    assert made.plan.quantized == (f"{last}/attn/qkv", f"{last}/mlp/fc1")
    (source,) = made.layers[f"{last}/attn/qkv"].inputs
    assert made.scales.activations[source] == float16_scale(3.4 / 127)
    again = trained_quantizer(digits.float_graph.graph, {f"{last}/attn/qkv": 3.4})
    assert set(again.plan.quantized) == {f"{last}/attn/q", f"{last}/attn/kv"}
