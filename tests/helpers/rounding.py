"""Models that round to 8 bits as they are trained, and what they are held to: their deploy form with ONNX's arithmetic."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sit_deploy.graph.deploy_form import DeployForm, to_deploy_form
from tests.helpers.models import (
    VIT_VARIANTS,
    tiny_model,
    tiny_vit,
    vit_of,
)

MODELS: dict[str, Callable[[], Any]] = {
    "SiT": tiny_model,
    "SiT, 6c": lambda: tiny_model(stem="6c"),
    "teacher": lambda: tiny_model(stage_blocks=(4,)),
    "dist token": lambda: tiny_model(dist_token=True),
    "slimmed ViT with dist token": lambda: tiny_vit(dist_token=True),
    "RMS norms": lambda: vit_of("RMS norms", (2, 1, 1, 2)),
    **{name: lambda name=name: tiny_vit(name) for name in VIT_VARIANTS},
}


def named_as_nodes(form: DeployForm) -> dict[str, nn.Module]:
    """Return the Linear and Conv modules of a deploy form under the names that their nodes get."""
    found = {n: m for n, m in form.named_modules() if isinstance(m, (nn.Linear, nn.Conv2d))}
    return {re.sub(r"\.(?!\d)", "/", name): module for name, module in found.items()}


def plain_thresholds(form: DeployForm, x: Tensor) -> dict[str, float]:
    """Return node name → largest |x| of its input; q and kv of the last block share one, which is that of kv."""
    found: dict[str, float] = {}
    hooks = [
        module.register_forward_pre_hook(
            lambda _, inputs, name=name: found.__setitem__(name, float(inputs[0].abs().max()))
        )
        for name, module in named_as_nodes(form).items()
    ]
    with torch.no_grad():
        form(x)
    for hook in hooks:
        hook.remove()
    return {name: found.get(re.sub("/q$", "/kv", name), limit) for name, limit in found.items()}


@torch.no_grad()
def rounded_deploy_form(model: nn.Module, thresholds: dict[str, float]) -> DeployForm:
    """Return the deploy form in float64 with ONNX's arithmetic, in NumPy, at each node that has a threshold."""
    form = to_deploy_form(model, keep_value_bias=True).double()

    def round_input(limit: float, _: nn.Module, inputs: tuple[Tensor]) -> Tensor:
        scale = np.float32(limit) / np.float32(127)
        return torch.from_numpy(np.clip(np.rint(inputs[0].numpy() / scale), -128, 127) * scale)

    for name, module in named_as_nodes(form).items():
        if name in thresholds:
            rows = module.weight.numpy().reshape(len(module.weight), -1)
            scale = np.abs(rows).max(1, keepdims=True) / 127
            codes = np.clip(np.rint(rows / scale), -127, 127)
            module.weight.copy_(torch.from_numpy(codes * scale).view_as(module.weight))
            module.register_forward_pre_hook(
                lambda module, inputs, limit=thresholds[name]: round_input(limit, module, inputs)
            )
    return form
