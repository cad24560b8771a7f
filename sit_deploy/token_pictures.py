"""Pictures of `sit-deploy visualize`: a photograph at its own resolution, and over it the tokens of every stage."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from engines.errors import EngineError
from engines.files import atomic_path
from sit_deploy.errors import InputError
from sit_deploy.visualize import boundaries, gathered, mean_colours, owners, weights

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np

FORMATS = ("png", "svg", "pdf")
ROWS = {
    "outlines": "the picture, with lines\nbetween patches that different\ntokens have most of",
    "colours": "each patch in the mean\ncolour of all patches\nof its token",
    "gathered": "how many patches the token\nis made of that has most\nof the patch (by entropy)",
    "counted": "how much each patch counts\nin all tokens together;\n1 is an equal share",
}
_PANEL_INCHES, _BAR_INCHES = 2.4, 1.2
_LEAST_DPI, _MOST_DPI = 200, 600  # between them, a dot for each pixel of the picture
_LONGEST = 2048  # pixels of a side, since each stage holds a copy
_LINE = 1.1  # points
# light and dark at once, so that lines are seen on any ground and by anybody
_LINES = (("black", 2 * _LINE), ("white", _LINE))
_MAP = "cividis"  # made for all kinds of colour vision: Nunez, Anderton and Renslow, PLOS ONE 13(7), 2018


def draw(
    picture: np.ndarray,
    shares: list[np.ndarray],
    grid: tuple[int, int],
    rows: Sequence[str] = ("outlines", "colours", "gathered"),
    title: str = "",
) -> Any:
    """Return a matplotlib figure: a row for each thing that is shown, a column for the patches and for each stage.

    A token leads where it has more of some patch than any other token has; of tokens that are nearly the same, few do.

    Args:
        picture: uint8 (H, W, 3), what the model sees of the photograph, at any resolution.
        shares: of `patch_shares`, for this picture: (kept, patches) each.
        grid: patches in a column and in a row.
        rows: of `ROWS`.
        title: above all.
    """
    from matplotlib.figure import Figure

    across, down = picture.shape[1] / grid[1], picture.shape[0] / grid[0]
    count, tall = 1 + len(shares), picture.shape[0] / picture.shape[1]
    size = (_PANEL_INCHES * count + _BAR_INCHES, (_PANEL_INCHES * tall + 0.1) * len(rows) + 0.5)
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(len(rows), count, squeeze=False)
    for axis in axes.flat:
        axis.set_axis_off()
    if title:
        figure.suptitle(title, fontsize=10)
    for line, name in zip(axes, rows, strict=True):
        _first(line[0], name, picture, grid)
        scale = _scale(name, shares)
        for axis, share in zip(line[1:], shares, strict=True):
            owner = owners(share)
            if name == "outlines":
                axis.imshow(picture)
            elif name == "colours":
                _patches(axis, mean_colours(picture, owner, grid), picture)
            else:
                values = gathered(share)[owner] if name == "gathered" else weights(share)
                shown = _patches(axis, values.reshape(grid), picture, cmap=_MAP, norm=scale)
            if name != "counted":
                _outline(axis, boundaries(owner, grid) * (across, down))
        if scale is not None:
            _bar(figure, shown, line, name, shares[0].shape[1])
    for stage, (axis, share) in enumerate(zip(axes[0, 1:], shares, strict=True), 2):
        lead = len(set(owners(share).tolist()))
        some = f", {lead} lead" if lead < len(share) else ""
        axis.set_title(f"stage {stage}: {len(share)} tokens{some}", fontsize=9)
    axes[0, 0].set_title(f"{grid[0] * grid[1]} patches", fontsize=9)
    # laid out once: every format has the same picture, whichever is written first
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    return figure


def _first(axis: Any, name: str, picture: np.ndarray, grid: tuple[int, int]) -> None:
    """Show in a row's first panel what it starts from, and what it is."""
    import numpy as np

    if name == "outlines":
        axis.imshow(picture)
    elif name == "colours":
        _patches(axis, mean_colours(picture, np.arange(grid[0] * grid[1]), grid), picture)
    else:
        axis.text(0.5, 0.5, ROWS[name], ha="center", va="center", fontsize=8, transform=axis.transAxes)


def _scale(name: str, shares: list[np.ndarray]) -> Any:
    """Return the scale of a row's values, the same for all stages; None where it shows colours."""
    from matplotlib.colors import LogNorm, PowerNorm

    if name == "gathered":
        # from one patch to all: what is nearly uniform is seen to be, and one picture can be held beside another
        return LogNorm(1, shares[0].shape[1])
    if name == "counted":
        # a few patches may count twenty times their share; the others should show too
        return PowerNorm(0.5, vmin=0, vmax=max(float(weights(share).max()) for share in shares))
    return None


def _bar(figure: Any, shown: Any, line: Any, name: str, patches: int) -> None:
    """Put a colour bar beside a row, with plain numbers."""
    label = "patches" if name == "gathered" else "times an equal share"
    bar = figure.colorbar(shown, ax=line.tolist(), fraction=0.03, label=label)
    if name == "gathered":
        ticks = [tick for tick in (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000) if tick < 0.8 * patches]
        bar.set_ticks([*ticks, patches], labels=[*map(str, ticks), str(patches)])
        bar.minorticks_off()


def _patches(axis: Any, values: np.ndarray, picture: np.ndarray, **options: Any) -> Any:
    """Show a value or a colour for each patch, over the extent of the picture."""
    height, width = picture.shape[:2]
    return axis.imshow(
        values, extent=(-0.5, width - 0.5, height - 0.5, -0.5), interpolation="nearest", **options
    )


def _outline(axis: Any, lines: np.ndarray) -> None:
    from matplotlib.collections import LineCollection

    for colour, width in _LINES:
        # pixels' centres are at whole numbers
        axis.add_collection(LineCollection(lines - 0.5, colors=colour, linewidths=width, capstyle="round"))


def shown(image: Any) -> np.ndarray:
    """Return a PIL image as it is drawn, uint8 (H, W, 3): at its own resolution, the longer side at most 2048 pixels."""
    import numpy as np

    if max(image.size) > _LONGEST:
        image = image.copy()
        image.thumbnail((_LONGEST, _LONGEST))
    return np.asarray(image)


def save(figure: Any, path: Path, pixels: int) -> None:
    """Write a figure, whole or not at all, as what its name ends in; the same bytes each time.

    Args:
        figure: of `draw`.
        path: ends in one of `FORMATS`.
        pixels: of the picture from left to right; a PNG has a dot for each, within 200 to 600 dots an inch.

    Raises:
        InputError: the folder cannot be written.
    """
    from matplotlib import rc_context

    kind = path.suffix[1:].lower()
    dpi = min(max(round(pixels / _PANEL_INCHES), _LEAST_DPI), _MOST_DPI)
    metadata = {"png": {"Software": None}, "svg": {"Date": None}, "pdf": {"CreationDate": None}}[kind]
    for axis in figure.axes:
        for image in axis.images:
            # what is not resampled goes into a vector file with its own pixels; a PNG's are smoothed where they are too many
            image.set_interpolation("antialiased" if kind == "png" else "none")
    try:
        with atomic_path(path) as temporary, rc_context({"svg.hashsalt": "sit-deploy"}):
            figure.savefig(temporary, dpi=dpi, format=kind, metadata=metadata)
    except EngineError as error:
        raise InputError(f"{error}; choose another place with -o") from None
