"""Checkpoints that load: every form that trainers write, and how they are fitted to the model."""

from __future__ import annotations

import argparse
import hashlib
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from timm.layers import resample_abs_pos_embed

from sit_deploy.errors import InputError
from sit_deploy.models import create_model, get_config, load_model, read_checkpoint
from sit_deploy.models.load import identify
from sit_deploy.models.sit import SiT
from sit_deploy.models.state_dict import filter_state_dict
from sit_deploy.text import WarningText
from tests.helpers.models import images, named_model, shapes_alone

State = dict[str, torch.Tensor]
Save = Callable[..., Path]


@pytest.fixture(scope="module")
def sit_nano() -> SiT:
    """A randomised sit_nano as it is after training, reverse TSMs and all; not to be altered."""
    return named_model("sit_nano", reverse_tsm=True).requires_grad_(False)


def without(state: State, *prefixes: str) -> State:
    return {k: v for k, v in state.items() if not k.startswith(prefixes)}


def other(state: State) -> State:
    """Other weights under the same names: what must not be taken."""
    return {k: torch.zeros_like(v) for k, v in state.items()}


def prefixed(state: State, prefix: str) -> State:
    return {prefix + k: v for k, v in state.items()}


@torch.enable_grad()
def official(state: State) -> dict[str, Any]:
    parameter = torch.nn.Parameter(torch.ones(3))
    optimizer = torch.optim.AdamW([parameter])
    parameter.sum().backward()
    optimizer.step()
    return {
        "model": state,
        "optimizer": optimizer.state_dict(),
        "lr_scheduler": {"base_values": [1e-4], "noise_range_t": None},
        "epoch": 134,
        "scaler": {"scale": 65536.0, "growth_factor": 2.0},
        "args": argparse.Namespace(
            model="sit_lvvit_tiny", lr=2e-4, data_set="IMNET", drop=[0.0, None], nested={"a": 1}
        ),
        "max_accuracy": 80.1,
    }


FORMS: dict[str, tuple[Callable[[State], Any], str]] = {
    "official": (official, "model"),
    "plain": (lambda s: s, "state_dict"),
    "ordered": (OrderedDict, "state_dict"),
    "parameters": (lambda s: {k: torch.nn.Parameter(v) if v.is_floating_point() else v for k, v in s.items()}, "state_dict"),
    "timm": (lambda s: {"state_dict": s, "arch": "sit_s", "epoch": 3, "args": argparse.Namespace()}, "state_dict"),
    "distributed": (lambda s: prefixed(s, "module."), "state_dict"),
    "compiled": (lambda s: {"model": prefixed(s, "_orig_mod.")}, "model"),
    "compiled and distributed": (lambda s: {"model": prefixed(s, "module._orig_mod.")}, "model"),
    "lightning": (lambda s: {"state_dict": prefixed(s, "model."), "epoch": 1}, "state_dict"),
    "DeepSpeed": (lambda s: {"module": s, "mp_world_size": 1}, "module"),
    "averaged by torch": (lambda s: {"n_averaged": torch.tensor(5), **prefixed(s, "module.")}, "state_dict"),
    "timm, averaged": (lambda s: {"state_dict": other(s), "state_dict_ema": s}, "state_dict_ema"),
    "DeiT, averaged": (lambda s: {"model": other(s), "model_ema": s}, "model_ema"),
    "averaged and distributed": (lambda s: {"model": other(s), "model_ema": prefixed(s, "module.")}, "model_ema"),
    "averaging switched off": (lambda s: {"model": s, "model_ema": None}, "model"),
    "averaging with no step": (lambda s: {"model": s, "state_dict_ema": {}}, "model"),
}  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_forms(form: str, state: State, save: Save) -> None:
    wrap, source = FORMS[form]
    path = save(wrap(state))
    read = read_checkpoint(path)
    assert read.source == source
    assert read.path == path
    assert read.state.keys() == state.keys()
    assert all(torch.equal(read.state[k], v) for k, v in state.items())
    assert read.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


