"""Of what a bundle offers and a user asked for: its name in Triton, its backend, and its copies."""

from __future__ import annotations

from dataclasses import replace

import engines
from engines.graph_file import read_model, tensor_types
from sit_deploy.bundle import Bundle
from sit_deploy.errors import InputError
from sit_deploy.precisions import EIGHT_BITS
from sit_deploy.text import file_name
from sit_deploy.triton.config import BACKENDS, Serving, python_runtime
from sit_deploy.triton.copies import Copies


def holds_bf16(bundle: Bundle) -> bool:
    """Whether a bundle is in BF16, or has it beside 8 bits, which its graph alone tells."""
    precision = bundle.manifest.precision
    return precision == "bf16" or (
        precision in EIGHT_BITS and "bfloat16" in tensor_types(read_model(bundle.model_path))
    )


def choose_backend(bundle: Bundle, backend: str | None) -> str:
    """Return the backend for a bundle: the one asked for, or the one of its engine (of OpenVINO: our Python model).

    Raises:
        InputError: the bundle has no engine for it, or is in a precision that what would run it has no kernels for.
    """
    kind = bundle.manifest.engine.kind
    if backend is None and kind == "openvino":
        backend = "python"
    if backend is None:
        if kind not in BACKENDS:
            raise InputError(
                f"{bundle.path} holds an engine of {kind}, which is served by no backend here; pass --backend python or "
                "onnxruntime to serve its graph, or build with --engine tensorrt"
            )
        backend = kind
    if backend not in BACKENDS:
        raise InputError(f"--backend {backend} is not offered; choose {', '.join(BACKENDS)}")
    if backend == "tensorrt" and kind != "tensorrt":
        raise InputError(
            f"{bundle.path} holds an engine of {kind}, not of tensorrt; build one with --engine tensorrt"
        )
    if backend == "tensorrt" and not bundle.manifest.engine.has_weights:
        raise InputError(
            f"the engine of {bundle.path} holds no weights, and Triton cannot give it any; build it without --strip-weights"
        )
    _check_precision(bundle, backend)
    return backend


def _check_precision(bundle: Bundle, backend: str) -> None:
    """Refuse a bundle that the runtime of a backend has no kernels for: of Triton's own ONNX Runtime that is known of BF16 alone."""
    if backend == "tensorrt":
        return
    manifest = bundle.manifest
    runtime = engines.get(python_runtime(bundle) if backend == "python" else "onnxruntime")
    precision = manifest.precision
    # Triton's own ONNX Runtime may be one for GPUs
    if precision not in runtime.precisions and (backend == "python" or precision == "bf16"):
        what, remedy = f"in {precision}", "build one in fp32, fp16 or int8"
    elif "bf16" not in runtime.rests and holds_bf16(bundle):
        what, remedy = f"in {precision} with bf16 beside", "build one with --rest fp32 or fp16"
    else:
        return
    if manifest.engine.kind == "openvino":
        remedy = f"leave --backend out, which serves its own engine on OpenVINO, or {remedy}"
    raise InputError(f"{bundle.path} is {what}, which {runtime.title} has no CPU kernels for; {remedy}")


def default_name(bundle: Bundle) -> str:
    """Return the name of a bundle's model in Triton: its model and precision."""
    name = f"{bundle.manifest.model.name}_{bundle.manifest.precision}"
    return file_name(name).replace("-", "_")


def serving_for(
    bundle: Bundle, serving: Serving, name: str | None, backend: str | None, copies: Copies | None = None
) -> Serving:
    """Return how one of several bundles is served: with its own name and backend where none is asked for.

    Args:
        bundle: that is served.
        serving: what all have in common.
        name: of the model.
        backend: that runs it.
        copies: how many of it and on how many threads, instead of those of `serving`.

    Raises:
        InputError: the bundle has no engine for the backend, or the copies cannot be.
    """
    backend = choose_backend(bundle, backend)
    found = replace(serving, name=name or default_name(bundle), backend=backend)
    if copies is None:
        return found
    instances, threads = copies.of(bundle, backend)
    return replace(found, instances=instances, threads=threads)
