"""Plots for a page: SVG by matplotlib that goes into HTML, with text as text and lines in the page's own colour."""

from __future__ import annotations

import html
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sit_deploy.report.build_types import LayerRecord
from sit_deploy.report.types import DriftedTensor, TimingRecord

# stands for the page's text colour, light or dark, until the SVG is written
_INK = "#010203"
# Okabe and Ito's, which the colour-blind tell apart, less the black; all show on white and on near-black
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")


def _figure(width: float = 7.0, height: float = 2.8) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(_INK)
    axes.tick_params(colors=_INK, labelsize=9)
    for label in (axes.xaxis.label, axes.yaxis.label):
        label.set_color(_INK)
        label.set_size(9)
    return figure, axes


def _svg(figure: Any, title: str) -> str:
    import matplotlib

    settings = {"svg.fonttype": "none", "svg.hashsalt": title, "font.family": "sans-serif"}
    buffer = io.StringIO()
    with matplotlib.rc_context(settings):
        # no date and no other word that would change from run to run
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :].replace(_INK, "currentColor")
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    # in HTML the namespaces are known, and an address in the page would look like something that is loaded
    text = re.sub(r'\s+xmlns(:\w+)?="[^"]*"', "", text)
    text = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", text, count=1)
    text = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", text, count=1)
    text = re.sub(r"font: (\d+)px [^;\"]*", r"font: \1px system-ui, sans-serif", text)
    # matplotlib's identifiers depend on what is drawn; several plots share a page
    mark = re.sub(r"\W+", "-", title.lower())
    text = re.sub(r'\bid="([^"]+)"', rf'id="{mark}-\1"', text)
    text = re.sub(r'(xlink:href="#|url\(#)', rf"\1{mark}-", text)
    return text.replace("<svg ", f'<svg role="img" aria-label="{html.escape(title)}" ', 1)


def _legend(axes: Any, **options: Any) -> None:
    axes.legend(frameon=False, fontsize=8, labelcolor=_INK, **options)


