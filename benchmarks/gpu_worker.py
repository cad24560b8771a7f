"""A process of its own for each model that `gpu.py` times, and who watches it: a crash or a hang costs a row, not the run.

The worker says what it is about to do and how long that may take, and sends each row when it has it. Where it dies, or is silent for
longer, the runtime that it was busy with is left out, and another worker goes on with the rest. Engines that were built are kept.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

START_SECONDS = 120.0  # until a worker has imported what it needs
BUILD_SECONDS = 180.0  # of an engine or a model
COMPILE_SECONDS = 150.0  # of torch.compile, for one shape
STEP_SECONDS = 30.0  # of one turn of timing, besides the timing itself
CLOSE_SECONDS = 10.0
EAGER, COMPILED, AMP = "pytorch eager", "pytorch compiled", "pytorch amp"
OUT_OF_TIME = "out of time"


@dataclass(frozen=True)
class Job:
    """What is timed of a model.

    Attributes:
        model: its name.
        device: PyTorch's name of where.
        batches: sizes of each runtime, by its name.
        seconds: timing of a cell.
        folder: for engines and graphs.
        deadline: by `time.monotonic`; nothing is built or compiled after it.
        stop: by the same clock; nothing is timed after it.
        left_out: why, by the name of a runtime that is not tried at all.
    """

    model: str
    device: str
    batches: dict[str, tuple[int, ...]]
    seconds: float
    folder: Path
    deadline: float
    stop: float
    left_out: dict[str, str] = field(default_factory=dict)

    def cells(self) -> Iterator[tuple[str, int]]:
        """Yield runtime and batch size of every row, in the order of rows."""
        for batch in sorted({size for sizes in self.batches.values() for size in sizes}):
            yield from ((runtime, batch) for runtime, sizes in self.batches.items() if batch in sizes)


@dataclass(frozen=True)
class Doing:
    """What a worker is busy with: a runtime, and how many seconds it may be silent."""

    runtime: str
    seconds: float


@dataclass(frozen=True)
class Lost:
    """The GPU takes no more work from the worker."""

    reason: str


Maker = Callable[[Job, str], Any]  # a runtime of a model → its Candidate


def make_candidate(job: Job, runtime: str) -> Any:
    """Make a runtime of a model, by its name: of PyTorch, or "ENGINE PRECISION"."""
    import torch

    from benchmarks.gpu_cells import autocast_candidate, tensorrt_candidate, torch_candidate
    from benchmarks.random_weights import random_model

    device = torch.device(job.device)
    if runtime == AMP:
        return autocast_candidate(random_model(job.model), device)
    if runtime in (EAGER, COMPILED):
        return torch_candidate(random_model(job.model), device, runtime == COMPILED)
    kind, precision = runtime.split(" ")
    return tensorrt_candidate(kind, job.model, precision, job.batches[runtime], job.folder, job.device)


# ------------------------------------------------------------------------------------------------------- in the worker


def work(connection: Connection, function: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    """Be a worker: a group of its own, so that whatever it starts ends with it."""
    os.setsid()
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    function(connection.send, *arguments)
    connection.send(None)


def time_model(
    tell: Callable[[Any], None], job: Job, done: set[tuple[str, int]], failed: dict[str, str], make: Maker
) -> None:
    """Time what is left of a model, at each batch size all runtimes in turns.

    Args:
        tell: takes `Doing`, `Lost`, and a `Cell` for each row.
        job: what is timed.
        done: rows that are there already.
        failed: runtimes that are not tried again, and why.
        make: makes a runtime.
    """
    from benchmarks.gpu_cells import DeviceLostError

    candidates: dict[str, Any] = {}
    try:
        _make_all(tell, job, done, failed, candidates, make)
        for batch in sorted({size for _, size in job.cells()}):
            todo = [r for r, size in job.cells() if size == batch and (r, size) not in done]
            _time_batch(tell, job, batch, todo, failed, candidates, make)
    except DeviceLostError as error:
        tell(Lost(f"{error}; the GPU was lost to the process"))
        return
    for runtime, candidate in candidates.items():
        tell(Doing(runtime, CLOSE_SECONDS))
        with contextlib.suppress(Exception):  # everything is told by now
            candidate.close()


def _make_all(
    tell: Callable[[Any], None], job: Job, done: set, failed: dict, candidates: dict, make: Maker
) -> None:
    import torch

    from benchmarks.gpu_cells import why_failed

    for runtime, sizes in job.batches.items():
        if runtime in (COMPILED, AMP) or runtime in failed or all((runtime, size) in done for size in sizes):
            continue  # a compiled one is made for each shape
        if time.monotonic() > job.deadline:
            failed[runtime] = OUT_OF_TIME
            continue
        tell(Doing(runtime, BUILD_SECONDS))
        try:
            candidates[runtime] = make(job, runtime)
        except Exception as error:  # a runtime that cannot take the model is a result of the comparison
            failed[runtime] = why_failed(error, torch.device(job.device))


def _time_batch(
    tell: Callable[[Any], None],
    job: Job,
    batch: int,
    todo: list[str],
    failed: dict[str, str],
    candidates: dict[str, Any],
    make: Maker,
) -> None:  # its arguments are the state of a worker
    import torch

    from benchmarks.gpu_cells import Candidate, Cell, time_turn_about, why_failed
    from sit_deploy.models.catalog import get_config

    device, size = torch.device(job.device), get_config(job.model).image_size
    row, here = [], []
    for runtime in todo:
        candidate = candidates.get(runtime)
        cell = Cell(job.model, runtime, batch, failed.get(runtime))
        if cell.skipped is None and time.monotonic() > (job.stop if candidate else job.deadline):
            cell.skipped = OUT_OF_TIME
        if cell.skipped is None and candidate is None:
            tell(Doing(runtime, COMPILE_SECONDS))
            try:
                candidate = make(job, runtime)
            except Exception as error:  # as above
                cell.skipped = why_failed(error, device)
        if candidate is not None and candidate.runtime:
            cell.runtime, cell.asked = candidate.runtime, runtime
        row.append(cell)
        here.append(candidate or Candidate(print, print))

    def begin(cell: Any) -> None:
        more = COMPILE_SECONDS if cell.runtime == COMPILED and not cell.device_seconds else STEP_SECONDS
        tell(Doing(cell.asked or cell.runtime, more + 3 * job.seconds))

    if row:
        time_turn_about(row, here, device, (size, size), job.seconds, begin)
        torch.compiler.reset()
    for cell in row:
        tell(cell)


def time_levit(
    tell: Callable[[Any], None], job: Job, done: set[tuple[str, int]], failed: dict[str, str], make: Maker
) -> None:
    """LeViT's protocol: AMP on FP32 weights, the largest of 256, 128, ... images that fits, throughput alone."""
    from dataclasses import replace

    from benchmarks.gpu_cells import DeviceLostError

    ((runtime, (batch,)),) = job.batches.items()
    cells: list[Any] = []

    def keep(message: Any) -> None:
        tell(message) if isinstance(message, Doing) else cells.append(message)

    try:
        while True:
            _time_batch(keep, replace(job, batches={runtime: (batch,)}), batch, [runtime], failed, {}, make)
            if cells[-1].skipped != "out of memory" or batch == 1:
                break
            batch //= 2
    except DeviceLostError as error:
        tell(Lost(f"{error}; the GPU was lost to the process"))
        return
    tell(cells[-1])


