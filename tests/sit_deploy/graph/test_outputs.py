"""Outputs other than logits: the deploy form and the graph against timm's own definitions, for every way that a model pools."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer

from sit_deploy.errors import InputError
from sit_deploy.graph import lint
from sit_deploy.graph.deploy_block import DeployBlock, FirstAttention
from sit_deploy.graph.deploy_form import to_deploy_form
from sit_deploy.graph.export import export_onnx
from sit_deploy.models.outputs import ModelOutputs, check_outputs, default_outputs, with_outputs
from sit_deploy.models.slim import slim
from sit_deploy.outputs import OUTPUTS, in_order
from tests.helpers.graphs import run
from tests.helpers.models import images, plain_vit, randomise, relative_error, tiny_eva, tiny_model, tiny_vit

pytestmark = pytest.mark.usefixtures("no_gradients_and_one_thread")

TOLERANCE = 2e-5
STAGES = (1, 1, 1)  # outputs are of the end: what is before it is proven elsewhere
MODELS: dict[str, Any] = {
    "class token": lambda: tiny_vit("registers", STAGES),
    "class token, norm after pooling": lambda: tiny_vit("norm after pooling", STAGES),
    "mean": lambda: tiny_vit("average after the norm", STAGES),
    "mean, norm after pooling": lambda: tiny_vit("average", STAGES),
    "mean, no class token": lambda: tiny_vit("average without class token", STAGES),
    "dist token": lambda: slim(plain_vit(distilled=True, depth=3), STAGES).eval(),
    "sit": lambda: tiny_model(stage_blocks=STAGES),
    "sit with dist token": lambda: tiny_model(stage_blocks=STAGES, dist_token=True),
    "rotary": lambda: tiny_eva("DINOv3", STAGES),
}


@pytest.fixture(scope="module", params=MODELS)
def model(request: pytest.FixtureRequest) -> Any:
    return randomise(MODELS[request.param]()).eval()


def every_output(model: Any) -> tuple[str, ...]:
    return tuple(n for n in OUTPUTS if n != "cls" or model.cls_token is not None)


def as_tuple(value: Any) -> tuple[torch.Tensor, ...]:
    return value if isinstance(value, tuple) else (value,)


def test_every_output_is_timms(model: Any) -> None:
    """By timm's own methods, each alone and all together."""
    pixels, names = images(model), every_output(model)
    tokens = model.forward_features(pixels)
    patches = tokens[:, model.num_prefix_tokens :]
    assert patches.shape[1] == model.kept[-1]
    wanted = {
        "logits": model(pixels),
        "features": model.forward_head(tokens, pre_logits=True),
        "cls": tokens[:, 0],
        "patches": patches,
    }
    for asked in (*((name,) for name in names), names):
        found = as_tuple(to_deploy_form(model, asked)(pixels))
        same = as_tuple(with_outputs(model, asked)(pixels))
        assert len(found) == len(asked)
        for name, mine, other in zip(asked, found, same, strict=True):
            assert mine.shape == wanted[name].shape
            assert relative_error(mine, wanted[name]) < TOLERANCE, (asked, name)
            torch.testing.assert_close(other, wanted[name])


@pytest.mark.slow
def test_graph_has_the_outputs_by_name(model: Any) -> None:
    names, pixels = every_output(model), images(model)
    graph = export_onnx(to_deploy_form(model, names), model.img_size, batch="batch")
    lint.check(graph, dynamic_batch=True)
    assert tuple(value.name for value in graph.graph.output) == names
    found = run(graph, pixels.numpy())
    for name, wanted in zip(names, ModelOutputs(model, names)(pixels), strict=True):
        assert relative_error(torch.from_numpy(found[name]), wanted) < TOLERANCE, name


@pytest.mark.slow
def test_an_output_that_is_another_too_has_its_own_name() -> None:
    """Features of a model that reads the class token are that token."""
    model = tiny_vit()
    graph = export_onnx(to_deploy_form(model, ("features", "cls")), model.img_size)
    lint.check(graph)
    assert [value.name for value in graph.graph.output] == ["features", "cls"]
    found = run(graph, images(model, 1).numpy())
    assert (found["features"] == found["cls"]).all()


@pytest.mark.parametrize(
    ("variant", "outputs", "first"),
    [
        ("registers", ("logits", "features", "cls"), 1),
        ("registers", ("cls", "patches"), None),
        ("average", ("cls",), 1),
        ("average", ("features", "cls"), None),
    ],
)
def test_last_block_computes_what_is_read(variant: str, outputs: tuple[str, ...], first: int | None) -> None:
    last = to_deploy_form(tiny_vit(variant), outputs).blocks[-1]
    assert isinstance(last, DeployBlock)
    assert last.first == first
    assert isinstance(last.attn, FirstAttention) == (first is not None)


def test_dist_token_is_computed_where_it_is_read() -> None:
    model = slim(plain_vit(distilled=True), (6,))
    firsts = {n: to_deploy_form(model, (n,)).blocks[-1].first for n in ("logits", "features", "cls")}
    assert firsts == {"logits": 2, "features": 2, "cls": 1}


def test_model_without_a_classifier_gives_features() -> None:
    model = slim(VisionTransformer(img_size=64, num_classes=0, embed_dim=32, depth=2, num_heads=4), (2,))
    randomise(model).eval()
    assert default_outputs(model) == ("features",)
    assert default_outputs(tiny_vit()) == ("logits",)
    pixels = images(model)
    assert relative_error(to_deploy_form(model, ("features",))(pixels), model(pixels)) < TOLERANCE
    with pytest.raises(InputError, match=r"no classifier .* pass --outputs features, or --num-classes"):
        to_deploy_form(model)


def test_class_token_of_a_model_without_is_refused() -> None:
    with pytest.raises(InputError, match=r"no class token: .* --outputs features or patches"):
        check_outputs(tiny_vit("average without class token"), ("cls",))


def test_names_are_put_in_order() -> None:
    assert in_order(["patches", " logits", "patches"]) == ("logits", "patches")
    with pytest.raises(
        InputError, match="--outputs tokens is not offered; choose from logits, features, cls, patches"
    ):
        in_order(["features", "tokens"])
    with pytest.raises(InputError, match="names no output"):
        in_order([])
