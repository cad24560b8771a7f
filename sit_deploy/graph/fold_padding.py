"""Gives the pooling what an exported graph pads for it: -infinity around a maximum, which ONNX's MaxPool means by its own padding."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import ModelProto, helper, numpy_helper

_SPATIAL = 2  # dimensions of an image behind (batch, channels)


def fold_padding(model: ModelProto) -> None:
    """Make one MaxPool of every Pad with -infinity and the MaxPool that alone reads it, in place; the values are the same.

    TensorFlow's "same" padding, of hybrid models' stems, is written so by PyTorch. As a constant, -infinity is a weight that no
    lower precision holds.
    """
    graph = model.graph
    constants = {tensor.name: tensor for tensor in graph.initializer}
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    outputs = {value.name for value in graph.output}
    folded = []
    for node in graph.node:
        pads = _pads(node, constants)
        read = readers.get(node.output[0], [])
        if pads is None or node.output[0] in outputs or len(read) != 1 or read[0].op_type != "MaxPool":
            continue
        if _take(read[0], pads):
            read[0].input[0] = node.input[0]
            folded.append(node)
    for node in folded:
        graph.node.remove(node)
    left = {name for node in graph.node for name in node.input}
    unused = [
        tensor
        for node in folded
        for name in node.input[1:]
        if (tensor := constants.get(name)) and name not in left
    ]
    for name in dict.fromkeys(tensor.name for tensor in unused):
        graph.initializer.remove(constants[name])


def _pads(node: onnx.NodeProto, constants: dict[str, onnx.TensorProto]) -> list[int] | None:
    """Return what a node pads height and width by, (top, left, bottom, right), with -infinity; None of any other node."""
    mode = next((a.s for a in node.attribute if a.name == "mode"), b"constant")
    if (
        node.op_type != "Pad"
        or mode != b"constant"
        or len(node.input) < 3
        or (len(node.input) > 3 and node.input[3])
    ):
        return None
    if not {node.input[1], node.input[2]} <= constants.keys():
        return None
    pads, value = (numpy_helper.to_array(constants[name]) for name in node.input[1:3])
    half = len(pads) // 2
    if half != 2 + _SPATIAL or not np.isneginf(value).all() or (pads < 0).any():
        return None
    before, after = pads[:half].tolist(), pads[half:].tolist()
    return None if any(before[:2] + after[:2]) else [*before[2:], *after[2:]]


def _take(pool: onnx.NodeProto, pads: list[int]) -> bool:
    """Add to the padding of a MaxPool; say whether it can have so much, which must be less than its window."""
    known = {a.name: a for a in pool.attribute}
    if "auto_pad" in known and known["auto_pad"].s not in (b"", b"NOTSET"):
        return False
    window = list(known["kernel_shape"].ints)
    own = list(known["pads"].ints) if "pads" in known else [0] * (2 * _SPATIAL)
    whole = [one + more for one, more in zip(own, pads, strict=True)]
    dilations = list(known["dilations"].ints) if "dilations" in known else [1] * _SPATIAL
    rounds_up = "ceil_mode" in known and known["ceil_mode"].i
    if (
        rounds_up
        or any(d != 1 for d in dilations)
        or any(p >= k for p, k in zip(whole, window * 2, strict=True))
    ):
        return False
    kept = [a for a in pool.attribute if a.name != "pads"]
    del pool.attribute[:]
    pool.attribute.extend([*kept, helper.make_attribute("pads", whole)])
    return True
