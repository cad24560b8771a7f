"""Parameters and multiply-accumulates of a model, in closed form, so that listing models needs no torch.

Counted as fvcore counts them, which is how the paper's table was made: one per multiply-accumulate of convolutions,
Linears and attention, 2 per element of a BatchNorm, 5 per element of a LayerNorm. Tests hold both to the real model.

Of timm's models, it knows those that are as DeiT is: biases everywhere, a class token that the head reads, no LayerScale.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

from sit_deploy.errors import InputError
from sit_deploy.methods import TRAINING_FREE, TRANSFORM
from sit_deploy.models.catalog import CONFIGS
from sit_deploy.models.config import STEMS, ModelConfig


@dataclass(frozen=True)
class Cost:
    """The cost of a model.

    Attributes:
        parameters: weights, with the frozen auxiliary head, without reverse TSMs.
        macs: multiply-accumulates for one image.
    """

    parameters: int
    macs: int


def cost(config: ModelConfig, image_size: int | None = None, num_classes: int | None = None) -> Cost:
    """Return the cost of one of our named models for one square RGB image of `image_size` pixels (native by default).

    Raises:
        InputError: another model of timm, whose make the closed form does not know.
    """
    if config.name not in CONFIGS:
        raise InputError(f"the cost of {config.name} is not known before it is made; count it with timm")
    side = image_size or config.image_size
    classes = config.num_classes if num_classes is None else num_classes
    kept = config.tokens(side)
    total = _stem(config, side)
    patches = kept[0]
    dim, hidden = config.embed_dim, int(config.embed_dim * config.mlp_ratio)
    total = _add(total, ((patches + 2) * dim, 0))  # class token and positions

    qkv = _linear(dim, 3 * dim) if config.base else 3 * dim * dim
    block = 2 * 2 * dim + qkv + _linear(dim, dim) + _linear(dim, hidden) + _linear(hidden, dim)
    for blocks, patch_tokens in zip(config.stage_blocks, kept, strict=True):
        n = patch_tokens + 1
        macs = n * (4 * dim * dim + 2 * dim * hidden + 2 * 5 * dim) + 2 * n * n * dim
        total = _add(total, (blocks * block, blocks * macs))
    for source, target in itertools.pairwise(kept):
        if config.method in TRAINING_FREE:
            total = _add(total, (0, _reduction(config, source, target)))
            continue
        half = dim // 2
        parameters = 2 * dim + _linear(dim, half) + _linear(half, target) + 1
        macs = source * (5 * dim + dim * half + half * target) + target * source * dim
        total = _add(total, (parameters, macs))
    # final norm over all tokens, head on the class token; LV-ViT's auxiliary head is counted though nothing reads it
    heads = 1 if config.base else 2
    total = _add(total, (2 * dim + heads * _linear(dim, classes), (kept[-1] + 1) * 5 * dim + dim * classes))
    return Cost(*total)


def _reduction(config: ModelConfig, source: int, target: int) -> int:
    """Return the multiply-accumulates of merging tokens without training: what the graph's products have of them, and a norm's."""
    dim, n = config.embed_dim, source + 1
    if source == target:
        return 0
    macs = n * (5 * dim + dim * dim) + target * source * dim  # keys, and the means
    if (
        config.method == TRANSFORM
    ):  # the class token's query, its attention; the kept tokens' keys, and how alike they are
        return macs + dim * dim + n * dim + 2 * target * source * dim
    while source > target:  # each matching halves them at most; what was merged once is merged again
        even, odd = (source + 1) // 2, source // 2
        macs += even * odd * dim
        made = max(target, odd)
        macs += made * source * (dim if made > target else 0)
        source = made
    return macs


def _linear(inputs: int, outputs: int) -> int:
    return inputs * outputs + outputs


def _add(a: tuple[int, int], b: tuple[int, int]) -> tuple[int, int]:
    return a[0] + b[0], a[1] + b[1]


def _stem(config: ModelConfig, side: int) -> tuple[int, int]:
    parameters = macs = 0
    if config.base:  # one convolution with bias, as large as its stride
        inputs = 3 * config.patch_size**2
        patches = (side // config.patch_size) ** 2
        return _linear(inputs, config.embed_dim), patches * inputs * config.embed_dim
    channels = 3
    for divisor, stride in STEMS[config.stem]:
        out = config.embed_dim // divisor
        side //= stride
        parameters += channels * out * 9 + 2 * out
        macs += side * side * out * (channels * 9 + 2)
        channels = out
    return parameters, macs
