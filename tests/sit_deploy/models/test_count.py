"""The cost of models whose closed form is not known: counted on shapes alone, as the exported graph has it."""

from __future__ import annotations

import pytest

from sit_deploy.graph.deploy_form import to_deploy_form
from sit_deploy.graph.export import export_onnx
from sit_deploy.graph.inspect import count_macs as graph_macs
from sit_deploy.models import CONFIGS, get_config
from sit_deploy.models.cost import cost
from sit_deploy.models.count import count_cost
from tests.helpers.models import named_model

pytestmark = pytest.mark.slow


def test_named_models_are_counted_in_closed_form() -> None:
    assert count_cost(CONFIGS["sit_nano"], 128, 10) == cost(CONFIGS["sit_nano"], 128, 10)


@pytest.mark.parametrize(
    "name", ["vit_tiny_patch16_224:depth=3", "vit_small_patch16_rope_224:depth=3"]
)  # plain positions, and rotary ones, which are merged with the tokens
def test_timms_are_counted_without_weights(name: str) -> None:
    """The deploy form saves a little: the last block computes what the head reads."""
    config = get_config(name, (1, 2), kept=(16, 5))
    found = count_cost(config, 64, 10)
    model = named_model(name, img_size=64, num_classes=10, stage_blocks=(1, 2), kept=(16, 5))
    assert found.parameters == sum(p.numel() for p in model.parameters())
    graph = graph_macs(export_onnx(to_deploy_form(model), model.img_size))
    whole = count_cost(get_config(name), 64, 10)
    assert 0.8 * found.macs < graph < 1.02 * found.macs < whole.macs
