"""BEiT-3's own names translated to timm's, as microsoft/unilm publishes it (`beit3_base_patch16_224_in1k.pth`).

Its blocks have two branches: A, of images, is timm's model, and B is of texts.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from sit_deploy.models.hugging_face_names import can_be_stacked, derived, stacked
from sit_deploy.models.renamed import put, roots
from sit_deploy.models.torch_file import Stored

NOTE = "the names of BEiT-3 were taken for timm's, and its branch of texts was left out"
_MARK = r"beit3\.encoder\.layers\.\d+\.self_attn\.[qkv]_proj\.A\.weight"
_LEFT_OUT = re.compile(r"text_embed\.|vision_embed\.mask_token$|encoder\..+\.B\.(weight|bias)$")
_BLOCK = re.compile(r"encoder\.layers\.(\d+)\.(.+)\.A\.(weight|bias)$")
_PARTS = {
    "self_attn_layer_norm": "norm1", "final_layer_norm": "norm2", "self_attn.inner_attn_ln": "attn.norm",
    "self_attn.out_proj": "attn.proj", "ffn.fc1": "mlp.fc1", "ffn.fc2": "mlp.fc2", "ffn.ffn_layernorm": "mlp.norm",
}  # fmt: skip
_TOP = {
    "vision_embed.cls_token": "cls_token", "vision_embed.proj.weight": "patch_embed.proj.weight",
    "vision_embed.proj.bias": "patch_embed.proj.bias", "encoder.layer_norm.A.weight": "norm.weight",
    "encoder.layer_norm.A.bias": "norm.bias",
}  # fmt: skip
_PLACES = "encoder.embed_positions.A.weight"
_SPARE = 2  # places before those of an image's tokens, which fairseq keeps for padding


def translate(tensors: Mapping[str, Stored]) -> tuple[dict[str, Stored], tuple[str, ...]] | None:
    """Return weights under timm's names and a note, None where they are not BEiT-3's."""
    found = sorted(roots(tensors, _MARK))
    renamed = dict(tensors)
    for root in found:
        renamed = _translated(renamed, root)
    return (renamed, (NOTE,)) if found else None


def _translated(tensors: Mapping[str, Stored], root: str) -> dict[str, Stored]:
    renamed: dict[str, Stored] = {}
    parts: dict[str, dict[str, tuple[str, Stored]]] = {}  # queries, keys and values of a block
    for key, value in tensors.items():
        rest = key.removeprefix(f"{root}beit3.")
        block = _BLOCK.match(rest)
        if rest == key:  # the head, or another model's
            put(renamed, key, value)
        elif _LEFT_OUT.match(rest):
            continue
        elif block and (side := re.fullmatch(r"self_attn\.([qkv])_proj", block[2])):
            parts.setdefault(f"{root}blocks.{block[1]}.attn.qkv.{block[3]}", {})[side[1]] = (key, value)
        elif block and block[2] in _PARTS:
            put(renamed, f"{root}blocks.{block[1]}.{_PARTS[block[2]]}.{block[3]}", value)
        elif rest == _PLACES and value.ndim == 2:
            shape = (1, max(value.shape[0] - _SPARE, 0), value.shape[1])
            put(renamed, f"{root}pos_embed", derived(lambda v: v[None, _SPARE:], shape, value))
        else:
            put(renamed, root + _TOP[rest] if rest in _TOP else key, value)
    for name, sides in parts.items():
        values = [sides[side][1] for side in "qkv" if side in sides]
        if len(values) == 3 and can_be_stacked(values):
            put(renamed, name, stacked(values))
        else:  # an incomplete set: under its own names, which no model has
            for key, value in sides.values():
                put(renamed, key, value)
    return renamed
