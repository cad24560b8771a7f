"""Vision transformers in NumPy, slimmed or not: what timm's, armed with TSMs, are held to.

A model is its state dict (name → float64 array) and a few facts; nothing of `sit_deploy` or of timm is used.
"""

from __future__ import annotations

import numpy as np

from tests.helpers.numpy_sit import Result, Weights, attention, layer_norm, linear, mlp, recover, slim

EPS = 1e-6  # of a vision transformer's own norms; a TSM's are PyTorch's 1e-5


def optional_norm(w: Weights, name: str, x: np.ndarray) -> np.ndarray:
    return layer_norm(w, name, x, EPS) if f"{name}.weight" in w else x


def block(w: Weights, name: str, x: np.ndarray, heads: int) -> np.ndarray:
    x = x + attention(w, f"{name}.attn", layer_norm(w, f"{name}.norm1", x, EPS), heads) * w.get(
        f"{name}.ls1.gamma", 1.0
    )
    return x + mlp(w, f"{name}.mlp", layer_norm(w, f"{name}.norm2", x, EPS)) * w.get(f"{name}.ls2.gamma", 1.0)


def embed(w: Weights, x: np.ndarray, embed_class: bool) -> np.ndarray:
    """Images (B, C, H, W) → class token, registers and patches, row by row, with positions: (B, N, dim)."""
    kernel = w["patch_embed.proj.weight"]
    size = kernel.shape[-1]
    batch, channels, height, width = x.shape
    cut = x.reshape(batch, channels, height // size, size, width // size, size)
    patches = np.einsum("bchiwj,ocij->bhwo", cut, kernel).reshape(batch, -1, len(kernel))
    patches = patches + w.get("patch_embed.proj.bias", 0.0)
    prefix = [w[name][0] for name in ("cls_token", "reg_token") if name in w]
    prefix = np.concatenate([*prefix, np.zeros((0, len(kernel)))])
    tokens = np.concatenate((np.repeat(prefix[None], batch, axis=0), patches), axis=1)
    return tokens + (
        w["pos_embed"]
        if embed_class
        else np.concatenate((np.zeros((1, len(prefix), len(kernel))), w["pos_embed"]), axis=1)
    )


def vit(
    w: Weights,
    x: np.ndarray,
    heads: int,
    stage_blocks: tuple[int, ...],
    average: bool = False,
    embed_class: bool = True,
) -> Result:
    """Run a vision transformer on images (B, C, H, W); a stage's TSM acts on the patch tokens after its last block.

    average: the head reads the mean of the patch tokens, not the class token. embed_class: the prefix has positions.
    """
    n = sum(w[name].shape[1] for name in ("cls_token", "reg_token") if name in w)
    y = optional_norm(w, "norm_pre", embed(w, x, embed_class))
    tokens, index = [], 0
    for stage, blocks in enumerate(stage_blocks):
        for i in range(blocks):
            y = block(w, f"blocks.{index}", y, heads)
            if i == blocks - 1 and stage < len(stage_blocks) - 1:
                y = np.concatenate((y[:, :n], slim(w, f"tsm.{stage}", y[:, n:])), axis=1)
            name = f"rtsm.{index}"
            tokens.append(recover(w, name, y[:, n:]) if f"{name}.norm1.weight" in w else y[:, n:])
            index += 1
    features = optional_norm(w, "norm", y)
    pooled = features[:, n:].mean(axis=1) if average else features[:, 0]
    return Result(features, linear(w, "head", optional_norm(w, "fc_norm", pooled)), None, tokens)
