"""What `gpu.py` times: one model at one batch size in one runtime, and how a call is timed on a GPU (or, for a try, a CPU)."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

import engines
from engines.latency import LatencyStats

ROUNDS = 3
WARM_UP_CALLS = 3
CALIBRATION_IMAGES = 16
LONGEST_REASON = 300  # characters


@dataclass
class Candidate:
    """A runtime of one model.

    Attributes:
        on_device: images on the device → logits there.
        end_to_end: host memory to host memory.
        runtime: what it is, where that is not what was asked for.
        notes: what did not go as asked.
    """

    on_device: Callable[[torch.Tensor], Any]
    end_to_end: Callable[[np.ndarray], Any]
    close: Callable[[], None] = lambda: None
    runtime: str | None = None
    notes: Callable[[], list[str]] = list


class DeviceLostError(Exception):
    """The GPU takes no more work from this process."""


@dataclass
class Cell:
    """The times of a candidate at a batch size, or why there are none.

    Attributes:
        runtime: what ran.
        asked: the runtime that was asked for, where another was built.
        note: what else did not go as asked.
    """

    model: str
    runtime: str
    batch: int
    skipped: str | None = None
    device_seconds: list[list[float]] = field(default_factory=list)  # by round
    end_to_end_seconds: list[list[float]] = field(default_factory=list)
    asked: str | None = None
    note: str | None = None

    def medians(self) -> list[float]:
        return [statistics.median(slice_) for slice_ in self.device_seconds]

    def images_per_second(self) -> float:
        return self.batch / statistics.median(self.medians())

    def to_dict(self) -> dict[str, Any]:
        """JSON values; statistics in milliseconds."""
        base = {"model": self.model, "runtime": self.runtime, "batch": self.batch, "skipped": self.skipped}
        base |= {"asked": self.asked, "note": self.note}
        if self.skipped:
            return base
        return {
            **base,
            "device": _stats(self.device_seconds, self.batch),
            "end_to_end": _stats(self.end_to_end_seconds, self.batch),
            "images_per_second": self.images_per_second(),
            "round_medians_ms": [1e3 * median for median in self.medians()],
        }


def _stats(rounds: list[list[float]], batch: int) -> dict[str, float]:
    # the median is that of the images a second and of the ratios
    found = LatencyStats.from_rounds(rounds, batch)
    return {"p50_ms": found.p50_ms, "p90_ms": found.p90_ms, "p99_ms": found.p99_ms, "calls": found.iterations}


def low_type(device: torch.device) -> torch.dtype:
    """FP16; on a CPU, whose FP16 is slow and partly missing, BF16, which only tries the code out."""
    return torch.float16 if device.type == "cuda" else torch.bfloat16


def torch_candidate(model: torch.nn.Module, device: torch.device, compiled: bool) -> Candidate:
    """PyTorch in low precision, channels last; compiled with CUDA graphs where there are some."""
    dtype = low_type(device)
    module = model.to(device, dtype, memory_format=torch.channels_last)
    if compiled:
        module = torch.compile(
            module, mode="reduce-overhead" if device.type == "cuda" else None, dynamic=False
        )

    def run(images: torch.Tensor) -> torch.Tensor:
        with torch.inference_mode():
            return module(images.to(dtype, memory_format=torch.channels_last))

    def whole(images: np.ndarray) -> np.ndarray:
        host = torch.from_numpy(images)
        if device.type == "cuda":
            host = host.pin_memory()
        return run(host.to(device, non_blocking=True)).float().cpu().numpy()

    return Candidate(run, whole)


def autocast_candidate(model: torch.nn.Module, device: torch.device) -> Candidate:
    """PyTorch as LeViT's protocol has it: FP32 weights under automatic mixed precision."""
    module = model.to(device, torch.float32)
    dtype = low_type(device)

    def run(images: torch.Tensor) -> torch.Tensor:
        with torch.inference_mode(), torch.autocast(device.type, dtype):
            return module(images)

    return Candidate(run, lambda images: run(torch.from_numpy(images).to(device)).float().cpu().numpy())


