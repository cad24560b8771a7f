"""Where did the patches go: which patches of a picture each slimmed token gathers.

A TSM makes every token a convex combination of the tokens before it (eq. 3 of arXiv 2111.12624). Chained through the stages,
each slimmed token is a convex combination of the patches: of what stood in their places, that is, since attention has mixed
them on the way.
"""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engines.errors import EngineError
from engines.files import atomic_path
from sit_deploy.errors import InputError
from sit_deploy.methods import TSM

if TYPE_CHECKING:
    import numpy as np

_PANEL_INCHES = 2.4
_DPI = 200


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


def merged_picture(pixels: np.ndarray, owner: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    """Paint every patch in the mean colour of all patches of its token, with lines where the token changes.

    Args:
        pixels: uint8 (H, W, 3).
        owner: the token of each patch, (patches,).
        grid: patches in a column and in a row.

    Returns:
        uint8 (H, W, 3).
    """
    import numpy as np

    rows, columns = grid
    height, width = pixels.shape[0] // rows, pixels.shape[1] // columns
    patches = pixels[: rows * height, : columns * width].reshape(rows, height, columns, width, 3)
    colour = patches.mean(axis=(1, 3)).reshape(-1, 3)
    for token in np.unique(owner):
        colour[owner == token] = colour[owner == token].mean(axis=0)
    painted = colour.reshape(rows, columns, 3).round().astype(np.uint8)
    painted = painted.repeat(height, axis=0).repeat(width, axis=1)
    field = owner.reshape(rows, columns).repeat(height, axis=0).repeat(width, axis=1)
    painted[1:][field[1:] != field[:-1]] = 255
    painted[:, 1:][field[:, 1:] != field[:, :-1]] = 255
    return painted


def draw(pixels: np.ndarray, shares: list[np.ndarray], grid: tuple[int, int], title: str = "") -> Any:
    """Return a matplotlib figure: the picture, and for each stage its tokens and how much each patch counts.

    Args:
        pixels: uint8 (H, W, 3), the cropped picture.
        shares: of `patch_shares`, for this picture: (kept, patches) each.
        grid: patches in a column and in a row.
        title: above all.
    """
    from matplotlib.colors import PowerNorm
    from matplotlib.figure import Figure

    rows, columns = grid
    count = 1 + len(shares)
    figure = Figure(figsize=(_PANEL_INCHES * count + 0.6, 2 * _PANEL_INCHES + 0.6), layout="constrained")
    axes = figure.subplots(2, count, squeeze=False)
    for axis in axes.flat:
        axis.set_axis_off()
    if title:
        figure.suptitle(title, fontsize=10)
    axes[0, 0].imshow(pixels)
    axes[0, 0].set_title(f"{rows * columns} patches", fontsize=9)
    # a few patches may count twenty times their share; the others should show too
    scale = PowerNorm(0.5, vmin=0, vmax=max(float(weights(share).max()) for share in shares))
    for index, share in enumerate(shares, 1):
        axes[0, index].imshow(merged_picture(pixels, owners(share), grid))
        axes[0, index].set_title(f"stage {index + 1}: {len(share)} tokens", fontsize=9)
        shown = axes[1, index].imshow(weights(share).reshape(grid), cmap="magma", norm=scale)
    axes[1, 0].text(
        0.5,
        0.5,
        "Above: each patch in the colour\nof the token that has most of it.\n\nRight: how much each patch\ncounts; 1 is an equal share.",
        ha="center",
        va="center",
        fontsize=8,
        transform=axes[1, 0].transAxes,
    )
    figure.colorbar(shown, ax=axes[1, :].tolist(), fraction=0.03)
    return figure


def save(figure: Any, path: Path) -> None:
    """Write a figure as PNG, whole or not at all.

    Raises:
        InputError: the folder cannot be written.
    """
    try:
        with atomic_path(path) as temporary:
            figure.savefig(temporary, dpi=_DPI, format="png")
    except EngineError as error:
        raise InputError(f"{error}; choose another place with -o") from None
