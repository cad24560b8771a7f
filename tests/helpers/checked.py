"""What check.py of a folder writes, made up: a GPU, and bundles with the times that a test wants."""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

from sit_deploy.hashes import digest
from sit_deploy.precisions import TOLERANCE

ROUNDS = 3
GPU = {"name": "NVIDIA L4", "compute_capability": "sm89", "number": 0, "driver": "580.65"}


def stats(p50: float, batch: int = 1) -> dict[str, Any]:
    return {
        **{"p50_ms": p50, "p90_ms": 1.1 * p50, "p99_ms": 1.2 * p50, "mean_ms": p50, "min_ms": 0.9 * p50},
        **{"iterations": 30, "images_per_second": 1e3 * batch / p50},
    }


def latency(rounds: tuple[float, ...], batch: int = 1) -> dict[str, Any]:
    """Times by wall clock, and nine tenths of them by the GPU's."""
    on_gpu = [0.9 * ms for ms in rounds]
    return {
        "batch_size": batch,
        "stats": stats(statistics.median(rounds), batch),
        "round_medians_ms": list(rounds),
        "threads": 4,
        "cpus": [0, 1],
        "quiet": True,
        "gpu": stats(statistics.median(on_gpu), batch),
        "gpu_round_medians_ms": on_gpu,
        "histogram": {"edges_ms": [1.0, 2.0, 3.0], "counts": [10, 20]},
        "others": [0.0] * len(rounds),
        **{"pace": [0.9] * len(rounds), "in_flight": 1},
    }


def bundle(
    name: str, digest: str, precision: str = "int8", ms: tuple[float, ...] = (2.0, 2.0, 2.0), **fields: Any
) -> dict[str, Any]:
    tolerance = TOLERANCE[precision]
    golden = {"name": "golden output", "compared": True, "passed": True, "note": "", "error": tolerance / 2}
    golden |= {"step_error": tolerance / 2, "sqnr_db": 40.0, "agreement": 1.0, "tolerance": tolerance}
    engine = {
        "kind": "tensorrt-rtx",
        "version": "1.7.1.116",
        "target": "sm89",
        "built_here": False,
        "build_seconds": 3.5,
    }
    layers = {"kept": ["a", "b"], "raised": [], "untold": ["c"], "layers": [], "census": None}
    return {
        **{"name": name, "digest": digest, "model": "sit_nano", "macs": 45_000_000, "precision": precision},
        **{"engine": engine, "refused": None, "golden": golden, "layers": layers, "notes": []},
        **{"latencies": [latency(ms)], **fields},
    }


def fields(*bundles: dict[str, Any], **more: Any) -> dict[str, Any]:
    found = {
        **{"schema": 1, "kind": "sit-deploy check", "date": "2026-11-20T10:00:00+00:00"},
        "machine": {
            **{"cpu_model": "AMD EPYC", "logical_cpus": 8, "usable_cpus": 8, "load_average": 0.1},
            **{"system": "Linux-6.1.0-x86_64-with-glibc2.36", "architecture": "x86_64"},
        },
        "gpu": GPU,
        "clocks": [{"name": "NVIDIA L4", "clocks_sm": 2040.0, "clocks_mem": None}],
        "versions": {"python": "3.12.3", "tensorrt-rtx": "1.7.1.116", "onnx": None},
        "timing": {"rounds": ROUNDS, "seconds": 1.0, "threads": None, "device": None, "note": ""},
        "bundles": list(bundles),
        **more,
    }
    return {**found, "digest": digest(found)}


def write(path: Path, *bundles: dict[str, Any], **more: Any) -> Path:
    path.write_text(json.dumps(fields(*bundles, **more)))
    return path
