"""Parameters and multiply-accumulates of any model, before it has weights: in closed form where that is known, else counted. Imports torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from sit_deploy.models.catalog import CONFIGS
from sit_deploy.models.config import ModelConfig
from sit_deploy.models.cost import Cost, cost
from sit_deploy.models.registry import create_model

if TYPE_CHECKING:
    from torch import nn


def count_cost(config: ModelConfig, image_size: int, num_classes: int) -> Cost:
    """Return the cost of a model for one image of `image_size` pixels, without making its weights.

    Raises:
        InputError: a size or a schedule that does not fit it.
    """
    if config.name in CONFIGS:
        return cost(config, image_size, num_classes)
    with torch.device("meta"):
        model = create_model(config, img_size=image_size, num_classes=num_classes)
    return Cost(sum(p.numel() for p in model.parameters()), count_macs(config, model))


def count_macs(config: ModelConfig, model: nn.Module) -> int:
    """Return the multiply-accumulates of one image: in closed form for named models, else products and convolutions."""
    if config.name in CONFIGS:
        return cost(config, model.img_size[0], model.num_classes).macs
    from torch.utils.flop_counter import FlopCounterMode

    mode, parameter = model.training, next(model.parameters())
    image = torch.zeros(1, model.in_chans, *model.img_size, device=parameter.device, dtype=parameter.dtype)
    learned = [p for p in model.parameters() if p.requires_grad]
    for p in learned:  # a view of one would have the counter look for its gradient, which no_grad leaves out
        p.requires_grad_(False)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model.eval()(image)
    for p in learned:
        p.requires_grad_(True)
    model.train(mode)
    return counter.get_total_flops() // 2
