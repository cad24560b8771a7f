"""Normalisation in the graph: callers send pixels as they are decoded, a quarter of the bytes of float32."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

if TYPE_CHECKING:
    from sit_deploy.preprocessing import Preprocessing


def take_pixels(model: onnx.ModelProto, preprocessing: Preprocessing) -> onnx.ModelProto:
    """Return a graph that normalises by itself: its input, under the same name, is uint8 (batch, H, W, 3).

    The operations are those of `Preprocessing.normalise`, in float32 and in the same order, so that what comes out of
    them is equal to the bit. The Cast comes first: it is the only thing that TensorRT does with a uint8 input.

    Args:
        model: a graph of one float32 input (batch, 3, H, W), whatever its precision is behind that; not changed.
        preprocessing: whose normalisation it is.
    """
    result = onnx.ModelProto()
    result.CopyFrom(model)
    graph = result.graph
    (images,) = graph.input
    name = images.name
    batch, channels, height, width = images.type.tensor_type.shape.dim
    normalised = f"{name}/normalised"
    for node in graph.node:
        node.input[:] = [normalised if i == name else i for i in node.input]

    def per_channel(what: str, values: tuple[float, ...]) -> str:
        array = np.array(values, np.float32).reshape(1, -1, 1, 1)
        graph.initializer.append(numpy_helper.from_array(array, f"{name}/{what}"))
        return f"{name}/{what}"

    graph.initializer.append(numpy_helper.from_array(np.float32(255), f"{name}/255"))
    mean, std = per_channel("mean", preprocessing.mean), per_channel("std", preprocessing.std)
    steps = (
        ("Cast", "float", (name,), {"to": TensorProto.FLOAT}),
        ("Transpose", "nchw", (f"{name}/float",), {"perm": [0, 3, 1, 2]}),
        ("Div", "scaled", (f"{name}/nchw", f"{name}/255"), {}),
        ("Sub", "centred", (f"{name}/scaled", mean), {}),
        ("Div", "normalised", (f"{name}/centred", std), {}),
    )
    front = [
        helper.make_node(kind, list(inputs), [f"{name}/{step}"], f"{name}/{step}", **attributes)
        for kind, step, inputs, attributes in steps
    ]
    rest = list(graph.node)
    del graph.node[:]
    graph.node.extend([*front, *rest])
    shape = images.type.tensor_type.shape
    dims = [onnx.TensorShapeProto.Dimension() for _ in range(4)]
    for new, old in zip(dims, (batch, height, width, channels), strict=True):
        new.CopyFrom(old)
    del shape.dim[:]
    shape.dim.extend(dims)
    images.type.tensor_type.elem_type = TensorProto.UINT8
    return onnx.shape_inference.infer_shapes(result, strict_mode=True, data_prop=True)