def latency_histogram(timing: Mapping[str, TimingRecord], title: str) -> str:
    """Return how the calls of each hop were spread over milliseconds, as SVG; on a logarithmic scale where they are far apart.

    Args:
        timing: by the name of a stage.
        title: of the plot, for readers of the page that do not see it.
    """
    figure, axes = _figure()
    edges = [row.histogram.edges_ms for row in timing.values()]
    for (name, row), colour in zip(timing.items(), _cycle(len(timing)), strict=True):
        histogram = row.histogram
        total = sum(histogram.counts)
        shares = [100 * count / total for count in histogram.counts]
        axes.stairs(
            shares,
            histogram.edges_ms,
            fill=True,
            alpha=0.55,
            color=colour,
            label=f"{name}, median {row.p50_ms:.1f} ms",
        )
    if max(e[-1] for e in edges) > 4 * max(min(e[0] for e in edges), 1e-9):
        axes.set_xscale("log")
        _plain_ticks(axes.xaxis)
    axes.set_xlabel("milliseconds a batch")
    axes.set_ylabel("% of calls")
    _legend(axes, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return _svg(figure, title)


def _plain_ticks(axis: Any) -> None:
    from matplotlib.ticker import LogLocator, NullFormatter, ScalarFormatter

    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter(ScalarFormatter())
    axis.set_minor_formatter(NullFormatter())


def _cycle(count: int) -> list[str]:
    return [COLOURS[i % len(COLOURS)] for i in range(count)]


def drift(tensors: Sequence[DriftedTensor], title: str) -> str:
    """Return the SQNR of the residual stream by depth, as SVG.

    Args:
        tensors: in order.
        title: of the plot, for readers of the page that do not see it.
    """
    figure, axes = _figure()
    shown = [(i, t.sqnr_db) for i, t in enumerate(tensors) if t.sqnr_db is not None]
    axes.plot(*zip(*shown, strict=True), marker="o", markersize=3, color=COLOURS[0], linewidth=1.5)
    for i, tensor in enumerate(tensors):
        if tensor.tensor.startswith(("tsm.", "reduction.")):
            axes.axvline(i, color=COLOURS[1], linewidth=0.8, linestyle=":")
    step = max(1, len(tensors) // 12)
    names = [t.tensor.removesuffix("/concat") for t in tensors]
    axes.set_xticks(range(0, len(tensors), step), names[::step], rotation=40, ha="right", fontsize=7)
    axes.set_ylabel("SQNR, dB")
    return _svg(figure, title)


def operators(layers: Sequence[LayerRecord], title: str) -> str:
    """Return the engine's milliseconds by kind of operator, as SVG.

    Args:
        layers: of the engine.
        title: of the plot, for readers of the page that do not see it.
    """
    by_kind: dict[str, float] = {}
    for layer in layers:
        kind = ", ".join(layer.types) or "other"
        by_kind[kind] = by_kind.get(kind, 0.0) + (layer.ms or 0.0)
    rows = sorted(by_kind.items(), key=lambda row: row[1])
    rows = rows[-10:]
    figure, axes = _figure(height=0.6 + 0.26 * len(rows))
    bars = axes.barh([name for name, _ in rows], [ms for _, ms in rows], color=COLOURS[0], height=0.7)
    axes.bar_label(bars, fmt="%.2f", padding=3, color=_INK, fontsize=8)
    axes.set_xlabel("milliseconds a batch, with the profiler attached")
    return _svg(figure, title)


@dataclass(frozen=True)
class Point:
    """A bundle among others: milliseconds of an image, and top-1 in percent with its interval."""

    name: str
    engine: str
    latency_ms: float
    top1: float
    low: float
    high: float


def scatter(points: Sequence[Point], title: str, what: str = "top-1") -> str:
    """Return accuracy over latency of several bundles, as SVG.

    Args:
        points: the bundles.
        title: of the plot, for readers of the page that do not see it.
        what: their shares of right images are of.
    """
    figure, axes = _figure(height=3.4)
    kinds = list(dict.fromkeys(point.engine for point in points))
    for kind, colour in zip(kinds, _cycle(len(kinds)), strict=True):
        mine = [point for point in points if point.engine == kind]
        x, y = [p.latency_ms for p in mine], [p.top1 for p in mine]
        bars = [[p.top1 - p.low for p in mine], [p.high - p.top1 for p in mine]]
        axes.errorbar(x, y, bars, fmt="o", color=colour, elinewidth=0.8, capsize=2, label=kind)
    for point in points:
        axes.annotate(
            point.name,
            (point.latency_ms, point.top1),
            xytext=(6, 4),
            textcoords="offset points",
            fontsize=8,
            color=_INK,
            parse_math=False,  # a name may hold a dollar
        )
    axes.set_xlabel("milliseconds an image, median")
    axes.set_ylabel(f"{what}, %")
    axes.margins(x=0.15, y=0.2)
    if len(kinds) > 1:
        _legend(axes, loc="best")
    return _svg(figure, title)


@dataclass(frozen=True)
class PlanPoint:
    """A measured plan: its number, times as fast as float32 with quartiles, SQNR in dB, and what kind of plan it is."""

    number: int
    ratio: float
    low: float
    high: float
    sqnr_db: float
    kind: str
    front: bool
    chosen: bool


def front(points: Sequence[PlanPoint], title: str) -> str:
    """Return SQNR over speed of measured plans, their Pareto front as a line and the one that is built in a ring, as SVG.

    Args:
        points: the plans; not the float32 engine, whose rounding is so far above that nothing else would be told apart.
        title: of the plot, for readers of the page that do not see it.
    """
    figure, axes = _figure(height=3.4)
    kinds = list(dict.fromkeys(sorted(point.kind for point in points)))
    for kind, colour in zip(kinds, _cycle(len(kinds)), strict=True):
        mine = [point for point in points if point.kind == kind]
        x, y = [p.ratio for p in mine], [p.sqnr_db for p in mine]
        bars = [[max(0.0, p.ratio - p.low) for p in mine], [max(0.0, p.high - p.ratio) for p in mine]]
        axes.errorbar(
            x, y, xerr=bars, fmt="o", markersize=4, color=colour, elinewidth=0.8, capsize=2, label=kind
        )
    line = sorted((point.ratio, point.sqnr_db) for point in points if point.front)
    if line:
        axes.step(*zip(*line, strict=True), where="pre", color=_INK, linewidth=0.7, alpha=0.5)
    for point in points:
        if point.chosen:
            axes.plot(point.ratio, point.sqnr_db, "o", markersize=11, fillstyle="none", color=_INK)
        axes.annotate(
            str(point.number),
            (point.ratio, point.sqnr_db),
            xytext=(5, 5),
            textcoords="offset points",
            fontsize=8,
            color=_INK,
        )
    axes.axvline(1.0, color=_INK, linewidth=0.8, linestyle=":")
    axes.set_xlabel("times as fast as fp32 (dotted)")
    axes.set_ylabel("SQNR of the logits, dB")
    axes.margins(x=0.08, y=0.15)
    _legend(axes, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return _svg(figure, title)


_SAME = 1e-7  # nats: rounding


@dataclass(frozen=True)
class TradeOff:
    """A token schedule: its precision, milliseconds a batch, and how far its model is from the unslimmed one in nats."""

    name: str
    precision: str
    ms: float
    divergence: float
    measured: bool
    front: bool
    chosen: bool


def trade_off(points: Sequence[TradeOff], limit_ms: float, title: str) -> str:
    """Return divergence over latency of token schedules, their front as a line, the limit and the one that was chosen, as SVG.

    Args:
        points: the schedules; filled where an engine was measured, hollow where its latency is predicted.
        limit_ms: that was asked for.
        title: of the plot, for readers of the page that do not see it.
    """
    figure, axes = _figure(height=3.6)
    kinds = list(dict.fromkeys(sorted(point.precision for point in points)))
    least = min((p.divergence for p in points if p.divergence > _SAME), default=1e-3)
    floor = least / 3  # of the unslimmed model, whose rounding has no place on the scale of the others

    def height(point: TradeOff) -> float:
        return max(point.divergence, floor)

    for kind, colour in zip(kinds, _cycle(len(kinds)), strict=True):
        for measured in (True, False):
            mine = [p for p in points if p.precision == kind and p.measured is measured]
            label = kind if measured else f"{kind}, predicted"
            style = {"fillstyle": "full" if measured else "none", "color": colour, "linestyle": ""}
            if mine:
                axes.plot(
                    [p.ms for p in mine], list(map(height, mine)), "o", markersize=4, label=label, **style
                )
    line = sorted((point.ms, height(point)) for point in points if point.front)
    if line:
        axes.step(*zip(*line, strict=True), where="post", color=_INK, linewidth=0.7, alpha=0.5)
    axes.axvline(limit_ms, color=_INK, linewidth=0.8, linestyle=":", label="limit")
    for point in points:
        if point.chosen:
            axes.plot(point.ms, height(point), "o", markersize=11, fillstyle="none", color=_INK)
            axes.annotate(
                point.name,
                (point.ms, height(point)),
                xytext=(8, 8),
                textcoords="offset points",
                fontsize=8,
                color=_INK,
            )
    axes.set_yscale("log")
    axes.set_xlabel("milliseconds a batch")
    axes.set_ylabel("divergence, nats")
    axes.margins(x=0.08, y=0.12)
    _legend(axes, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return _svg(figure, title)
