"""Checkpoints in FP8: with scales, as transformers, vLLM and ComfyUI write them, with scales lost, and merely cast."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from sit_deploy.errors import InputError
from sit_deploy.models import load_model, read_checkpoint
from sit_deploy.text import is_warning
from tests.helpers.models import named_model

State = dict[str, torch.Tensor]
E4M3, E5M2 = torch.float8_e4m3fn, torch.float8_e5m2


def lowered(scaled: bool, scales: str | None = None, dtype: torch.dtype = E4M3) -> State:
    """Return weights whose Linears in blocks are in FP8, as many of them as such files have."""
    state: State = {}
    for key, value in named_model("sit_nano").state_dict().items():
        if value.ndim != 2 or not key.startswith("blocks"):
            state[key] = value
            continue
        scale = value.abs().max() / torch.finfo(dtype).max if scaled else torch.ones(())
        state[key] = (value / scale).to(dtype)
        if scales:
            state[scales.format(key.removesuffix(".weight"))] = scale.reshape(1, 1).clone()
    return state


@pytest.mark.parametrize(
    "scales",
    ["{}.weight_scale_inv", "{}.weight_scale", "{}.scale_weight", "{}.input_scale"],
)
def test_scales_are_not_left_out_in_silence(scales: str, tmp_path: Path) -> None:
    save_file(lowered(True, scales), tmp_path / "f.safetensors")
    with pytest.raises(
        InputError, match=r"weights in FP8 \(float8_e4m3fn\) with scales beside them .*; save the"
    ) as caught:
        load_model("sit_nano", tmp_path / "f.safetensors")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("dtype", [E4M3, E5M2])
def test_scales_that_are_lost_are_missed(dtype: torch.dtype, tmp_path: Path) -> None:
    """Numbers up to the largest of the format were divided by something."""
    torch.save(lowered(True, dtype=dtype), tmp_path / "f.pth")
    with pytest.raises(
        InputError, match=rf"up to {torch.finfo(dtype).max:g}, as they are when divided by scales"
    ):
        load_model("sit_nano", tmp_path / "f.pth")


@pytest.mark.parametrize("dtype", [E4M3, E5M2])
def test_weights_that_were_cast_are_taken_with_a_warning(dtype: torch.dtype, tmp_path: Path) -> None:
    state = lowered(False, dtype=dtype)
    save_file(state, tmp_path / "f.safetensors")
    loaded = load_model("sit_nano", tmp_path / "f.safetensors")
    (note,) = [note for note in loaded.notes if "FP8" in note]
    assert is_warning(note) and "have no scales: they are taken as they are" in note
    for key, value in loaded.model.state_dict().items():
        if value.is_floating_point():
            assert value.dtype == torch.float32 and torch.equal(value, state[key].float())


def test_other_checkpoints_are_not_spoken_of(tmp_path: Path) -> None:
    state = {k: v.half() for k, v in named_model("sit_nano").state_dict().items()}
    save_file(state, tmp_path / "f.safetensors")
    assert not [note for note in read_checkpoint(tmp_path / "f.safetensors").notes if "FP8" in note]
