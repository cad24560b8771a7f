"""Other token counts for an exported graph, whose every shape is written down in it.

A token count stands in a graph in two places: in integers (of Reshape and the like) and as a dimension of constants (the last
Linear of a TSM has an output for every token that is kept). Where an exported graph has both nowhere but there, as its count was
chosen to be like no other number in it, a graph of another count is this one with the numbers replaced.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from calibration.graph_editor import GraphEditor


def retoken(model: onnx.ModelProto, counts: Mapping[int, int], prefix: int) -> onnx.ModelProto:
    """Return a graph with other token counts.

    Args:
        model: a static graph; it is not changed.
        counts: of patch tokens, the old ones to the new ones.
        prefix: tokens beside them in every block, which stay.

    Raises:
        onnx.checker.ValidationError, onnx.shape_inference.InferenceError: a count stands where it is not looked for.
    """
    numbers = {old + more: new + more for old, new in counts.items() for more in (0, prefix)}
    graph = GraphEditor(model)
    for tensor in graph.model.graph.initializer:
        values = numpy_helper.to_array(tensor)
        if tensor.data_type == TensorProto.INT64:
            new = np.vectorize(lambda value: numbers.get(value, value), otypes=[np.int64])(values)
        elif numbers.keys() & set(values.shape):
            new = np.resize(values, [numbers.get(size, size) for size in values.shape])
        else:
            continue
        tensor.CopyFrom(numpy_helper.from_array(new.reshape(new.shape), tensor.name))
    return graph.finish()
