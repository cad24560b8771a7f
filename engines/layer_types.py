"""Whether an engine's layers run in the types that its graph asks for, by ONNX node."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from engines.base import LayerTime

LOW_PRECISION_TYPES = ("float16", "bfloat16", "int8", "float8_e4m3fn")


@dataclass(frozen=True)
class PrecisionCheck:
    """The graph's low-precision products against the engine's layers.

    Attributes:
        kept: run in the type that the graph has.
        raised: the graph is low there, and the layer holds nothing of that type.
        unknown: no layer names them, or it tells no types.
    """

    kept: tuple[str, ...]
    raised: tuple[str, ...]
    unknown: tuple[str, ...]


def check_precision(layers: Sequence[LayerTime], asked: Mapping[str, str]) -> PrecisionCheck:
    """Hold layers to the types that their graph asks for.

    Args:
        layers: of an engine whose layers tell types and nodes.
        asked: the type of each product, by ONNX node (`graph_file.product_types`).
    """
    by_node: dict[str, list[LayerTime]] = {}
    for layer in layers:
        for node in layer.nodes:
            by_node.setdefault(node, []).append(layer)
    kept, raised, unknown = [], [], []
    for node, wanted in asked.items():
        if wanted not in LOW_PRECISION_TYPES:
            continue
        typed = [layer for layer in by_node.get(node, []) if layer.types]
        if not typed:
            unknown.append(node)
        elif any(wanted in layer.types for layer in typed):
            kept.append(node)
        else:
            raised.append(node)
    return PrecisionCheck(tuple(kept), tuple(raised), tuple(unknown))
