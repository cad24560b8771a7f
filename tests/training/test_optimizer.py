"""Parameter groups against the official rule written out, and learning rates against the cosine itself."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.optim import Optimizer

from sit_deploy.models.sit import SiT
from tests.helpers.models import TINY, VIT, tiny_vit
from training.optimizer import (
    Rates,
    make_optimiser,
    make_schedule,
    parameter_groups,
    rates_of,
    set_learning_rate,
)
from training.recipes import DIGITS_STUDENT, DIGITS_TEACHER, Recipe, recipe_for

RECIPE = Recipe()
LR = 2e-4 * 1024 / 512  # at a total batch of 1024
# one block of a SiT, weights and vectors
BLOCK_DECAY = ("attn.qkv.weight", "attn.proj.weight", "mlp.fc1.weight", "mlp.fc2.weight")
BLOCK_NONE = (
    *("norm1.weight", "norm1.bias", "norm2.weight", "norm2.bias"),
    *("attn.proj.bias", "mlp.fc1.bias", "mlp.fc2.bias"),
)
RTSM = [
    f"{part}.{kind}"
    for part in ("norm1", "mlp1.fc1", "mlp1.fc2", "norm2", "mlp2.fc1", "mlp2.fc2")
    for kind in ("weight", "bias")
]


def student(**options: Any) -> SiT:
    """Four stages of 2, 1, 1 and 2 blocks: TSMs after blocks 1, 2 and 3, reverse TSMs from block 1 on."""
    return SiT(**{**TINY, "reverse_tsm": True, **options})


def names_of(model: torch.nn.Module, groups: list[dict[str, Any]]) -> dict[str, set[str]]:
    names = {id(p): n for n, p in model.named_parameters()}
    return {group["name"]: {names[id(p)] for p in group["params"]} for group in groups}


def test_groups_are_those_of_the_official_code() -> None:
    model = student(dist_token=True)
    groups = parameter_groups(model, RECIPE, 1024)
    decay = {f"patch_embed.conv{i}.weight" for i in (1, 2, 3, 4)} | {"head.weight", "head_dist.weight"}
    none = {f"patch_embed.bn{i}.{kind}" for i in (1, 2, 3, 4) for kind in ("weight", "bias")}
    none |= {"cls_token", "pos_embed", "dist_token", "dist_pos_embed"}
    none |= {"norm.weight", "norm.bias", "head.bias", "head_dist.bias"}
    for i in range(6):
        decay |= {f"blocks.{i}.{part}" for part in BLOCK_DECAY}
        none |= {f"blocks.{i}.{part}" for part in BLOCK_NONE}
    for i in range(3):
        # the scalar is a tensor of shape (1, 1, 1) there, so it decays
        decay |= {f"tsm.{i}.{part}" for part in ("weight.1.weight", "weight.3.weight", "scale")}
        none |= {f"tsm.{i}.weight.{part}" for part in ("0.weight", "0.bias", "1.bias", "3.bias")}
    reverse = {f"rtsm.{i}.{part}" for i in range(1, 6) for part in RTSM}
    assert names_of(model, groups) == {"reverse TSMs": reverse, "no decay": none, "decay": decay}


def test_each_group_has_its_rate_and_its_decay() -> None:
    groups = {g["name"]: (g["lr"], g["weight_decay"]) for g in parameter_groups(student(), RECIPE, 1024)}
    assert groups["reverse TSMs"] == (pytest.approx(5 * LR), 0.05)
    assert groups["no decay"] == (pytest.approx(LR), 0.0)
    assert groups["decay"] == (pytest.approx(LR), 0.05)


def test_what_is_frozen_is_in_no_group_and_the_rest_in_exactly_one() -> None:
    model = student()
    model.blocks[0].requires_grad_(False)
    grouped = [id(p) for group in parameter_groups(model, RECIPE, 512) for p in group["params"]]
    trained = [
        id(p) for name, p in model.named_parameters() if not name.startswith(("aux_head.", "blocks.0."))
    ]
    assert sorted(grouped) == sorted(trained)


def test_a_teacher_has_no_group_of_reverse_tsms() -> None:
    model = student(stage_blocks=(6,), reverse_tsm=False)
    assert [g["name"] for g in parameter_groups(model, RECIPE, 512)] == ["no decay", "decay"]


def test_a_vision_transformer_of_timm_goes_by_the_same_rule() -> None:
    model = tiny_vit("layer scale", reverse_tsm=True).train()
    groups = names_of(model, parameter_groups(model, RECIPE, 512))
    assert {"cls_token", "pos_embed", "patch_embed.proj.bias", "blocks.0.ls1.gamma"} <= groups["no decay"]
    assert {"patch_embed.proj.weight", "blocks.5.attn.qkv.weight", "tsm.2.scale"} <= groups["decay"]
    assert groups["reverse TSMs"] == {n for n, _ in model.named_parameters() if n.startswith("rtsm.")}
    assert len(groups["reverse TSMs"]) == (VIT["depth"] - 1) * len(RTSM)


def test_the_optimiser_is_adamw_by_its_own_formula() -> None:
    """First step of "Decoupled Weight Decay Regularization" (arXiv 1711.05101): p - lr·wd·p - lr·sign(g)."""
    model = student().double()
    optimiser = make_optimiser(model, RECIPE, 1024)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype) + 3
    optimiser.step()
    for name, rate, decay in (
        ("rtsm.1.mlp1.fc1.bias", 5 * LR, 0.05),
        ("rtsm.5.norm1.weight", 5 * LR, 0.05),
        ("tsm.0.scale", LR, 0.05),
        ("blocks.3.mlp.fc1.weight", LR, 0.05),
        ("norm.weight", LR, 0.0),
        ("pos_embed", LR, 0.0),
    ):
        parameter = model.get_parameter(name)
        expected = before[name] * (1 - rate * decay) - rate * parameter.grad.sign()
        torch.testing.assert_close(parameter.detach(), expected, rtol=0, atol=1e-6 * rate)
    assert torch.equal(model.aux_head.weight, before["aux_head.weight"])


def scheduled(recipe: Recipe, steps: int = 10) -> tuple[Optimizer, Any]:
    optimiser = make_optimiser(student(), recipe, 1024)
    return optimiser, make_schedule(optimiser, recipe, steps, 1024)


def rates(optimiser: Optimizer) -> dict[str, float]:
    return {group["name"]: group["lr"] for group in optimiser.param_groups}


def cosine(top: float, share: float) -> float:
    return 1e-5 + 0.5 * (1 + math.cos(math.pi * share)) * (top - 1e-5)


def test_the_rate_of_an_epoch_is_the_official_cosine() -> None:
    """Of both groups to the same floor, which is not five times as high for the reverse TSMs; same in every step."""
    optimiser, schedule = scheduled(RECIPE)
    for epoch in range(135):
        for step in (0, 7):
            set_learning_rate(schedule, RECIPE, epoch, step, 10)
            share = min(epoch / 125, 1)
            got = rates(optimiser)
            assert got["decay"] == got["no decay"] == pytest.approx(cosine(LR, share), rel=1e-9)
            assert got["reverse TSMs"] == pytest.approx(cosine(5 * LR, share), rel=1e-9)


def test_the_rate_of_a_step() -> None:
    recipe = replace(RECIPE, epochs=4, cooldown_epochs=1, lr_per_step=True)
    optimiser, schedule = scheduled(recipe)
    for epoch in range(5):
        for step in range(10):
            set_learning_rate(schedule, recipe, epoch, step, 10)
            share = min((epoch + step / 10) / 4, 1)
            assert rates(optimiser)["decay"] == pytest.approx(cosine(LR, share), rel=1e-9)
            assert rates(optimiser)["reverse TSMs"] == pytest.approx(cosine(5 * LR, share), rel=1e-9)


@pytest.mark.parametrize("per_step", [False, True])
def test_warm_up_rises_in_a_line_to_the_full_rate(per_step: bool) -> None:
    recipe = replace(RECIPE, epochs=20, warmup_epochs=5, lr_per_step=per_step)
    optimiser, schedule = scheduled(recipe)
    for epoch in range(5):
        for step in (0, 4):
            set_learning_rate(schedule, recipe, epoch, step, 10)
            share = (epoch + step / 10 * per_step) / 5
            assert rates(optimiser)["decay"] == pytest.approx(1e-6 + share * (LR - 1e-6), rel=1e-9)
    # then the cosine goes on where it would be without a warm-up, as in the official code
    set_learning_rate(schedule, recipe, 5, 0, 10)
    assert rates(optimiser)["decay"] == pytest.approx(cosine(LR, 5 / 20), rel=1e-9)


@pytest.mark.parametrize("per_step", [False, True])
def test_the_rate_does_not_depend_on_what_came_before(per_step: bool) -> None:
    recipe = replace(RECIPE, epochs=6, warmup_epochs=2, lr_per_step=per_step)
    seen = {}
    optimiser, schedule = scheduled(recipe)
    places = [(epoch, step) for epoch in range(16) for step in range(10)]
    for place in places:
        set_learning_rate(schedule, recipe, *place, 10)
        seen[place] = rates(optimiser)
    assert len({rate["decay"] for rate in seen.values()}) == (60 if per_step else 6) + 1
    for place in reversed(places):  # the worst of histories
        set_learning_rate(schedule, recipe, *place, 10)
        assert rates(optimiser) == seen[place]
    optimiser, schedule = scheduled(recipe)
    set_learning_rate(schedule, recipe, 3, 4, 10)  # none at all: a resumed run
    assert rates(optimiser) == seen[3, 4]


@pytest.mark.parametrize("per_step", [False, True])
@pytest.mark.parametrize("batch", [1, 2, 8, 24, 25, 26, 64, 128, 511, 512, 513, 1024, 4096])
def test_the_rate_never_rises_after_the_warm_up(batch: int, per_step: bool) -> None:
    """Of any group, with any recipe, batch and schedule; and a warm-up never falls."""
    bare = torch.nn.Linear(2, 2)
    bare.rtsm = torch.nn.Linear(2, 2)
    distils = {"distils": True, "from_checkpoint": False, "data": "x/"}
    recipes = [recipe_for("sit_s", **distils)]
    recipes += [
        recipe_for("lvvit_s", **{**distils, "distils": False, "from_checkpoint": tuned}) for tuned in (0, 1)
    ]
    recipes += [DIGITS_TEACHER, DIGITS_STUDENT, recipe_for("sit_s", **distils, qat=True)]
    changes = (
        {},
        {"epochs": 1},
        {"epochs": 4},
        {"lr": 3e-6},
        {"rtsm_lr_scale": 1e-3},
        {"rtsm_lr_scale": 0.0},
        {"min_lr": 0.0},
    )
    for recipe in (recipe.with_values(change) for recipe in recipes for change in changes):
        recipe.check()
        recipe = replace(recipe, lr_per_step=per_step)
        optimiser = make_optimiser(bare, recipe, batch)
        schedule = make_schedule(optimiser, recipe, 2, batch)
        before: dict[str, float] = {}
        for epoch in range(recipe.epochs + recipe.cooldown_epochs):
            for step in range(2):
                set_learning_rate(schedule, recipe, epoch, step, 2)
                now = rates(optimiser)
                rising = epoch < recipe.warmup_epochs and (epoch or step)
                falling = epoch > recipe.warmup_epochs or (epoch == recipe.warmup_epochs and step)
                for name, rate in now.items():
                    assert not rising or rate >= before[name] * (1 - 1e-12)
                    assert not falling or rate <= before[name] * (1 + 1e-12), (
                        recipe,
                        batch,
                        epoch,
                        step,
                        name,
                    )
                before = now


def test_the_lowest_rates_scale_below_512_images_alone() -> None:
    assert rates_of(RECIPE, 1024) == Rates(1e-6, 4e-4, 1e-5)
    assert rates_of(RECIPE, 512) == Rates(1e-6, 2e-4, 1e-5)
    small = rates_of(RECIPE, 16)
    assert (small.warm_up, small.peak, small.floor) == pytest.approx((1e-6 / 32, 2e-4 / 32, 1e-5 / 32))
    assert rates_of(DIGITS_TEACHER, 32).floor == 1e-5
