"""Where did the patches go: which patches of a picture each slimmed token gathers.

A TSM makes every token a convex combination of the tokens before it (eq. 3 of arXiv 2111.12624). Chained through the stages,
each slimmed token is a convex combination of the patches: of what stood in their places, that is, since attention has mixed
them on the way.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

from sit_deploy.errors import InputError
from sit_deploy.methods import TSM

if TYPE_CHECKING:
    import numpy as np

_ALIKE = 0.9  # of all patches: a token that gathers so many takes hardly more of one than of another


def patch_shares(model: Any, images: np.ndarray) -> list[np.ndarray]:
    """Return, for each slimming in order, how much of every patch is in every token: float32 (B, kept, patches), rows sum to 1.

    Args:
        model: a plain SiT or slimmed vision transformer, in eval mode.
        images: normalised, float32 (B, 3, H, W).

    Raises:
        InputError: a model that does not slim.
    """
    import torch

    if not model.slim_after:
        raise InputError(
            "this model does not slim its tokens, so every patch keeps its own; take a SiT, or --stages"
        )
    seen: list[Any] = []
    hooks = [
        tsm.register_forward_pre_hook(lambda module, given: seen.append(module.assignment(given[0])))
        for tsm in getattr(model, "tsm", ())
    ]
    hooks += [
        reduction.register_forward_hook(lambda module, given, made: seen.append(made[2]))
        for reduction in getattr(model, "reduction", ())
    ]
    try:
        with torch.inference_mode():
            model.forward_features(torch.from_numpy(images))
    finally:
        for hook in hooks:
            hook.remove()
    found, shares = iter(seen), []
    for before, after in itertools.pairwise(model.kept):
        if before == after and not hasattr(
            model, "tsm"
        ):  # without training, a stage that keeps all tokens leaves them as they are
            assignment = torch.eye(before).expand(len(images), -1, -1)
        else:
            assignment = next(found)
        shares.append(assignment @ shares[-1] if shares else assignment)
    return [share.numpy() for share in shares]


def merged_by(model: Any) -> str:
    """Return the method that merges the tokens of a model that slims (`sit_deploy.methods`)."""
    return next((reduction.method for reduction in getattr(model, "reduction", ())), TSM)


def owners(shares: np.ndarray) -> np.ndarray:
    """Return for each patch the token that has most of it, int64 (patches,), of shares (kept, patches)."""
    return shares.argmax(axis=0)


def weights(shares: np.ndarray) -> np.ndarray:
    """Return how much each patch counts in all tokens together, float32 (patches,): 1 is an equal share."""
    kept, patches = shares.shape
    return shares.sum(axis=0) * (patches / kept)


def gathered(shares: np.ndarray) -> np.ndarray:
    """Return how many patches each token is made of, float32 (kept,), from 1 to all.

    It is the effective number: the exponential of the entropy of a token's shares, which is N where N patches have equal
    shares and the others none.

    Args:
        shares: (kept, patches), rows sum to 1.
    """
    import numpy as np

    some = np.where(shares > 0, shares, 1)
    return np.exp(-(shares * np.log(some)).sum(axis=1)).astype(np.float32)


def alike_note(shares: list[np.ndarray]) -> str | None:
    """Return what to say where tokens gather nearly all patches alike, so that outlines tell next to nothing; None where not.

    Args:
        shares: of each stage, (kept, patches).
    """
    import numpy as np

    for stage, share in enumerate(shares, 2):
        typical, patches = float(np.median(gathered(share))), share.shape[1]
        if typical > _ALIKE * patches:
            return (
                f"from stage {stage} on a token gathers nearly all patches alike ({typical:.0f} of {patches}, by the entropy of its shares), as TSMs do "
                "that were not trained: which token has most of a patch says little"
            )
    return None


def boundaries(owner: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    """Return the lines between neighbouring patches of different tokens, float32 (lines, 2, 2): two ends (x, y), in patches.

    Args:
        owner: the token of each patch, (patches,).
        grid: patches in a column and in a row.
    """
    import numpy as np

    field = owner.reshape(grid)
    down, across = np.nonzero(field[:, 1:] != field[:, :-1])
    upright = np.stack([np.stack([across + 1, down], 1), np.stack([across + 1, down + 1], 1)], 1)
    down, across = np.nonzero(field[1:] != field[:-1])
    level = np.stack([np.stack([across, down + 1], 1), np.stack([across + 1, down + 1], 1)], 1)
    return np.concatenate([upright, level]).astype(np.float32)


def mean_colours(pixels: np.ndarray, owner: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    """Return for every patch the mean colour of all patches of its token, uint8 (rows, columns, 3).

    Args:
        pixels: uint8 (H, W, 3).
        owner: the token of each patch, (patches,).
        grid: patches in a column and in a row.
    """
    import numpy as np

    rows, columns = grid
    height, width = pixels.shape[:2]
    mixed = _shares_of_parts(height, rows) @ pixels.reshape(height, -1).astype(np.float32)
    colour = _shares_of_parts(width, columns) @ mixed.reshape(rows, width, 3)
    colour = colour.reshape(-1, 3)
    for token in np.unique(owner):
        colour[owner == token] = colour[owner == token].mean(axis=0)
    return colour.reshape(rows, columns, 3).round().astype(np.uint8)


def _shares_of_parts(length: int, parts: int) -> np.ndarray:
    """Return what each of `length` pixels weighs in the mean of each of as many equal parts, whose edges may cut pixels, float32 (parts, length)."""
    import numpy as np

    edges, pixels = np.arange(parts + 1)[:, None] * (length / parts), np.arange(length)
    inside = np.minimum(edges[1:], pixels + 1) - np.maximum(edges[:-1], pixels)
    return (inside.clip(0) * (parts / length)).astype(np.float32)
