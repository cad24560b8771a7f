"""What attention and MLPs of timm's vision transformers may have beside the plain ones, as ONNX and in each type."""

from __future__ import annotations

import numpy as np
import onnxruntime
import pytest

from sit_deploy.graph.deploy_form import to_deploy_form
from sit_deploy.graph.export import export_onnx
from sit_deploy.graph.lint import lint
from sit_deploy.graph.precision import Reason, to_precision
from sit_deploy.models.slim import slim
from tests.helpers.models import VIT_PARTS, images, plain_vit, randomise

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("no_gradients_and_one_thread")]


@pytest.mark.parametrize("parts", VIT_PARTS)
def test_the_graph_computes_what_the_model_does_and_so_does_fp16(parts: str) -> None:
    model = randomise(slim(plain_vit(**VIT_PARTS[parts]), (2, 1, 1, 2))).eval()
    pixels = images(model, batch=3)
    expected = model(pixels).numpy()
    graph = export_onnx(to_deploy_form(model), model.img_size, batch="batch")
    assert lint(graph, dynamic_batch=True) == []
    half, plan = to_precision(graph, "fp16")
    assert not [node.node for node in plan.nodes if node.reason is Reason.UNKNOWN_OPERATOR]
    for made, tolerance in ((graph, 1e-4), (half, 0.05)):
        session = onnxruntime.InferenceSession(made.SerializeToString(), providers=["CPUExecutionProvider"])
        (found,) = session.run(None, {"images": pixels.numpy()})
        assert np.abs(found - expected).max() / expected.std() < tolerance


def test_norms_of_queries_and_keys_stay_float32_in_fp16() -> None:
    model = randomise(slim(plain_vit(**VIT_PARTS["normalised queries and keys"]), (6,))).eval()
    graph = export_onnx(to_deploy_form(model), model.img_size)
    _, plan = to_precision(graph, "fp16")
    types = {node.node: node.dtype for node in plan.nodes}
    assert types["blocks.0/attn/query_norm"] == types["blocks.5/attn/key_norm"] == "float32"
