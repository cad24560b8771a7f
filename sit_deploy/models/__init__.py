"""The models: SiT and LV-ViT, their configurations, their cost, and checkpoint loading.

Importing this package is quick; the modules that need torch and timm are imported at first use. `import
sit_deploy.models.registry` registers every model with timm.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sit_deploy.models.configs import CONFIGS, ModelConfig, get_config

if TYPE_CHECKING:
    from sit_deploy.models.checkpoint import read_checkpoint
    from sit_deploy.models.load import load_model
    from sit_deploy.models.registry import create_model
    from sit_deploy.models.sit import FRDOutput, SiT

_LAZY = {
    "FRDOutput": "sit",
    "SiT": "sit",
    "create_model": "registry",
    "load_model": "load",
    "read_checkpoint": "checkpoint",
}
__all__ = [
    "CONFIGS",
    "FRDOutput",
    "ModelConfig",
    "SiT",
    "create_model",
    "get_config",
    "load_model",
    "read_checkpoint",
]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_LAZY[name]}"), name)
