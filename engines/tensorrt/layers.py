"""What a TensorRT engine does layer by layer: the engine inspector's and the profiler's word, and whether it is what was asked.

The inspector's JSON (`IEngineInspector`, NVIDIA TensorRT developer guide, "Engine inspector") is {"Layers": [...]}; a layer is an
object where the engine was built with detailed profiling, else its name alone. "Metadata" names the ONNX nodes it came from.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING, Any

from engines.errors import EngineError

if TYPE_CHECKING:
    import onnx

_NODE = re.compile(r"\[ONNX Layer: ([^\]]*)\]")
# spellings of 8.6 ("Row major linear FP16 format") and of later releases ("Half")
_TYPES = (
    ("bfloat16", re.compile(r"\b(BF16|BFloat16)\b", re.I)),
    ("float16", re.compile(r"\b(FP16|Half)\b", re.I)),
    ("float8_e4m3fn", re.compile(r"\b(FP8|E4M3)\b", re.I)),
    ("int8", re.compile(r"\bInt8\b", re.I)),
    ("float32", re.compile(r"\b(FP32|Float)\b", re.I)),
    ("int32", re.compile(r"\bInt32\b", re.I)),
    ("int64", re.compile(r"\bInt64\b", re.I)),
    ("bool", re.compile(r"\bBool\b", re.I)),
)
_PRODUCTS = ("MatMul", "Gemm", "Conv")
LOW = ("float16", "bfloat16", "int8", "float8_e4m3fn")


@dataclass(frozen=True)
class LayerInfo:
    """A layer of an engine.

    types: of its inputs and outputs, by numpy's names, empty where the engine does not tell. nodes: the ONNX nodes in it.
    """

    name: str
    kind: str = ""
    types: tuple[str, ...] = ()
    tactic: str = ""
    nodes: tuple[str, ...] = ()


@dataclass(frozen=True)
class PrecisionCheck:
    """The graph's products against the engine's layers, by ONNX node.

    kept: run in the type that the graph has. raised: the graph is low there, and the layer holds nothing of that type.
    untold: no layer names them, or it tells no types.
    """

    kept: tuple[str, ...]
    raised: tuple[str, ...]
    untold: tuple[str, ...]


def read_layers(text: str) -> list[LayerInfo]:
    """Parse what `TensorRTRunner.inspect_layers` returned.

    Raises:
        EngineError: it is no inspector's JSON.
    """
    try:
        layers = json.loads(text)["Layers"]
        return [_layer(layer) for layer in layers]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise EngineError(
            f"the engine inspector's answer cannot be read ({type(error).__name__}); build with --profiling detailed"
        ) from error


def asked_types(model: onnx.ModelProto) -> dict[str, str]:
    """The type that each product (MatMul, Gemm, Conv) of a graph computes in: of its inputs, or of the Q/DQ before it."""
    from onnx import helper, shape_inference

    graph = shape_inference.infer_shapes(model).graph
    types = {tensor.name: tensor.data_type for tensor in graph.initializer}
    for value in (*graph.input, *graph.value_info, *graph.output):
        types[value.name] = value.type.tensor_type.elem_type
    made_by = {output: node for node in graph.node for output in node.output}

    def name(kind: int) -> str:
        return helper.tensor_dtype_to_np_dtype(kind).name

    asked = {}
    for node in graph.node:
        if node.op_type not in _PRODUCTS:
            continue
        sources = [made_by.get(tensor) for tensor in node.input[:2]]
        if all(source is not None and source.op_type == "DequantizeLinear" for source in sources):
            asked[node.name] = name(types[sources[0].input[0]])
        elif types.get(node.input[0]):
            asked[node.name] = name(types[node.input[0]])
    return asked


def check_precision(layers: list[LayerInfo], asked: Mapping[str, str]) -> PrecisionCheck:
    """Hold an engine's layers to the types that its graph asks for."""
    by_node: dict[str, list[LayerInfo]] = {}
    for layer in layers:
        for node in layer.nodes:
            by_node.setdefault(node, []).append(layer)
    kept, raised, untold = [], [], []
    for node, wanted in asked.items():
        if wanted not in LOW:
            continue
        told = [layer for layer in by_node.get(node, []) if layer.types]
        if not told:
            untold.append(node)
        elif any(wanted in layer.types for layer in told):
            kept.append(node)
        else:
            raised.append(node)
    return PrecisionCheck(tuple(kept), tuple(raised), tuple(untold))


def make_profiler(trt: ModuleType) -> Any:
    """An `IProfiler`; `milliseconds` is the sum of each layer's times, `runs` how often it was reported."""

    class Profiler(trt.IProfiler):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            trt.IProfiler.__init__(self)
            self.milliseconds: dict[str, float] = {}
            self.runs: dict[str, int] = {}

        def report_layer_time(self, layer_name: str, ms: float) -> None:
            self.milliseconds[layer_name] = self.milliseconds.get(layer_name, 0.0) + ms
            self.runs[layer_name] = self.runs.get(layer_name, 0) + 1

    return Profiler()


def table(layers: list[LayerInfo], milliseconds: Mapping[str, float]) -> list[dict[str, Any]]:
    """Rows for a report, the slowest first: layer, kind, types, tactic, nodes, ms and share of the time; JSON values."""
    total = sum(milliseconds.values())
    known = {layer.name: layer for layer in layers}
    names = [*known, *(name for name in milliseconds if name not in known)]
    rows = []
    for name in names:
        layer, ms = known.get(name, LayerInfo(name)), milliseconds.get(name)
        rows.append(
            {
                "layer": name,
                "kind": layer.kind,
                "types": list(layer.types),
                "tactic": layer.tactic,
                "nodes": list(layer.nodes),
                "ms": ms,
                "share": ms / total if ms is not None and total else None,
            }
        )
    return sorted(rows, key=lambda row: -(row["ms"] or 0.0))


def node_names(text: str) -> list[str]:
    """The ONNX nodes that a library's text about a layer names."""
    return _NODE.findall(text)


def type_name(text: str) -> str:
    """A type as the library spells it, by numpy's name; "" for one that is not known."""
    return next((name for name, pattern in _TYPES if pattern.search(text)), "")


def _layer(layer: Any) -> LayerInfo:
    if isinstance(layer, str):
        return LayerInfo(layer, nodes=tuple(_NODE.findall(layer)))
    tensors = [*(layer.get("Inputs") or ()), *(layer.get("Outputs") or ())]
    types = [_type(tensor) for tensor in tensors]
    return LayerInfo(
        name=layer["Name"],
        kind=layer.get("LayerType", ""),
        types=tuple(dict.fromkeys(kind for kind in types if kind)),
        tactic=str(layer.get("TacticName") or layer.get("TacticValue") or ""),
        nodes=tuple(dict.fromkeys(_NODE.findall(layer.get("Metadata") or ""))),
    )


def _type(tensor: Mapping[str, Any]) -> str:
    return type_name(" ".join(str(tensor.get(key, "")) for key in ("Format/Datatype", "Datatype")))
