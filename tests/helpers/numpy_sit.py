"""LV-ViT and SiT in NumPy, written from the formulas of the two papers: what the PyTorch models are held to.

A model is its state dict (name → float64 array) and four numbers; nothing of `sit_deploy` is used.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

Weights = dict[str, np.ndarray]
_erf = np.vectorize(math.erf, otypes=[np.float64])


def gelu(x: np.ndarray) -> np.ndarray:
    return 0.5 * x * (1 + _erf(x / math.sqrt(2)))


def softmax(x: np.ndarray, axis: int) -> np.ndarray:
    e = np.exp(x - x.max(axis=axis, keepdims=True))
    return e / e.sum(axis=axis, keepdims=True)


def linear(w: Weights, name: str, x: np.ndarray) -> np.ndarray:
    return x @ w[f"{name}.weight"].T + w.get(f"{name}.bias", 0.0)


def layer_norm(w: Weights, name: str, x: np.ndarray, eps: float = 1e-5) -> np.ndarray:
    centred = x - x.mean(axis=-1, keepdims=True)
    return (
        centred / np.sqrt((centred**2).mean(axis=-1, keepdims=True) + eps) * w[f"{name}.weight"]
        + w[f"{name}.bias"]
    )


def mlp(w: Weights, name: str, x: np.ndarray) -> np.ndarray:
    return linear(w, f"{name}.fc2", gelu(linear(w, f"{name}.fc1", x)))


def slim(w: Weights, name: str, x: np.ndarray) -> np.ndarray:
    """TSM: token j of the result is Σ_i a_ij x_i with a softmax over the inputs i. (B, N, C) → (B, kept, C)."""
    scores = linear(
        w, f"{name}.weight.3", gelu(linear(w, f"{name}.weight.1", layer_norm(w, f"{name}.weight.0", x)))
    )
    a = softmax(scores * w[f"{name}.scale"].item(), axis=1)
    return np.einsum("bij,bic->bjc", a, x)


def recover(w: Weights, name: str, x: np.ndarray) -> np.ndarray:
    """Reverse TSM: an MLP over tokens, then a residual MLP over channels. (B, kept, C) → (B, patches, C)."""
    mixed = mlp(w, f"{name}.mlp1", layer_norm(w, f"{name}.norm1", x).swapaxes(1, 2)).swapaxes(1, 2)
    return mixed + mlp(w, f"{name}.mlp2", layer_norm(w, f"{name}.norm2", mixed))


def attention(w: Weights, name: str, x: np.ndarray, heads: int) -> np.ndarray:
    q, k, v = np.split(linear(w, f"{name}.qkv", x), 3, axis=-1)
    size = q.shape[-1] // heads
    mixed = []
    for h in range(heads):
        cut = slice(h * size, (h + 1) * size)
        scores = q[..., cut] @ k[..., cut].swapaxes(1, 2) / math.sqrt(size)
        mixed.append(softmax(scores, axis=-1) @ v[..., cut])
    return linear(w, f"{name}.proj", np.concatenate(mixed, axis=-1))


def block(w: Weights, name: str, x: np.ndarray, heads: int, skip_lam: float) -> np.ndarray:
    x = x + attention(w, f"{name}.attn", layer_norm(w, f"{name}.norm1", x), heads) / skip_lam
    return x + mlp(w, f"{name}.mlp", layer_norm(w, f"{name}.norm2", x)) / skip_lam


def stem(w: Weights, x: np.ndarray, strides: tuple[int, ...]) -> np.ndarray:
    """3×3 convolutions padded by 1, BatchNorm after each, GELU between. (B, 3, H, W) → (B, h·w, C), row by row."""
    for i, stride in enumerate(strides, 1):
        padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))
        windows = sliding_window_view(padded, (3, 3), axis=(2, 3))[:, :, ::stride, ::stride]
        x = np.einsum("bchwij,ocij->bohw", windows, w[f"patch_embed.conv{i}.weight"])
        mean, var, gain, shift = (
            w[f"patch_embed.bn{i}.{part}"][:, None, None]
            for part in ("running_mean", "running_var", "weight", "bias")
        )
        x = (x - mean) / np.sqrt(var + 1e-5) * gain + shift
        if i < len(strides):
            x = gelu(x)
    return x.reshape(*x.shape[:2], -1).swapaxes(1, 2)


@dataclass
class Result:
    """features: normalised prefix tokens (B, prefix, C). tokens: per block, after slimming and recovery."""

    features: np.ndarray
    logits: np.ndarray
    dist_logits: np.ndarray | None
    tokens: list[np.ndarray]


def sit(
    w: Weights,
    x: np.ndarray,
    heads: int,
    stage_blocks: tuple[int, ...],
    skip_lam: float = 2.0,
    strides: tuple[int, ...] = (2, 2, 2, 2),
) -> Result:
    """Run a SiT, or an LV-ViT where `stage_blocks` is one number, on images (B, 3, H, W)."""
    patches = stem(w, x, strides)
    position = w["pos_embed"][0]
    patches = patches + position[1:]
    prefix = [w["cls_token"][0] + position[:1]]
    if "dist_token" in w:
        prefix.append(w["dist_token"][0] + w["dist_pos_embed"][0])
    prefix = np.repeat(np.concatenate(prefix)[None], len(x), axis=0)
    n = prefix.shape[1]
    tokens, index = [], 0
    for stage, blocks in enumerate(stage_blocks):
        for i in range(blocks):
            y = block(w, f"blocks.{index}", np.concatenate((prefix, patches), axis=1), heads, skip_lam)
            prefix, patches = y[:, :n], y[:, n:]
            if i == blocks - 1 and stage < len(stage_blocks) - 1:
                patches = slim(w, f"tsm.{stage}", patches)
            name = f"rtsm.{index}"
            tokens.append(recover(w, name, patches) if f"{name}.norm1.weight" in w else patches)
            index += 1
    features = layer_norm(w, "norm", prefix)
    dist = linear(w, "head_dist", features[:, 1]) if n == 2 else None
    return Result(features, linear(w, "head", features[:, 0]), dist, tokens)
