"""The deploy form of norms: root-mean-square norms in the spelling that engines make one kernel of; LayerNorms stay what they are."""

from __future__ import annotations

import copy

import torch
from timm.layers import SimpleNorm, SimpleNormFp32
from torch import Tensor, nn

from sit_deploy.models.timm_vit import RMS_NORMS


class DeployRmsNorm(nn.Module):
    """x / √(mean x² + eps) · weight, over the last axis.

    Spelled as `SimplifiedLayerNormFusion` of ONNX Runtime and `RMSFusion` of OpenVINO look for it: divided by the root, where timm
    multiplies by its reciprocal.

    Args:
        weight: (channels,).
        eps: added to the mean.
        centred: take the squares of x less its mean; x itself is not centred.
    """

    def __init__(self, weight: Tensor, eps: float, centred: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight.float(), requires_grad=False)
        self.eps, self.centred = eps, centred

    def forward(self, x: Tensor) -> Tensor:
        squared = (x - x.mean(dim=-1, keepdim=True) if self.centred else x).pow(2)
        return x / torch.sqrt(squared.mean(dim=-1, keepdim=True) + self.eps) * self.weight


def deploy_norm(norm: nn.Module) -> nn.Module:
    """Return what a norm is deployed as; the norm itself where it is not one by root mean square.

    timm's SimpleNorm divides by the standard deviation of n channels counted as n - 1. With k = n / (n - 1),
    √(k·v + eps) = √k·√(v + eps / k): the mean of squares takes the place of their sum over n - 1.
    """
    if not isinstance(norm, RMS_NORMS):
        return norm
    channels = norm.normalized_shape[-1]
    eps = torch.finfo(torch.float32).eps if norm.eps is None else norm.eps
    weight = torch.ones(channels) if norm.weight is None else norm.weight
    if not isinstance(norm, SimpleNorm | SimpleNormFp32):
        return DeployRmsNorm(weight.detach(), eps)
    k = channels / (channels - 1)
    return DeployRmsNorm(weight.detach().double() / k**0.5, eps / k, centred=True)


def scaled_norm(norm: nn.Module, scale: float) -> nn.Module:
    """Return a norm that equals `scale * norm(x)`."""
    scaled = copy.deepcopy(norm)
    for name in ("weight", "bias"):
        values = getattr(norm, name, None)
        if values is not None:
            getattr(scaled, name).data = (values.double() * scale).float()
    return scaled
