"""Parameters and MACs: the closed form, the real model as fvcore counts it, and the published table are one."""

from __future__ import annotations

import logging

import pytest
import torch

from sit_deploy.errors import InputError
from sit_deploy.models import CONFIGS, create_model, get_config
from sit_deploy.models.cost import Cost, cost
from sit_deploy.models.sit import SiT
from sit_deploy.models.slim import SlimViT
from tests.helpers.models import shapes_alone, slow_if_published

logging.getLogger("fvcore").setLevel(logging.ERROR)

# millions of parameters and GMACs, as published (the teachers': as fvcore counts them)
PUBLISHED = {
    "sit_t": ("15.87", "0.99"),
    "sit_xs": ("25.63", "1.49"),
    "sit_s": ("25.63", "4.03"),
    "sit_m": ("55.64", "8.04"),
    "sit_l": ("148.17", "34.37"),
    "lvvit_t": ("15.69", "3.47"),
    "lvvit_s": ("25.37", "5.55"),
    "lvvit_m": ("55.20", "11.86"),
    "lvvit_l": ("147.17", "56.05"),
    "sit_nano": ("1.71", "0.05"),
    "lvvit_nano": ("1.68", "0.08"),
}


def _attention_macs(inputs: list, outputs: list) -> int:
    """Count q·kᵀ and weights·v: 2 · batch · heads · N² · head_dim."""
    from fvcore.nn.jit_handles import get_shape

    batch, heads, n, size = get_shape(inputs[0])
    return 2 * batch * heads * n * n * size


def measured(model: SiT | SlimViT) -> Cost:
    fvcore = pytest.importorskip("fvcore.nn", reason="needs fvcore: pip install fvcore")
    parameters = sum(p.numel() for name, p in model.named_parameters() if not name.startswith("rtsm."))
    image = torch.zeros(1, model.in_chans, *model.img_size, device=model.cls_token.device)
    count = fvcore.FlopCountAnalysis(model.eval(), image)
    count.set_op_handle("aten::scaled_dot_product_attention", _attention_macs)
    count.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
    return Cost(parameters, round(count.total()))


def empty(name: str, **options: object) -> SiT:
    """Make a model without initialising it: counting needs shapes only, and values take long."""
    with shapes_alone():
        model = create_model(name, **options)
    return model.to_empty(device="cpu")


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_table(name: str) -> None:
    figures = cost(get_config(name))
    assert (f"{figures.parameters / 1e6:.2f}", f"{figures.macs / 1e9:.2f}") == PUBLISHED[name]


@pytest.mark.parametrize("name", [slow_if_published(name) for name in CONFIGS])
def test_closed_form_is_the_real_model(name: str) -> None:
    """On small images, since counting runs the model; on those of their own size the published table has them."""
    assert cost(get_config(name), 64) == measured(empty(name, img_size=64))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "size", "classes"),
    [
        ("sit_nano", 128, 10),
        ("sit_l", 80, 21),
        ("lvvit_s", 64, 0),
        ("sit_s", 160, 1),
        ("sit_deit_s", 128, 10),
    ],
)
def test_at_another_size_and_class_count(name: str, size: int, classes: int) -> None:
    figures = cost(get_config(name), size, classes)
    assert figures == measured(empty(name, img_size=size, num_classes=classes))
    assert figures != cost(get_config(name))


def test_other_stages_of_a_named_model() -> None:
    config = get_config("sit_deit_s", (3, 3, 6), 0.7)
    with shapes_alone():
        model = create_model(config, img_size=112)
    figures = cost(config, 112)
    assert figures == measured(model.to_empty(device="cpu")) != cost(get_config("sit_deit_s"), 112)


def test_kept_tokens_of_any_counts() -> None:
    config = get_config("sit_nano", kept=(49, 40, 7, 3))
    with shapes_alone():
        model = create_model(config)
    assert cost(config) == measured(model.to_empty(device="cpu")) != cost(get_config("sit_nano"))


def test_models_of_another_make_are_not_guessed_at() -> None:
    with pytest.raises(InputError, match="cost of deit3_small_patch16_224 is not known"):
        cost(get_config("deit3_small_patch16_224"))


def test_reverse_tsms_cost_nothing_at_inference() -> None:
    assert measured(empty("sit_nano", reverse_tsm=True)) == cost(get_config("sit_nano"))