def tensorrt_candidate(
    kind: str, name: str, precision: str, batches: tuple[int, ...], folder: Path, device: str
) -> Candidate:
    """An engine that `sit-deploy build` makes here, of random weights, for all batch sizes, tuned for the middle one.

    One that is in the folder already, from before a crash, is taken as it is.
    """
    from sit_deploy.bundle import load_bundle
    from sit_deploy.pipeline.build import build
    from sit_deploy.pipeline.request import BuildRequest

    ordered, output = sorted(batches), folder / f"{name}-{precision}-{kind}"
    if output.is_dir():
        bundle = load_bundle(output)
    else:
        bundle = build(
            BuildRequest(
                name,
                output,
                precision=precision,
                engine=kind,
                # scales do not decide how fast it is
                calib_images=None if precision == "fp16" else CALIBRATION_IMAGES,
                dynamic_batch=(ordered[0], ordered[len(ordered) // 2], ordered[-1]),
                targets=("current",) if kind == "tensorrt-rtx" else (),
            )
        )
    runner = engines.get(kind).load(bundle.engine_path, device=device, origin=bundle.origin)
    (images,) = (spec.name for spec in runner.inputs)

    made: dict[
        torch.Size, Any
    ] = {}  # written over by the next call, as what a compiled model's CUDA graph returns is

    def run(tensor: torch.Tensor) -> Any:
        made[tensor.shape] = runner.infer_device({images: tensor}, made.get(tensor.shape))
        return made[tensor.shape]

    built = bundle.manifest.precision
    return Candidate(
        run,
        lambda array: runner.infer({images: array}),
        runner.close,
        None if built == precision else f"{kind} {built}",
        lambda: list(runner.notes),
    )


def one_line(error: BaseException) -> str:
    """What went wrong, short enough for a table."""
    text = " ".join(f"{type(error).__name__}: {error}".split())
    return text if len(text) <= LONGEST_REASON else f"{text[: LONGEST_REASON - 1]}…"


def why_failed(error: Exception, device: torch.device) -> str:
    """Return the reason that a row gives for an error.

    Raises:
        DeviceLostError: the error took the GPU from this process.
    """
    full = isinstance(error, torch.OutOfMemoryError | MemoryError)
    reason = "out of memory" if full else one_line(error)
    if device.type == "cuda":
        try:
            torch.cuda.synchronize(device)
            torch.zeros(1, device=device).item()
        except Exception:  # whatever it is: nothing runs any more
            raise DeviceLostError(reason) from error
    return reason


def time_turn_about(
    cells: list[Cell],
    candidates: list[Candidate],
    device: torch.device,
    image_size: tuple[int, int],
    seconds: float,
    begin: Callable[[Cell], None] = lambda _: None,
) -> None:
    """Time the candidates of one model and batch size in rounds, each for its share of `seconds` a round; fills the cells.

    Whatever a candidate raises is a result: its cell says so.

    Args:
        cells: one for each candidate; those that are skipped already are left alone.
        candidates: what is timed.
        device: where.
        image_size: height and width.
        seconds: of a cell, all rounds together.
        begin: is told whose turn it is.

    Raises:
        DeviceLostError: by the candidate that `begin` was told of last.
    """
    batch = cells[0].batch
    host = images = None
    for turn in range(ROUNDS):
        for cell, candidate in zip(cells, candidates, strict=True):
            if cell.skipped:
                continue
            begin(cell)
            try:
                if images is None:  # too many for memory is a result too
                    host = np.random.default_rng(0).standard_normal((batch, 3, *image_size), dtype=np.float32)
                    images = torch.from_numpy(host).to(device)
                if turn == 0:
                    _warm_up(candidate, images, device)
                share = seconds / ROUNDS
                cell.device_seconds.append(
                    _time_on_device(lambda c=candidate, x=images: c.on_device(x), device, share)
                )
                cell.end_to_end_seconds.append(_time(lambda c=candidate, x=host: c.end_to_end(x), share / 2))
                if notes := candidate.notes():
                    cell.note = "; ".join(notes)
            except Exception as error:
                cell.skipped = why_failed(error, device)


def _warm_up(candidate: Candidate, images: torch.Tensor, device: torch.device) -> None:
    """Until a call takes no longer than the one before, and at least a few: compilers and clocks settle in the meantime."""
    before = float("inf")
    for call in range(50):
        (now,) = _time_on_device(lambda: candidate.on_device(images), device, 0.0)
        if call >= WARM_UP_CALLS and now > 0.95 * before:
            return
        before = now


def _time_on_device(call: Callable[[], Any], device: torch.device, seconds: float) -> list[float]:
    """Seconds of each call by the GPU's own clock, of a CPU by its; calls are enqueued a few at a time."""
    if device.type != "cuda":
        return _time(call, seconds)
    found: list[float] = []
    stop = time.perf_counter() + seconds
    while not found or time.perf_counter() < stop:
        pairs = []
        for _ in range(1 if seconds == 0 else 10):
            started, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            started.record()
            call()
            ended.record()
            pairs.append((started, ended))
        torch.cuda.synchronize(device)
        found += [started.elapsed_time(ended) / 1e3 for started, ended in pairs]
    return found


def _time(call: Callable[[], Any], seconds: float) -> list[float]:
    found: list[float] = []
    stop = time.perf_counter() + seconds
    while not found or time.perf_counter() < stop:
        started = time.perf_counter()
        call()
        found.append(time.perf_counter() - started)
    return found


def matmul_peak(device: torch.device, sizes: tuple[int, ...] = (4096, 8192, 16384)) -> dict[str, float]:
    """The best rate of square low-precision products, in FLOP/s, and the size that gave it."""
    best = {"flops": 0.0, "size": 0}
    for size in sizes if device.type == "cuda" else (512,):
        a, b = (torch.randn(size, size, device=device).to(low_type(device)) for _ in range(2))
        _time_on_device(lambda a=a, b=b: a @ b, device, 0.1)
        seconds = statistics.median(_time_on_device(lambda a=a, b=b: a @ b, device, 0.3))
        if 2 * size**3 / seconds > best["flops"]:
            best = {"flops": 2 * size**3 / seconds, "size": size}
    return best
