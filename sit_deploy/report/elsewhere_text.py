"""What check.py measured of a bundle on another machine, in words and as tables."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from engines.speedup import times_doubt
from sit_deploy.report import speedup_text
from sit_deploy.report.check_record import CheckedLatency, ElsewhereRecord
from sit_deploy.report.kernels_text import engine_text


def machine_name(row: ElsewhereRecord) -> str:
    """Return what the figures are of: the GPU where one took part, else the CPU."""
    if row.gpu is None:
        return row.machine.cpu_model
    driver = f", driver {row.gpu.driver}" if row.gpu.driver else ""
    return f"{row.gpu.name} ({row.gpu.compute_capability}{driver})"


def engine_name(row: ElsewhereRecord) -> str:
    """Return which engine ran: the bundle's own, or one that was built there."""
    engine = row.bundle.engine
    built = ", built there from its graph" if row.bundle.engine.built_here else ""
    return f"{engine.kind} {engine.version}{built}"


def golden(row: ElsewhereRecord) -> str:
    """Return what the golden outputs were there."""
    hop = row.bundle.golden
    assert hop is not None
    on = f"on {machine_name(row)} by check.py ({row.date[:10]}; {engine_name(row)})"
    if not hop.passed:
        return f"The engine does not give the reference's golden outputs {on}."
    error = "to the bit" if hop.error == 0 else f"within {hop.error:.1e} of their spread"
    return f"The engine gives the reference's golden outputs {error} (allowed {hop.tolerance:g}), {on}."


def eight_bits_unknown(precision: str) -> str:
    """Return that nobody measured what 8 bits gain where the engine ran."""
    return (
        f"What {precision} gains was not measured where it ran: put a float bundle of the same model, engine and batch size "
        "into the folder of `package python` beside it."
    )


def elsewhere_view(rows: Sequence[ElsewhereRecord]) -> list[dict[str, Any]]:
    """Return a table for each machine, as a page has it."""
    return [
        {
            "name": f"{_came_of_it(row)} on {machine_name(row)}, {row.date[:10]}",
            "what": _what(row),
            "head": ("batch", "p50 ms", "p90 ms", "p99 ms", "GPU ms", "images/s", "calls"),
            "rows": [_latency(latency) for latency in row.bundle.latencies],
            "notes": _notes(row),
        }
        for row in rows
    ]


def _came_of_it(row: ElsewhereRecord) -> str:
    return "Measured" if row.bundle.refused is None else "Did not run"


def _what(row: ElsewhereRecord) -> str:
    bundle, host = row.bundle, row.machine
    where = f"{engine_name(row)}, on {host.cpu_model} ({host.usable_cpus} CPUs), {host.system}"
    clocks = [value for seen in row.clocks if isinstance(value := seen.get("clocks_sm"), int | float)]
    if clocks:
        where += f"; SM clock {min(clocks):.0f} to {max(clocks):.0f} MHz before, between and after the rounds"
    releases = ", ".join(f"{name} {version}" for name, version in row.versions.items() if version)
    if bundle.refused is not None:
        return f"By check.py: {where}; {releases}."
    return f"By check.py: {where}; {releases}. All bundles of its folder timed turn about, each in a process of its own."


def _latency(latency: CheckedLatency) -> tuple[str, ...]:
    stats, gpu = latency.stats, latency.gpu
    times = (f"{value:.3f}" for value in (stats.p50_ms, stats.p90_ms, stats.p99_ms))
    on_gpu = f"{gpu.p50_ms:.3f}" if gpu else "—"
    return str(latency.batch_size), *times, on_gpu, f"{stats.images_per_second:.0f}", str(stats.iterations)


def _notes(row: ElsewhereRecord) -> list[str]:
    bundle, notes = row.bundle, []
    if bundle.refused is not None:
        notes.append(f"It did not run: {bundle.refused.rstrip('.')}.")
    if bundle.golden is not None:
        notes.append(golden(row))
    for over in row.over:
        subject = f"{bundle.name} at batch {over.batch_size}"
        notes.append(_sentence(speedup_text.sentence(subject, over.name, over.speedup)))
    layers = bundle.layers
    if layers is not None and layers.kept is not None:
        raised = ": " + ", ".join(layers.raised) if layers.raised else ""
        notes.append(
            f"{len(layers.kept)} low-precision products run in the types of the graph, {len(layers.raised or ())} do not{raised}; of "
            f"{len(layers.untold or ())} the engine does not tell."
        )
    if layers is not None and layers.census and (text := engine_text(layers.census, bundle.precision)):
        notes.append(f"Kernels: {text}.")
    for latency in bundle.latencies:
        if doubt := times_doubt(f"batch {latency.batch_size}", latency.result()):
            notes.append(f"Take the times with care: {doubt}.")
    return [*notes, *map(_sentence, bundle.notes)]


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:].rstrip('.')}."
