"""Meta's own names for DINOv2 with registers, its gated MLPs, and DINOv3, translated to timm's.

As facebookresearch/dinov2 and facebookresearch/dinov3 publish them (`dinov2_vits14_reg4_pretrain.pth`, `dinov3_vits16_pretrain_….pth`);
most names are timm's already.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from sit_deploy.errors import InputError
from sit_deploy.models.hugging_face_names import class_position_added
from sit_deploy.models.renamed import put
from sit_deploy.models.torch_file import Stored

NOTE = "the names of Meta's DINO were taken for timm's"
_PACKED = re.compile(r"(.*blocks\.\d+\.mlp)\.(w12|w3)\.(weight|bias)$")
# made again by timm, of pretraining alone, or no weight
_UNUSED = re.compile(r"(.*\.)?(rope_embed\.periods|qkv\.bias_mask|local_cls_norm\.\w+|projectors\..+)$")
_THIRD = re.compile(r"(.*\.)?(storage_tokens|blocks\.\d+\.attn\.qkv\.bias_mask)$")
_QKV_BIAS = re.compile(r"(.*blocks\.\d+\.attn)\.qkv\.bias$")


def translate(tensors: Mapping[str, Stored]) -> tuple[dict[str, Stored], tuple[str, ...]] | None:
    """Return weights under timm's names and a note, None where they are not Meta's.

    What a file lacks is not what it is known by: DINOv3 is told by any of its blocks as well as by its registers.
    """
    registers = [k for k in tensors if re.match(r"(.*\.)?(register|storage)_tokens$", k)]
    third = any(map(_THIRD.match, tensors))
    if len(registers) > 1 or not (registers or third or any(map(_PACKED.match, tensors))):
        return None
    renamed: dict[str, Stored] = {}
    for key, value in tensors.items():
        packed, bias = _PACKED.match(key), _QKV_BIAS.match(key) if third else None
        if key in registers:
            put(renamed, key.removesuffix(key.rpartition(".")[2]) + "reg_token", value)
        elif third and _UNUSED.match(key):
            continue
        elif packed and not third:
            put(renamed, f"{packed[1]}.{'fc1' if packed[2] == 'w12' else 'fc2'}.{packed[3]}", value)
        elif bias and value.ndim == 1 and value.shape[0] % 3 == 0:
            for name, part in _parts(key, value, tensors.get(f"{key}_mask")).items():
                put(renamed, f"{bias[1]}.{name}_bias", part)
        elif third and (gated := re.match(r"(.*blocks\.\d+\.mlp)\.w([123])\.(weight|bias)$", key)):
            put(renamed, f"{gated[1]}.{('fc1_g', 'fc1_x', 'fc2')[int(gated[2]) - 1]}.{gated[3]}", value)
        else:
            put(renamed, key, value)
    if registers and not third:
        at = registers[0].removesuffix("register_tokens")
        cls, position = renamed.get(f"{at}cls_token"), renamed.get(f"{at}pos_embed")
        if cls is not None and position is not None:
            renamed |= class_position_added(at, cls, position)
    return renamed, (NOTE,)


def _parts(key: str, bias: Stored, mask: Stored | None) -> dict[str, Stored]:
    """Return the biases of queries and of values: DINOv3 multiplies all three by a mask that hides the keys', and timm has none of these.

    With rotary positions a bias of the keys would change what attention gives, so one that is not hidden is refused. A mask of
    NaN was never set, and is taken for the usual one.
    """
    third = bias.shape[0] // 3

    def read(start: int) -> Tensor:
        whole = bias.read()
        if mask is not None and mask.shape == bias.shape:
            usual = torch.ones_like(whole)
            usual[third : 2 * third] = 0
            given = mask.read().to(whole)
            whole = whole * torch.where(given.isnan(), usual, given)
        keys = whole[third : 2 * third]
        if keys.any():
            raise InputError(
                f"{key} gives keys a bias (of up to {keys.abs().max().item():.3g}), which timm's DINOv3 does not have: in "
                "Meta's files it is zero, or its bias_mask is; pass the file as it was published, or set that third of the bias to 0"
            )
        return whole[start : start + third].clone()

    return {
        name: Stored((third,), lambda at=at: read(at), bias.plain)
        for name, at in (("q", 0), ("v", 2 * third))
    }
