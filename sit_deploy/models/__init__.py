"""The models: SiT, LV-ViT and slimmed vision transformers of timm; configurations, cost, checkpoints and model cards.

Importing this package is quick; the modules that need torch and timm are imported at first use. It registers every model with
timm, as soon as that is imported.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sit_deploy.models.catalog import CONFIGS, get_config
from sit_deploy.models.config import ModelConfig
from sit_deploy.models.timm_hook import register_with_timm

if TYPE_CHECKING:
    from sit_deploy.models.card import ModelCard
    from sit_deploy.models.card_file import read_card, save_weights
    from sit_deploy.models.checkpoint import read_checkpoint
    from sit_deploy.models.forward import FRDOutput
    from sit_deploy.models.load import fit_partly, load_model
    from sit_deploy.models.registry import create_model
    from sit_deploy.models.sit import SiT
    from sit_deploy.models.slim import SlimViT

_LAZY = {
    "FRDOutput": "forward",
    "ModelCard": "card",
    "SiT": "sit",
    "SlimViT": "slim",
    "create_model": "registry",
    "fit_partly": "load",
    "load_model": "load",
    "read_card": "card_file",
    "read_checkpoint": "checkpoint",
    "save_weights": "card_file",
}
__all__ = [
    "CONFIGS",
    "FRDOutput",
    "ModelCard",
    "ModelConfig",
    "SiT",
    "SlimViT",
    "create_model",
    "fit_partly",
    "get_config",
    "load_model",
    "read_card",
    "read_checkpoint",
    "save_weights",
]

register_with_timm()


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_LAZY[name]}"), name)
