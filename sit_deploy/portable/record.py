"""Everything that check.py measures of the bundles of a folder, as the JSON that `sit-deploy report --measured` takes."""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import engines
from engines.errors import EngineError, Error, WorkerError
from engines.gpus import device_number, find_gpus, telemetry
from engines.timing import TimingOptions, WorkerResult, alternate, engine_worker, machine

from ..text import shown, utf8_text
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
    bundles: Sequence[Bundle],
    timing: TimingOptions,
    say: Say = lambda _: None,
    unbuilt: Mapping[str, str] | None = None,
) -> tuple[dict[str, Any], dict[tuple[str, int], WorkerResult]]:
    """Examine bundles one by one, then time all that run turn about, each batch size in a process of its own.

    A script that calls this needs `if __name__ == "__main__":`.

    Args:
        bundles: of one folder.
        timing: the turns; no round times nothing.
        say: called with what is being done.
        unbuilt: why an engine that was to be built here is not there, by the name of its bundle, which is not examined then.

    Returns:
        The fields of the JSON without its digest, and what was timed, by name of the bundle and batch size.
    """
    examined: dict[str, Examined | str] = {}
    for bundle in bundles:
        if why := (unbuilt or {}).get(bundle.name):
            examined[bundle.name] = _without_place(why, bundle)
            continue
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
        "bundles": [_row(bundle, examined[bundle.name], times, timing.rounds) for bundle in bundles],
    }
    return fields, times


def _time(
    wanted: Sequence[tuple[Bundle, int]], timing: TimingOptions, clocks: _Clocks, say: Say
) -> tuple[dict[tuple[str, int], WorkerResult], str]:
    """Return what was measured, and why some or all of it was not: a worker that fails is left out, and the others begin anew."""
    places = {f"{bundle.name}, batch {size}": (utf8_text(bundle.name), size) for bundle, size in wanted}
    workers = {
        name: engine_worker(
            bundle.engine.kind,
            bundle.engine.path,
            size,
            replace(timing, threads=bundle.threads_for(timing.threads)),
            bundle.engine.origin,
        )
        for name, (bundle, size) in zip(places, wanted, strict=True)
    }

    def progress(step: str, done: int, total: int) -> None:
        if done >= len(workers) and (done - len(workers)) % len(workers) == 0:  # between rounds
            clocks.look()
        say(f"{step} ({done} of {total})" if done < total else step)

    results: dict[str, WorkerResult] = {}
    failed: list[str] = []
    while workers and not results:
        clocks.seen.clear()
        clocks.look()
        try:
            results = alternate(workers, timing, progress)
        except WorkerError as error:
            failed.append(str(error))
            del workers[error.worker]
        except EngineError as error:
            failed.append(str(error))
            break
    what = "not all was timed" if results else "nothing was timed"
    note = _without_place(f"{what}: {'; '.join(failed)}", wanted[0][0]) if failed else ""
    return {places[name]: result for name, result in results.items()}, note


class _Clocks:
    """What nvidia-smi says of the GPU before the first turn, between rounds, and after the last."""

    def __init__(self, number: int | None) -> None:
        self._number = number
        self.seen: list[dict[str, Any]] = []

    def look(self) -> None:
        if self._number is not None and (read := telemetry(self._number)) is not None:
            self.seen.append(read)


def _without_place(text: str, bundle: Bundle) -> str:
    """Return a message as it goes into JSON, without where the folder lies, which is nobody else's business."""
    for place in (bundle.path.parent.parent, bundle.path.absolute().parent.parent):
        text = text.replace(f"{shown(place)}{os.sep}", "").replace(f"{place}{os.sep}", "")
    return shown(text)


def _gpu(bundles: Sequence[Bundle], device: str | None) -> dict[str, Any] | None:
    """Return the GPU that the bundles run on; None where none of them does."""
    if (device or "").startswith("cpu") or (
        device is None and all(engines.get(bundle.engine.kind).on_cpu for bundle in bundles)
    ):
        return None
    chosen, gpus = device_number(device), find_gpus().gpus
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


def _row(
    bundle: Bundle, found: Examined | str, times: dict[tuple[str, int], WorkerResult], rounds: int
) -> dict[str, Any]:
    engine = bundle.engine
    row: dict[str, Any] = {
        "name": utf8_text(bundle.name),  # others go into no JSON
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
        "untimed": [],
    }
    if isinstance(found, str):
        return row
    layers = found.layers and {**found.layers, "layers": found.layers["layers"][:_LAYERS]}
    notes = [*found.notes, *([f"layers: {found.layers_note}"] if found.layers_note else [])]
    notes = [_without_place(note, bundle) for note in notes]
    latencies = [
        {"batch_size": size, **asdict(result)}
        for (name, size), result in times.items()
        if name == utf8_text(bundle.name)
    ]
    timed = {latency["batch_size"] for latency in latencies}
    untimed = [size for size in found.batch_sizes if size not in timed] if rounds else []
    told = {"notes": notes, "latencies": latencies, "untimed": untimed}
    return {**row, "golden": found.golden, "layers": layers, **told}
