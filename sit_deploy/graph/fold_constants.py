"""Computes once what an exported graph would compute of its weights alone at every run."""

from __future__ import annotations

import onnx
from onnx import ModelProto, helper, numpy_helper


def fold_constants(model: ModelProto) -> None:
    """Replace every node that depends on no input of the graph by what it gives, in place.

    The exporter folds small ones. Left are tables of relative positions, and positions resized to an image.
    """
    graph = model.graph
    constant = {tensor.name for tensor in graph.initializer}
    folded, kept = [], []
    for node in graph.node:
        known = all(not name or name in constant for name in node.input)
        (folded if known else kept).append(node)
        if known:
            constant.update(node.output)
    if not folded:
        return
    read = {name for node in kept for name in node.input} | {value.name for value in graph.output}
    wanted = [name for node in folded for name in node.output if name in read]
    used = {name for node in folded for name in node.input}
    part = helper.make_model(
        helper.make_graph(
            folded,
            "constants",
            [],
            [helper.make_empty_tensor_value_info(name) for name in wanted],
            [tensor for tensor in graph.initializer if tensor.name in used],
        ),
        opset_imports=model.opset_import,
        ir_version=min(model.ir_version, 10),
    )
    for name, value in zip(wanted, _run(part), strict=True):
        graph.initializer.append(numpy_helper.from_array(value, name))
    del graph.node[:]
    graph.node.extend(kept)


def _run(model: ModelProto) -> list:
    import onnxruntime

    inferred = onnx.shape_inference.infer_shapes(model)  # the types of what is asked for
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(
        inferred.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return session.run(None, {})
