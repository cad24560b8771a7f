"""timm's name of the model that a config.json describes, timm's own or one of Hugging Face's transformers.

Of transformers' models, the width, depth, heads and so on are compared with those of timm's that could be meant: what is
taken is the same in all of them, or nothing is. Imports timm when a name is asked for, and makes no weights.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from sit_deploy.errors import InputError
from sit_deploy.models.config_json import CONFIG, ConfigJson
from sit_deploy.models.timm_arguments import check_depth, spell, split

if TYPE_CHECKING:
    from torch import nn

_SIZES = "(tiny|small|base|large|huge|giant|gigantic)"
# what a configuration that leaves a field out means (transformers' configuration classes, release 5.24)
_USUAL: dict[str, Any] = {
    "hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "patch_size": 16, "image_size": 224,
    "hidden_act": "gelu",
}  # fmt: skip
_SIGLIP = {"hidden_act": "gelu_pytorch_tanh"}


@dataclass(frozen=True)
class _Family:
    """Models of transformers of one kind.

    Attributes:
        names: pattern of timm's for them.
        usual: fields that a configuration may leave out, beside `_USUAL`.
        classes: of transformers whose outputs timm's model has, by what follows the family's own name.
        special: timm's names for some of these classes.
        arguments: with which timm's model is that of some of these classes. DeiT's dist token, which its own classifier does not
            read, is then what a register is.
    """

    names: str
    usual: Mapping[str, Any]
    classes: tuple[str, ...] = ("Model", "ForImageClassification")
    special: Mapping[str, str] = field(default_factory=dict)
    arguments: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


_FAMILIES = {
    "vit": _Family(rf"vit_{_SIZES}_patch\d+_\d+", {}),
    "deit": _Family(
        rf"deit_{_SIZES}_patch\d+_\d+", {}, ("Model", "ForImageClassification", "ForImageClassificationWithTeacher"),
        {"ForImageClassificationWithTeacher": rf"deit_{_SIZES}_distilled_patch\d+_\d+"},
        {"ForImageClassification": {"reg_tokens": 1}},
    ),
    "dinov2": _Family(rf"vit_{_SIZES}_patch\d+_dinov2", {"patch_size": 14}, ("Model",)),
    "dinov2_with_registers": _Family(rf"vit_{_SIZES}_patch\d+_reg4_dinov2", {"num_register_tokens": 4}, ("Model",)),
    "dinov3_vit": _Family(
        r"vit_\w+_patch\d+_dinov3(_qkvb)?", {"hidden_size": 384, "num_attention_heads": 6, "intermediate_size": 1536}
    ),
    "siglip": _Family(
        r"vit_[a-z0-9]+_patch\d+_siglip_\d+", _SIGLIP, ("Model", "VisionModel", "ForImageClassification"),
        {"ForImageClassification": r"vit_[a-z0-9]+_patch\d+_siglip_gap_\d+"},
    ),
    "clip": _Family(
        r"vit_[a-z0-9]+_patch\d+_clip(_quickgelu)?_\d+", {"patch_size": 32, "hidden_act": "quick_gelu"},
        ("Model", "VisionModel", "VisionModelWithProjection"),
    ),
    "beit": _Family(rf"beit_{_SIZES}_patch\d+_\d+", {}),
    "ijepa": _Family(rf"vit_{_SIZES}_patch\d+_gap_\d+", {}),
}  # fmt: skip
_FAMILIES |= {"data2vec-vision": _FAMILIES["beit"]}
_FAMILIES |= {"siglip2": replace(_FAMILIES["siglip"], usual={**_SIGLIP, "num_patches": 256})}
_FAMILIES |= {f"{kind}_vision_model": _FAMILIES[kind] for kind in ("siglip", "siglip2", "clip")}

# what a classifier of transformers has that none of timm's has
_OTHER_HEADS = {
    "dinov2": "whose head reads the class token and the mean of the patches beside each other",
    "dinov2_with_registers": "whose head reads the class token and the mean of the patches beside each other",
    "clip": "whose head reads the mean of the patches without a norm",
}
_TITLES = {
    "width": "its width is {}, not {}",
    "depth": "its depth is {}, not {}",
    "heads": "its attention has {} heads, not {}",
    "hidden": "its MLPs are {} wide, not {}",
    "patch": "its patches are of {} pixels, not {}",
    "registers": "it has {} register tokens, not {}",
}


def timm_architecture(config: ConfigJson, name: str) -> str:
    """Return timm's name of a model.

    Args:
        config: its config.json.
        name: what the user calls it, for messages.

    Raises:
        InputError: the file names none, or a model that timm has not.
    """
    if (shape := config.image_shape) and shape[0] != shape[1]:
        raise InputError(
            f"{name} is of images of {shape[0]}x{shape[1]} pixels, and only square ones are taken; give a model of those"
        )
    if config.model_type:
        return _of_transformers(config, name)
    if config.architecture is None:
        what = (
            f"the {CONFIG} of {name} names no model"
            if config.fields
            else f"{name} has no {CONFIG} that names its model"
        )
        raise InputError(
            f"{what}; pass --model with timm's name of it, such as vit_base_patch16_224, and its weights beside"
        )
    if (channels := config.model_args.get("in_chans", 3)) != 3:
        raise InputError(
            f"{name} takes images of {str(channels)[:20]} channels, and pictures have three here; give a model of three"
        )
    try:
        return spell(config.architecture, _arguments_of_its_own(config.architecture, config.model_args))
    except InputError as error:
        raise InputError(f"{name} is a {config.architecture} made otherwise: {error}") from None


def _of_transformers(config: ConfigJson, name: str) -> str:
    kind = str(config.model_type)
    family = _FAMILIES.get(kind)
    what = f"{name} is a model of transformers (model_type {kind})"
    if family is None:
        raise InputError(
            f"{what}, none of the vision transformers that timm has; give one of {', '.join(_KNOWN)}"
        )
    role = _role(config, kind, family, what)
    arguments = family.arguments.get(role, {})
    wanted = _facts(kind, family.usual, config.vision)
    # timm makes its models of any depth; one that is no count of blocks is a difference like any other
    any_depth = "depth" if type(wanted["depth"]) is int and wanted["depth"] > 0 else None
    fitting: list[tuple[tuple[bool, ...], str]] = []
    others: list[tuple[int, str, list[str]]] = []
    for other, found in _candidates(family.special.get(role, family.names), wanted["patch"]):
        if differences := _differences(wanted, found, but=any_depth):
            others.append((len(differences), other, _differences(wanted, found)))
            continue
        unlike = tuple(
            found[fact] != wanted[fact] for fact in ("depth", "activation", "biased", "image_size")
        )
        fitting.append((unlike, other))
    if fitting:
        unlike, other = min(fitting)
        return spell(other, {**({"depth": wanted["depth"]} if unlike[0] else {}), **arguments})
    _, nearest, differences = min(others)
    raise InputError(
        f"{what}, and timm has no name for one of its measures: beside {nearest}, {' and '.join(differences)}; give a repository of a "
        "model that timm has"
    )


_KNOWN = ("ViT", "DeiT", "DINOv2", "DINOv3", "SigLIP", "CLIP", "BEiT", "I-JEPA")


def _role(config: ConfigJson, kind: str, family: _Family, what: str) -> str:
    """Return which of a family's classes a configuration is of, the backbone's where it does not say."""
    classes = config.fields.get("architectures")
    listed = [c for c in classes if isinstance(c, str)] if isinstance(classes, list) else []
    for one in listed:
        role = next((c for c in sorted(family.classes, key=len, reverse=True) if one.endswith(c)), None)
        if one.endswith("ForImageClassification") and kind in _OTHER_HEADS:
            raise InputError(
                f"{what}, {_OTHER_HEADS[kind]}, which none of timm's does; save its backbone alone: "
                "model.base_model.save_pretrained(folder)"
            )
        if role is None:
            raise InputError(f"{what} for another task ({one[:60]}); give a classifier, or a backbone alone")
        if role in family.special or role in family.arguments:
            return role
    return "Model"


def _facts(kind: str, usual: Mapping[str, Any], fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a configuration of transformers says in the terms of `_facts_of`."""
    given = {**_USUAL, **usual, **{k: v for k, v in fields.items() if v is not None}}
    width, gated = given["hidden_size"], bool(given.get("use_gated_mlp"))
    hidden = given.get("intermediate_size", 3072)
    if "mlp_ratio" in given or kind.startswith("dinov2"):
        hidden = _product(width, given.get("mlp_ratio", 4))
        if given.get("use_swiglu_ffn"):
            gated, hidden = True, (int(hidden * 2 / 3) + 7) // 8 * 8
    size, patch = given["image_size"], given["patch_size"]
    if kind.startswith("siglip2") and isinstance(given.get("num_patches"), int):
        size = round(given["num_patches"] ** 0.5) * patch
    return {
        "width": width,
        "depth": given["num_hidden_layers"],
        "heads": given["num_attention_heads"],
        "hidden": hidden,
        "patch": patch,
        "registers": given.get("num_register_tokens", 0),
        "gated": gated,
        "activation": given["hidden_act"],
        "biased": given.get("query_bias", True) is not False,
        "image_size": size,
    }


