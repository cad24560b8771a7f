"""TensorRT's types by numpy's names, and the types of a weakly typed network.

TensorRT 8.6 has no strongly typed networks: left alone it would run any layer of a float16 graph in whatever is fastest. So
every layer is told the types that the ONNX graph gives its outputs, and the builder to prefer them (NVIDIA TensorRT 8.6 developer
guide, "Layer-level control of precision"). To obey them would end a build where a fusion has no kernel of just these types;
preferred, they give way there alone, with a warning, and what came of it shows when the engine runs.
"""

from __future__ import annotations

from typing import Any

from engines.errors import EngineBuildError
from engines.tensorrt.library import Library

_NAMES = {
    "FLOAT": "float32",
    "HALF": "float16",
    "BF16": "bfloat16",
    "FP8": "float8_e4m3fn",
    "INT4": "int4",
    "INT8": "int8",
    "UINT8": "uint8",
    "INT32": "int32",
    "INT64": "int64",
    "BOOL": "bool",
}

# Layers that compute nothing in a floating-point type of their own, or whose types are theirs to say.
_UNTYPED = frozenset(
    {"CONSTANT", "SHAPE", "CAST", "QUANTIZE", "DEQUANTIZE", "IDENTITY", "ASSERTION", "PLUGIN_V2"}
)


def numpy_type(dtype: Any) -> str:
    """A `DataType` by numpy's (or ml_dtypes') name: HALF is "float16"."""
    return _NAMES.get(dtype.name, dtype.name.lower())


def network_flags(library: Library) -> int:
    """The creation flags of a network: strongly typed where that has to be said, else with the batch explicit."""
    features, flags = library.features, library.trt.NetworkDefinitionCreationFlag
    if features.strong_typing:
        return 1 << int(flags.STRONGLY_TYPED) if features.typing_flag else 0
    return 1 << int(flags.EXPLICIT_BATCH) if features.explicit_batch_flag else 0


def require_types(library: Library, types: set[str]) -> None:
    """Refuse a graph with types that the library has none of.

    Raises:
        EngineBuildError: names the precision that it has.
    """
    title, features = library.title, library.features
    if "bfloat16" in types and not features.bf16:
        raise EngineBuildError(f"{title} here has no bfloat16; build with --precision fp16")
    if "float8_e4m3fn" in types and not (features.fp8 and features.strong_typing):
        raise EngineBuildError(f"{title} here has no FP8 networks; build with --precision int8")


def constrain(library: Library, network: Any, config: Any, types: set[str]) -> int:
    """Make a weakly typed network keep the types of its graph; returns how many layers were told theirs.

    Args:
        library: that builds.
        network: of the builder.
        config: likewise.
        types: of all tensors of the ONNX graph, by numpy's names.
    """
    trt = library.trt
    if "float16" in types:
        config.set_flag(trt.BuilderFlag.FP16)
    if "int8" in types:
        config.set_flag(trt.BuilderFlag.INT8)  # scales are in the graph's Q/DQ, so no calibrator is asked
    config.set_flag(trt.BuilderFlag.PREFER_PRECISION_CONSTRAINTS)
    constrained = 0
    for index in range(network.num_layers):
        layer = network.get_layer(index)
        if layer.type.name in _UNTYPED:
            continue
        outputs = [layer.get_output(i) for i in range(layer.num_outputs)]
        floats = [tensor.dtype for tensor in outputs if tensor.dtype.name in ("FLOAT", "HALF")]
        if not floats:
            continue
        layer.precision = floats[0]
        for i, tensor in enumerate(outputs):
            if tensor.dtype.name in ("FLOAT", "HALF"):
                layer.set_output_type(i, tensor.dtype)
        constrained += 1
    return constrained
