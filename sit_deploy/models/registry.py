"""Registers every named model with timm, so that `timm.create_model("sit_s")` works, and makes them for sit-deploy."""

from __future__ import annotations

import sys
from typing import Any

from timm.models import build_model_with_cfg, register_model

from sit_deploy.models.configs import CONFIGS, ModelConfig, get_config
from sit_deploy.models.fit import filter_state_dict
from sit_deploy.models.sit import SiT

# official evaluation resizes the shorter side to size · 256/224, so crop_pct is 224/256
CROP_PCT = 0.875


def _timm_cfg(config: ModelConfig) -> dict[str, Any]:
    return {
        "url": "",
        "num_classes": config.num_classes,
        "input_size": (3, config.image_size, config.image_size),
        "pool_size": None,
        "crop_pct": CROP_PCT,
        "interpolation": "bicubic",
        "fixed_input_size": True,
        "mean": (0.485, 0.456, 0.406),
        "std": (0.229, 0.224, 0.225),
        "first_conv": "patch_embed.conv1",
        "classifier": "head",
    }


def _register(name: str, config: ModelConfig) -> None:
    def build(pretrained: bool = False, **kwargs: Any) -> SiT:
        arguments = {
            "img_size": config.image_size,
            "embed_dim": config.embed_dim,
            "num_heads": config.num_heads,
            "stage_blocks": config.stage_blocks,
            "mlp_ratio": config.mlp_ratio,
            "stem": config.stem,
            "skip_lam": config.skip_lam,
            "keeping_ratio": config.keeping_ratio,
        }
        return build_model_with_cfg(
            SiT, name, pretrained, pretrained_filter_fn=filter_state_dict, **{**arguments, **kwargs}
        )

    build.__name__ = build.__qualname__ = name
    build.__doc__ = f"{config.name}: see sit_deploy.models.configs."
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


def create_model(name: str, **kwargs: Any) -> SiT:
    """Make a named model with random weights; `kwargs` go to `SiT`.

    Raises:
        InputError: unknown name, or an image size or schedule that does not fit.
    """
    import timm

    return timm.create_model(get_config(name).name, **kwargs)