def _product(width: Any, ratio: Any) -> int:
    numbers = isinstance(width, int | float) and isinstance(ratio, int | float)
    return int(width * ratio) if numbers else 0


def _differences(wanted: Mapping[str, Any], found: Mapping[str, Any], but: str | None = None) -> list[str]:
    """Return how a model of timm differs from the one that is asked for, in words; one fact may be left out."""
    unlike = [k for k in _TITLES if wanted[k] != found[k] and k != but]
    words = [_TITLES[k].format(wanted[k], found[k]) for k in unlike]
    if wanted["gated"] != found["gated"]:
        words.append(f"its MLPs are {'' if wanted['gated'] else 'not '}gated")
    quick = [facts["activation"] == "quick_gelu" for facts in (wanted, found)]
    return [*words, *(["its activation is another"] if quick[0] != quick[1] else [])]


def _candidates(names: str, patch: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    """Give timm's models of a pattern, of patches of that many pixels first, and what they are."""
    import timm

    listed = [name for name in timm.list_models() if re.fullmatch(names, name)]
    same = [name for name in listed if f"_patch{patch}_" in name]
    yield from ((name, _facts_of(name)) for name in same or listed)


@lru_cache
def _facts_of(name: str) -> dict[str, Any]:
    import timm
    import torch

    with torch.device("meta"):
        model = timm.create_model(name)
    block = model.blocks[0]
    mlp, registers = block.mlp, getattr(model, "reg_token", None)
    return {
        "width": model.embed_dim,
        "depth": len(model.blocks),
        "heads": block.attn.num_heads,
        "hidden": mlp.fc2.in_features,
        "patch": model.patch_embed.patch_size[0],
        "registers": 0 if registers is None else registers.shape[1],
        "gated": hasattr(mlp, "fc1_g") or mlp.fc1.out_features == 2 * mlp.fc2.in_features,
        "activation": _activation(mlp.act),
        "biased": getattr(block.attn.qkv, "bias", None) is not None
        or getattr(block.attn, "q_bias", None) is not None,
        "image_size": model.patch_embed.img_size[0],
    }


def _activation(module: nn.Module) -> str:
    """Return transformers' name of one of timm's activations."""
    kind = type(module).__name__.lower()
    if "quick" in kind:
        return "quick_gelu"
    tanh = "tanh" in kind or getattr(module, "approximate", "none") == "tanh"
    return "gelu_pytorch_tanh" if tanh else "silu" if kind == "silu" else "gelu"


_OPTIONS = (
    "img_size",
    "num_classes",
    "in_chans",
)  # of model_args, what is taken from elsewhere, or looked at before
# what changes training alone, or which sizes a forward pass would take: a graph has one
_NO_OTHER_MODEL = re.compile(r"(\w+_)?drop(_\w+)?|weight_init|(dynamic|strict)_img_size|dynamic_img_pad")
_READS_FILES = re.compile("pretrained|checkpoint|cache")  # with which nothing is to be made
_MOST = 40  # arguments; timm's vision transformers have fewer


def _arguments_of_its_own(architecture: str, given: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the arguments that make another model than its name alone; timm writes those that change nothing too."""
    own = {k: v for k, v in given.items() if k not in _OPTIONS and not _NO_OTHER_MODEL.fullmatch(k)}
    if len(own) > _MOST:
        raise InputError(
            f"it has {len(own)} arguments, more than any model of timm takes; copy its {CONFIG} again"
        )
    if any(_READS_FILES.match(key) for key in own):
        return own
    from sit_deploy.models.timm_vit import NOT_MADE

    try:
        wanted = _traits(architecture, own)
    except NOT_MADE:
        return own  # whoever makes it says why not
    for key in list(own):
        fewer = {k: v for k, v in own.items() if k != key}
        try:
            if _traits(architecture, fewer) == wanted:
                own = fewer
        except NOT_MADE:
            continue
    return own


def made_otherwise(config: ConfigJson, name: str, image_size: tuple[int, int]) -> str | None:
    """Return timm's name of the model that a config.json is of, where that is no `name`; None where it is, or nobody can tell.

    Weights fit a model of other heads, of another activation or pooling, and give other scores. What shows in the weights is left
    to them: a dist token, classes, and sizes.

    Args:
        config: beside the weights.
        name: of the model that they are for, with its arguments.
        image_size: height and width that both are compared at, in pixels.
    """
    from sit_deploy.models.timm_vit import NOT_MADE

    if config.architecture is None:
        return None
    base, arguments = split(name)
    given = {k: v for k, v in config.model_args.items() if not _READS_FILES.match(k)}
    own = {k: v for k, v in given.items() if k not in _OPTIONS and not _NO_OTHER_MODEL.fullmatch(k)}
    # the pooling is what `_pooled_otherwise` compares; the arguments below are of the same one
    if _pool_beside(config):
        own = {**own, **{k: v for k, v in arguments.items() if k in _POOLING}}
    # the same weights under either name
    plain, theirs = (_DISTILLED.sub("", name) for name in (base, config.architecture))
    alike = {"num_classes": 1, "img_size": image_size}
    try:
        alone = plain == theirs and own == arguments
        if not alone and _traits(plain, {**arguments, **alike}) != _traits(theirs, {**own, **alike}):
            return spell(config.architecture, _arguments_of_its_own(config.architecture, given))
        return _pooled_otherwise(config, base, arguments)
    except (InputError, *NOT_MADE):
        return None


def _pooled_otherwise(config: ConfigJson, base: str, arguments: Mapping[str, Any]) -> str | None:
    """Return timm's name of the model that pools as a config.json says beside timm's arguments, None where this one does.

    There older releases of timm wrote what `reset_classifier` had changed, and nowhere else. The norms stay where they were, by
    an argument of its own where the name alone would move them.
    """
    pool = _pool_beside(config)
    if pool is None:
        return None
    model = _made(base, arguments)
    if getattr(model, "global_pool", pool) == pool:
        return None
    weights = model.state_dict().keys()
    for norm in ({}, *({key: value} for key in _POOLING[1:] for value in (False, True))):
        other = {**arguments, "global_pool": pool, **norm}
        with contextlib.suppress(TypeError):  # of another family's argument
            if _made(base, other).state_dict().keys() == weights:
                return spell(base, other)
    return None


def _pool_beside(config: ConfigJson) -> str | None:
    """Return the pooling that a config.json of timm's has beside its arguments, None where it has none or they have one."""
    pool = config.fields.get("global_pool")
    return pool if isinstance(pool, str) and pool and "global_pool" not in config.model_args else None


_POOLING = ("global_pool", "fc_norm", "use_fc_norm")
_DISTILLED = re.compile("_distilled(?=_)")


# of timm's modules, what is about sizes that a forward pass would take, or about training alone
_NO_TRAITS = re.compile(
    r"training|(dynamic|strict)_img_\w+|drop\w*|fused_attn|grad_checkpointing|(shift|jitter|rescale)_coords"
)


def _traits(architecture: str, arguments: Mapping[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """Return what tells a model from another of the same name: the numbers and words in its modules; its weights are not made."""
    model = _made(architecture, arguments)
    plain = str | int | float | tuple | None
    return [(repr(model), {})] + [
        (
            name,
            {k: v for k, v in vars(module).items() if isinstance(v, plain) and not _NO_TRAITS.fullmatch(k)},
        )
        for name, module in model.named_modules()
    ]


def _made(architecture: str, arguments: Mapping[str, Any]) -> nn.Module:
    """Return a model without values for its weights."""
    import timm
    import torch

    for key, value in arguments.items():
        check_depth(key, value)
    with torch.device("meta"):
        return timm.create_model(architecture, **arguments)
