"""Everything that check.py measures of the bundles of a folder, as the JSON that `sit-deploy report --measured` takes."""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from typing import Any

import engines
from engines.errors import EngineError, Error
from engines.gpus import find_gpus, telemetry
from engines.timing import TimingOptions, WorkerResult, alternate, engine_worker, machine

from ..text import shown
from .bundle import Bundle, architecture
from .examine import Examined, examine, isolated
from .form import KIND, SCHEMA

# whose releases decide what an engine does
_PACKAGES = (
    *("numpy", "pillow", "onnx", "onnxruntime", "onnxruntime-gpu", "openvino"),
    *("tensorrt", "tensorrt-rtx", "pycuda", "cuda-bindings"),
)
_LAYERS = 200  # the slowest; the rest adds nothing to see

Say = Callable[[str], None]


def measure(
    bundles: Sequence[Bundle], timing: TimingOptions, say: Say = lambda _: None
) -> tuple[dict[str, Any], dict[tuple[str, int], WorkerResult]]:
    """Examine bundles one by one, then time all that run turn about, each batch size in a process of its own.

    A script that calls this needs `if __name__ == "__main__":`.

    Args:
        bundles: of one folder.
        timing: the turns; no round times nothing.
        say: called with what is being done.

    Returns:
        The fields of the JSON without its digest, and what was timed, by name of the bundle and batch size.
    """
    examined: dict[str, Examined | str] = {}
    for bundle in bundles:
        say(f"{bundle.name}: golden outputs and layers")
        try:
            examined[bundle.name] = isolated(examine, bundle.path, timing.threads, timing.device)
        except Error as error:
            examined[bundle.name] = _without_place(str(error), bundle)
    wanted = [
        (bundle, size)
        for bundle in bundles
        if not isinstance(found := examined[bundle.name], str)
        for size in found.batch_sizes
    ]
    gpu = _gpu(bundles, timing.device)
    clocks = _Clocks(gpu["number"] if gpu else None)
    times, note = _time(wanted, timing, clocks, say) if timing.rounds else ({}, "")
    fields = {
        "schema": SCHEMA,
        "kind": KIND,
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "machine": {**asdict(machine()), "system": platform.platform(), "architecture": architecture()},
        "gpu": gpu,
        "clocks": clocks.seen,
        "versions": _versions(),
        "timing": {
            "rounds": timing.rounds,
            "seconds": timing.seconds,
            "threads": timing.threads,
            "device": timing.device,
            "note": note,
        },
        "bundles": [_row(bundle, examined[bundle.name], times) for bundle in bundles],
    }
    return fields, times


def _time(
    wanted: Sequence[tuple[Bundle, int]], timing: TimingOptions, clocks: _Clocks, say: Say
) -> tuple[dict[tuple[str, int], WorkerResult], str]:
    """Return what was measured, and why nothing was where a worker failed."""
    if not wanted:
        return {}, ""
    workers = {
        f"{bundle.name}, batch {size}": engine_worker(
            bundle.engine.kind,
            bundle.engine.path,
            size,
            replace(timing, threads=bundle.threads_for(timing.threads)),
            bundle.engine.origin,
        )
        for bundle, size in wanted
    }

    def progress(step: str, done: int, total: int) -> None:
        if done >= len(workers) and (done - len(workers)) % len(workers) == 0:  # between rounds
            clocks.look()
        say(f"{step} ({done} of {total})" if done < total else step)

    clocks.look()
    try:
        results = alternate(workers, timing, progress)
    except EngineError as error:
        return {}, f"nothing was timed: {error}"
    return {(b.name, size): result for (b, size), result in zip(wanted, results.values(), strict=True)}, ""


class _Clocks:
    """What nvidia-smi says of the GPU before the first turn, between rounds, and after the last."""

    def __init__(self, number: int | None) -> None:
        self._number = number
        self.seen: list[dict[str, Any]] = []

    def look(self) -> None:
        if self._number is not None and (read := telemetry(self._number)) is not None:
            self.seen.append(read)


def _without_place(text: str, bundle: Bundle) -> str:
    """Return a message without where the folder lies, which is nobody else's business."""
    for place in (bundle.path.parent.parent, bundle.path.absolute().parent.parent):
        text = text.replace(f"{shown(place)}{os.sep}", "").replace(f"{place}{os.sep}", "")
    return text


def _gpu(bundles: Sequence[Bundle], device: str | None) -> dict[str, Any] | None:
    """Return the GPU that the bundles run on; None where none of them does."""
    if (device or "").startswith("cpu") or (
        device is None and all(engines.get(bundle.engine.kind).on_cpu for bundle in bundles)
    ):
        return None
    number = (device or "").partition(":")[2]
    chosen, gpus = int(number) if number.isdecimal() else 0, find_gpus().gpus
    if chosen >= len(gpus):
        return None
    driver = (telemetry(chosen) or {}).get("driver_version")
    return {**asdict(gpus[chosen]), "number": chosen, "driver": driver}


def _versions() -> dict[str, str | None]:
    found: dict[str, str | None] = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = None
    return found


def _row(bundle: Bundle, found: Examined | str, times: dict[tuple[str, int], WorkerResult]) -> dict[str, Any]:
    engine = bundle.engine
    row: dict[str, Any] = {
        # a name that is no UTF-8 goes into no JSON
        "name": os.fsencode(bundle.name).decode("utf-8", "backslashreplace"),
        "digest": bundle.digest,
        "model": bundle.model,
        "macs": int(bundle.fields["model"]["macs"]),
        "precision": bundle.precision,
        "engine": {
            "kind": engine.kind,
            "version": engine.origin.version,
            "target": engine.origin.target,
            "built_here": engine.here,
            "build_seconds": round(engine.seconds, 2),
        },
        "refused": found if isinstance(found, str) else None,
        "golden": None,
        "layers": None,
        "notes": [],
        "latencies": [],
    }
    if isinstance(found, str):
        return row
    layers = found.layers and {**found.layers, "layers": found.layers["layers"][:_LAYERS]}
    notes = [*found.notes, *([f"layers: {found.layers_note}"] if found.layers_note else [])]
    notes = [_without_place(note, bundle) for note in notes]
    latencies = [
        {"batch_size": size, **asdict(result)}
        for (name, size), result in times.items()
        if name == bundle.name
    ]
    return {**row, "golden": found.golden, "layers": layers, "notes": notes, "latencies": latencies}