def test_plain_weights_beside_averaged_ones(state: State, save: Save) -> None:
    path = save({"model": state, "model_ema": other(state)})
    assert torch.equal(read_checkpoint(path, ema=False).state["norm.weight"], state["norm.weight"])
    assert not read_checkpoint(path).state["norm.weight"].any()
    assert read_checkpoint(path, ema=False).source == "model"


def test_old_file_format(state: State, save: Save) -> None:
    read = read_checkpoint(save(official(state), _use_new_zipfile_serialization=False))
    assert torch.equal(read.state["cls_token"], state["cls_token"])


def test_safetensors(state: State, sit_nano: SiT, tmp_path: Path) -> None:
    save_file(prefixed(state, "module."), tmp_path / "sit.safetensors")
    loaded = load_model("sit_nano", tmp_path / "sit.safetensors")
    x = images(sit_nano)
    assert torch.equal(loaded.model(x), sit_nano(x))
    assert loaded.notes == ()  # the file's only weights: nothing to tell


@torch.no_grad()
@pytest.mark.parametrize("name", ["sit_nano", "lvvit_nano"])
def test_official_checkpoint_gives_the_model_it_was_saved_from(name: str, save: Save) -> None:
    trained = named_model(name, reverse_tsm=True, dist_token=name == "sit_nano")
    path = save(official(trained.state_dict()))
    loaded = load_model(name, str(path))
    assert loaded.name == name
    assert loaded.checkpoint is not None
    assert loaded.checkpoint.path == path
    assert loaded.notes == ("model weights of sit.pth",)
    assert not loaded.model.training
    assert loaded.model.has_dist_token == trained.has_dist_token
    x = images(trained)
    assert torch.equal(loaded.model(x), trained(x))


@torch.no_grad()
def test_reverse_tsms_are_left_out_unless_asked_for(state: State, sit_nano: SiT, save: Save) -> None:
    path = save({"model": state})
    assert not hasattr(load_model("sit_nano", path).model, "rtsm")
    loaded = load_model("sit_nano", path, reverse_tsm=True)
    x = images(sit_nano)
    for found, expected in zip(
        loaded.model.forward_frd(x).tokens, sit_nano.forward_frd(x).tokens, strict=True
    ):
        assert torch.equal(found, expected)
    assert len(loaded.notes) == 1


def test_absent_reverse_tsms_are_new_and_said_to_be(state: State, save: Save) -> None:
    loaded = load_model("sit_nano", save(without(state, "rtsm.")), reverse_tsm=True)
    assert loaded.model.rtsm[7].mlp1.fc1.weight.std() > 0
    assert "reverse TSMs are new" in loaded.notes[0]


def test_some_reverse_tsms_missing_is_an_incomplete_checkpoint(state: State, save: Save) -> None:
    del state["rtsm.3.mlp2.fc1.weight"]
    path = save(state)
    with pytest.raises(InputError, match=r"1 missing \(rtsm\.3\.mlp2\.fc1\.weight\)"):
        load_model("sit_nano", path, reverse_tsm=True)
    load_model("sit_nano", path)


@pytest.mark.parametrize("shape", [None, (21, 128), (1000,)])
def test_aux_head_may_be_absent_or_another(
    shape: tuple[int, ...] | None, state: State, sit_nano: SiT, save: Save
) -> None:
    state = without(state, "aux_head.")
    if shape:
        state["aux_head.weight"] = torch.ones(shape)
    x = images(sit_nano)
    assert torch.equal(load_model("sit_nano", save(state)).model(x), sit_nano(x))


@torch.no_grad()
@pytest.mark.parametrize("counters", [torch.int64, torch.int32, torch.float16])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_of_another_precision_load_as_float32(
    dtype: torch.dtype, counters: torch.dtype, state: State, sit_nano: SiT, save: Save
) -> None:
    cast = {k: v.to(dtype if v.is_floating_point() else counters) for k, v in state.items()}
    model = load_model("sit_nano", save(cast)).model
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert torch.equal(model.head.weight, sit_nano.head.weight.to(dtype).float())
    assert model.patch_embed.bn1.num_batches_tracked.dtype == torch.int64


