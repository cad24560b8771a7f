"""Meta's own names for DINOv2 with registers, its gated MLPs, and DINOv3, translated to timm's.

As facebookresearch/dinov2 and facebookresearch/dinov3 publish them (`dinov2_vits14_reg4_pretrain.pth`, `dinov3_vits16_pretrain_….pth`);
most names are timm's already.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from sit_deploy.models.hugging_face_names import class_position_added, derived
from sit_deploy.models.renamed import put
from sit_deploy.models.torch_file import Stored

NOTE = "the names of Meta's DINO were taken for timm's"
_PACKED = re.compile(r"(.*blocks\.\d+\.mlp)\.(w12|w3)\.(weight|bias)$")
# made again by timm, of pretraining alone, or no weight
_UNUSED = re.compile(r"(.*\.)?(rope_embed\.periods|qkv\.bias_mask|local_cls_norm\.\w+)$")
_QKV_BIAS = re.compile(r"(.*blocks\.\d+\.attn)\.qkv\.bias$")


def translate(tensors: Mapping[str, Stored]) -> tuple[dict[str, Stored], tuple[str, ...]] | None:
    """Return weights under timm's names and a note, None where they are not Meta's."""
    registers = [k for k in tensors if re.match(r"(.*\.)?(register|storage)_tokens$", k)]
    if len(registers) > 1 or not (registers or any(map(_PACKED.match, tensors))):
        return None
    third = bool(registers) and registers[0].endswith("storage_tokens")
    renamed: dict[str, Stored] = {}
    for key, value in tensors.items():
        packed, bias = _PACKED.match(key), _QKV_BIAS.match(key) if third else None
        if key in registers:
            put(renamed, key.removesuffix(key.rpartition(".")[2]) + "reg_token", value)
        elif third and _UNUSED.match(key):
            continue
        elif packed and not third:
            put(renamed, f"{packed[1]}.{'fc1' if packed[2] == 'w12' else 'fc2'}.{packed[3]}", value)
        elif bias and value.ndim == 1 and value.shape[0] % 3 == 0:  # that of the keys is masked: it is zero
            side = value.shape[0] // 3
            put(renamed, f"{bias[1]}.q_bias", derived(lambda v, n=side: v[:n], (side,), value))
            put(renamed, f"{bias[1]}.v_bias", derived(lambda v, n=side: v[2 * n :], (side,), value))
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
