from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from calibration.cache import Calibration
from calibration.layers import find_layers
from sit_deploy.errors import InputError
from sit_deploy.quantize.image_stream import ImageStream
from sit_deploy.quantize.logits import run_logits
from sit_deploy.quantize.scales import choose_scales, smoothed_graph
from tests.helpers.digits import Digits


@pytest.mark.slow
def test_smoothing_leaves_the_logits_as_they_are(
    digits: Digits, calibration: Calibration, stream: ImageStream
) -> None:
    graph = digits.float_graph.graph
    smoothed = smoothed_graph(graph, calibration)
    assert any(any(power) for power in calibration.migration.values())
    assert smoothed.SerializeToString() != graph.SerializeToString()
    np.testing.assert_array_equal(run_logits(smoothed, stream), run_logits(graph, stream))


def test_a_calibration_of_another_graph_is_refused(digits: Digits, calibration: Calibration) -> None:
    other = replace(calibration, migration={**calibration.migration, "blocks.99/norm1": [0]})
    with pytest.raises(InputError, match=r"'blocks\.99/norm1', which this graph has not; calibrate again"):
        smoothed_graph(digits.float_graph.graph, other)


def test_a_shift_is_taken_where_it_pays_and_something_takes_it_back(
    digits: Digits, calibration: Calibration
) -> None:
    layers = find_layers(smoothed_graph(digits.float_graph.graph, calibration))
    fc1, fc2 = layers["blocks.0/mlp/fc1"], layers["blocks.0/mlp/fc2"]
    scales = choose_scales(calibration, [fc1, fc2])
    assert set(scales.activations) == {*fc1.inputs, *fc2.inputs}
    assert set(scales.shifts) == set(fc2.inputs)  # behind GELU; what LayerNorm gives is symmetric enough
    (tensor,) = fc2.inputs
    plain = choose_scales(replace(calibration, grid="fp8"), [fc2])  # no use for one
    assert plain.shifts == {}
    assert scales.activations[tensor] < 0.75 * calibration.threshold(tensor) / 127
    # two activations meet in a product without a weight
    assert choose_scales(calibration, [fc2, replace(fc2, weight=None)]).shifts == {}


def test_probabilities_have_a_fixed_scale_in_fp8(digits: Digits, calibration: Calibration) -> None:
    layers = find_layers(smoothed_graph(digits.float_graph.graph, calibration))
    second = layers["blocks.0/attn/matmul_2"]
    probabilities, values = second.inputs
    seen = calibration.tensors["blocks.0/mlp/act"]  # of something else, far below 1
    little = replace(seen, absmax=0.1, thresholds=dict.fromkeys(seen.thresholds, 0.1))
    made = replace(calibration, tensors={**calibration.tensors, probabilities: little, values: little})
    in_fp8 = choose_scales(replace(made, grid="fp8"), [second]).activations
    # the next number of float16 above 1/448, and what was seen for what is no softmax's
    assert in_fp8[probabilities] == pytest.approx(1 / 448, rel=1e-3) and in_fp8[probabilities] >= 1 / 448
    assert in_fp8[values] == pytest.approx(0.1 / 448, rel=1e-2)
    assert choose_scales(made, [second]).activations[probabilities] == pytest.approx(0.1 / 127, rel=1e-3)
