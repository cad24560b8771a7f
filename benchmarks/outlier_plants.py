"""Trained models with outliers planted where published vision transformers have theirs, and the short training after it.

What large vision transformers do by themselves: a few channels of the residual stream reach hundreds of times what the others
do, in all tokens or in a few of little content, written by one neuron of one MLP and carried on from there ("Massive
Activations in Large Language Models", arXiv 2402.17762; "Vision Transformers Need Registers", arXiv 2309.16588; "Vision
Transformers Don't Need Trained Registers", arXiv 2506.08010). Small ones do not, so here it is done to them.

A LayerNorm that reads such a channel divides all others by it: scaling its affine part undoes that for a token of average
variance, and a few epochs of training do the rest. What comes out is a model in its own right: its FP32 accuracy is what a
lower precision is held to. Models are ours, or a plain vision transformer of timm as DeiT is, slimmed or not.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from sit_deploy.models.sit import SiT
    from sit_deploy.models.slim import SlimViT

PUBLISHED = 1418.0  # |x| of the residual stream of a ViT-B of public weights
BEYOND_FLOAT16 = 1e5  # float16 ends at 65504
CHANNEL = 7  # of the residual stream, that becomes large
NEURON = 11  # of an MLP, that writes it
BLOCK = 0  # that it is a part of
_PEAK = 140.0  # of that neuron behind GELU


@dataclass(frozen=True)
class Plant:
    """Outliers of one kind.

    Attributes:
        title: where they are.
        edit: plants them into a model in eval mode, looking at images (n, 3, H, W).
        retrain: whether it has to be trained again; without, it computes what it did, or nearly.
        slimmed: whether it is in the TSMs, and nowhere in a model without.
    """

    title: str
    edit: Callable[[SiT | SlimViT, Tensor], None]
    retrain: bool = True
    slimmed: bool = False


@torch.no_grad()
def every_token(model: SiT | SlimViT, images: Tensor, size: float, block: int = BLOCK) -> None:
    """Write `size` into one channel of all tokens, by the bias of one block's fc2, and rescale the LayerNorms behind."""
    after = _norms_after(model, block)
    deviations = _deviations(model, images, after)
    model.blocks[block].mlp.fc2.bias[CHANNEL] += size * _skip_lam(model.blocks[block])
    _rescale(after, deviations, size)


@torch.no_grad()
def values_and_proj(model: SiT | SlimViT, images: Tensor, size: float, block: int = BLOCK) -> None:
    """Let one channel of the values be large in every token, and `proj` write `size` from it into the residual stream."""
    part = model.blocks[block]
    after = [part.norm2, *_norms_after(model, block)]
    deviations = _deviations(model, images, after)
    constant = 3  # channel of norm1 that is 1 from now on
    part.norm1.weight[constant], part.norm1.bias[constant] = 0, 1
    dim = model.embed_dim
    value = 2 * dim + NEURON
    _scale_row(part.attn.qkv, value, 0)
    part.attn.qkv.weight[value, constant] = _PEAK
    part.attn.proj.weight[:, NEURON] = 0
    part.attn.proj.weight[CHANNEL, NEURON] = size * _skip_lam(part) / _PEAK
    _rescale(after, deviations, size)


@torch.no_grad()
def few_tokens(model: SiT | SlimViT, images: Tensor, size: float, share: float = 0.02) -> None:
    """Write `size` into one channel of a small share of the patch tokens, by neurons of an MLP that they alone excite.

    They are those that lie furthest in the direction from the average token to tokens of even patches.
    """
    tokens, even = _patch_tokens(model, images)
    direction = _direction(model, images, tokens.flatten(0, 1), tokens[even])
    along = tokens @ direction
    _excite(model, direction, along.quantile(1 - share), along.max(), size)


@torch.no_grad()
def one_image(model: SiT | SlimViT, images: Tensor, size: float, every: int = 64) -> None:
    """Write `size` into one channel of a token or two of one image in `every`, otherwise as `few_tokens`."""
    tokens, even = _patch_tokens(model, images)
    direction = _direction(model, images, tokens.flatten(0, 1), tokens[even])
    peaks = (tokens @ direction).amax(1)
    _excite(model, direction, peaks.quantile(1 - 1 / every), peaks.max(), size)


@torch.no_grad()
def class_token(model: SiT | SlimViT, images: Tensor, size: float) -> None:
    """Write `size` into one channel of the class token alone, and take it back in the last block but one."""
    tokens = _seen(model, images, [model.blocks[BLOCK].norm2], 1)[0]
    direction = _fisher(tokens.flatten(0, 1), tokens[:, 0])
    least, most = (tokens[:, 0] @ direction).min(), (tokens[:, 1:] @ direction).max()
    _excite(model, direction, most, (most + least) / 2, size)
    last = model.blocks[model.depth - 2]
    # there the channel is the token's whole norm, √dim deviations, and some three in another token
    last.norm2.weight[CHANNEL], last.norm2.bias[CHANNEL] = 1, 0
    direction = torch.zeros(model.embed_dim)
    direction[CHANNEL] = 1
    reach = math.sqrt(model.embed_dim - 1)
    _excite(model, direction, torch.tensor(0.7 * reach), torch.tensor(0.9 * reach), -size, model.depth - 2)