def facts(tell: Callable[[Any], None], name: str) -> None:
    """Tell a device's name, what it is doing, and its matmul peak, as a dictionary."""
    import torch

    from benchmarks.gpu_cells import matmul_peak
    from engines.gpus import telemetry_of
    from engines.timing import machine

    device = torch.device(name)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    on_gpu = device.type == "cuda"
    shown = torch.cuda.get_device_name(device) if on_gpu else machine().cpu_model
    tell({"name": shown, "telemetry": telemetry_of(name), "peak": matmul_peak(device)})


def trial(tell: Callable[[Any], None], kind: str, folder: str) -> None:
    """Tell why an engine cannot serve this GPU, or an empty text: one product is built and run, which takes seconds."""
    from benchmarks.gpu_machine.jobs import one_layer

    try:
        tell(one_layer("current" if kind == "tensorrt-rtx" else "default", folder, kind).get("failed", ""))
    except Exception as error:
        from benchmarks.gpu_cells import one_line

        tell(one_line(error))


# ---------------------------------------------------------------------------------------------------- who watches it


class Worker:
    """A process that calls a function of a module, and what it sends.

    Args:
        function: is called with what takes messages, and the arguments.
        arguments: for it; all of it can be pickled.
    """

    def __init__(self, function: Callable[..., None], arguments: tuple[Any, ...]) -> None:
        # forked from a process that has imported PyTorch and has never touched the GPU: there at once, and clean
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["benchmarks.gpu_cells"])
        self._connection, theirs = context.Pipe(duplex=False)
        self._process = context.Process(target=work, args=(theirs, function, arguments))
        self._process.start()
        theirs.close()

    def receive(self, seconds: float) -> tuple[Any, str | None]:
        """Return the next message, None at the end; or why there is none."""
        try:
            if self._connection.poll(max(0.0, seconds)):
                return self._connection.recv(), None
        except (EOFError, OSError):
            self._process.join(CLOSE_SECONDS)
            return None, _ending(self._process.exitcode)
        return None, f"no answer for {seconds:.0f} s"

    def kill(self) -> None:
        """End it and whatever it started."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.kill()
        self._process.join()
        self._connection.close()


def _ending(status: int | None) -> str:
    if status is not None and status < 0:
        return f"its process died of {signal.Signals(-status).name}"
    return "its process ended" + ("" if status is None else f" with status {status}")


def watch(
    job: Job,
    tell: Callable[[Any], None],
    stop: float,
    *,
    make: Maker = make_candidate,
    time_it: Callable[..., None] = time_model,
) -> dict[str, str]:
    """Have a model timed, whatever happens to the processes that do it.

    Args:
        job: what is timed.
        tell: takes a `Cell` for each row of the job, as it comes.
        stop: by `time.monotonic`: a worker that is still busy then is ended.
        make: makes a runtime; of a module, so that a worker finds it.
        time_it: what the worker does.

    Returns:
        Runtimes that took their process with them, and how.
    """
    from benchmarks.gpu_cells import Cell

    done: set[tuple[str, int]] = set()
    failed, crashed = dict(job.left_out), {}
    while True:
        worker = Worker(time_it, (job, done, failed, make))
        busy: Doing | None = None
        try:
            while True:
                left = stop - time.monotonic()
                limit = busy.seconds if busy else START_SECONDS
                message, why = worker.receive(min(limit, left))
                if why is None and message is None:
                    return crashed
                if isinstance(message, Doing):
                    busy = message
                elif isinstance(message, Cell):
                    done.add((message.asked or message.runtime, message.batch))
                    tell(message)
                else:
                    why = why or message.reason
                    break
        finally:
            worker.kill()
        over = time.monotonic() >= stop
        left_rows = [key for key in job.cells() if key not in done]
        if time_it is time_levit and done:  # its batch size is another than the one asked for
            left_rows = []
        if over or busy is None or busy.runtime in failed or not left_rows:
            for runtime, batch in left_rows:
                tell(Cell(job.model, runtime, batch, failed.get(runtime, OUT_OF_TIME if over else why)))
            return crashed
        failed[busy.runtime] = crashed[busy.runtime] = why


def ask(function: Callable[..., None], arguments: tuple[Any, ...], seconds: float) -> tuple[Any, str | None]:
    """Return the one message of a function that runs in a process of its own, or why there is none."""
    worker = Worker(function, arguments)
    try:
        return worker.receive(seconds)
    finally:
        worker.kill()
