"""The scale and shift of LayerNorms, moved into the products that read them: on some runtimes they are a kernel of their own.

    W·(γ·x + β) + b = (W·diag γ)·x + (W·β + b)

in float64, rounded to float32 once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx

from calibration.graph_editor import GraphEditor, add_bias
from calibration.smoothquant import find_smoothing_sites

if TYPE_CHECKING:
    from engines.base import Engine


def float_form(model: onnx.ModelProto, engine: Engine | None) -> onnx.ModelProto:
    """Return the form of a float32 graph that an engine without 8 bits is best made of; the graph itself where it is none's in particular.

    In 8 bits the scales of norms are what channels are smoothed by, and are one kernel with the quantization.
    """
    return fold_norms(model) if engine is not None and engine.norms_cost_a_scaling else model


def fold_norms(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a float32 graph whose LayerNorms only normalise, where nothing but products with weights reads what they give.

    Names, inputs and outputs stay. A norm that scales by 1 and shifts by 0 is such a one already; the graph itself is
    returned where all are.

    Args:
        model: a float32 graph; it is not changed.
    """
    graph, folded = GraphEditor(model), 0
    for site in find_smoothing_sites(model):
        norm = graph.node(site.source)
        if norm.op_type != "LayerNormalization":
            continue
        gamma, beta = (graph.constant(name).astype(np.float64) for name in norm.input[1:3])
        shifts, scales = bool(beta.any()), bool((gamma != 1).any())
        if not shifts and not scales:
            continue
        for name in site.readers:
            product = graph.node(name)
            weight = graph.constant(product.input[1]).astype(np.float64)
            columns = weight.T if any(a.name == "transB" and a.i for a in product.attribute) else weight
            scaled = columns * gamma[:, None]
            if shifts:
                add_bias(graph, product, beta @ columns)
            if scales:
                stored = scaled if columns is weight else scaled.T
                graph.replace_constant(product, 1, stored.astype(np.float32))
        del norm.input[2:]
        if scales:
            graph.replace_constant(norm, 1, np.ones(len(gamma), np.float32))
        folded += 1
    return graph.finish() if folded else model
