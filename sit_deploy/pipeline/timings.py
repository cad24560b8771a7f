"""Where the times of a tuning are kept, and what they hold for."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from engines import cpu
from engines.timing import machine
from sit_deploy import __version__
from sit_deploy.bundle import TIMINGS
from sit_deploy.pipeline.calibration import Quantization
from sit_deploy.pipeline.request import BuildRequest
from sit_deploy.pipeline.work import Work
from sit_deploy.tune.cache import Circumstances, Timings, load_timings

if TYPE_CHECKING:
    from calibration.cache import Calibration


def open_timings(work: Work, quantization: Quantization) -> Timings:
    """Open the file of timings beside the calibration cache, or take over that of the bundle which is replaced."""
    request, calibration, host = work.request, quantization.calibration, machine()
    assert work.engine is not None and calibration is not None
    where = Circumstances(
        cpu=host.cpu_model,
        cpus=host.usable_cpus,
        tool=f"sit-deploy {__version__}",
        engine=f"{work.engine.kind} {work.engine.probe().version}",
        threads=request.threads,
        batch=request.usual_batch,
        dynamic=request.dynamic_batch,
        graph=calibration.graph,
        instructions=" ".join(cpu.instructions()),
        limit=cpu.onednn_limit() or "",
    )
    method = quantization.quantizer.method
    return Timings(
        where,
        _calibration_key(calibration, method),
        timings_path(request.calib_cache),
        [request.output / TIMINGS],
    )


def _calibration_key(calibration: Calibration, method: str) -> str:
    """Return what errors hold for: all that a calibration observed and how images were prepared for it; not where they lay, nor who did it."""
    from calibration.cache import digest  # with NumPy

    observed = {**asdict(calibration), "tool": "", "images": calibration.images.key, "method": method}
    return digest(observed)[:16]


def check_timings(request: BuildRequest) -> None:
    """Refuse a damaged file of timings before any work.

    Raises:
        InputError: the file that the build would read is one.
    """
    beside = timings_path(request.calib_cache)
    for path in (*([beside] if beside else []), request.output / TIMINGS):
        if path.exists():
            load_timings(path)
            return


def timings_path(cache: Path | None) -> Path | None:
    """Return where timings are kept beside a calibration cache."""
    return None if cache is None else cache.with_name(f"{cache.stem}.timings.json")