def test_class_count_is_the_checkpoints(save: Save) -> None:
    path = save(named_model("sit_nano", num_classes=21).state_dict())
    assert load_model("sit_nano", path).model.num_classes == 21
    assert load_model("sit_nano", path, num_classes=21).model.head.out_features == 21
    with pytest.raises(InputError, match=r"has 21 classes, not 1000; pass --num-classes 21 or leave it out"):
        load_model("sit_nano", path, num_classes=1000)


def test_random_weights_are_seeded_and_leave_the_generator_alone() -> None:
    torch.manual_seed(123)
    expected = torch.rand(3)
    torch.manual_seed(123)
    a = load_model("sit_nano", num_classes=5)
    assert torch.equal(torch.rand(3), expected)
    b = load_model("sit_nano", num_classes=5)
    assert all(torch.equal(v, b.model.state_dict()[k]) for k, v in a.model.state_dict().items())
    assert a.checkpoint is None
    assert a.model.num_classes == 5
    assert not a.model.training
    assert "random weights" in a.notes[0]


@torch.no_grad()
def test_positions_are_resampled_as_timm_does(state: State, save: Save) -> None:
    loaded = load_model("lvvit_nano", save(named_model("lvvit_nano").state_dict()), image_size=160)
    source = named_model("lvvit_nano").pos_embed
    expected = resample_abs_pos_embed(source, [10, 10], old_size=[7, 7], num_prefix_tokens=1)
    assert torch.equal(loaded.model.pos_embed, expected)
    assert torch.equal(loaded.model.pos_embed[:, 0], source[:, 0])
    assert loaded.model(images(loaded.model)).shape == (2, 1000)
    assert loaded.notes == (
        "positions resampled from 7x7 to 10x10 patches; check its accuracy at 160 pixels",
    )


@torch.no_grad()
def test_positions_survive_a_round_trip(sit_nano: SiT) -> None:
    # a pattern that a finer grid can carry: one period over the image
    axis = torch.cos(torch.linspace(0, torch.pi, 7))
    grid = (axis[:, None] + 2 * axis[None, :]).reshape(1, 49, 1)
    position = torch.cat((torch.full((1, 1, 1), 9.0), grid), dim=1).expand(-1, -1, 128)
    larger = named_model("sit_nano", img_size=224)
    up = filter_state_dict({"pos_embed": position}, larger)["pos_embed"]
    assert up.shape == (1, 197, 128)
    back = filter_state_dict({"pos_embed": up}, sit_nano)["pos_embed"]
    torch.testing.assert_close(back, position, atol=0.05, rtol=0)
    # rows stay rows: the gradient along y is half of that along x
    sides = up[0, 1:, 0].reshape(14, 14)
    assert (sides[0, 0] - sides[0, -1]) / (sides[0, 0] - sides[-1, 0]) == pytest.approx(2, rel=0.02)


def test_positions_for_an_image_that_is_not_square(sit_nano: SiT) -> None:
    model = named_model("sit_nano", img_size=(112, 160), kept=(70, 24, 12, 6))
    fitted = filter_state_dict(dict(sit_nano.state_dict()), model)
    expected = resample_abs_pos_embed(sit_nano.pos_embed, [7, 10], old_size=[7, 7], num_prefix_tokens=1)
    assert torch.equal(fitted["pos_embed"], expected)
    model.load_state_dict(fitted)


@torch.no_grad()
def test_at_another_size_the_tsms_keep_their_token_counts(state: State, sit_nano: SiT, save: Save) -> None:
    loaded = load_model("sit_nano", save({"model": state}), image_size=160)
    assert loaded.model.kept == (100, 24, 12, 6)
    assert torch.equal(loaded.model.tsm[2].weight[3].weight, sit_nano.tsm[2].weight[3].weight)
    assert loaded.model(images(loaded.model)).shape == (2, 1000)
    assert loaded.notes[1:] == (
        "positions resampled from 7x7 to 10x10 patches; check its accuracy at 160 pixels",
        "its TSMs keep 24/12/6 tokens, not the 50/25/12 of sit_nano at 160 pixels; check its accuracy",
    )


