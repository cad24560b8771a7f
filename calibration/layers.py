"""What of a graph can be quantized: its products and its residual sums, each in the group that a plan decides on."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

import onnx

from calibration.errors import CalibrationError
from calibration.graph_editor import shapes_of

# By what the exporter calls nodes: the path of the module that they come from.
_GROUPS = (
    ("stem", r"stem/"),
    ("qkv", r"blocks\.\d+/attn/(qkv|q|kv)$"),
    ("proj", r"blocks\.\d+/attn/proj$"),
    ("fc1", r"blocks\.\d+/mlp/fc1(_[gx])?$"),
    ("fc2", r"blocks\.\d+/mlp/fc2$"),
    ("tsm", r"tsm\.\d+/fc[12]$"),
    ("pool", r"pool/"),
    ("head", r"head$"),
    ("attention", r"blocks\.\d+/attn/matmul"),
    ("aggregation", r"tsm\.\d+/matmul"),
    ("residual", r"blocks\.\d+/add"),
)
_OF_ACTIVATIONS = ("attention", "aggregation", "residual")
# what the deploy form calls its rotary positions, and what merges tokens without training: which ones, small errors would change
_LEFT_OUT = ("positions/", "reduction.")
GROUPS = tuple(name for name, _ in _GROUPS)
_CHANNEL_AXIS = {"MatMul": 1, "Gemm": 1, "Conv": 0}  # of weights; a Gemm may have its own transposed


@dataclass(frozen=True)
class Layer:
    """A node that can be quantized.

    Attributes:
        operands: positions of its inputs that are activations.
        weight: its constant operand, with `channel_axis` the axis of output channels; None for a product or a sum of two
            activations.
        macs: multiply-accumulates for one image.
        attention: of a product of attention, how many queries there are and how many keys; None for everything else.
        softmax: the first of `inputs` is what a Softmax makes, so none of it is above 1.
    """

    name: str
    op_type: str
    group: str
    operands: tuple[int, ...]
    inputs: tuple[str, ...]
    weight: str | None
    channel_axis: int | None
    macs: int
    attention: tuple[int, int] | None = None
    softmax: bool = False


def find_layers(model: onnx.ModelProto) -> dict[str, Layer]:
    """Return the quantizable nodes of a float32 graph by name, in its order.

    A product of none of the named groups (another family's graph) counts as "linear" or "conv". A product that 8 bits are
    not written for is left out: one whose constant comes first, is no matrix, or is scaled as it is multiplied. So is one
    that merges the places of tokens, which turn into angles, and so are those by which tokens are merged without training.

    Raises:
        CalibrationError: two nodes of one name, or a shape that is not known.
    """
    shapes = shapes_of(model)
    weights = {tensor.name for tensor in model.graph.initializer}
    images = next(
        (shapes[v.name] for v in model.graph.input if shapes.get(v.name) and v.name not in weights), ()
    )
    batch = (images[0] if images else None) or 1
    softmaxes = {name for node in model.graph.node if node.op_type == "Softmax" for name in node.output}
    layers: dict[str, Layer] = {}
    for node in model.graph.node:
        if node.name.startswith(_LEFT_OUT):
            continue
        activations = tuple(i for i, name in enumerate(node.input[:2]) if name not in weights)
        group = next((name for name, pattern in _GROUPS if re.match(pattern, node.name)), None)
        weight, axis, macs = None, None, 0
        if node.op_type in _CHANNEL_AXIS:
            if activations == (0,):
                weight, axis = node.input[1], _channel_axis(node)
                if axis is None or (node.op_type != "Conv" and len(shapes[weight]) != 2):
                    continue
            elif activations != (0, 1) or node.op_type != "MatMul":
                continue
            if (
                weight and group in _OF_ACTIVATIONS
            ):  # a module of PyTorch's own may multiply by its weights anywhere
                group = None
            group = group or ("conv" if node.op_type == "Conv" else "linear" if weight else "attention")
            macs = _macs(node, shapes) // batch
        elif node.op_type != "Add" or group != "residual" or activations != (0, 1):
            continue
        if node.name in layers or not node.name:
            raise CalibrationError(
                f"two nodes are called '{node.name}'; give every node of the graph a name of its own"
            )
        inputs = tuple(node.input[i] for i in activations)
        softmax = inputs[0] in softmaxes
        attention = None
        if group == "attention":  # scores (queries, keys): what the first product gives, and the second takes
            attention = shapes[inputs[0] if softmax else node.output[0]][-2:]
        layers[node.name] = Layer(
            node.name, node.op_type, group, activations, inputs, weight, axis, macs, attention, softmax
        )
    return layers


def _channel_axis(node: onnx.NodeProto) -> int | None:
    """Return the axis of output channels of a layer's weight; None for a Gemm that does more than W·x + b."""
    if node.op_type != "Gemm":
        return _CHANNEL_AXIS[node.op_type]
    attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
    if attributes.get("transA", 0) or attributes.get("alpha", 1) != 1 or attributes.get("beta", 1) != 1:
        return None
    return 0 if attributes.get("transB", 0) else 1


def _macs(node: onnx.NodeProto, shapes: dict[str, tuple[int | None, ...]]) -> int:
    """Count as `sit_deploy.graph.inspect` does: those of a run of the graph, an open dimension counted as 1."""
    out, left, right = (shapes.get(name) for name in (node.output[0], *node.input[:2]))
    if not out or not left or not right:
        raise CalibrationError(f"the shapes of node '{node.name}' are not known; export with static shapes")
    depth = math.prod(right[1:]) if node.op_type == "Conv" else left[-1]
    return math.prod(d or 1 for d in out) * (depth or 1)
