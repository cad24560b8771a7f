"""The models that have names: SiT, LV-ViT and slimmed DeiT as configurations, and looking one up by name.

Figures are those of the paper and the official code (github.com/Sense-X/SiT); tests pin parameters and MACs. A name that is
none of ours is looked up among timm's plain vision transformers, which does import timm.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from sit_deploy.errors import InputError, nearest
from sit_deploy.methods import TRAINING_FREE
from sit_deploy.models.config import ModelConfig, reschedule
from sit_deploy.models.hub import is_place, place_of_address


def _teacher(
    student: ModelConfig, name: str, top1: float | None, aliases: tuple[str, ...] = ()
) -> ModelConfig:
    stage = (student.depth,)
    return replace(student, name=name, stage_blocks=stage, teacher=None, top1=top1, aliases=aliases)


def _deit(name: str, dim: int, heads: int, base: str) -> ModelConfig:
    return ModelConfig(name, dim, heads, (6, 2, 2, 2), skip_lam=1.0, mlp_ratio=4.0, teacher=base, base=base)


_SIT_NANO = ModelConfig("sit_nano", 128, 4, (2, 2, 2, 2), image_size=112, teacher="lvvit_nano")
_SIT_MICRO = ModelConfig("sit_micro", 96, 3, (1, 1, 1, 13), image_size=112, teacher="lvvit_micro")
_SIT_T = ModelConfig(
    "sit_t", 320, 5, (1, 1, 1, 11), teacher="lvvit_t", top1=80.1, aliases=("sit_lvvit_tiny",)
)
_SIT_XS = ModelConfig(
    "sit_xs", 384, 6, (1, 1, 1, 13), teacher="lvvit_s", top1=81.2, aliases=("sit_lvvit_xsmall",)
)
_SIT_S = ModelConfig(
    "sit_s", 384, 6, (9, 3, 2, 2), teacher="lvvit_s", top1=83.1, aliases=("sit_lvvit_small",)
)
_SIT_M = ModelConfig(
    "sit_m", 512, 8, (10, 4, 3, 3), teacher="lvvit_m", top1=84.2, aliases=("sit_lvvit_medium",)
)
_SIT_L = ModelConfig(
    "sit_l", 768, 12, (10, 4, 3, 7), image_size=288, stem="6c", skip_lam=3.0, teacher="lvvit_l", top1=85.6,
    aliases=("sit_lvvit_large",),
)  # fmt: skip

CONFIGS: dict[str, ModelConfig] = {
    c.name: c
    for c in (
        _SIT_NANO, _SIT_MICRO, _SIT_T, _SIT_XS, _SIT_S, _SIT_M, _SIT_L,
        _deit("sit_deit_s", 384, 6, "deit_small_patch16_224"),
        _deit("sit_deit_b", 768, 12, "deit_base_patch16_224"),
        _teacher(_SIT_NANO, "lvvit_nano", None),
        _teacher(_SIT_MICRO, "lvvit_micro", None),
        _teacher(_SIT_T, "lvvit_t", 81.8, ("lvvit_tiny",)),
        _teacher(_SIT_S, "lvvit_s", 83.1, ("lvvit_small",)),
        _teacher(_SIT_M, "lvvit_m", 84.0, ("lvvit_medium",)),
        _teacher(_SIT_L, "lvvit_l", 85.3, ("lvvit_large",)),
    )
}  # fmt: skip
_ALIASES = {alias: name for name, config in CONFIGS.items() for alias in (*config.aliases, name)}


_LONGEST = 300  # characters of a name with its arguments, which is to fit on the line of a message


def get_config(
    name: str,
    stages: tuple[int, ...] | None = None,
    keeping_ratio: float | None = None,
    kept: tuple[int, ...] | None = None,
    method: str | None = None,
) -> ModelConfig:
    """Return the configuration of a model: by its name, an official alias, or its name in timm.

    Args:
        name: any of these.
        stages: blocks of each stage, in place of the model's own; one number is the unslimmed model.
        keeping_ratio: share of the patch tokens that each further stage keeps, above 0 and at most 1.
        kept: patch tokens of each stage, in place of a ratio; the first has all patches of an image.
        method: how tokens are merged. Without training, the weights are those of the model's teacher, whose name it has then.

    Raises:
        InputError: no such model (names the nearest), one of timm's that cannot be slimmed, or stages, a ratio, tokens or a method that
            do not fit it (see `reschedule`).
    """
    if len(name) > _LONGEST:
        raise InputError(
            f"the name of a model has at most {_LONGEST} characters, and {name[:40]}... has {len(name)}"
        )
    if name in _ALIASES:
        config = CONFIGS[_ALIASES[name]]
    else:
        if is_place(name):
            raise InputError(f"{name} is where a model is, and a name is asked for; give timm's name of it")
        from sit_deploy.models.timm_vit import is_timm_model, timm_config, timm_names

        if not is_timm_model(name):
            if Path(name).is_dir():
                raise InputError(f"'{name}' is a folder; for the model in it write local-dir:{name}")
            if place := place_of_address(name):
                raise InputError(f"unknown model '{name}'; for that repository write {place}")
            if name.count("/") == 1:
                raise InputError(
                    f"unknown model '{name}'; for a repository of the Hugging Face Hub write hf-hub:{name}"
                )
            raise InputError(
                f"unknown model '{name}'{_nearest_model(name, (*_ALIASES, *timm_names())) or ';'} `sit-deploy models` lists ours, "
                "and timm's vision transformers will do too (docs/models.md)"
            )
        config = timm_config(name)
    if method in TRAINING_FREE and config.teacher:
        stages, config = stages or config.stage_blocks, get_config(config.teacher)
    return reschedule(config, stages, keeping_ratio, kept, method)


def our_config(name: str) -> ModelConfig | None:
    """Return the configuration of one of our models by its name or an official alias, None for another; timm is not imported."""
    return CONFIGS[_ALIASES[name]] if name in _ALIASES else None


def _nearest_model(name: str, known: tuple[str, ...]) -> str:
    """Return as `nearest` does, a model of the same family first: a sit_tiny is no lvvit_tiny, which is its teacher."""
    family = [other for other in known if other.partition("_")[0] == name.lower().partition("_")[0]]
    return nearest(name.lower(), family) or nearest(name.lower(), known)


def title(config: ModelConfig) -> str:
    """Return a model's name and, where that alone does not say how it slims, its stages: for messages."""
    named = CONFIGS.get(config.name)
    if config.stage_blocks == (named.stage_blocks if named else (config.depth,)):
        return config.name
    way = f" and method {config.method}" if config.method in TRAINING_FREE else ""
    return f"{config.name} of stages {','.join(map(str, config.stage_blocks))}{way}"
