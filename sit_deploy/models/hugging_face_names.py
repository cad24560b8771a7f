"""Hugging Face's names for the weights of vision transformers, translated to timm's.

ViT, DeiT, BEiT, I-JEPA, DINOv2 (with registers too), DINOv3, SigLIP, SigLIP 2 and CLIP of transformers: the names in its files and those of
its modules, which differ since release 5 (transformers/conversion_mapping.py). What is stored otherwise is put together here:
queries, keys and values are fused, gated MLPs packed as timm packs them, CLIP's and SigLIP's embeddings given timm's shape.
Names without a counterpart stay as they are, so that a model that differs is not taken for one that does not.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping

import torch
from torch import Tensor

from sit_deploy.models.renamed import put
from sit_deploy.models.torch_file import Stored

Names = Mapping[str, Stored]
NOTE = "the names of Hugging Face's transformers were taken for timm's"

# the patch embedding, by which a model is known: ViT, DeiT, BEiT, I-JEPA and DINOv2; DINOv3; SigLIP and CLIP
_MARKS = (
    "embeddings.patch_embeddings.projection.weight",
    "embeddings.patch_embeddings.weight",
    "embeddings.patch_embedding.weight",
)
_TOP = {
    "embeddings.cls_token": "cls_token",
    "embeddings.class_embedding": "cls_token",
    "embeddings.position_embeddings": "pos_embed",
    "embeddings.position_embedding.weight": "pos_embed",
    "embeddings.distillation_token": "dist_token",
    "embeddings.register_tokens": "reg_token",
    "head.probe": "attn_pool.latent",
}
_TOP_PARTS = {
    "embeddings.patch_embeddings.projection": "patch_embed.proj", "embeddings.patch_embeddings": "patch_embed.proj",
    "embeddings.patch_embedding": "patch_embed.proj", "layernorm": "norm", "norm": "norm", "post_layernorm": "norm",
    "pre_layrnorm": "norm_pre", "head.attention.out_proj": "attn_pool.proj", "head.layernorm": "attn_pool.norm",
    "head.mlp.fc1": "attn_pool.mlp.fc1", "head.mlp.fc2": "attn_pool.mlp.fc2",
}  # fmt: skip
# of the model that holds the backbone
_HEADS = {
    "classifier": "head", "cls_classifier": "head", "distillation_classifier": "head_dist", "visual_projection": "head",
}  # fmt: skip
# of BEiT: LayerScale, and a table of relative positions
_BEIT = re.compile(
    r"(?:encoder\.layer|layers)\.(\d+)\.(?:lambda_([12])|(?:attention\.attention\.)?relative_position_bias\.(relative_position_bias_table))$"
)
_BLOCK = re.compile(r"(?:encoder\.layers?|model\.layer|layers?)\.(\d+)\.(.+)\.(weight|bias|lambda1)$")
_PARTS = {
    "attention.output.dense": "attn.proj", "attention.o_proj": "attn.proj", "self_attn.out_proj": "attn.proj",
    "intermediate.dense": "mlp.fc1", "output.dense": "mlp.fc2", "mlp.fc1": "mlp.fc1", "mlp.fc2": "mlp.fc2",
    "mlp.weights_in": "mlp.fc1", "mlp.weights_out": "mlp.fc2", "mlp.down_proj": "mlp.fc2",
    "layernorm_before": "norm1", "layernorm_after": "norm2", "layer_norm1": "norm1", "layer_norm2": "norm2",
    "norm1": "norm1", "norm2": "norm2", "layer_scale1": "ls1", "layer_scale2": "ls2",
}  # fmt: skip
_QKV = {
    "attention.attention.query": "q", "attention.attention.key": "k", "attention.attention.value": "v",
    "attention.q_proj": "q", "attention.k_proj": "k", "attention.v_proj": "v",
    "self_attn.q_proj": "q", "self_attn.k_proj": "k", "self_attn.v_proj": "v",
}  # fmt: skip
_GATED = {"mlp.gate_proj": "gate", "mlp.up_proj": "up"}

# parts that follow a backbone, or stand in place of one, in models of other tasks
_TASKS = (
    (re.compile(r"(.*\.)?(decode_head|auxiliary_head|class_predictor|mask_embedder)\."), "segmentation"),
    (re.compile(r"(.*\.)?(bbox_predictor|class_labels_classifier|detection_tokens|box_head|class_head)\b"), "detection"),
    (re.compile(r"(.*\.)?(decoder\.(\d+|decoder_(embed|pred|layers|norm)|mask_token|decoder_pos_embed)\b|lm_head\.)"), "masked images"),
    (re.compile(r"(.*\.)?(neck\.(reassemble_stage|fusion_stage)|head\.head\.\d)\b"), "depth"),
    (re.compile(r"(.*\.)?embeddings\.word_embeddings\."), "text"),
)  # fmt: skip


def other_task(names: Collection[str]) -> str | None:
    """Return the task of a model of Hugging Face's that is no classifier of images, None for any other model."""
    ends = {part for name in names for part in (".".join(name.split(".")[-n:]) for n in (2, 3))}
    if "norm_pre.weight" in ends and "classifier.weight" in ends:
        return "CLIP's averaged patches without a norm"
    if "embeddings.token_embedding.weight" in ends and "patch_embed.proj.weight" not in ends:
        return "text"
    return next((task for pattern, task in _TASKS if any(map(pattern.match, names))), None)


