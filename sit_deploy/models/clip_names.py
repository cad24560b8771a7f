"""OpenAI's names for CLIP's model of images, which open_clip and Meta's Perception Encoder have too, translated to timm's (as `open_clip_pytorch_model.bin` has them).

The text's model is left out by its names (`sit_deploy.models.find_weights.RIDER`). The projection becomes the head, with a bias of zeros.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch

from sit_deploy.models.hugging_face_names import derived
from sit_deploy.models.original_names import perception_pool
from sit_deploy.models.renamed import put, roots
from sit_deploy.models.torch_file import Stored

NOTE = "the names of OpenAI's CLIP were taken for timm's"
PERCEPTION_NOTE = "the names of Perception Encoder were taken for timm's"
_MARK, _PATCHES = "class_embedding", "conv1.weight"
_ATTENTION = r"transformer\.resblocks\.\d+\.attn\.in_proj_weight"
_COMPUTED = re.compile(
    r"rope\.|transformer\.resblocks\.\d+\.attn\.rope\."
)  # tables of rotary positions, which timm makes
_BLOCK = re.compile(r"transformer\.resblocks\.(\d+)\.(.+)$")
_PARTS = {
    "ln_1": "norm1", "ln_2": "norm2", "attn.in_proj": "attn.qkv", "attn.out_proj": "attn.proj", "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2", "ls_1": "ls1", "ls_2": "ls2",
}  # fmt: skip
_TOP_PARTS = {"conv1": "patch_embed.proj", "ln_pre": "norm_pre", "ln_post": "norm"}


def translate(tensors: Mapping[str, Stored]) -> tuple[dict[str, Stored], tuple[str, ...]] | None:
    """Return weights under timm's names and a note, None where they are not CLIP's of images."""
    found = sorted(
        roots(tensors, re.escape(_PATCHES)) & roots(tensors, _ATTENTION)
    )  # the text's model has the latter
    renamed = dict(tensors)
    for root in found:
        renamed = _translated(perception_pool(renamed, root), root)
    # rotary positions, or no class token: CLIP has neither, and Perception Encoder's activation is GELU in all of its models
    perception = any(f"{root}attn_pool.probe" in tensors or f"{root}{_MARK}" not in tensors for root in found)
    return (renamed, (PERCEPTION_NOTE if perception else NOTE,)) if found else None


def _translated(tensors: Mapping[str, Stored], root: str) -> dict[str, Stored]:
    renamed: dict[str, Stored] = {}
    for key, value in tensors.items():
        rest = key.removeprefix(root)
        if not key.startswith(root):
            put(renamed, key, value)
        elif _COMPUTED.match(rest):
            continue
        elif rest == _MARK and value.ndim == 1:
            put(renamed, f"{root}cls_token", derived(lambda v: v[None, None], (1, 1, *value.shape), value))
        elif rest == "positional_embedding" and value.ndim == 2:
            put(renamed, f"{root}pos_embed", derived(lambda v: v[None], (1, *value.shape), value))
        elif rest == "proj" and value.ndim == 2:
            outputs = value.shape[1]
            put(renamed, f"{root}head.weight", derived(lambda v: v.T, (outputs, value.shape[0]), value))
            put(renamed, f"{root}head.bias", Stored((outputs,), lambda n=outputs: torch.zeros(n)))
        else:
            put(renamed, root + _name(rest), value)
    return renamed


def _name(rest: str) -> str:
    """Return timm's name of a weight, its own where it has none."""
    block = _BLOCK.match(rest)
    index, inner = block.groups() if block else ("", rest)
    part, _, kind = inner.rpartition("." if not inner.endswith(("in_proj_weight", "in_proj_bias")) else "_")
    known = (_PARTS if block else _TOP_PARTS).get(part)
    if known is None:
        return rest
    return f"blocks.{index}.{known}.{kind}" if block else f"{known}.{kind}"
