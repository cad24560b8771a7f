"""`sit-deploy bench`: a bundle's engine and the PyTorch reference timed turn about, each in a process of its own."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import engines
from engines.timing import EngineCall, WorkerSpec, alternate, machine, ratio
from sit_deploy.bundle import Bundle, load_bundle
from sit_deploy.doctor import versions
from sit_deploy.errors import InputError
from sit_deploy.reference import reference_model, reference_weights


class TorchCall:
    """A worker's callable that runs the bundle's PyTorch model on one random batch, on the CPU."""

    def __init__(self, bundle: Path, checkpoint: Path | None, batch_size: int, threads: int | None) -> None:
        import torch

        if threads:
            torch.set_num_threads(threads)
        self._model = reference_model(load_bundle(bundle), checkpoint)
        self._images = torch.randn(
            batch_size, 3, *self._model.img_size, generator=torch.Generator().manual_seed(0)
        )

    def __call__(self) -> None:
        import torch

        with torch.inference_mode():
            self._model(self._images)


def bench(
    bundle: Bundle,
    *,
    engine: str | None = None,
    batch_size: int | None = None,
    rounds: int = 10,
    seconds: float = 1.0,
    threads: int | None = None,
    checkpoint: Path | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> dict[str, Any]:
    """Time the engine against PyTorch eager; return statistics of both, their ratio by round, and the machine.

    Args:
        engine: "onnxruntime" runs the graph of a TensorRT bundle on this CPU instead of its engine.
        batch_size: images a run, within what the engine takes; what it is tuned for by default.
        rounds, seconds: turns of each side, and the length of a turn.
    Raises:
        InputError: a batch that the engine does not take, or reference weights that are not there.
        engines.NoGpuError: an engine that needs a GPU, without one.
        engines.EngineError: arguments out of range, or a worker that failed.
    """
    batch = bundle.batch_size if batch_size is None else batch_size
    low, high = bundle.batch_range
    if not low <= batch <= high:
        takes = str(low) if low == high else f"{low} to {high}"
        raise InputError(
            f"the engine of {bundle.path} takes batches of {takes}, not {batch}; pass such a --batch-size"
        )
    kind = bundle.manifest["engine"]["kind"]
    checkpoint = checkpoint and checkpoint.absolute()
    with tempfile.TemporaryDirectory(prefix="sit-deploy-") as folder:
        path = bundle.engine_path
        if engine not in (None, kind):
            if engine != "onnxruntime":
                raise InputError(
                    f"{bundle.path} holds a {kind} engine; --engine can be {kind} or onnxruntime"
                )
            kind, path = engine, Path(folder) / "engine.onnx"
            engines.get(kind).build(bundle.model_path, path, engines.BuildOptions(threads=threads))
        # says at once, and not from inside a worker, that the weights are gone or the engine cannot run here
        reference_weights(bundle, checkpoint)
        engines.get(kind).load(path, threads=threads).close()
        workers = {
            "PyTorch": WorkerSpec(TorchCall, (bundle.path.absolute(), checkpoint, batch, threads), batch),
            kind: WorkerSpec(EngineCall, (kind, path.absolute(), batch, threads), batch),
        }
        results = alternate(workers, rounds, seconds, progress=progress)
    speedup = ratio(results["PyTorch"], results[kind])
    return {
        "bundle": str(bundle.path),
        "model": bundle.manifest["model"]["name"],
        "precision": bundle.manifest["precision"],
        "batch_size": batch,
        "threads": threads,
        "results": {name: asdict(result) for name, result in results.items()},
        "speedup": {
            "engine": kind,
            "over": "PyTorch",
            "median": speedup.median,
            "per_round": list(speedup.per_round),
        },
        "machine": asdict(machine()),
        "versions": versions(),
    }
