"""timm's name of the model that a config.json describes, timm's own or one of Hugging Face's transformers.

Of transformers' models, the width, depth, heads and so on are compared with those of timm's that could be meant: what is
taken is the same in all of them, or nothing is. Imports timm when a name is asked for, and makes no weights.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from sit_deploy.errors import InputError
from sit_deploy.models.config_json import CONFIG, ConfigJson
from sit_deploy.models.timm_arguments import spell

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
    """

    names: str
    usual: Mapping[str, Any]
    classes: tuple[str, ...] = ("Model", "ForImageClassification")
    special: Mapping[str, str] | None = None


_FAMILIES = {
    "vit": _Family(rf"vit_{_SIZES}_patch\d+_\d+", {}),
    "deit": _Family(
        rf"deit_{_SIZES}_patch\d+_\d+", {}, ("Model", "ForImageClassification", "ForImageClassificationWithTeacher"),
        {"ForImageClassificationWithTeacher": rf"deit_{_SIZES}_distilled_patch\d+_\d+"},
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
    names = _names_of_class(config, kind, family, what)
    wanted = _facts(kind, family.usual, config.vision)
    fitting: list[tuple[tuple[bool, ...], str]] = []
    others: list[tuple[int, str, list[str]]] = []
    for other, found in _candidates(names, wanted["patch"]):
        if differences := _differences(wanted, found):
            others.append((len(differences), other, differences))
            continue
        unlike = tuple(found[fact] != wanted[fact] for fact in ("activation", "biased", "image_size"))
        if not any(unlike):
            return other
        fitting.append((unlike, other))
    if fitting:
        return min(fitting)[1]
    _, nearest, differences = min(others)
    raise InputError(
        f"{what}, and timm has no name for one of its measures: beside {nearest}, {' and '.join(differences)}; give a repository of a "
        "model that timm has"
    )


_KNOWN = ("ViT", "DeiT", "DINOv2", "DINOv3", "SigLIP", "CLIP", "BEiT", "I-JEPA")


def _names_of_class(config: ConfigJson, kind: str, family: _Family, what: str) -> str:
    """Return the pattern of timm's names for the classes of a configuration."""
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
        if family.special and role in family.special:
            return family.special[role]
    return family.names


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


def _differences(wanted: Mapping[str, Any], found: Mapping[str, Any]) -> list[str]:
    """Return how a model of timm differs from the one that is asked for, in words."""
    words = [text.format(wanted[k], found[k]) for k, text in _TITLES.items() if wanted[k] != found[k]]
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


_OPTIONS = ("img_size", "num_classes")  # of model_args, what is taken from elsewhere
_READS_FILES = re.compile("pretrained|checkpoint|cache")  # with which nothing is to be made


def _arguments_of_its_own(architecture: str, given: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the arguments that make another model than its name alone; timm writes those that change nothing too."""
    own = {k: v for k, v in given.items() if k not in _OPTIONS}
    if not own:
        return {}
    if any(_READS_FILES.match(key) for key in own):
        return own
    import timm
    import torch

    from sit_deploy.models.timm_vit import NOT_MADE

    try:
        with torch.device("meta"):
            plain, other = timm.create_model(architecture), timm.create_model(architecture, **own)
    except NOT_MADE:
        return own  # whoever makes it says why not
    facts = [
        (repr(m), {k: v for k, v in vars(m).items() if isinstance(v, str | int | float | tuple)})
        for m in (plain, other)
    ]
    return {} if facts[0] == facts[1] else own
