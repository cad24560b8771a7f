"""Checkpoints of timm's and DeiT's models: loaded as they are, resampled as timm does it, refused in words."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.models.vision_transformer import VisionTransformer, checkpoint_filter_fn

from sit_deploy.errors import InputError
from sit_deploy.models import create_model, get_config
from sit_deploy.models.load import load_model
from sit_deploy.models.slim import SlimViT, slim
from sit_deploy.models.state_dict import filter_state_dict, fit_partly
from tests.helpers.models import VIT, images, plain_vit, randomise, shapes_alone, tiny_model, tiny_vit

Save = Callable[..., Path]
NAME, SIZE, STAGES = "vit_tiny_patch16_224", 64, (6, 2, 2, 2)
DISTILLED = "deit_tiny_distilled_patch16_224"
State = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def plain() -> VisionTransformer:
    """vit_tiny at 64 pixels and 5 classes, made by timm; not to be altered."""
    model = timm.create_model(NAME, img_size=SIZE, num_classes=5)
    return randomise(model).eval().requires_grad_(False)


@pytest.fixture(scope="module")
def slimmed() -> SlimViT:
    """The same, slimmed; not to be altered."""
    config = get_config(NAME, STAGES)
    return randomise(create_model(config, img_size=SIZE, num_classes=5)).eval().requires_grad_(False)


@pytest.mark.slow
@torch.no_grad()
def test_timms_own_weights_give_timms_own_logits(
    plain: VisionTransformer, tmp_path: Path, save: Save
) -> None:
    save_file(plain.state_dict(), tmp_path / "vit.safetensors")
    for path, notes in ((tmp_path / "vit.safetensors", 0), (save({"model": plain.state_dict()}), 1)):
        loaded = load_model(NAME, path, SIZE)
        x = images(loaded.model)
        assert torch.equal(loaded.model(x), plain(x))
        assert (loaded.name, loaded.config.stage_blocks, loaded.model.training) == (NAME, (12,), False)
        assert len(loaded.notes) == notes


@torch.no_grad()
def test_slimmed_weights_come_back(slimmed: SlimViT, save: Save) -> None:
    loaded = load_model(NAME, save(slimmed.state_dict()), SIZE, stages=STAGES)
    x = images(slimmed)
    assert torch.equal(loaded.model(x), slimmed(x))
    assert loaded.model.kept == (16, 8, 4, 2)


def test_random_weights_are_those_of_seed_0_and_nothing_is_downloaded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import huggingface_hub

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("a download")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", refuse)
    monkeypatch.setattr(torch.hub, "download_url_to_file", refuse)
    first, second = (load_model(NAME, image_size=SIZE, stages=STAGES) for _ in range(2))
    assert first.model.num_classes == 1000
    states = first.model.state_dict(), second.model.state_dict()
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    assert "random weights (seed 0)" in first.notes[0]


@pytest.mark.parametrize(
    "variant", ["plain", "registers", "registers without positions", "average with registers"]
)
def test_positions_are_resampled_as_timm_does_it(variant: str) -> None:
    source = tiny_vit(variant, (6,))
    target = tiny_vit(variant, (6,), seed=1)
    larger = create_like(variant, 96)
    found = filter_state_dict(source.state_dict(), larger)
    expected = checkpoint_filter_fn(dict(source.state_dict()), larger)
    assert found["pos_embed"].shape == larger.pos_embed.shape
    torch.testing.assert_close(found["pos_embed"], expected["pos_embed"])
    prefix = 0 if source.no_embed_class else source.num_prefix_tokens
    assert torch.equal(found["pos_embed"][:, :prefix], source.pos_embed[:, :prefix])
    same = filter_state_dict(source.state_dict(), target)
    assert torch.equal(same["pos_embed"], source.pos_embed)


def create_like(variant: str, size: int) -> SlimViT:
    from tests.helpers.models import VIT_VARIANTS

    return slim(VisionTransformer(**{**VIT, **VIT_VARIANTS[variant], "img_size": size}), (6,))


def test_another_image_size_is_noted(slimmed: SlimViT, save: Save) -> None:
    loaded = load_model(NAME, save(slimmed.state_dict()), 96, stages=STAGES)
    assert loaded.model.kept == (36, 8, 4, 2)
    assert "positions resampled from 4x4 to 6x6 patches" in loaded.notes[0]
    assert f"keep 8/4/2 tokens, not the 18/9/4 of {NAME} of stages 6,2,2,2 at 96 pixels" in loaded.notes[1]


@pytest.mark.slow
def test_layer_scale_of_official_deit_iii(save: Save) -> None:
    with shapes_alone():
        source = timm.create_model("deit3_small_patch16_224", img_size=32, num_classes=3)
    source = randomise(source.to_empty(device="cpu"))
    official = {re.sub(r"\.ls(\d)\.gamma$", r".gamma_\1", k): v for k, v in source.state_dict().items()}
    assert "blocks.11.gamma_2" in official
    model = load_model("deit3_small_patch16_224", save({"model": official}), 32).model
    assert torch.equal(model.blocks[11].ls2.gamma, source.blocks[11].ls2.gamma)


# ----------------------------------------------------------------------------------------------------- what is refused


def refusal(*arguments: Any, **options: Any) -> str:
    with pytest.raises(InputError) as caught:
        load_model(*arguments, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_teacher_is_no_student(plain: VisionTransformer, save: Save) -> None:
    path = save(plain.state_dict())
    assert "it has 0 TSMs, not 3; a teacher must be distilled before it can be slimmed" in refusal(
        NAME, path, SIZE, stages=STAGES
    )


def test_other_stages_than_it_was_trained_with(slimmed: SlimViT, save: Save) -> None:
    path = save(slimmed.state_dict())
    assert "it has 3 TSMs, not 0; pass the 4 --stages that it was trained with" in refusal(NAME, path, SIZE)
    assert "it has 3 TSMs, not 1" in refusal(NAME, path, SIZE, stages=(6, 6))


@torch.no_grad()
@pytest.mark.parametrize("name", [DISTILLED, "deit_tiny_patch16_224"])
def test_a_distilled_deit(name: str, save: Save) -> None:
    """By its own name, and by that of the plain one, given a dist token."""
    source = randomise(timm.create_model(DISTILLED, img_size=SIZE, num_classes=5)).eval()
    path = save({"model": source.state_dict()})
    loaded = load_model(name, path, SIZE)
    x = images(loaded.model)
    assert loaded.model.has_dist_token and torch.equal(loaded.model(x), source(x))
    larger = load_model(name, path, 96)
    assert "positions resampled from 4x4 to 6x6 patches" in larger.notes[1]
    assert torch.equal(larger.model.pos_embed[:, :2], source.pos_embed[:, :2])


def test_parts_of_a_distilled_deit_are_missed_by_name(plain: VisionTransformer, save: Save) -> None:
    state = {**plain.state_dict(), "dist_token": torch.zeros(1, 1, 192)}
    message = refusal(NAME, save(state), SIZE)
    assert "2 missing (head_dist.weight, head_dist.bias)" in message and "pos_embed" in message
    assert "it lacks a dist token" in refusal(DISTILLED, save(plain.state_dict()), SIZE)
    del state["dist_token"]
    message = refusal(NAME, save({**state, "head_dist.weight": torch.zeros(5, 192)}), SIZE)
    assert "it has a dist token, which the model has not" in message


@pytest.mark.parametrize("size", [64, 96])
def test_a_student_takes_or_leaves_the_position_of_a_dist_token(size: int) -> None:
    plain, distilled = (
        slim(plain_vit(img_size=side, distilled=is_distilled), (6,))
        for side, is_distilled in ((64, False), (64, True))
    )
    given = slim(plain_vit(img_size=size), (2, 1, 1, 2), dist_token=True)
    own = given.pos_embed[:, 1].clone()
    missing, left_out = fit_partly(plain.state_dict(), given)
    assert {k for k in missing if not k.startswith("tsm.")} == {
        "dist_token",
        "head_dist.weight",
        "head_dist.bias",
    }
    assert left_out == [] and torch.equal(given.pos_embed[:, 1], own)
    assert torch.equal(given.pos_embed[:, 0], plain.pos_embed[:, 0])
    without = slim(plain_vit(seed=1, img_size=size), (2, 1, 1, 2))
    missing, left_out = fit_partly(distilled.state_dict(), without)
    assert left_out == ["dist_token", "head_dist.weight", "head_dist.bias"]
    assert torch.equal(without.pos_embed[:, 0], distilled.pos_embed[:, 0])
    if size == 64:
        assert torch.equal(without.pos_embed[:, 1:], distilled.pos_embed[:, 2:])
        assert torch.equal(given.pos_embed[:, 2:], plain.pos_embed[:, 1:])
    same = slim(plain_vit(seed=1, distilled=True, img_size=size), (2, 1, 1, 2))
    fit_partly(distilled.state_dict(), same)
    assert torch.equal(same.pos_embed[:, :2], distilled.pos_embed[:, :2])


@pytest.mark.slow
def test_one_family_is_not_taken_for_the_other(plain: VisionTransformer, save: Save) -> None:
    nano = create_model("lvvit_nano").state_dict()
    assert "it looks like lvvit_nano; pass --model lvvit_nano" in refusal(NAME, save(nano))
    assert "does not fit lvvit_nano" in refusal("lvvit_nano", save(plain.state_dict()))
    assert "pass the --model that it was trained as" in refusal(
        "deit3_small_patch16_224", save(plain.state_dict()), 32
    )


@pytest.mark.slow
def test_a_slimmed_deit_is_known_by_name(save: Save) -> None:
    with shapes_alone():
        state = create_model("sit_deit_s").state_dict()
    path = save({k: torch.zeros((), dtype=v.dtype).expand(v.shape) for k, v in state.items()})
    assert "it looks like sit_deit_s; pass --model sit_deit_s" in refusal("sit_s", path)
    assert "it looks like sit_deit_s" in refusal("deit_small_patch16_224", path)
    by_another_name = load_model("deit_small_patch16_224", path, stages=(6, 2, 2, 2))
    assert by_another_name.model.kept == (196, 98, 49, 24)


def test_reverse_tsms_show_other_stages(save: Save) -> None:
    state = create_model("sit_nano", reverse_tsm=True).state_dict()
    assert "it looks like sit_nano; leave out --stages" in refusal(
        "sit_nano", save(state), stages=(4, 2, 1, 1)
    )


# ----------------------------------------------------------------------------------------- a student from its teacher


@pytest.mark.parametrize("family", ["timm", "lvvit"])
def test_a_student_starts_from_its_teacher(family: str) -> None:
    """Other classes and another size; the state it had is kept where nothing fits."""
    if family == "timm":
        teacher: Any = plain_vit(reg_tokens=2)
        base = VisionTransformer(**{**VIT, "reg_tokens": 2, "img_size": 96, "num_classes": 3})
        student: Any = slim(base, (2, 1, 1, 2), reverse_tsm=True)
    else:
        teacher = tiny_model(stage_blocks=(6,))
        student = tiny_model(img_size=96, num_classes=3, reverse_tsm=True)
    before = {k: v.clone() for k, v in student.state_dict().items()}
    missing, left_out = fit_partly(teacher.state_dict(), student)
    heads = {"head.weight", "head.bias"} | (
        {"aux_head.weight", "aux_head.bias"} if family == "lvvit" else set()
    )
    assert set(left_out) == heads
    assert {k for k in missing if not k.startswith(("tsm.", "rtsm."))} == heads
    assert {k.split(".")[0] for k in missing} == {"tsm", "rtsm", *(k.split(".")[0] for k in heads)}
    now = student.state_dict()
    assert all(torch.equal(now[key], before[key]) for key in missing)
    for key, value in teacher.state_dict().items():
        if key not in left_out and key != "pos_embed":
            assert torch.equal(now[key], value), key
    prefix = teacher.num_prefix_tokens
    assert torch.equal(now["pos_embed"][:, :prefix], teacher.pos_embed[:, :prefix])
    assert not torch.equal(now["pos_embed"], before["pos_embed"])


def test_what_fits_in_full_leaves_nothing_out() -> None:
    source = tiny_vit(reverse_tsm=True)
    target = tiny_vit(seed=1, reverse_tsm=True)
    assert fit_partly(source.state_dict(), target) == ([], [])
    x = images(source)
    assert torch.equal(target(x), source(x))
    assert fit_partly({"more": torch.ones(1)}, target)[1] == ["more"]


def test_half_weights_are_made_whole() -> None:
    source = tiny_vit()
    target = tiny_vit(seed=1)
    assert fit_partly({k: v.half() for k, v in source.state_dict().items()}, target) == ([], [])
    assert {p.dtype for p in target.parameters()} == {torch.float32}
