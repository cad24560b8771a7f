"""What attention and MLPs of timm's vision transformers may have beside the plain ones, as ONNX and in each type."""

from __future__ import annotations

import numpy as np
import onnxruntime
import pytest

from calibration.layers import find_layers
from sit_deploy.errors import InputError
from sit_deploy.graph.deploy_form import to_deploy_form
from sit_deploy.graph.export import export_onnx
from sit_deploy.graph.lint import lint
from sit_deploy.graph.precision import Reason, to_precision
from sit_deploy.models.slim import SlimEva, SlimViT, slim
from sit_deploy.models.whole import WholeModel
from tests.helpers.models import (
    EVA_VARIANTS,
    VIT_PARTS,
    WHOLE,
    images,
    plain_vit,
    randomise,
    relative_error,
    tiny_eva,
    whole_model,
)

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("no_gradients_and_one_thread")]


@pytest.mark.parametrize("stages", [(6,), (2, 1, 1, 2)], ids=str)
@pytest.mark.parametrize("variant", EVA_VARIANTS)
def test_the_deploy_form_of_evas_kind(variant: str, stages: tuple[int, ...]) -> None:
    model = tiny_eva(variant, stages)
    pixels = images(model)
    assert relative_error(to_deploy_form(model)(pixels), model(pixels)) < 1e-5


def made(parts: str) -> SlimViT | SlimEva | WholeModel:
    if parts in WHOLE:
        return whole_model(parts)
    if parts in EVA_VARIANTS:
        return tiny_eva(parts, (1, 1, 1))
    # a block that computes all tokens and the last one, with tokens slimmed between
    return randomise(slim(plain_vit(**{**VIT_PARTS[parts], "depth": 2}), (1, 1))).eval()


@pytest.mark.parametrize("parts", [*VIT_PARTS, *EVA_VARIANTS, *WHOLE])
def test_the_graph_computes_what_the_model_does_and_so_does_fp16(parts: str) -> None:
    model = made(parts)
    pixels = images(model, batch=3)
    expected = model(pixels).numpy()
    batch: int | str = "batch"
    if parts == "SAM":  # its windows are counted together with the images
        with pytest.raises(InputError, match="pass --batch-size N in place of --dynamic-batch"):
            export_onnx(to_deploy_form(model), model.img_size, batch=batch)
        batch = 3
    graph = export_onnx(to_deploy_form(model), model.img_size, batch=batch)
    assert lint(graph, dynamic_batch=batch == "batch") == []
    half, plan = to_precision(graph, "fp16")
    # what the deploy form does not rewrite may have others
    unknown = [node.node for node in plan.nodes if node.reason is Reason.UNKNOWN_OPERATOR]
    assert parts in WHOLE or all("/block/" in name for name in unknown)
    for written, tolerance in ((graph, 1e-4), (half, 0.05)):
        session = onnxruntime.InferenceSession(
            written.SerializeToString(), providers=["CPUExecutionProvider"]
        )
        (found,) = session.run(None, {"images": pixels.numpy()})
        assert np.abs(found - expected).max() / expected.std() < tolerance


def test_norms_of_queries_and_keys_stay_float32_in_fp16() -> None:
    model = randomise(slim(plain_vit(**VIT_PARTS["normalised queries and keys"], depth=2), (2,))).eval()
    graph = export_onnx(to_deploy_form(model), model.img_size)
    _, plan = to_precision(graph, "fp16")
    types = {node.node: node.dtype for node in plan.nodes}
    assert types["blocks.0/attn/query_norm"] == types["blocks.1/attn/key_norm"] == "float32"


def test_angles_stay_float32_in_fp16_and_are_no_layers_of_8_bits() -> None:
    model = tiny_eva("EVA-02", (2, 1, 1))
    graph = export_onnx(to_deploy_form(model), model.img_size)
    _, plan = to_precision(graph, "fp16")
    types = {node.node: node for node in plan.nodes}
    turned = [node for name, node in types.items() if name.startswith("positions/")]
    assert {node.dtype for node in turned} == {"float32"}
    assert {node.reason for node in turned} == {Reason.TURNS}
    assert {node.op_type for node in turned} >= {"MatMul", "Mul", "Add", "Sin", "Cos"}
    assert types["tsm.0/fc2"].dtype == types["blocks.3/attn/qkv"].dtype == "float16"
    assert not any(name.startswith("positions/") for name in find_layers(graph))


def test_patches_turn_by_constants() -> None:
    model = tiny_eva("DINOv3", (2,))
    graph = export_onnx(to_deploy_form(model), model.img_size)
    assert not {node.op_type for node in graph.graph.node} & {"Sin", "Cos"}
    assert not any(node.name.startswith("positions/") for node in graph.graph.node)
