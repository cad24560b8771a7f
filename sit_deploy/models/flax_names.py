"""Google's names for the weights of vision transformers, in the .npz files of vision_transformer (AugReg) and big_vision (SigLIP), translated to timm's.

What timm's own loader of such files copies into a model is what comes of them here; the tests compare the two.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch

from sit_deploy.models.file_kind import FLAX_MARK
from sit_deploy.models.hugging_face_names import derived
from sit_deploy.models.renamed import put
from sit_deploy.models.torch_file import Stored

NOTE = "Google's names were taken for timm's"
_PREFIXES = ("params/img/", "params/", "opt/target/", "")
_BLOCK = re.compile(r"Transformer/encoderblock(?:_(\d+))?/(.+)$")
_TOP = {
    "cls": "cls_token", "pos_embedding": "pos_embed", "Transformer/posembed_input/pos_embedding": "pos_embed",
    "embedding/kernel": "patch_embed.proj.weight", "embedding/bias": "patch_embed.proj.bias",
    "Transformer/encoder_norm/scale": "norm.weight", "Transformer/encoder_norm/bias": "norm.bias",
    "head/kernel": "head.weight", "head/bias": "head.bias",
    "MAPHead_0/probe": "attn_pool.latent", "MAPHead_0/LayerNorm_0/scale": "attn_pool.norm.weight",
    "MAPHead_0/LayerNorm_0/bias": "attn_pool.norm.bias",
    **{
        f"MAPHead_0/MlpBlock_0/Dense_{i}/{theirs}": f"attn_pool.mlp.fc{i + 1}.{ours}"
        for i in (0, 1) for theirs, ours in (("kernel", "weight"), ("bias", "bias"))
    },
}  # fmt: skip
# the second norm and the MLP are numbered by what stands before them in either library
_IN_BLOCK = re.compile(r"(LayerNorm_[0-2]|MlpBlock_[03]/Dense_[01])/(scale|kernel|bias)$")
_ATTENTION = re.compile(r"(.*?)MultiHeadDotProductAttention_[01]/(query|key|value|out)/(kernel|bias)$")
_QUERIES = re.compile(r"(?!params/txt/|opt/state/).*Transformer/encoderblock.*/query/kernel$")
_KINDS = {"scale": "weight", "kernel": "weight", "bias": "bias"}


def translate(tensors: Mapping[str, Stored]) -> tuple[dict[str, Stored], tuple[str, ...]] | None:
    """Return weights under timm's names and a note, None where they are not Google's."""
    prefix = next((p for p in _PREFIXES if f"{p}{FLAX_MARK}" in tensors), None)
    if prefix is None:
        return None
    renamed: dict[str, Stored] = {}
    attention: dict[str, dict[str, Stored]] = {}
    for key, value in tensors.items():
        rest = key[len(prefix) :] if key.startswith(prefix) else None
        if rest is None:
            put(renamed, key, value)
        elif rest in _TOP:
            put(renamed, _TOP[rest], _plain(value, rest))
        else:
            for name, part in _apart(rest, value):
                if fused := _ATTENTION.match(name):
                    owner, role, kind = fused.groups()
                    attention.setdefault(owner, {})[f"{role}/{kind}"] = part
                else:
                    put(renamed, _in_block(name) or (name if name != rest else key), _plain(part, name))
    for owner, parts in attention.items():
        for name, value in _fused(owner, parts).items():
            put(renamed, name, value)
    return renamed, (NOTE,)


def head_count(tensors: Mapping[str, Stored]) -> int | None:
    """Return the heads of the attention, which its arrays have a side for, None where that is not told."""
    queries = (
        value for key, value in tensors.items() if _QUERIES.match(key)
    )  # (dim, heads, width), of all blocks in one or not
    return next((value.shape[-2] for value in queries if value.ndim > 2), None)


def _apart(rest: str, value: Stored) -> list[tuple[str, Stored]]:
    """Return a weight of blocks that lie in one array by block, as `scan` leaves them, block by block; any other as it is."""
    block = _BLOCK.match(rest)
    if block is None or block[1] is not None or not value.shape:
        return [(rest, value)]
    return [
        (
            f"Transformer/encoderblock_{i}/{block[2]}",
            Stored(value.shape[1:], lambda i=i: value.read()[i], value.plain),
        )
        for i in range(value.shape[0])
    ]


def _in_block(name: str) -> str | None:
    """Return timm's name of a norm or of an MLP's layer, None for anything else."""
    block = _BLOCK.match(name)
    inner = _IN_BLOCK.match(block[2]) if block else None
    if block is None or inner is None:
        return None
    part, kind = inner[1], _KINDS[inner[2]]
    if part.startswith("LayerNorm"):
        return f"blocks.{block[1]}.norm{1 if part.endswith('0') else 2}.{kind}"
    return f"blocks.{block[1]}.mlp.fc{int(part[-1]) + 1}.{kind}"


def _plain(value: Stored, name: str) -> Stored:
    """Return a weight in PyTorch's order: outputs before inputs, and both before rows and columns."""
    if not name.endswith("/kernel"):
        return value
    if value.ndim == 2:
        return derived(lambda v: v.T, (value.shape[1], value.shape[0]), value)
    if value.ndim == 4:
        height, width, inputs, outputs = value.shape
        return derived(lambda v: v.permute(3, 2, 0, 1), (outputs, inputs, height, width), value)
    return value


def _fused(owner: str, parts: dict[str, Stored]) -> dict[str, Stored]:
    """Return an attention's weights: queries, keys and values in one, of a pooling those of its one query apart."""
    pools = owner.startswith("MAPHead_0")
    block = _BLOCK.match(f"{owner}x")
    at = "attn_pool" if pools else f"blocks.{block[1]}.attn" if block else owner
    groups = {"q": ("query",), "kv": ("key", "value")} if pools else {"qkv": ("query", "key", "value")}
    wanted = {f"{role}/{kind}" for role in ("query", "key", "value", "out") for kind in ("kernel", "bias")}
    if parts.keys() != wanted or any(
        v.ndim != (3 if k.endswith("kernel") else 1 + (not k.startswith("out"))) for k, v in parts.items()
    ):
        return {f"{owner}{name}": value for name, value in parts.items()}  # under names that no model has
    made = {}
    for name, roles in groups.items():
        for theirs, ours in (("kernel", "weight"), ("bias", "bias")):
            values = [_rows(parts[f"{role}/{theirs}"]) for role in roles]
            shape = (sum(v.shape[0] for v in values), *values[0].shape[1:])
            made[f"{at}.{name}.{ours}"] = Stored(
                shape, lambda values=values: torch.cat([v.read() for v in values])
            )
    heads, width, outputs = parts["out/kernel"].shape
    made[f"{at}.proj.weight"] = derived(
        lambda v: v.permute(2, 0, 1).flatten(1), (outputs, heads * width), parts["out/kernel"]
    )
    return made | {f"{at}.proj.bias": parts["out/bias"]}


def _rows(value: Stored) -> Stored:
    """Return the weight (dim, heads, width) or the bias (heads, width) of a projection with a row an output."""
    outputs = value.shape[-2] * value.shape[-1]
    if value.ndim == 2:
        return derived(lambda v: v.reshape(-1), (outputs,), value)
    return derived(lambda v: v.flatten(1).T, (outputs, value.shape[0]), value)
