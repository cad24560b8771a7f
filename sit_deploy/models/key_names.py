"""Other libraries' names for the weights of the same vision transformers, translated to timm's, one to one.

Hugging Face's transformers (ViT, DeiT, DINOv2; the names in its files and those of its releases since 5) and torchvision.
Names that have no counterpart stay as they are, so that a model that differs is not taken for one that does not.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from sit_deploy.models.torch_file import Stored

_HF_MARK = "embeddings.patch_embeddings.projection.weight"
_HF_TOP = {
    "embeddings.cls_token": "cls_token",
    "embeddings.position_embeddings": "pos_embed",
    "embeddings.distillation_token": "dist_token",
    "embeddings.patch_embeddings.projection.weight": "patch_embed.proj.weight",
    "embeddings.patch_embeddings.projection.bias": "patch_embed.proj.bias",
    "layernorm.weight": "norm.weight",
    "layernorm.bias": "norm.bias",
}
_HF_BLOCK = re.compile(
    r"(?:encoder\.layer|encoder\.layers|layers|layer)\.(\d+)\.(.+)\.(weight|bias|lambda1)$"
)
_HF_PARTS = {
    "attention.output.dense": "attn.proj", "attention.o_proj": "attn.proj",
    "intermediate.dense": "mlp.fc1", "output.dense": "mlp.fc2", "mlp.fc1": "mlp.fc1", "mlp.fc2": "mlp.fc2",
    "layernorm_before": "norm1", "layernorm_after": "norm2", "norm1": "norm1", "norm2": "norm2",
    "layer_scale1": "ls1", "layer_scale2": "ls2",
}  # fmt: skip
_HF_QKV = {
    "attention.attention.query": 0, "attention.attention.key": 1, "attention.attention.value": 2,
    "attention.q_proj": 0, "attention.k_proj": 1, "attention.v_proj": 2,
}  # fmt: skip

_TV_MARK = "encoder.layers.encoder_layer_0.self_attention.in_proj_weight"
_TV_NAMES = (
    (re.compile(r"class_token$"), "cls_token"),
    (re.compile(r"conv_proj\."), "patch_embed.proj."),
    (re.compile(r"encoder\.pos_embedding$"), "pos_embed"),
    (re.compile(r"encoder\.ln\."), "norm."),
    (re.compile(r"heads\.head\."), "head."),
    (re.compile(r"encoder\.layers\.encoder_layer_(\d+)\.self_attention\.in_proj_"), r"blocks.\1.attn.qkv."),
    (re.compile(r"encoder\.layers\.encoder_layer_(\d+)\.self_attention\.out_proj\."), r"blocks.\1.attn.proj."),
    (re.compile(r"encoder\.layers\.encoder_layer_(\d+)\.ln_([12])\."), r"blocks.\1.norm\2."),
    (re.compile(r"encoder\.layers\.encoder_layer_(\d+)\.mlp\.(?:0|linear_1)\."), r"blocks.\1.mlp.fc1."),
    (re.compile(r"encoder\.layers\.encoder_layer_(\d+)\.mlp\.(?:3|linear_2)\."), r"blocks.\1.mlp.fc2."),
)  # fmt: skip


def to_timm_names(tensors: Mapping[str, Stored]) -> tuple[dict[str, Stored], tuple[str, ...]]:
    """Return weights under timm's names, their prefix kept, and a note where other names were translated."""
    for mark, translate, note in (
        (_HF_MARK, _from_hugging_face, "the names of Hugging Face's transformers were taken for timm's"),
        (_TV_MARK, _from_torchvision, "torchvision's names were taken for timm's; its own weights see images of mean "
         "0.485 0.456 0.406 and std 0.229 0.224 0.225: compare them with those taken here"),
    ):  # fmt: skip
        roots = [key[: -len(mark)] for key in tensors if key.endswith(mark)]
        if len(roots) == 1 and (not roots[0] or roots[0].endswith(".")):
            return translate(tensors, roots[0]), (note,)
    return dict(tensors), ()


def _from_hugging_face(tensors: Mapping[str, Stored], root: str) -> dict[str, Stored]:
    parent = root[: root.rstrip(".").rfind(".") + 1]  # of the backbone and its classifier
    renamed: dict[str, Stored] = {}
    parts: dict[str, dict[int, tuple[str, Stored]]] = {}
    for key, value in tensors.items():
        if key.startswith(f"{parent}classifier.") and key.count(".") == parent.count(".") + 1:
            renamed[f"{parent}head.{key.rpartition('.')[2]}"] = value
            continue
        rest = key[len(root) :] if key.startswith(root) else ""
        block = _HF_BLOCK.match(rest)
        if rest in _HF_TOP:
            renamed[parent + _HF_TOP[rest]] = value
        elif block and block[2] in _HF_PARTS:
            kind = "gamma" if block[3] == "lambda1" else block[3]
            renamed[f"{parent}blocks.{block[1]}.{_HF_PARTS[block[2]]}.{kind}"] = value
        elif block and block[2] in _HF_QKV:
            fused = f"{parent}blocks.{block[1]}.attn.qkv.{block[3]}"
            parts.setdefault(fused, {})[_HF_QKV[block[2]]] = (key, value)
        else:
            renamed[key] = value
    for fused, three in parts.items():
        values = [three[i][1] for i in sorted(three)]
        if (
            len(three) == 3
            and len({v.shape for v in values}) == 1
            and all(v.plain and v.ndim for v in values)
        ):
            renamed[fused] = _stack(values)
        else:  # BEiT's keys have no bias
            renamed |= dict(three.values())
    return renamed


def _stack(values: list[Stored]) -> Stored:
    def read() -> Tensor:
        return torch.cat([value.read() for value in values])

    return Stored((3 * values[0].shape[0], *values[0].shape[1:]), read)


def _from_torchvision(tensors: Mapping[str, Stored], root: str) -> dict[str, Stored]:
    renamed = {}
    for key, value in tensors.items():
        rest = key[len(root) :] if key.startswith(root) else ""
        for pattern, name in _TV_NAMES:
            if rest and pattern.match(rest):
                key = root + pattern.sub(name, rest, count=1)
                break
        renamed[key] = value
    return renamed
