"""One bundle examined in a process of its own: its golden outputs, its engine's layers, and which batches it runs.

A process of its own, since a runtime may take its process with it, and since its idle threads would slow whatever is timed next.
"""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import engines
from engines.errors import EngineError, Error

from ..classifier import Classifier
from ..measure.layers import layer_table
from ..measure.parity import compare_golden
from .bundle import Bundle, open_bundle, open_engine


@dataclass(frozen=True)
class Examined:
    """What one bundle is like here.

    Attributes:
        golden: its hop (`measure.parity.Hop.to_dict`).
        layers: as `measure.layers.measure_layers`; None where the runtime does not tell.
        layers_note: why not.
        batch_sizes: that it ran.
        notes: of those that it did not run, and of its threads.
    """

    golden: dict[str, Any]
    layers: dict[str, Any] | None = None
    layers_note: str = ""
    batch_sizes: tuple[int, ...] = ()
    notes: list[str] = field(default_factory=list)


def examine(path: Path, threads: int | None = None, device: str | None = None) -> Examined:
    """Examine a bundle in this process.

    Raises:
        Error: it is changed, or does not run here.
    """
    bundle = open_bundle(path)
    engine, runtime = bundle.engine, engines.get(bundle.engine.kind)
    images, reference = bundle.golden_outputs()
    ran, notes = [], [*filter(None, [_threads_note(bundle, threads)])]
    threads = bundle.threads_for(threads)
    with Classifier(open_engine(bundle, threads, device), bundle.batch_range, bundle) as classifier:
        hop = compare_golden(classifier.outputs, images, reference, bundle.precision, random=bundle.is_random)
        (name, *_) = (spec.name for spec in classifier.runner.inputs)
        for size in bundle.batch_sizes:
            try:
                classifier.runner.infer({name: images[[i % len(images) for i in range(size)]]})
            except (EngineError, MemoryError) as error:
                notes.append(f"batch {size} does not run: {error}")
            else:
                ran.append(size)
    layers, note = None, ""
    if ran:
        feeds = {name: images[[i % len(images) for i in range(ran[len(ran) // 2])]]}
        try:
            told = runtime.layer_times(
                engine.path, feeds, threads=threads, device=device, origin=engine.origin
            )
            layers = layer_table(
                runtime, told, engine.nodes.types if engine.nodes else {}, _census(bundle, feeds, device)
            )
        except EngineError as error:
            note = str(error)
    return Examined(hop.to_dict(), layers, note, tuple(ran), notes)


def _threads_note(bundle: Bundle, asked: int | None) -> str | None:
    """Say on how many threads it is run and was built for; None where nobody said that, or it is run on those asked for."""
    built, run = bundle.threads, bundle.threads_for(asked)
    if built is None or run is None or (asked is not None and asked == built):
        return None
    count = "1 thread" if run == 1 else f"{run} threads"
    if run == built:
        return f"run on {count}, as it was built (build --threads)"
    return f"run on {count}, and built for {built} (build --threads)"


def _census(bundle: Bundle, feeds: dict[str, Any], device: str | None) -> dict[str, Any] | None:
    """Return what the engine's kernels say of it; None where that is not told."""
    engine, runtime = bundle.engine, engines.get(bundle.engine.kind)
    if engine.nodes is None:
        return None
    try:
        return runtime.inspect_kernels(engine.path, engine.nodes, feeds, device=device, origin=engine.origin)[
            1
        ]
    except EngineError:
        return None


def isolated(function: Callable[..., Any], *args: Any) -> Any:
    """Call a module-level function in a process of its own, and return what it returns.

    Raises:
        Error: it raised one, or its process died.
    """
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_call, args=(theirs, function, args), daemon=True)
    process.start()
    try:
        theirs.close()
        wait([ours, process.sentinel])
        try:
            if not ours.poll():
                raise EOFError
            kind, value = ours.recv()
        except (EOFError, OSError):
            process.join(10)
            status = process.exitcode
            how = (
                signal.Signals(-status).name if status is not None and status < 0 else f"exit status {status}"
            )
            raise EngineError(
                f"its process died ({how}): the runtime, or the memory of this machine"
            ) from None
        process.join(10)
    finally:
        ours.close()
        if process.is_alive():
            process.kill()
            process.join()
    if kind == "error":
        raise value
    if kind == "failed":
        raise EngineError(f"it failed: {value}")
    return value


def _call(connection: Connection, function: Callable[..., Any], args: tuple[Any, ...]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    try:
        connection.send(("value", function(*args)))
    except Error as error:
        connection.send(("error", error))
    except Exception as error:  # a runtime's bindings raise what they like
        connection.send(("failed", f"{type(error).__name__}: {' '.join(str(error).split())}"))
