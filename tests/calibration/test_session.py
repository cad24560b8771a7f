from __future__ import annotations

import numpy as np
import onnx
import pytest

from calibration.errors import CalibrationError
from calibration.session import ImageSession, at_batch_one, image_input, with_outputs


def network(batch: int | str) -> onnx.ModelProto:
    """A graph whose inner shapes are written down, as an exporter leaves them."""
    model = onnx.parser.parse_model(
        f"""<ir_version: 10, opset_import: ["": 20]>
        g (float[{batch},3,4,4] images) => (float[{batch},2,3,3] logits) <float[2,3,2,2] w = {{{",".join("1" * 24)}}}>
        {{ [conv] a = Conv (images, w) [relu] b = Relu (a) [log] logits = Log (b) }}"""
    )
    return onnx.shape_inference.infer_shapes(model)


def images(count: int) -> np.ndarray:
    return np.random.default_rng(0).uniform(1, 2, (count, 3, 4, 4)).astype(np.float32)


def test_shapes_at_batch_one_are_inferred_anew() -> None:
    # ONNX Runtime would take the old ones with no more than a warning
    model = network(4)
    inferred = onnx.shape_inference.infer_shapes(at_batch_one(model), strict_mode=True).graph
    values = (*inferred.input, *inferred.value_info, *inferred.output)
    batches = {value.name: value.type.tensor_type.shape.dim[0].dim_value for value in values}
    assert batches == dict.fromkeys(("images", "a", "b", "logits"), 1)
    assert model == network(4)


def test_outputs_are_those_named_in_their_order() -> None:
    model = network(1)
    one = images(1)
    a, given, b = ImageSession(with_outputs(model, ["a", "images", "b"])).run(one)
    np.testing.assert_array_equal(given, one)  # the input too
    np.testing.assert_array_equal(b, np.maximum(a, 0))
    assert model == network(1)


@pytest.mark.parametrize(("batch", "sizes"), [(1, [1, 1, 1]), (2, [2, 2]), ("n", [3])])
def test_a_batch_is_cut_into_what_the_graph_takes(batch: int | str, sizes: list[int]) -> None:
    session, three = ImageSession(network(batch)), images(3)
    runs = list(session.fit(three))
    assert [len(run) for run in runs] == sizes
    np.testing.assert_array_equal(np.concatenate(runs)[:3], three)
    assert all(np.isfinite(session.run(run)[0]).all() for run in runs)


def test_the_input_is_what_is_no_weight() -> None:
    model = network(1)
    model.graph.input.append(onnx.helper.make_tensor_value_info("w", onnx.TensorProto.FLOAT, (2, 3, 2, 2)))
    assert image_input(model).name == "images"
    model.graph.input.append(onnx.helper.make_tensor_value_info("more", onnx.TensorProto.FLOAT, (1,)))
    with pytest.raises(CalibrationError, match="input"):
        image_input(model)