def roots(tensors: Names) -> list[tuple[str, str]]:
    """Return the prefix and the mark of every backbone of Hugging Face's among names."""
    return [
        (key[: -len(mark)], mark)
        for key in tensors
        for mark in _MARKS
        if key == mark or key.endswith(f".{mark}")
    ]


def translate(tensors: Names) -> tuple[dict[str, Stored], tuple[str, ...]] | None:
    """Return weights under timm's names and notes, None where they are not Hugging Face's.

    Raises:
        DoubleNameError: two of them would get one name.
    """
    found = roots(tensors)
    owners = [root[: root.rstrip(".").rfind(".") + 1] for root, _ in found]
    renamed, notes = dict(tensors), [NOTE]
    for (root, mark), owner in zip(found, owners, strict=True):
        heads = {name for k in tensors if (name := _head_of(k, owner))}
        if f"{root}pre_layrnorm.weight" in tensors and f"{owner}classifier.weight" in tensors:
            heads = set()  # its classifier is of another kind: see `other_task`
        target = owner if heads and owners.count(owner) == 1 else root
        one = _Translation(renamed, root, mark, target)
        renamed = one.names
        pool = [k for k in renamed if k.startswith(f"{target}attn_pool.")]
        if pool and f"{target}head.weight" in renamed:  # SiglipForImageClassification averages patches
            renamed = {k: v for k, v in renamed.items() if k not in pool}
            notes.append(
                "left out its attention pooling, which its classifier of averaged patches does not read"
            )
    return (renamed, tuple(notes)) if found else None


def _head_of(key: str, owner: str) -> str | None:
    """Return timm's name of a head's weight that stands directly under `owner`."""
    part, _, kind = key.removeprefix(owner).rpartition(".")
    return f"{_HEADS[part]}.{kind}" if key.startswith(owner) and part in _HEADS else None


