"""Slimming a model without training, many ways in turn, with one set of weights in memory."""

from __future__ import annotations

import copy
from collections.abc import Callable

from torch import nn

from sit_deploy.errors import InputError
from sit_deploy.models.config import token_schedule
from sit_deploy.models.forward import SlimmingForward
from sit_deploy.models.sit import SiT
from sit_deploy.models.slim import check_blocks
from sit_deploy.models.token_reduction import reductions
from sit_deploy.models.tsm import slim_after

Reduced = Callable[[tuple[int, ...], tuple[int, ...]], nn.Module]


def reduced_by(model: nn.Module, method: str) -> Reduced:
    """Return what gives an unslimmed model as it is with a schedule, by its stages' blocks and their patch tokens.

    What it gives shares the weights of `model`, equals what `create_model(..., stage_blocks=..., kept=..., method=...)` gives with them, and
    is for inference.

    Args:
        model: of one stage.
        method: "transform" or "merge".

    Raises:
        InputError: a model that slims already, is taken whole, or whose attention cannot be read; `Reduced` raises it for a schedule that
            does not fit.
    """
    if not isinstance(model, SlimmingForward) or model.slim_after:
        raise InputError("only the unslimmed model of a family that slims can be slimmed; take its teacher")
    if not isinstance(model, SiT):  # whose blocks are our own
        check_blocks(model, method)

    def with_schedule(stage_blocks: tuple[int, ...], kept: tuple[int, ...]) -> nn.Module:
        if sum(stage_blocks) != model.depth:
            raise InputError(f"stages {stage_blocks} do not add up to the {model.depth} blocks of the model")
        slimmed = copy.copy(model)
        # a copy's modules are a dictionary of its own, so that it alone gets the reductions
        slimmed._modules = dict(model._modules)
        slimmed.stage_blocks = tuple(stage_blocks)
        slimmed.kept = token_schedule(model.kept[0], slimmed.stage_blocks, 1.0, tuple(kept))
        slimmed.slim_after = slim_after(slimmed.stage_blocks)
        if slimmed.slim_after:
            slimmed.reduction = reductions(method, slimmed.kept)
        return slimmed

    return with_schedule
