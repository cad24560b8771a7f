"""The layers of a TensorRT engine: what its inspector says they are, and how long its profiler says they take.

The inspector's JSON (`IEngineInspector`, NVIDIA TensorRT developer guide, "Engine inspector") is {"Layers": [...]}; a layer is an
object where the engine was built with detailed profiling, else its name alone. "Metadata" names the ONNX nodes it came from.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import ModuleType
from typing import Any

from engines.base import LayerTime
from engines.errors import EngineError

_NODE = re.compile(r"\[ONNX Layer: ([^\]]*)\]")
# TensorRT 8.6 shows what it fuses so as one layer, the blocks of a whole transformer: its inputs and outputs are the borders, which
# a graph keeps in float32, and say nothing of what is inside
MYELIN = "Myelin"
# spellings of 8.6 ("Row major linear FP16 format") and of later releases ("Half")
_TYPES = (
    ("bfloat16", re.compile(r"\b(BF16|BFloat16)\b", re.I)),
    ("float16", re.compile(r"\b(FP16|Half)\b", re.I)),
    ("float8_e4m3fn", re.compile(r"\b(FP8|E4M3)\b", re.I)),
    ("int8", re.compile(r"\bInt8\b", re.I)),
    ("uint8", re.compile(r"\bUInt8\b", re.I)),
    ("float32", re.compile(r"\b(FP32|Float)\b", re.I)),
    ("int32", re.compile(r"\bInt32\b", re.I)),
    ("int64", re.compile(r"\bInt64\b", re.I)),
    ("bool", re.compile(r"\bBool\b", re.I)),
)


def read_layers(text: str) -> list[LayerTime]:
    """Parse what `TensorRTRunner.inspect_layers` returned; nothing is timed yet.

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


def make_profiler(trt: ModuleType) -> Any:
    """An `IProfiler`: `milliseconds` is the sum of each layer's times, `runs` how often it was reported."""

    class Profiler(trt.IProfiler):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            trt.IProfiler.__init__(self)
            self.milliseconds: dict[str, float] = {}
            self.runs: dict[str, int] = {}

        def report_layer_time(self, layer_name: str, ms: float) -> None:
            self.milliseconds[layer_name] = self.milliseconds.get(layer_name, 0.0) + ms
            self.runs[layer_name] = self.runs.get(layer_name, 0) + 1

        def mean_milliseconds(self) -> dict[str, float]:
            return {name: total / self.runs[name] for name, total in self.milliseconds.items()}

    return Profiler()


def timed(layers: Sequence[LayerTime], milliseconds: Mapping[str, float]) -> tuple[LayerTime, ...]:
    """Give layers their times; what was timed and is none of them comes last, with its name alone."""
    known = {layer.layer for layer in layers}
    return (
        *(replace(layer, ms=milliseconds.get(layer.layer)) for layer in layers),
        *(LayerTime(name, "", ms) for name, ms in milliseconds.items() if name not in known),
    )


def node_names(text: str) -> list[str]:
    """The ONNX nodes that a library's text about a layer names."""
    return _NODE.findall(text)


def type_name(text: str) -> str:
    """A type as the library spells it, by numpy's name; "" for one that is not known."""
    return next((name for name, pattern in _TYPES if pattern.search(text)), "")


def _layer(layer: Any) -> LayerTime:
    if isinstance(layer, str):
        return LayerTime(layer, "", None, nodes=tuple(_NODE.findall(layer)))
    tensors = [*(layer.get("Inputs") or ()), *(layer.get("Outputs") or ())]
    types = [_type(tensor) for tensor in tensors]
    return LayerTime(
        layer=layer["Name"],
        operator=layer.get("LayerType", ""),
        ms=None,
        types=()
        if layer.get("LayerType") == MYELIN
        else tuple(dict.fromkeys(kind for kind in types if kind)),
        tactic=str(layer.get("TacticName") or layer.get("TacticValue") or ""),
        nodes=tuple(dict.fromkeys(_NODE.findall(layer.get("Metadata") or ""))),
    )


def _type(tensor: Mapping[str, Any]) -> str:
    return type_name(" ".join(str(tensor.get(key, "")) for key in ("Format/Datatype", "Datatype")))
