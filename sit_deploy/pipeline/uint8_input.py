"""A graph that takes pixels (--input uint8): the normalisation is written into it, and it is compared again."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from sit_deploy.bundle import MODEL
from sit_deploy.graph.write import write_graph
from sit_deploy.measure.parity import compare, require
from sit_deploy.pipeline.lower import LoweredGraph, simulated_outputs
from sit_deploy.pipeline.work import Work
from sit_deploy.precisions import TOLERANCE


def with_input(work: Work, lowered: LoweredGraph, folder: Path) -> LoweredGraph:
    """Return the graph with the input asked for, written to `folder` as model.onnx where that changes it."""
    from sit_deploy.graph import lint
    from sit_deploy.graph.pixels import take_pixels

    request = work.request
    if request.input == "float32":
        return lowered
    with work.step("Putting the normalisation into the graph"):
        graph = take_pixels(lowered.graph, lowered.preprocessing)
        lint.check(graph, max_opset=request.opset, dynamic_batch=bool(request.dynamic_batch))
        compared = lowered.float_graph.compared
        # as the graph before it was compared
        values = simulated_outputs(graph, compared.pixels, request.batch_range, folder)
        write_graph(graph, folder / MODEL)
        tolerance = TOLERANCE[request.precision]
        hop = compare("uint8 input", values, lowered.values, compared.reference, tolerance)
        work.hops.append(hop)
        require(work.hops)
    return replace(lowered, graph=graph, values=values, takes_pixels=True)
