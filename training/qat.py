"""Quantization-aware training: the model computes with INT8's rounding, exactly where the deployed graph has it.

Fake quantization of the deployed Linear and Conv layers, "Quantization and Training of Neural Networks for Efficient
Integer-Arithmetic-Only Inference" (arXiv 1712.05877): inputs per tensor, weights per output channel, both symmetric;
gradients go straight through the rounding. All else computes in float, as it does in the graph.

The deployed weights are not the trained ones: BatchNorm, residual gains, the attention scale and the TSM's scalar are
folded into them. Each of these multiplies whole output rows, and so the scale of a row (its largest weight / 127) as
well: the codes of the folded row are those of the row before folding, with their sign. Hence rounding here, before the
folds, is rounding there, after them; but for the scales of weights, which the graph rounds to float16, by 1 part in 2048 at
most. For BatchNorm that holds with fixed statistics alone, so they are frozen.

Thresholds are calibrated once and stay: learning them (LSQ, arXiv 1902.08153) made no difference even at 4 bits.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from fnmatch import fnmatchcase
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sit_deploy.errors import InputError, nearest
from sit_deploy.models.sit import ConvStem, SiT
from sit_deploy.models.slim import SlimViT
from sit_deploy.models.timm_vit import why_not_rewritten

GRID = "int8"
LOW, HIGH = -128, 127  # codes of an input; those of weights are symmetric, -127..127
THRESHOLD = "input_threshold"  # the buffer's name; no part of the weights that are left


# ----------------------------------------------------------------------------------------------------- which layers


def deployed_layers(model: nn.Module) -> dict[str, tuple[str, ...]]:
    """Return path of a Linear or Conv of a SiT or SlimViT → names of the nodes that it is in the deployed graph.

    That is what `to_deploy_form` and `export_onnx` make of it; the last block's `qkv` becomes two, of one input. Left
    out are the reverse TSMs and the aux head, which are not deployed, and the heads of a model with a dist token: they
    are merged into one Linear over both tokens, whose scales neither of them has by itself.

    Raises:
        InputError: a model whose layers are not those of its deployed graph, one by one.
    """
    _check_layers(model)
    stem = model.patch_embed
    if isinstance(stem, ConvStem):
        names = {f"patch_embed.conv{i}": (f"stem/conv{i}",) for i in range(1, stem.depth + 1)}
    else:
        names = {"patch_embed.proj": ("stem/conv1",)}
    for i in range(model.depth):
        qkv = ("q", "kv") if i == model.depth - 1 and not _reads_all(model) else ("qkv",)
        names[f"blocks.{i}.attn.qkv"] = tuple(f"blocks.{i}/attn/{part}" for part in qkv)
        names[f"blocks.{i}.attn.proj"] = (f"blocks.{i}/attn/proj",)
        gated = hasattr(model.blocks[i].mlp, "fc1_g")  # SwiGLU, whose two layers are deployed as one
        for layer in ("fc1_g", "fc1_x", "fc2") if gated else ("fc1", "fc2"):
            names[f"blocks.{i}.mlp.{layer}"] = (f"blocks.{i}/mlp/{layer[:3]}",)
        if i in model.slim_after:
            tsm = model.slim_after[i]
            names |= {f"tsm.{tsm}.weight.1": (f"tsm.{tsm}/fc1",), f"tsm.{tsm}.weight.3": (f"tsm.{tsm}/fc2",)}
    if not model.has_dist_token:
        names["head"] = ("head",)
    return names


def _check_layers(model: nn.Module) -> None:
    """Refuse a model that does not round where its deployed graph does.

    Raises:
        InputError: says so. EVA's attention multiplies by the weights of its layer without calling it, and parts that are
            deployed as PyTorch writes them have other names.
    """
    blocks = getattr(model, "blocks", ())
    known = isinstance(model, SiT) or (
        isinstance(model, SlimViT) and all(why_not_rewritten(block) is None for block in blocks)
    )
    if not known:
        raise InputError(
            f"--qat does not know the layers of a {type(model).__name__}; train it in float, and build it with --precision int8"
        )


def _reads_all(model: nn.Module) -> bool:
    """Whether the head reads every token of the last block, not the class token alone."""
    return getattr(model, "global_pool", "token") != "token"


def quantized_layers(model: nn.Module, skip: tuple[str, ...] = ()) -> dict[str, tuple[str, ...]]:
    """Return the part of `deployed_layers` none of whose nodes matches a pattern of `skip`.

    Raises:
        InputError: a pattern that matches nothing, one that takes half of a layer, or patterns that leave none.
    """
    names = deployed_layers(model)
    nodes = [
        *(node for layer in names.values() for node in layer),
        "head",
    ]  # which is left out itself in some models
    for pattern in skip:
        if not any(fnmatchcase(node, pattern) for node in nodes):
            raise InputError(f"no quantized layer is called '{pattern}'{nearest(pattern, nodes)}")
    kept = {}
    for layer, own in names.items():
        skipped = [any(fnmatchcase(node, pattern) for pattern in skip) for node in own]
        if any(skipped) and not all(skipped):
            raise InputError(f"{' and '.join(own)} are one layer in training; skip both or none")
        if not any(skipped):
            kept[layer] = own
    if not kept:
        raise InputError("--qat has no layer left to quantize; skip fewer of them")
    return kept


# ------------------------------------------------------------------------------------------------ fake quantization


class _FakeQuantize(torch.autograd.Function):
    """Rounding whose gradient is 1 where nothing is clipped, else 0."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, low: int, high: int) -> Tensor:
        codes = torch.round(x / scale)
        ctx.save_for_backward((codes >= low) & (codes <= high))
        return codes.clamp(low, high) * scale

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        (inside,) = ctx.saved_tensors
        return gradient * inside, None, None, None


