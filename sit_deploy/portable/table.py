"""What check.py prints: a row a bundle and batch size, and how many times as fast each precision is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from engines.speedup import speedup, times_doubt
from engines.timing import WorkerResult

from ..text import first_of, shown
from .form import baseline

Times = Mapping[tuple[str, int], WorkerResult]
_HEAD = (
    "bundle",
    "precision",
    "engine",
    "golden",
    "batch",
    "p50 ms",
    "p90 ms",
    "p99 ms",
    "images/s",
    "GPU ms",
    "layers",
)
_RIGHT = _HEAD[4:10]


def lines(fields: Mapping[str, Any], times: Times) -> list[str]:
    """Return the lines that say what was measured.

    Args:
        fields: of the JSON (`record.measure`).
        times: beside it.
    """
    machine, gpu = fields["machine"], fields["gpu"]
    where = (
        f"{gpu['name']} ({gpu['compute_capability']}), driver {gpu['driver'] or 'not told'}, " if gpu else ""
    )
    clocks = [seen["clocks_sm"] for seen in fields["clocks"] if seen["clocks_sm"] is not None]
    if clocks:
        where += f"SM clock {min(clocks):.0f} to {max(clocks):.0f} MHz, "
    text = [f"{where}{machine['cpu_model']}, {machine['usable_cpus']} CPUs, {machine['system']}"]
    releases = [f"{name} {version}" for name, version in fields["versions"].items() if version]
    text += [", ".join(releases), *_table(_rows(fields["bundles"])), *_notes(fields, times)]
    return [shown(line) for line in text]


def compared(bundles: Sequence[Mapping[str, Any]], times: Times) -> list[str]:
    """Return how many times as fast each bundle is as the float one that its `baseline` is, batch by batch."""
    sentences = []
    for row in bundles:
        for latency in row["latencies"]:
            size = latency["batch_size"]
            if (other := baseline(row, bundles, size)) is None:
                continue
            names = (other["name"], row["name"])
            gain = speedup(times[other["name"], size], times[row["name"], size], names)
            if gain.doubt is not None or gain.median is None:
                figure = f"not measurable here now: {gain.doubt}"
            else:
                figure = f"{gain.median:.2f}x as fast (half of the rounds {gain.low:.2f} to {gain.high:.2f})"
            sentences.append(f"{row['name']} over {other['name']} at batch {size}: {figure}")
    return sentences


def _rows(bundles: Sequence[Mapping[str, Any]]) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []
    for row in bundles:
        engine = row["engine"]
        head = (row["name"], row["precision"], f"{engine['kind']} {engine['version']}")
        if row["refused"]:
            rows.append((*head, "did not run", *[""] * 7))
            continue
        layers = _layers(row["layers"])
        first = (*head, _golden(row["golden"]))
        for latency in row["latencies"] or [None]:
            rows.append((*first, *_times(latency), layers))
            first, layers = ("", "", "", ""), ""
    return rows


def _golden(hop: Mapping[str, Any]) -> str:
    error = "not finite" if hop["error"] is None else f"{hop['error']:.1e}"
    return f"{'good' if hop['passed'] else 'MISMATCH'} {error} of {hop['tolerance']:g}"


def _times(latency: Mapping[str, Any] | None) -> tuple[str, ...]:
    if latency is None:
        return ("", "", "", "", "", "")
    stats, gpu = latency["stats"], latency["gpu"]
    return (
        str(latency["batch_size"]),
        *(f"{stats[key]:.3f}" for key in ("p50_ms", "p90_ms", "p99_ms")),
        f"{stats['images_per_second']:.0f}",
        f"{gpu['p50_ms']:.3f}" if gpu else "-",
    )


def _layers(layers: Mapping[str, Any] | None) -> str:
    if layers is None:
        return "not told"
    if layers["kept"] is None:
        return str(len(layers["layers"]))
    return f"{len(layers['kept'])} low kept, {len(layers['raised'])} raised, {len(layers['untold'])} untold"


def _table(rows: Sequence[Sequence[str]]) -> list[str]:
    cells = [[shown(cell) for cell in row] for row in (_HEAD, *rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return [
        "  ".join(
            cell.rjust(width) if name in _RIGHT else cell.ljust(width)
            for cell, width, name in zip(row, widths, _HEAD, strict=True)
        ).rstrip()
        for row in cells
    ]


def _notes(fields: Mapping[str, Any], times: Times) -> list[str]:
    notes = []
    for row in fields["bundles"]:
        if row["refused"]:
            notes.append(f"did not run: {row['refused']}")
        notes += [f"{row['name']}: {note}" for note in row["notes"]]
        if row["golden"] and row["golden"]["note"]:
            notes.append(f"{row['name']}: {row['golden']['note']}")
    doubts = [times_doubt(f"{name} at batch {size}", result) for (name, size), result in times.items()]
    if said := list(filter(None, doubts)):
        notes.append(f"take the times with care: {first_of(said)}")
    if fields["timing"]["note"]:
        notes.append(fields["timing"]["note"])
    return [*compared(fields["bundles"], times), *notes]
