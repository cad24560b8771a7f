"""The layers of an engine as its runtime tells of them: the time of each, and where it tells, the types that they run in."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import engines

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np

    from engines import LayerTime

    from ..bundle import Bundle


def bundle_layers(bundle: Bundle, threads: int | None = None, device: str | None = None) -> dict[str, Any]:
    """Measure the layers of a bundle's engine on its golden images, in the batch that it is tuned for."""
    images = bundle.golden()[0]
    batch = images[[i % len(images) for i in range(bundle.batch_size)]]
    return measure_layers(
        engines.get(bundle.manifest.engine.kind),
        bundle.engine_path,
        bundle.model_path,
        batch,
        threads=threads,
        device=device,
        origin=bundle.origin,
    )


def measure_layers(
    engine: engines.Engine,
    engine_path: Path,
    model: Path,
    images: np.ndarray,
    *,
    threads: int | None = None,
    device: str | None = None,
    origin: engines.EngineOrigin | None = None,
) -> dict[str, Any]:
    """Ask an engine for its layers.

    Eight parameters: an engine's file, its graph and its input, and what it is opened with.

    Args:
        engine: the runtime.
        engine_path: the built engine.
        model: the graph that it was built from.
        images: a batch that it takes.
        threads: CPU threads; None leaves the choice to the runtime.
        device: as for `Engine.load`.
        origin: as for `Engine.load`.

    Returns:
        JSON values: `layers`, the slowest first; and `kept`, `raised` and `untold` products by ONNX node, whose layers run in
        the types of the graph, in higher ones, or do not tell; None for an engine that never tells. `census` is what its kernels
        say of it (`Engine.inspect_kernels`), None where they are not told.
    """
    from engines.graph_file import input_specs, product_types, read_model

    graph = read_model(model)
    feeds = {input_specs(graph)[0].name: images}
    layers = engine.layer_times(engine_path, feeds, threads=threads, device=device, origin=origin)
    if not engine.reports_types:
        return layer_table(engine, layers, {})
    try:
        _, census = engine.inspect_kernels(engine_path, model, feeds, device=device, origin=origin)
    except engines.EngineError:
        census = None
    return layer_table(engine, layers, product_types(graph), census)


def layer_table(
    engine: engines.Engine,
    layers: tuple[LayerTime, ...],
    asked: Mapping[str, str],
    census: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Return the layers of an engine as JSON values, as `measure_layers` does.

    Args:
        engine: the runtime.
        layers: as it tells of them.
        asked: the type of each product of the graph, by ONNX node (`engines.graph_file.product_types`).
        census: what its kernels say of it.
    """
    from engines.layer_types import check_precision

    if not engine.reports_types:
        rows = _rows(layers, _operator_row)
        return {"kept": None, "raised": None, "untold": None, "layers": rows, "census": None}
    products = check_precision(layers, asked)
    return {
        "kept": list(products.kept),
        "raised": list(products.raised),
        "untold": list(products.unknown),
        "layers": _rows(layers, _typed_row),
        "census": census,
    }


def _rows(layers: tuple[LayerTime, ...], row: Any) -> list[dict[str, Any]]:
    whole = sum(layer.ms or 0.0 for layer in layers)
    slowest = sorted(layers, key=lambda layer: -(layer.ms or 0.0))
    return [
        {**row(layer), "ms": layer.ms, "share": layer.ms / whole if layer.ms is not None and whole else None}
        for layer in slowest
    ]


def _operator_row(layer: LayerTime) -> dict[str, Any]:
    """A layer that tells no types: its operator stands in their place."""
    return {"layer": layer.layer, "types": [layer.operator], "tactic": ""}


def _typed_row(layer: LayerTime) -> dict[str, Any]:
    return {
        "layer": layer.layer,
        "kind": layer.operator,
        "types": list(layer.types),
        "tactic": layer.tactic,
        "nodes": list(layer.nodes),
    }