class _Translation:
    """One backbone of Hugging Face's within a state dict.

    Attributes:
        names: all weights, the backbone's and its heads' under timm's names.
    """

    def __init__(self, tensors: Names, root: str, mark: str, target: str) -> None:
        self.root, self.mark, self.target = root, mark, target
        self.names: dict[str, Stored] = {}
        self.fused: dict[str, dict[str, tuple[str, Stored]]] = {}
        owner = root[: root.rstrip(".").rfind(".") + 1]
        for key, value in tensors.items():
            head = _head_of(key, owner) if target == owner else None
            name = head or (self._name(key[len(root) :], key, value) if key.startswith(root) else key)
            if name == key:
                self._put(key, value)
            elif name:
                self._put(target + name, value)
        self._fuse()
        self._shape()

    def _put(self, name: str, value: Stored) -> None:
        put(self.names, name, value, "transformers")

    def _name(self, rest: str, key: str, value: Stored) -> str | None:
        """Return timm's name of a backbone's weight, None for one that is fused with others, `key` for an unknown one."""
        part, _, kind = rest.rpartition(".")
        if rest in _TOP:
            return _TOP[rest]
        if part in _TOP_PARTS and not (self.mark == _MARKS[1] and part == "layernorm"):
            return f"{_TOP_PARTS[part]}.{kind}"
        if rest in ("head.attention.in_proj_weight", "head.attention.in_proj_bias"):
            self._split_pool(rest.rpartition("_")[2], value)
            return None
        if beit := _BEIT.match(rest):
            index, scale, table = beit.groups()
            return f"blocks.{index}.{f'gamma_{scale}' if scale else f'attn.{table}'}"
        if part == "pooler.layernorm":  # BEiT's norm of averaged patches; other poolers are not timm's
            return f"fc_norm.{kind}"
        block = _BLOCK.match(rest)
        if block is None:
            return key
        index, part, kind = block.groups()
        if part in _PARTS:
            return f"blocks.{index}.{_PARTS[part]}.{'gamma' if kind == 'lambda1' else kind}"
        if part in _QKV or part in _GATED:
            group = f"blocks.{index}.{'attn' if part in _QKV else 'mlp'}.{kind}"
            self.fused.setdefault(group, {})[_QKV.get(part) or _GATED[part]] = (key, value)
            return None
        return key

    def _split_pool(self, kind: str, value: Stored) -> None:
        """Part the pooling's fused projection: timm keeps that of its one query apart."""
        third = value.shape[0] // 3 if value.ndim else 0
        for name, start, stop in (("q", 0, third), ("kv", third, 3 * third)):
            part = derived(lambda v, a=start, b=stop: v[a:b], (stop - start, *value.shape[1:]), value)
            self._put(f"{self.target}attn_pool.{name}.{kind}", part)

    def _fuse(self) -> None:
        for group, parts in self.fused.items():
            for name, value in self._fused(group, parts):
                self._put(name, value)

    def _fused(self, group: str, parts: dict[str, tuple[str, Stored]]) -> Iterator[tuple[str, Stored]]:
        stem, _, kind = group.rpartition(".")
        at, values = f"{self.target}{stem}", {name: value for name, (_, value) in parts.items()}
        alike = can_be_stacked(values.values())
        if set(values) == {"q", "k", "v"} and alike:
            yield f"{at}.qkv.{kind}", stacked([values[n] for n in "qkv"])
        elif set(values) == {"q", "v"} and kind == "bias":  # keys without one, as timm's EVA has them
            yield from ((f"{at}.{n}_bias", values[n]) for n in "qv")
        elif set(values) == {"gate", "up"} and alike:
            if self.mark == _MARKS[1]:  # DINOv3, as timm's EVA
                yield from ((f"{at}.{n}.{kind}", values[p]) for n, p in (("fc1_g", "gate"), ("fc1_x", "up")))
            else:  # DINOv2, packed
                yield f"{at}.fc1.{kind}", stacked([values["gate"], values["up"]])
        elif set(values) == {"up"}:
            yield f"{at}.fc1.{kind}", values["up"]
        else:  # an incomplete set: under its own names, which no model has
            yield from parts.values()

    def _shape(self) -> None:
        """Give embeddings timm's shapes, and CLIP's projection a bias."""
        names, at = self.names, self.target
        cls, position, registers = (names.get(f"{at}{n}") for n in ("cls_token", "pos_embed", "reg_token"))
        if cls is not None and cls.ndim == 1:
            names[f"{at}cls_token"] = derived(lambda v: v[None, None], (1, 1, *cls.shape), cls)
        if position is not None and position.ndim == 2:
            names[f"{at}pos_embed"] = derived(lambda v: v[None], (1, *position.shape), position)
        if registers is not None and registers.shape[1:2] == (0,):  # DINOv3 may have none
            del names[f"{at}reg_token"]
        elif registers is not None and position is not None and cls is not None:
            names |= class_position_added(at, cls, position)
        patches = names.get(f"{at}patch_embed.proj.weight")
        if patches is not None and (side := _flat_patch_side(patches)):
            dim = patches.shape[0]
            names[f"{at}patch_embed.proj.weight"] = derived(
                lambda v: v.reshape(dim, side, side, 3).permute(0, 3, 1, 2), (dim, 3, side, side), patches
            )
        if (
            f"{at}head.weight" in names
            and f"{at}head_dist.weight" not in names
            and f"{at}dist_token" in names
        ):
            # of DeiTForImageClassification no head reads the dist token, which is then what timm calls a register
            self._put(f"{at}reg_token", names.pop(f"{at}dist_token"))
        head, bias = names.get(f"{at}head.weight"), f"{at}head.bias"
        if self.mark == _MARKS[2] and head is not None and head.ndim == 2 and bias not in names:
            outputs = head.shape[0]
            self._put(bias, Stored((outputs,), lambda: torch.zeros(outputs)))


def class_position_added(at: str, cls: Stored, position: Stored) -> dict[str, Stored]:
    """Return the class token with its position added, and the patches' own: timm's form where registers have none.

    Nothing of other shapes than (1, 1, dim) and (1, places, dim): as they are, what does not fit is named.
    """
    if len(position.shape) != 3 or cls.shape != (1, 1, position.shape[2]):
        return {}

    def token() -> Tensor:
        return cls.read() + position.read()[:, :1]

    rest = (position.shape[0], max(position.shape[1] - 1, 0), *position.shape[2:])
    return {
        f"{at}cls_token": Stored(cls.shape, token, cls.plain and position.plain),
        f"{at}pos_embed": derived(lambda v: v[:, 1:], rest, position),
    }


def _flat_patch_side(patches: Stored) -> int | None:
    """Return the side of patches of three channels whose embedding is a matrix (dim, side·side·3), as NaFlex stores it."""
    if patches.ndim != 2:
        return None
    side = round((patches.shape[1] / 3) ** 0.5)
    return side if side and side * side * 3 == patches.shape[1] else None


def derived(change: Callable[[Tensor], Tensor], shape: tuple[int, ...], source: Stored) -> Stored:
    """Return what a change of a stored tensor gives, of a shape, made when it is read."""
    return Stored(shape, lambda: change(source.read()).contiguous(), source.plain)


def can_be_stacked(values: Collection[Stored]) -> bool:
    """Return whether stored tensors are plain and of one shape that has sides."""
    shapes = {value.shape for value in values}
    return len(shapes) == 1 and () not in shapes and all(value.plain for value in values)


def stacked(values: list[Stored]) -> Stored:
    """Return stored tensors of one shape in one, along their first side."""

    def read() -> Tensor:
        return torch.cat([value.read() for value in values])

    return Stored((len(values) * values[0].shape[0], *values[0].shape[1:]), read)