def test_own_token_counts_are_read_at_the_native_size_too(save: Save) -> None:
    tuned = named_model("sit_nano", img_size=160, kept=(100, 24, 12, 6))
    assert load_model("sit_nano", save(tuned.state_dict()), image_size=160).model.kept == (100, 24, 12, 6)
    ratio = named_model("sit_nano", keeping_ratio=0.7)
    loaded = load_model("sit_nano", save(ratio.state_dict()))
    assert loaded.model.kept == (49, 34, 24, 16)
    assert "keep 34/24/16 tokens, not the 24/12/6" in loaded.notes[0]


def test_token_counts_that_were_asked_for_are_those_of_the_checkpoint_or_refused(save: Save) -> None:
    kept = (49, 30, 18, 9)
    path = save(create_model(get_config("sit_nano", kept=kept)).state_dict())
    loaded = load_model("sit_nano", path, kept=kept)
    assert (loaded.model.kept, loaded.config.kept, loaded.notes) == (kept, kept, ())
    assert load_model("sit_nano", kept=kept).model.kept == kept  # of random weights
    with pytest.raises(
        InputError, match="its TSMs keep 30,18,9 tokens, not the 30,18,8 asked for; leave out --kept"
    ):
        load_model("sit_nano", path, kept=(49, 30, 18, 8))
    with pytest.raises(InputError, match="begin with 49, and images of 160 pixels have 100 patches of 16"):
        load_model("sit_nano", path, 160, kept=kept)


def test_tsms_that_keep_more_than_the_image_has_are_refused(save: Save) -> None:
    path = save(named_model("sit_nano", img_size=224).state_dict())
    assert load_model("sit_nano", path, image_size=160).model.kept == (100, 98, 49, 24)
    with pytest.raises(InputError, match=r"\(36, 98, 49, 24\) grows.*larger image"):
        load_model("sit_nano", path, image_size=96)


@pytest.mark.parametrize("name", ["sit_nano", "sit_t", "sit_m", "sit_l", "lvvit_nano", "lvvit_s", "lvvit_l"])
def test_identify(name: str) -> None:
    with shapes_alone():
        assert identify(create_model(name).state_dict()) == (name,)


@pytest.mark.parametrize("name", ["sit_s", "sit_xs"])
def test_what_tells_sit_s_from_sit_xs_is_where_recovery_begins(name: str) -> None:
    with shapes_alone():
        trained = create_model(name, reverse_tsm=True).state_dict()
    assert identify(trained) == (name,)
    assert set(identify(without(trained, "rtsm."))) == {"sit_s", "sit_xs"}


def test_a_sit_s_is_not_taken_for_a_sit_xs(save: Save) -> None:
    with shapes_alone():
        trained = create_model("sit_s", reverse_tsm=True).state_dict()
    # one zero, seen in every shape: small on disk
    path = save({"model": {k: torch.zeros((), dtype=v.dtype).expand(v.shape) for k, v in trained.items()}})
    with pytest.raises(InputError, match="looks like sit_s; pass --model sit_s"):
        load_model("sit_xs", path)


@pytest.mark.parametrize("entry", ["ema", "model_ema", "shadow"])
def test_averages_without_names_are_told_of(entry: str, sit_nano: SiT, tmp_path: Path) -> None:
    """As torch_ema keeps them: the plain weights are taken, and what was averaged is not passed over in silence."""
    kept = {
        "decay": 0.99,
        "num_updates": 3,
        "shadow_params": [p.detach() + 1 for p in sit_nano.parameters()],
        "collected_params": None,
    }
    torch.save({"model": sit_nano.state_dict(), entry: kept}, tmp_path / "both.pth")
    (note,) = (n for n in read_checkpoint(tmp_path / "both.pth").notes if "averaged" in n)
    assert f"({entry}.shadow_params) have no names and were not taken" in note and "ema.copy_to" in note
    assert isinstance(note, WarningText)
    assert not any("averaged" in n for n in read_checkpoint(tmp_path / "both.pth", ema=False).notes)
    momenta = {"state": [p.detach() for p in sit_nano.parameters()]}
    torch.save({"model": sit_nano.state_dict(), "optimizer": momenta}, tmp_path / "plain.pth")
    assert not any("averaged" in n for n in read_checkpoint(tmp_path / "plain.pth").notes)
