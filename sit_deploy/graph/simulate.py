"""A low-precision graph on a CPU: the rounding it does, and the first tensor that it cannot hold.

ONNX Runtime 1.32 does not run an FP16 graph on a CPU as it is written. Its CPU kernels for Conv, MatMul, Add and the like
are FP32, so it wraps every such node in Casts that it calls precision-free and then removes them together with the Casts
of the graph, at every optimisation level, ORT_DISABLE_ALL too: what runs is FP32 arithmetic with weights rounded to FP16.
Two products, 100 * 1000 / 1024 through an FP16 tensor, give 97.66 and not inf. So it shows neither overflow nor rounding
of activations. A BF16 graph does not load at all (no kernel for MatMul).

A pair of Casts, float32 -> float16 -> float32, in a float32 graph it does keep and run (the loss of precision is theirs,
not its own), as long as the session option `optimization.enable_cast_chain_elimination` is left off, its default.
"""

from __future__ import annotations

from dataclasses import dataclass

import ml_dtypes
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from sit_deploy.errors import InputError
from sit_deploy.graph.inspect import TensorInfo, dtype_name, tensor_info
from sit_deploy.graph.precision import MOVEMENT, lift_constants

_LOW = (TensorProto.FLOAT16, TensorProto.BFLOAT16)
_UNROUNDED = "/unrounded"


def simulate(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a float32 graph that rounds wherever a low-precision graph holds FP16 or BF16.

    Every node that computes a low tensor computes it in float32 from operands that the low type can hold, and a pair of
    Casts rounds the result, to nearest even and to infinity where it overflows. That is storage rounding with FP32
    accumulation. An engine may differ from it: it may fuse nodes and skip a rounding, or accumulate in FP16.
    Tensor names are kept; `NAME/unrounded` is the value before rounding.

    Args:
        model: a graph of `to_precision`, whose inputs and outputs are float32; it is not changed.

    Raises:
        InputError: an input or output of the graph is not float32.
    """
    info = tensor_info(model)
    for value in (*model.graph.input, *model.graph.output):
        if info[value.name].dtype in _LOW:
            raise InputError(
                f"'{value.name}' is {dtype_name(info[value.name].dtype)}; graphs to simulate have float32 borders"
            )
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    graph = copy.graph
    lift_constants(graph)
    for tensor in graph.initializer:
        if tensor.data_type in _LOW:
            values = numpy_helper.to_array(tensor).astype(np.float32)
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    original = list(graph.node)
    nodes = [new for node in original for new in _rounded(node, info)]
    del graph.node[:]
    graph.node.extend(nodes)
    for value in graph.value_info:
        if value.type.tensor_type.elem_type in _LOW:
            value.type.tensor_type.elem_type = TensorProto.FLOAT
    return copy


def _rounded(node: onnx.NodeProto, info: dict[str, TensorInfo]) -> list[onnx.NodeProto]:
    """Return the nodes that stand for one node: itself in float32, and two Casts for each low tensor it computes."""
    new = onnx.NodeProto()
    new.CopyFrom(node)
    low = {name: info[name].dtype for name in node.output if name in info and info[name].dtype in _LOW}
    if node.op_type == "Cast" and not low and info[node.input[0]].dtype in _LOW:
        if info[node.output[0]].dtype == TensorProto.FLOAT:
            return [helper.make_node("Identity", list(node.input), list(node.output), node.name)]
        return [new]
    if not low or node.op_type in MOVEMENT - {"DequantizeLinear"}:
        return [new]  # values that were moved were rounded when they were computed
    if node.op_type == "Cast":
        # The value before it may itself be of a third type, an integer; float32 holds it as the Cast would read it.
        del new.attribute[:]
        new.attribute.append(helper.make_attribute("to", TensorProto.FLOAT))
    nodes = [new]
    for position, name in enumerate(node.output):
        if name not in low:
            continue
        new.output[position] = name + _UNROUNDED
        down = helper.make_node(
            "Cast", [name + _UNROUNDED], [f"{name}/rounded"], f"{name}/round", to=low[name]
        )
        up = helper.make_node("Cast", [f"{name}/rounded"], [name], f"{name}/widen", to=TensorProto.FLOAT)
        nodes += [down, up]
    return nodes


@dataclass(frozen=True)
class NonFinite:
    """The first tensor, in topological order, that a graph could not hold.

    `absmax` is its largest magnitude before it was rounded to `dtype`; infinite if it was not finite even then.
    """

    tensor: str
    node: str
    op_type: str
    dtype: str
    absmax: float

    def __str__(self) -> str:
        maker = f"{self.op_type} '{self.node}'" if self.node else "the graph's input"
        if np.isinf(self.absmax):
            return f"'{self.tensor}' ({maker}) is NaN or infinite"
        largest = float(ml_dtypes.finfo(self.dtype).max)
        remedy = "use bf16 or fp32" if self.dtype == "float16" else "use fp32"
        return (
            f"{self.dtype} overflows in '{self.tensor}' ({maker}): max |x| {self.absmax:.6g} > {largest:.6g}; "
            f"{remedy}, or calibrate so that this node stays fp32"
        )


def first_non_finite(model: onnx.ModelProto, images: np.ndarray) -> NonFinite | None:
    """Find the first tensor that is NaN or infinite on these images, with a low-precision graph's rounding simulated.

    Args:
        model: a float32 graph or one of `to_precision`.
        images: float32 (N, 3, H, W), N as the graph takes.

    Returns:
        The tensor and the node that computes it, or None if all are finite.

    Raises:
        calibration.CalibrationError: the images do not fit the graph.
    """
    from calibration.ranges import observe_ranges

    info = tensor_info(model)
    ranges = observe_ranges(simulate(model), [images])
    broken = next((name for name, seen in ranges.items() if seen.non_finite), None)
    if broken is None:
        return None
    tensor = broken.removesuffix(_UNROUNDED)
    before = ranges.get(tensor + _UNROUNDED, ranges[tensor])
    maker = next((node for node in model.graph.node if tensor in node.output), onnx.NodeProto())
    dtype = dtype_name(info[tensor].dtype)
    return NonFinite(tensor, maker.name, maker.op_type, dtype, before.absmax)
