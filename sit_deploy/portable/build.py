"""Building the engine of a bundle where it will run, from its model.onnx: full TensorRT builds nowhere else."""

from __future__ import annotations

import json
import platform
from dataclasses import asdict
from pathlib import Path
from typing import Any

import engines
from engines.errors import EngineBuildError, EngineNotInstalledError, NoGpuError
from engines.files import move_in, partial_folder, uninterrupted
from engines.gpus import device_number, find_gpus
from engines.graph_file import GraphNodes
from engines.install import pip_install

from ..errors import InputError
from ..hashes import digest, sha256
from .bundle import SCHEMA, Bundle, architecture, built_folder

KINDS = ("tensorrt", "tensorrt-rtx")


def choose_kind(asked: str | None) -> str:
    """Return what is built with: what was asked for, else full TensorRT where it is installed, else TensorRT-RTX.

    Raises:
        EngineError: it is not installed, or there is no GPU.
    """
    if asked is not None and asked not in KINDS:
        raise InputError(f"--engine must be {' or '.join(KINDS)}, got {asked!r}")
    try:
        import onnx  # noqa: F401
    except ImportError:
        raise EngineNotInstalledError(
            "--build reads ONNX files, and onnx is not installed", f"run {pip_install('onnx')}"
        ) from None
    supports = [engines.get(kind).probe() for kind in ([asked] if asked else KINDS)]
    for support in supports:
        if support.can_build and support.can_run:
            return support.kind
    installed = [support for support in supports if support.installed]
    if not installed:
        wanted = asked or "tensorrt"
        raise EngineNotInstalledError(
            f"--build needs {engines.get(wanted).title}, which is not installed",
            f"run {pip_install(wanted, 'pycuda')}",
        )
    if not find_gpus():
        raise NoGpuError(
            f"--build builds for the GPU of this machine, and none can be used here ({find_gpus().reason}); run it where one is"
        )
    raise EngineBuildError(f"--build cannot use what is installed here: {installed[0].reason}")


def require_device(device: str | None) -> None:
    """Refuse, before anything is built, a GPU that is not there.

    Args:
        device: "cuda" or "cuda:N"; the first by default.

    Raises:
        NoGpuError: there are GPUs, and not this one.
    """
    gpus, number = find_gpus().gpus, device_number(device)
    if gpus and number >= len(gpus):
        there = ", ".join(f"cuda:{place} ({gpu.name})" for place, gpu in enumerate(gpus))
        raise NoGpuError(f"there is no GPU {device} for --build; pass --device as one of {there}")


def _capability(device: str | None) -> tuple[str, ...]:
    """Return the compute capability of a GPU that is here; none where there is no GPU at all.

    An engine for many GPUs is slower on each, and by default it leaves the oldest out.
    """
    require_device(device)
    gpus = find_gpus().gpus
    return (gpus[device_number(device)].compute_capability,) if gpus else ()


def build_here(bundle: Bundle, kind: str, device: str | None = None) -> Path:
    """Build the engine of a bundle for the GPU of this machine; it appears whole or not at all, in place of an earlier one.

    Args:
        bundle: whose graph it is.
        kind: of `choose_kind`.
        device: "cuda" or "cuda:N", for a library that builds for named GPUs; the first by default. Full TensorRT builds for the first.

    Returns:
        Its folder, which `open_bundle` finds.

    Raises:
        EngineError: it cannot be built.
    """
    engine = engines.get(kind)
    if bundle.precision not in engine.precisions:
        raise EngineBuildError(f"{bundle.name}: {engine.title} has no {bundle.precision} kernels")
    model = bundle.path / "model.onnx"
    targets = _capability(device) if engine.builds_anywhere else ()
    options = engines.BuildOptions(
        dynamic_batch=bundle.dynamic_batch,
        compute_capabilities=engine.targets_with(bundle.precision, targets),
    )
    place = built_folder(bundle.path)
    try:
        place.parent.mkdir(exist_ok=True)
        with partial_folder(place) as folder:
            info = engine.build(model, folder / engine.filename, options)
            facts: dict[str, Any] = {
                "schema": SCHEMA,
                "bundle": bundle.digest,
                "kind": info.kind,
                "version": info.version,
                "target": info.target,
                "details": info.details,
                "file": info.filename,
                "sha256": sha256(folder / info.filename),
                "seconds": info.build_seconds,
                "built_on": [platform.system(), architecture()],
                "nodes": asdict(GraphNodes.of(model)),
            }
            facts["digest"] = digest(facts)
            text = json.dumps(facts, indent=2, ensure_ascii=False, allow_nan=False)
            (folder / "built.json").write_text(text + "\n", encoding="utf-8")
            with uninterrupted():
                move_in(folder, place, replace=True)
    except OSError as error:
        raise InputError(
            f"{bundle.name}: cannot write {place} ({error.strerror or error}); copy the folder to where it can be written"
        ) from None
    return place
