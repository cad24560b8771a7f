"""Models whose every foldable parameter is away from its initial value, so that an error in any rewrite shows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sit_deploy.models.sit import SiT


def random_model(name: str, **changes: Any) -> SiT:
    """The plain model in eval mode with seeded random weights, its normalisations and TSMs away from where they start.

    Args:
        name: of the model.
        changes: to its architecture, as `create_model` takes them.
    """
    import torch

    from sit_deploy.models import create_model
    from sit_deploy.models.tsm import TokenSlimming

    torch.manual_seed(0)
    model = create_model(name, **changes)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.05, 0.3)
        if isinstance(module, torch.nn.BatchNorm2d | torch.nn.LayerNorm):
            module.weight.data.uniform_(0.5, 1.5)
            module.bias.data.normal_(0, 0.2)
        if isinstance(module, torch.nn.Linear) and module.bias is not None:
            module.bias.data.normal_(0, 0.1)
        if isinstance(module, TokenSlimming):
            module.weight[1].weight.data *= 6
            module.weight[3].weight.data *= 6
            module.scale.data.fill_(1.7)
    return model.eval()
