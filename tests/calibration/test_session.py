from __future__ import annotations

from contextlib import suppress

import numpy as np
import onnx
import onnxruntime
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


def test_fp8_stays_fp8_with_every_release(monkeypatch: pytest.MonkeyPatch) -> None:
    """Up to 1.31 ONNX Runtime makes operators of INT8 of it, which it then refuses; other graphs keep their fast operators."""
    told: list[bool] = []
    real = onnxruntime.InferenceSession

    def session(model: bytes, options: onnxruntime.SessionOptions, providers: list[str]) -> object:
        with suppress(RuntimeError):  # there is no such entry
            told.append(options.get_session_config_entry("session.disable_quant_qdq") == "1")
        return real(model, options, providers)

    monkeypatch.setattr(onnxruntime, "InferenceSession", session)
    model = network(1)
    ImageSession(model)
    assert told == []
    fp8 = onnx.helper.make_tensor("zero", onnx.TensorProto.FLOAT8E4M3FN, [], [0.0])
    model.graph.initializer.extend([fp8, onnx.numpy_helper.from_array(np.float32(1), "scale")])
    for node in model.graph.node:
        if node.op_type == "Log":
            node.input[0] = "dequantized"
    pair = [
        onnx.helper.make_node("QuantizeLinear", ["b", "scale", "zero"], ["quantized"]),
        onnx.helper.make_node("DequantizeLinear", ["quantized", "scale", "zero"], ["dequantized"]),
    ]
    nodes = [*model.graph.node[:2], *pair, *model.graph.node[2:]]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    assert np.isfinite(ImageSession(model).run(images(1))[0]).all()
    assert told == [True]
