"""Token reduction without training in the deploy form: every family, its graph, and what of it stays high."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch

from calibration.layers import find_layers
from sit_deploy.graph.deploy_form import to_deploy_form
from sit_deploy.graph.deploy_reduction import DeployReduction
from sit_deploy.graph.export import BATCH, export_onnx
from sit_deploy.graph.lint import lint
from sit_deploy.graph.patterns import selections
from sit_deploy.graph.precision import Reason, to_precision
from sit_deploy.methods import MERGE, TRAINING_FREE, TRANSFORM
from sit_deploy.models.outputs import with_outputs
from sit_deploy.models.slim import slim
from sit_deploy.validation.drift import stream_tensors
from tests.helpers.models import (
    EVA_VARIANTS,
    VIT_PARTS,
    VIT_VARIANTS,
    images,
    plain_vit,
    relative_error,
    tiny_eva,
    tiny_model,
    tiny_vit,
)

pytestmark = pytest.mark.usefixtures("no_gradients_and_one_thread")

STAGES = (1, 1, 1, 1)  # of what is exported
TOLERANCE = 2e-5  # of the logits' standard deviation
NOT_READ = {"differential attention", "parallel blocks", "two of each in parallel", "ReLU"}
PARTS = sorted(VIT_PARTS.keys() - NOT_READ)


def check(model: Any) -> None:
    x = images(model)
    assert relative_error(to_deploy_form(model)(x), model(x)) < TOLERANCE


@pytest.mark.parametrize("method", TRAINING_FREE)
@pytest.mark.parametrize(
    "options", [{}, {"dist_token": True}, {"kept": (16, 5, 5, 2)}, {"keeping_ratio": 1.0}]
)
def test_a_sit(method: str, options: dict[str, Any]) -> None:
    check(tiny_model(method=method, **options))


@pytest.mark.parametrize("variant", VIT_VARIANTS)
def test_vision_transformers(variant: str) -> None:
    method = TRAINING_FREE[sorted(VIT_VARIANTS).index(variant) % 2]
    check(tiny_vit(variant, method=method))


@pytest.mark.parametrize("parts", PARTS)
def test_other_parts(parts: str) -> None:
    method = TRAINING_FREE[PARTS.index(parts) % 2]
    check(slim(plain_vit(**VIT_PARTS[parts]), (2, 2, 2), method=method).eval())


@pytest.mark.parametrize("variant", EVA_VARIANTS)
def test_rotary_positions(variant: str) -> None:
    method = TRAINING_FREE[sorted(EVA_VARIANTS).index(variant) % 2]
    check(tiny_eva(variant, method=method))


def test_sizes_and_the_next_blocks_keys_matter() -> None:
    """Proof that the tests above can fail: the deploy form of another model is not near."""
    model = tiny_model(method=TRANSFORM)
    x, form = images(model), to_deploy_form(model)
    form.reduction[1].k.weight.data.mul_(torch.rand_like(form.reduction[1].k.weight))
    assert relative_error(form(x), model(x)) > 100 * TOLERANCE


def run(graph: Any, x: torch.Tensor) -> torch.Tensor:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    session = onnxruntime.InferenceSession(graph.SerializeToString(), options, ["CPUExecutionProvider"])
    return torch.from_numpy(session.run(None, {"images": x.numpy()})[0])


@pytest.fixture(scope="module")
def graphs() -> dict[tuple[str, int | str], Any]:
    made = {}
    for method in TRAINING_FREE:
        model = tiny_model(method=method, stage_blocks=STAGES)
        for batch in (2, BATCH):
            made[method, batch] = export_onnx(to_deploy_form(model), model.img_size, batch=batch)
    return made


@pytest.mark.slow
@pytest.mark.parametrize("method", TRAINING_FREE)
def test_its_graph_gives_its_logits_in_any_batch(method: str, graphs: dict) -> None:
    model = tiny_model(method=method, stage_blocks=STAGES)
    x = images(model, 3)
    for batch, part in ((2, x[:2]), (BATCH, x)):
        graph = graphs[method, batch]
        assert lint(graph, dynamic_batch=batch == BATCH) == []
        assert relative_error(run(graph, part), model(part)) < TOLERANCE
        assert not {"Expand", "ScatterElements", "GatherElements", "GatherND", "Where", "Range"} & {
            node.op_type for node in graph.graph.node
        }


@pytest.mark.slow
def test_an_older_operator_set_and_rotary_positions() -> None:
    model = tiny_eva("EVA-02", (1, 1, 1), method=TRANSFORM)
    x = images(model)
    graph = export_onnx(to_deploy_form(model), model.img_size, batch=2, opset=17)
    assert lint(graph, max_opset=17) == []
    assert relative_error(run(graph, x), model(x)) < TOLERANCE


@pytest.mark.slow
def test_patches_come_as_pytorch_gives_them() -> None:
    model = tiny_model(method=MERGE)
    x, names = images(model), ("features", "patches")
    found, expected = to_deploy_form(model, names)(x), with_outputs(model, names)(x)
    for one, other in zip(found, expected, strict=True):
        assert relative_error(one, other) < TOLERANCE


@pytest.mark.slow
@pytest.mark.parametrize("method", TRAINING_FREE)
def test_what_decides_stays_float32(method: str, graphs: dict) -> None:
    graph = graphs[method, 2]
    selected = {graph.graph.node[i].name for i in selections(graph.graph)}
    named = {n.name for n in graph.graph.node if n.name.startswith("reduction.") and "/assign" in n.name}
    assert selected == named != set()
    low, plan = to_precision(graph, "fp16")
    reasons = {node.node: node for node in plan.nodes}
    assert {reasons[name].reason for name in selected} <= {Reason.SELECTS, Reason.NO_FLOAT}
    assert reasons["reduction.0/matmul"].dtype == reasons["reduction.0/k"].dtype == "float16"
    model = tiny_model(method=method, stage_blocks=STAGES)
    x = images(model)
    assert lint(low) == []
    assert relative_error(run(low, x), model(x)) < 2e-2
    # nothing of it is written in 8 bits
    assert not [name for name in find_layers(graph) if name.startswith("reduction.")]


@pytest.mark.slow
def test_the_residual_stream_has_the_merged_tokens_and_no_logits_of_attention(graphs: dict) -> None:
    stream = stream_tensors(graphs[TRANSFORM, 2])
    assert [name for name in stream if "reduction" in name] == [f"reduction.{i}/concat" for i in range(3)]
    assert not [name for name in stream if "/attn/" in name]
    assert len(stream) == 2 * 4 + 3 + 1


def test_where_a_stage_keeps_all_tokens_nothing_is_computed() -> None:
    form = to_deploy_form(tiny_model(method=TRANSFORM, kept=(16, 5, 5, 2)))
    assert [isinstance(part, DeployReduction) for part in form.reduction] == [True, False, True]
    assert np.isfinite(form(images(tiny_model())).numpy()).all()
