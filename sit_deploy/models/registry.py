"""Registers every named model with timm, so that `timm.create_model("sit_s")` works, and makes them for sit-deploy."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import timm
from timm.layers import to_2tuple
from timm.models import build_model_with_cfg, register_model

from sit_deploy.errors import InputError
from sit_deploy.methods import TSM
from sit_deploy.models.catalog import CONFIGS, get_config
from sit_deploy.models.config import ModelConfig
from sit_deploy.models.timm_arguments import split

if TYPE_CHECKING:
    from sit_deploy.models.sit import SiT
    from sit_deploy.models.slim import SlimViT


def _timm_cfg(config: ModelConfig) -> dict[str, Any]:
    return {
        "url": "",
        "num_classes": config.num_classes,
        "input_size": (3, config.image_size, config.image_size),
        "pool_size": None,
        "crop_pct": config.crop_pct,
        "interpolation": config.interpolation,
        "crop_mode": config.crop_mode,
        "fixed_input_size": True,
        "mean": config.mean,
        "std": config.std,
        "first_conv": "patch_embed.proj" if config.base else "patch_embed.conv1",
        "classifier": "head",
    }


def _slim_vit(
    base: str,
    stage_blocks: tuple[int, ...],
    keeping_ratio: float = 0.5,
    kept: tuple[int, ...] | None = None,
    reverse_tsm: bool = False,
    dist_token: bool = False,
    method: str = TSM,
    **kwargs: Any,
) -> SlimViT:
    """Make a timm model and arm it, or take it whole; `kwargs` are timm's own."""
    from sit_deploy.models.slim import (
        slim,  # with all of the family's checks; this module is imported as soon as timm is
    )
    from sit_deploy.models.timm_vit import why_whole
    from sit_deploy.models.whole import pass_whole

    name, arguments = split(base)
    model = timm.create_model(name, **{**arguments, **kwargs})
    if len(stage_blocks) == 1 and (why := why_whole(model, base)):
        if dist_token:
            raise InputError(f"{base} is taken as it is, and so takes no dist token; leave it out")
        size = kwargs.get("img_size") or model.default_cfg["input_size"][-1]
        return pass_whole(model, to_2tuple(size), why)
    arming = {"kept": kept, "reverse_tsm": reverse_tsm, "dist_token": dist_token, "method": method}
    return slim(model, stage_blocks, keeping_ratio, **arming)


def _arguments(config: ModelConfig) -> dict[str, Any]:
    """Return what the constructor of a named model is given."""
    slimming = {"stage_blocks": config.stage_blocks, "keeping_ratio": config.keeping_ratio}
    if config.base:
        return {"base": config.base, **slimming}
    return {
        "img_size": config.image_size,
        "embed_dim": config.embed_dim,
        "num_heads": config.num_heads,
        "mlp_ratio": config.mlp_ratio,
        "stem": config.stem,
        "skip_lam": config.skip_lam,
        **slimming,
    }


def _register(name: str, config: ModelConfig) -> None:
    def build(pretrained: bool = False, **kwargs: Any) -> SiT | SlimViT:
        from sit_deploy.models.sit import SiT
        from sit_deploy.models.state_dict import filter_state_dict

        make = _slim_vit if config.base else SiT
        return build_model_with_cfg(
            make, name, pretrained, pretrained_filter_fn=filter_state_dict, **{**_arguments(config), **kwargs}
        )

    build.__name__ = build.__qualname__ = name
    build.__doc__ = f"{config.name}: see sit_deploy.models.catalog."
    module = sys.modules[__name__]
    build.__module__ = __name__
    setattr(module, name, build)
    # timm reads the default configuration from the module that the function says it lives in
    module.default_cfgs[name] = _timm_cfg(config)  # type: ignore[attr-defined]
    register_model(build)


default_cfgs: dict[str, dict[str, Any]] = {}
for _config in CONFIGS.values():
    for _name in (_config.name, *_config.aliases):
        _register(_name, _config)


def create_model(config: ModelConfig | str, **kwargs: Any) -> SiT | SlimViT:
    """Make a model with random weights, by its configuration or its name (ours or timm's).

    `kwargs` that every model takes: `img_size`, `num_classes`, `drop_path_rate`, `reverse_tsm`, `dist_token`, and `stage_blocks`,
    `keeping_ratio`, `kept` and `method` over those of the configuration. Others go to `SiT`, or to timm.

    Raises:
        InputError: unknown name, an image size or schedule that does not fit, or a dist token for a model whose head does not
            read a class token.
    """
    config = get_config(config) if isinstance(config, str) else config
    slimming = {
        "stage_blocks": config.stage_blocks,
        "keeping_ratio": config.keeping_ratio,
        "kept": config.kept,
        "method": config.method,
    }
    if config.name in CONFIGS:
        return timm.create_model(config.name, **{**slimming, **kwargs})
    return _slim_vit(config.name, **{**slimming, **kwargs})