def quantize_input(x: Tensor, limit: Tensor) -> Tensor:
    """Return x (any shape) on the grid of scale limit / 127, codes -128..127, rounding half to even; half types as float32."""
    wide = torch.promote_types(x.dtype, torch.float32)
    return _FakeQuantize.apply(x.to(wide), limit / HIGH, LOW, HIGH)


def quantize_weight(weight: Tensor) -> Tensor:
    """Return weights (out, ...) on the grids of their output channels, of scale max|row| / 127: codes -127..127."""
    largest = weight.detach().flatten(1).abs().amax(1).clamp_min(torch.finfo(torch.float32).tiny)
    scale = (largest / HIGH).view(-1, *[1] * (weight.ndim - 1))
    return _FakeQuantize.apply(weight, scale, -HIGH, HIGH)


class _Quantized:
    """A layer that rounds its input and its weights; a Linear or Conv made so in place, whose weights keep their names.

    Attributes:
        input_threshold: the |x| that has the largest code, float32 (), a buffer, and so saved and resumed with the weights.
        first: tokens that the deployed layer sees, None for all; only these are rounded.
        rounds: False to compute in float.
    """

    input_threshold: Tensor
    first: int | None
    rounds: bool

    def _operands(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return input and weights as the layer is to take them."""
        if not self.rounds:
            return x, self.weight
        rounded = quantize_input(x[:, : self.first], self.input_threshold)
        if self.first is not None:
            rounded = torch.cat((rounded, x[:, self.first :]), dim=1)
        return rounded, quantize_weight(self.weight)


class QuantizedLinear(_Quantized, nn.Linear):
    """`nn.Linear` with fake quantization: (..., in) → (..., out)."""

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(*self._operands(x), self.bias)


class QuantizedConv2d(_Quantized, nn.Conv2d):
    """`nn.Conv2d` with fake quantization: (B, in, H, W) → (B, out, h, w)."""

    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(*self._operands(x), self.bias)


class FrozenBatchNorm2d(nn.BatchNorm2d):
    """`nn.BatchNorm2d` that keeps its statistics while it learns gain and offset."""

    def train(self, mode: bool = True) -> FrozenBatchNorm2d:
        return super().train(False)


def quantize(model: nn.Module, thresholds: Mapping[str, float], skip: tuple[str, ...] = ()) -> None:
    """Make the deployed layers of a model round as INT8 does, and freeze its BatchNorm. In place.

    Args:
        model: the model.
        thresholds: node name → the |x| of its input that has the largest code; see `calibrate`. Nodes without one get 1, for a
            state to be loaded over it.
        skip: patterns of node names, such as "stem/*", that stay in float.

    Raises:
        InputError: a threshold that is no positive number, or see `quantized_layers`.
    """
    for path, nodes in quantized_layers(model, skip).items():
        layer = model.get_submodule(path)
        limit = thresholds.get(nodes[0], 1.0)
        if not 0 < limit < float("inf"):
            raise InputError(
                f"the input of {nodes[0]} has no range to quantize (threshold {limit:g}); pass other images, or skip it"
            )
        layer.__class__ = QuantizedConv2d if isinstance(layer, nn.Conv2d) else QuantizedLinear
        layer.register_buffer(THRESHOLD, torch.tensor(limit, dtype=torch.float32, device=layer.weight.device))
        layer.first, layer.rounds = deployed_tokens(model, path), True
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.__class__ = FrozenBatchNorm2d
            module.eval()


def deployed_tokens(model: nn.Module, path: str) -> int | None:
    """Return how many tokens a deployed layer sees, None for all: few where the head alone reads what it gives."""
    last = f"blocks.{model.depth - 1}."
    few = path.startswith((last + "attn.proj", last + "mlp.fc")) and not _reads_all(model)
    return 1 + model.has_dist_token if few else None


def thresholds_of(model: nn.Module) -> dict[str, float]:
    """Return node name → threshold of its input, of a model that `quantize` has changed."""
    layers = ((nodes, model.get_submodule(path)) for path, nodes in deployed_layers(model).items())
    return {
        node: float(layer.input_threshold)
        for nodes, layer in layers
        if isinstance(layer, _Quantized)
        for node in nodes
    }


@contextmanager
def in_float(model: nn.Module) -> Iterator[None]:
    """Compute without rounding for the time being."""
    layers = [m for m in model.modules() if isinstance(m, _Quantized)]
    for layer in layers:
        layer.rounds = False
    try:
        yield
    finally:
        for layer in layers:
            layer.rounds = True
