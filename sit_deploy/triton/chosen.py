"""Of what a bundle offers and a user asked for: its name in Triton, its backend, and its copies."""

from __future__ import annotations

from dataclasses import replace

import engines
from sit_deploy.bundle import Bundle
from sit_deploy.errors import InputError
from sit_deploy.triton.config import BACKENDS, Serving
from sit_deploy.triton.copies import Copies


def choose_backend(bundle: Bundle, backend: str | None) -> str:
    """Return the backend for a bundle: the one asked for, or the one of its engine.

    Raises:
        InputError: the bundle has no engine for it.
    """
    kind, precision = bundle.manifest.engine.kind, bundle.manifest.precision
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
    if backend == "python" and precision not in engines.get("onnxruntime").precisions:
        raise InputError(
            f"{bundle.path} is in {precision}, which ONNX Runtime has no CPU kernels for; build one in fp32, fp16 or int8"
        )
    return backend


def default_name(bundle: Bundle) -> str:
    """Return the name of a bundle's model in Triton: its model and precision."""
    return f"{bundle.manifest.model.name}_{bundle.manifest.precision}".replace("-", "_")


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