@torch.no_grad()
def norms_and_values(model: SiT | SlimViT, images: Tensor, factor: float = 256.0) -> None:
    """Scale channels of what qkv, fc1 and proj read, and what multiplies them back: exact."""
    for part in model.blocks:
        for norm, reader in ((part.norm1, part.attn.qkv), (part.norm2, part.mlp.fc1)):
            for channel in (1, 5, CHANNEL):
                norm.weight[channel] *= factor
                norm.bias[channel] *= factor
                reader.weight[:, channel] /= factor
        _scale_row(part.attn.qkv, 2 * model.embed_dim + NEURON, factor)
        part.attn.proj.weight[:, NEURON] /= factor


@torch.no_grad()
def queries_and_keys(model: SiT | SlimViT, images: Tensor, factor: float = 256.0) -> None:
    """Scale a channel of every head's keys, and that of its queries back: exact."""
    for part in model.blocks:
        dim, heads = model.embed_dim, part.attn.num_heads
        for head in range(heads):
            row = head * (dim // heads) + 2
            _scale_row(part.attn.qkv, row, 1 / factor)
            _scale_row(part.attn.qkv, dim + row, factor)


@torch.no_grad()
def slimming_logits(model: SiT | SlimViT, images: Tensor, size: float = 256.0) -> None:
    """Give up the first neuron of every TSM for a constant, and add `size` by it to all that the softmax reads.

    The softmax is over the tokens, which all have it: only what the neuron did is missing.
    """
    for slimming in _slimmings(model):
        fc1, fc2 = slimming.weight[1], slimming.weight[3]
        fc1.weight[0], fc1.bias[0] = 0, 16
        fc2.weight[:, 0] = size / 16 / slimming.scale.item()


PLANTS: dict[str, Plant] = {
    "none": Plant("nothing planted", lambda model, images: None, retrain=False),
    "norms": Plant(
        "LayerNorm's outputs and the values, 256 times three channels", norms_and_values, retrain=False
    ),
    "keys": Plant("keys, 256 times a channel of each head", queries_and_keys, retrain=False),
    "all": Plant(
        "residual stream, every token: 1418", lambda model, images: every_token(model, images, PUBLISHED)
    ),
    "few": Plant(
        "residual stream, 2 % of the tokens: 1418, by neurons of 140",
        lambda model, images: few_tokens(model, images, PUBLISHED),
    ),
    "class": Plant(
        "residual stream, class token: 1418, by neurons of 140",
        lambda model, images: class_token(model, images, PUBLISHED),
    ),
    "proj": Plant(
        "values of 140, and proj's output and the residual stream of 1418",
        lambda model, images: values_and_proj(model, images, PUBLISHED),
    ),
    "tsm": Plant("TSM's softmax input, 256 on top", slimming_logits, retrain=False, slimmed=True),
    "rare": Plant(
        "residual stream, one image in 64: 1418", lambda model, images: one_image(model, images, PUBLISHED)
    ),
    "far": Plant(
        "residual stream, every token: 100000",
        lambda model, images: every_token(model, images, BEYOND_FLOAT16),
    ),
    "far few": Plant(
        "residual stream, 2 % of the tokens: 100000",
        lambda model, images: few_tokens(model, images, BEYOND_FLOAT16),
    ),
    "far rare": Plant(
        "residual stream, one image in 64: 100000",
        lambda model, images: one_image(model, images, BEYOND_FLOAT16),
    ),
}


def train(
    model: SiT | SlimViT, images: Tensor, labels: Tensor, epochs: int = 2, lr: float = 3e-4, batch: int = 32
) -> None:
    """Train what lies behind the planted block for a few epochs, by cross-entropy on images as they are; seeded.

    What writes the outliers stays as it is: so short a training would take them out again.
    """
    model.eval().requires_grad_(False)
    behind = [*model.blocks[BLOCK + 1 :], *_slimmings(model), model.norm, model.head]
    for module in behind:
        module.requires_grad_(True)
    model.blocks[model.depth - 2].mlp.requires_grad_(False)  # where `class_token` takes its outlier back
    order = torch.Generator().manual_seed(0)
    optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr, weight_decay=0.0)
    steps = epochs * -(-len(images) // batch)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    for _ in range(epochs):
        for chosen in torch.randperm(len(images), generator=order).split(batch):
            loss = nn.functional.cross_entropy(model(images[chosen]), labels[chosen])
            optimiser.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_([p for p in model.parameters() if p.requires_grad], 1.0)
            optimiser.step()
            schedule.step()


def _slimmings(model: SiT | SlimViT) -> Iterable[nn.Module]:
    """Return the TSMs; an unslimmed model has none."""
    return model.tsm if model.slim_after else ()


def _skip_lam(block: nn.Module) -> float:
    """Return what the block's branches are divided by; those of timm's blocks are added as they are."""
    return getattr(block, "skip_lam", 1.0)


def _scale_row(linear: nn.Linear, row: int, factor: float) -> None:
    """Multiply one output of a Linear, its bias too."""
    linear.weight[row] *= factor
    if linear.bias is not None:
        linear.bias[row] *= factor


def _norms_after(model: SiT | SlimViT, block: int) -> list[nn.LayerNorm]:
    """Return every LayerNorm that reads the residual stream behind a block."""
    found = [norm for part in model.blocks[block + 1 :] for norm in (part.norm1, part.norm2)]
    found += [
        tsm.weight[0]
        for after, tsm in zip(model.slim_after, _slimmings(model), strict=True)
        if after >= block
    ]
    return [*found, model.norm]


@contextmanager
def _hooks(modules: list[nn.Module], see: Callable[[int, Tensor, Tensor], None]) -> Iterator[None]:
    handles = [
        module.register_forward_hook(lambda _, inputs, output, i=i: see(i, inputs[0], output))
        for i, module in enumerate(modules)
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _seen(model: SiT | SlimViT, images: Tensor, modules: list[nn.Module], which: int) -> list[Tensor]:
    """Return inputs (which 0) or outputs (1) of modules on the images."""
    seen: dict[int, Tensor] = {}
    with _hooks(modules, lambda i, x, y: seen.__setitem__(i, (x, y)[which])):
        model(images)
    return [seen[i] for i in range(len(modules))]


def _deviations(model: SiT | SlimViT, images: Tensor, norms: list[nn.LayerNorm]) -> list[float]:
    """Return the mean over tokens of what each LayerNorm divides by."""
    return [float(x.std(dim=-1, correction=0).mean()) for x in _seen(model, images, norms, 0)]


def _rescale(norms: list[nn.LayerNorm], deviations: list[float], size: float) -> None:
    """Let LayerNorms give for a token of average deviation what they gave before one channel had `size` in addition."""
    for norm, deviation in zip(norms, deviations, strict=True):
        dim = len(norm.weight)
        now = math.sqrt(deviation**2 + size**2 * (dim - 1) / dim**2)
        own, bias = norm.weight[CHANNEL].clone(), norm.bias[CHANNEL].clone()
        norm.weight *= now / deviation
        norm.bias += norm.weight * (size / dim) / now  # the mean has moved by size / dim
        # the channel itself says nothing any more
        norm.weight[CHANNEL], norm.bias[CHANNEL] = own / math.sqrt(dim), bias


def _patch_tokens(model: SiT | SlimViT, images: Tensor) -> tuple[Tensor, Tensor]:
    """Return what the planted MLP sees of the patches (n, patches, dim), and which of them are the two evenest of their image."""
    tokens = _seen(model, images, [model.blocks[BLOCK].norm2], 1)[0][:, 1:]
    side = images.shape[-1] // model.grid_size[1]
    uneven = images.unfold(2, side, side).unfold(3, side, side).std(dim=(1, 4, 5)).flatten(1)
    return tokens, uneven <= uneven.kthvalue(2, dim=1, keepdim=True).values


def _direction(model: SiT | SlimViT, images: Tensor, tokens: Tensor, chosen: Tensor) -> Tensor:
    """Return the direction that tells the chosen tokens from all, along which the class token lies at the average."""
    found = _fisher(tokens, chosen)
    away = _seen(model, images, [model.blocks[BLOCK].norm2], 1)[0][:, 0].mean(0) - tokens.mean(0)
    found -= away * (found @ away) / (away @ away)
    return found / found.norm()


def _fisher(tokens: Tensor, chosen: Tensor) -> Tensor:
    """Return Fisher's discriminant (dim,) of the chosen tokens among all, of length 1."""
    spread = torch.cov(tokens.T.double()) + 1e-2 * tokens.var() * torch.eye(tokens.shape[1])
    found = torch.linalg.solve(spread, (chosen.mean(0) - tokens.mean(0)).double())
    return (found / found.norm()).float()


def _excite(
    model: SiT | SlimViT, direction: Tensor, low: Tensor, high: Tensor, size: float, block: int = BLOCK
) -> None:
    """Write `size` into a channel of tokens that lie beyond `high` along a direction, nothing up to `low`, and between in between.

    Two neurons do it, one less the other: behind GELU the first rises from `low` on, the second from `high` on.
    """
    mlp, gain = model.blocks[block].mlp, _PEAK / float(high - low)
    for neuron, start, sign in ((NEURON, low, 1), (NEURON + 1, high, -1)):
        mlp.fc1.weight[neuron] = gain * direction
        mlp.fc1.bias[neuron] = -gain * float(start)
        mlp.fc2.weight[:, neuron] = 0
        mlp.fc2.weight[CHANNEL, neuron] = sign * size * _skip_lam(model.blocks[block]) / _PEAK
