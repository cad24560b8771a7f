"""Other libraries' names for the weights of the same vision transformers, translated to timm's, one to one.

Hugging Face's transformers (`sit_deploy.models.hugging_face_names`), Meta's DINO (`dino_names`), OpenAI's CLIP (`clip_names`), BEiT-3 (`beit3_names`), SAM, EVA-02 and others (`original_names`), Google's (`flax_names`), torchvision and Meta's SWAG. Names that have no counterpart stay as
they are, so that a model that differs is not taken for one that does not.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from sit_deploy.models import (
    beit3_names,
    clip_names,
    dino_names,
    flax_names,
    hugging_face_names,
    original_names,
)
from sit_deploy.models.hugging_face_names import derived
from sit_deploy.models.renamed import put
from sit_deploy.models.torch_file import Stored

_TV_NOTE = (
    "torchvision's names were taken for timm's; its own weights see images of mean 0.485 0.456 0.406 and std 0.229 0.224 0.225: "
    "compare them with those taken here"
)
# torchvision's, and those of SWAG (https://github.com/facebookresearch/SWAG/blob/main/models/vision_transformer.py)
_TV_MARKS = tuple(
    f"encoder.layers.{layer}_0.self_attention.in_proj_weight" for layer in ("encoder_layer", "layer")
)
_TV_NAMES = (
    (re.compile(r"class_token$"), "cls_token"),
    (re.compile(r"conv_proj\."), "patch_embed.proj."),
    (re.compile(r"encoder\.pos_embedding$"), "pos_embed"),
    (re.compile(r"encoder\.ln\."), "norm."),
    (re.compile(r"(heads|head\.layers)\.head\."), "head."),
    (re.compile(r"heads\.(?=(weight|bias)$)"), "head."),  # one layer in place of torchvision's sequence of one
    (re.compile(r"heads\.pre_logits\."), "pre_logits.fc."),
    (re.compile(r"encoder\.layers\.(?:encoder_)?layer_(\d+)\.self_attention\.in_proj_"), r"blocks.\1.attn.qkv."),
    (re.compile(r"encoder\.layers\.(?:encoder_)?layer_(\d+)\.self_attention\.out_proj\."), r"blocks.\1.attn.proj."),
    (re.compile(r"encoder\.layers\.(?:encoder_)?layer_(\d+)\.ln_([12])\."), r"blocks.\1.norm\2."),
    (re.compile(r"encoder\.layers\.(?:encoder_)?layer_(\d+)\.mlp\.(?:0|linear_1)\."), r"blocks.\1.mlp.fc1."),
    (re.compile(r"encoder\.layers\.(?:encoder_)?layer_(\d+)\.mlp\.(?:3|linear_2)\."), r"blocks.\1.mlp.fc2."),
)  # fmt: skip


def to_timm_names(tensors: Mapping[str, Stored]) -> tuple[dict[str, Stored], tuple[str, ...]]:
    """Return weights under timm's names, their prefix kept, and a note where other names were translated."""
    for library in (hugging_face_names, beit3_names, original_names, dino_names, clip_names, flax_names):
        if translated := library.translate(tensors):
            return translated
    renamed = dict(tensors)
    roots = [
        key.removesuffix(mark)
        for key in tensors
        for mark in _TV_MARKS
        if key == mark or key.endswith(f".{mark}")
    ]
    for root in roots:
        renamed = _from_torchvision(renamed, root)
    return renamed, (_TV_NOTE,) if roots else ()


def _from_torchvision(tensors: Mapping[str, Stored], root: str) -> dict[str, Stored]:
    renamed: dict[str, Stored] = {}
    for key, value in tensors.items():
        rest = key[len(root) :] if key.startswith(root) else ""
        for pattern, name in _TV_NAMES:
            if rest and pattern.match(rest):
                key = root + pattern.sub(name, rest, count=1)
                break
        if key == f"{root}pos_embed" and value.ndim == 3 and value.shape[1] == 1:  # SWAG's batch comes second
            value = derived(lambda v: v.transpose(0, 1), (1, value.shape[0], value.shape[2]), value)
        put(renamed, key, value, "torchvision")
    return renamed
