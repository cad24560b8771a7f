"""Bias correction: the mean error of each of a layer's outputs is taken off its bias.

Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias Correction", arXiv 1906.04721.
"""

from __future__ import annotations

from collections.abc import Mapping

import onnx

from calibration.graph_editor import GraphEditor, add_bias, find_bias
from calibration.layer_error import LayerError


def correct_biases(model: onnx.ModelProto, errors: Mapping[str, LayerError]) -> onnx.ModelProto:
    """Return a graph whose layers no longer err on average: the mean error goes from the bias of each.

    It is the bias correction of Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias Correction", arXiv
    1906.04721.

    Args:
        model: the float32 graph or the one with Q/DQ. A layer without a bias is left alone, as an Add would cost time.
        errors: of each layer, as `measure_layer_errors` gives them.
    """
    graph = GraphEditor(model)
    for name, error in errors.items():
        node = graph.node(name)
        if error.mean is not None and find_bias(graph, node) is not None:
            add_bias(graph, node, -error.mean)
    return graph.finish()
