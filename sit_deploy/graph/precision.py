"""FP16 and BF16 as explicit types: which node computes in which, and as few Cast nodes between them as can be.

The result is strongly typed: every tensor has the type that is written in the graph, so TensorRT, TensorRT-RTX and ONNX
Runtime have nothing to decide. Products, GELU and residual sums go low; LayerNormalization and Softmax, which sum and
exponentiate, stay FP32; operators that only move data take whichever type saves Casts.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from sit_deploy.errors import InputError, nearest
from sit_deploy.graph.casts import NUMPY_TYPES, TAGS, CastWriter, fewest_casts, round_to
from sit_deploy.graph.inspect import TensorInfo, default_opset, dtype_name, tensor_info
from sit_deploy.precisions import FLOATS

if TYPE_CHECKING:
    from calibration.ranges import TensorRange

# A tensor may be held in low precision if the calibration images leave it this far below the largest finite value:
# for fp16, |x| <= 65504 / 2. Calibration sees a sample, and a factor of two is the room left for images it did not see.
HEADROOM = 2.0

LOW_TYPES = {"fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}
_LOW_REASON = {
    "Conv": "matrix product",
    "Gemm": "matrix product",
    "MatMul": "matrix product",
    "Gelu": "pointwise activation",
    "Relu": "pointwise activation",
    "Add": "pointwise sum",
    "Mul": "pointwise product",
}
_FP32_REASON = {
    "LayerNormalization": "normalisation sums squares",
    "ReduceMean": "mean sums tokens",
    "Softmax": "softmax sums exponentials",
}
# They copy values, so they compute nothing that a type could harm. Quantization belongs here: the scale sets the type.
MOVEMENT = frozenset(
    {
        "Concat",
        "DequantizeLinear",
        "Expand",
        "Flatten",
        "Gather",
        "Identity",
        "Pad",
        "QuantizeLinear",
        "Reshape",
        "Slice",
        "Split",
        "Squeeze",
        "Tile",
        "Transpose",
        "Unsqueeze",
    }
)


@dataclass(frozen=True)
class NodeType:
    """The type a node computes in, and why. `held_back`: a node of a low-precision kind that had to stay FP32."""

    node: str
    op_type: str
    dtype: str
    reason: str
    held_back: bool = False


@dataclass(frozen=True)
class PrecisionPlan:
    """What `to_precision` decided, node by node in graph order.

    `weights` counts the converted values: all of them, those that became subnormal and those that became zero.
    """

    precision: str
    nodes: tuple[NodeType, ...]
    casts: int = 0
    weights: int = 0
    weights_subnormal: int = 0
    weights_flushed: int = 0

    @property
    def held_back(self) -> tuple[NodeType, ...]:
        """Nodes that stay FP32 though their kind is low: what a report should show."""
        return tuple(node for node in self.nodes if node.held_back)

    @property
    def counts(self) -> dict[str, int]:
        """Number of nodes by type."""
        return dict(sorted(Counter(node.dtype for node in self.nodes).items()))

    def to_dict(self) -> dict[str, Any]:
        """Return plain types, for JSON."""
        return {**asdict(self), "counts": self.counts}


def to_precision(
    model: onnx.ModelProto, precision: str, ranges: Mapping[str, TensorRange] | None = None
) -> tuple[onnx.ModelProto, PrecisionPlan]:
    """Write a precision into a float32 graph. Inputs, outputs and node names stay as they are.

    A node of a low kind is held back in FP32, and the plan says why, if a weight of it would overflow, if `ranges` shows
    a tensor it reads or writes above the largest finite value divided by HEADROOM, or if its operator has no such
    type in the graph's opset (Conv takes bfloat16 from opset 22 on). A GELU written out around Erf is decided as one.

    Args:
        model: a float32 graph; it is not changed.
        precision: "fp32" (returns the graph itself), "fp16" or "bf16".
        ranges: observed ranges by tensor name (`calibration.ranges.observe_ranges`); tensors it lacks are trusted.

    Returns:
        The strongly typed graph, the same byte for byte for the same input, and the plan.

    Raises:
        InputError: unknown precision, a graph that holds low-precision tensors already, or ranges of another graph.
    """
    if precision not in FLOATS:
        choices = ", ".join(FLOATS)
        raise InputError(
            f"unknown precision '{precision}'; choose from {choices}{nearest(precision, FLOATS)}"
        )
    info = tensor_info(model)
    if precision == "fp32":
        nodes = (NodeType(n.name, n.op_type, "float32", "as exported") for n in model.graph.node)
        return model, PrecisionPlan("fp32", tuple(nodes))
    for name, found in info.items():
        if found.dtype in NUMPY_TYPES:
            raise InputError(
                f"tensor '{name}' is {dtype_name(found.dtype)} already; convert the float32 graph instead"
            )
    if ranges is not None and not any(name in info for name in ranges):
        raise InputError("the ranges name no tensor of this graph; calibrate this graph again")
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    lift_constants(copy.graph)
    low = LOW_TYPES[precision]
    chooser = _TypeChooser(copy, info, low, ranges or {})
    plan = chooser.decide()
    writer = CastWriter(copy.graph, info, low, chooser.types)
    writer.write()
    return copy, PrecisionPlan(precision, plan, writer.casts, *writer.weight_counts)


def lift_constants(graph: onnx.GraphProto) -> None:
    """Turn Constant nodes that hold a tensor into initializers: a weight to convert, not a tensor to cast at run time."""
    kept = []
    for node in graph.node:
        if node.op_type == "Constant" and node.attribute[0].name == "value":
            tensor = graph.initializer.add()
            tensor.CopyFrom(node.attribute[0].t)
            tensor.name = node.output[0]
        else:
            kept.append(node)
    if len(kept) != len(graph.node):
        del graph.node[:]
        graph.node.extend(kept)


class _TypeChooser:
    """Chooses a type for every node; `types` maps node index to element type, for nodes that touch a float at all."""

    def __init__(
        self,
        model: onnx.ModelProto,
        info: dict[str, TensorInfo],
        low: int,
        ranges: Mapping[str, TensorRange],
    ) -> None:
        self.graph, self.info, self.low, self.ranges = model.graph, info, low, ranges
        self.opset = default_opset(model)
        self.weights = {t.name: t for t in model.graph.initializer if t.data_type == TensorProto.FLOAT}
        self.types: dict[int, int] = {}
        self._limit = float(ml_dtypes.finfo(NUMPY_TYPES[low]).max) / HEADROOM
        self._overflows: dict[str, bool] = {}

    def decide(self) -> tuple[NodeType, ...]:
        nodes = self.graph.node
        reasons: dict[int, str] = {}
        held: set[int] = set()
        free: list[int] = []
        gelus = _erf_gelus(self.graph)
        for index, node in enumerate(nodes):
            if not any(self._is_float(name) for name in (*node.input, *node.output)):
                reasons[index] = "holds no floating point"
                continue
            in_gelu = index in gelus
            is_low = in_gelu or node.op_type in _LOW_REASON
            if node.domain not in ("", "ai.onnx") or not (is_low or node.op_type in MOVEMENT):
                self.types[index] = TensorProto.FLOAT
                reasons[index] = _FP32_REASON.get(node.op_type, "not known to be safe in low precision")
            elif obstacle := self._obstacle(node):
                self.types[index], reasons[index] = TensorProto.FLOAT, obstacle
                held.add(index)
            elif is_low:
                self.types[index] = self.low
                reasons[index] = "GELU" if in_gelu else _LOW_REASON[node.op_type]
            else:
                free.append(index)
        for group in {id(g): g for g in gelus.values()}.values():
            blocked = next((i for i in group if i in held), None)
            for index in group if blocked is not None else ():
                if index not in held:
                    reasons[index] = f"its GELU is held back by '{nodes[blocked].name}'"
                    self.types[index] = TensorProto.FLOAT
                    held.add(index)
        for index, dtype in fewest_casts(self.graph, self.info, self.types, free, self.low).items():
            self.types[index], reasons[index] = (
                dtype,
                "moves data; the type that needs fewest casts",
            )
        return tuple(
            NodeType(n.name, n.op_type, self._dtype(i, n), reasons[i], i in held) for i, n in enumerate(nodes)
        )

    def _dtype(self, index: int, node: onnx.NodeProto) -> str:
        if index in self.types:
            return dtype_name(self.types[index])
        found = self.info.get(node.output[0])
        return dtype_name(found.dtype) if found else "undefined"

    def _is_float(self, name: str) -> bool:
        found = self.info.get(name)
        return found is not None and found.dtype == TensorProto.FLOAT

    def _obstacle(self, node: onnx.NodeProto) -> str | None:
        """Return why a node may not be low, or None."""
        tag = TAGS[self.low]
        if not self._operator_takes_low(node):
            return f"{node.op_type} of opset {self.opset} has no {dtype_name(self.low)} form"
        for name in (*node.input, *node.output):
            if name in self.weights:
                if self._overflow(name):
                    return f"weight '{name}' overflows {tag}"
            elif seen := self.ranges.get(name):
                if seen.non_finite:
                    return f"'{name}' was not finite on the calibration images"
                if seen.absmax > self._limit:
                    return (
                        f"'{name}' reaches {seen.absmax:.6g}, above {self._limit:.6g} "
                        f"({tag} maximum / {HEADROOM:g})"
                    )
        return None

    def _operator_takes_low(self, node: onnx.NodeProto) -> bool:
        schema = onnx.defs.get_schema(node.op_type, self.opset)
        wanted = f"tensor({dtype_name(self.low)})"
        formal = [(n, schema.inputs[min(i, len(schema.inputs) - 1)]) for i, n in enumerate(node.input)]
        formal += [(n, schema.outputs[min(i, len(schema.outputs) - 1)]) for i, n in enumerate(node.output)]
        return all(wanted in parameter.types for n, parameter in formal if self._is_float(n))

    def _overflow(self, name: str) -> bool:
        if name not in self._overflows:
            values = numpy_helper.to_array(self.weights[name])
            lowered = round_to(values, self.low)
            self._overflows[name] = bool(np.any(np.isinf(lowered.astype(np.float32)) & np.isfinite(values)))
        return self._overflows[name]


def _erf_gelus(graph: onnx.GraphProto) -> dict[int, tuple[int, ...]]:
    """Find GELU written out, x * 0.5 * (1 + erf(x / sqrt 2)); map each node's index to those of its group.

    The scaling before Erf, Erf, the Add after it and the one or two Muls after that are the group, in whichever order
    the exporter multiplies.
    """
    producer = {name: i for i, node in enumerate(graph.node) for name in node.output}
    consumers: dict[str, list[int]] = {}
    for i, node in enumerate(graph.node):
        for name in node.input:
            consumers.setdefault(name, []).append(i)

    def only_next(index: int, op_type: str) -> int | None:
        users = consumers.get(graph.node[index].output[0], [])
        return users[0] if len(users) == 1 and graph.node[users[0]].op_type == op_type else None

    groups: dict[int, tuple[int, ...]] = {}
    for erf, node in enumerate(graph.node):
        scaled = producer.get(node.input[0]) if node.op_type == "Erf" else None
        if scaled is None or graph.node[scaled].op_type not in ("Div", "Mul"):
            continue
        plus_one = only_next(erf, "Add")
        first = only_next(plus_one, "Mul") if plus_one is not None else None
        if plus_one is None or first is None:
            continue
        second = only_next(first, "Mul")
        group = tuple(i for i in (scaled, erf, plus_one, first, second) if i is not None)
        groups.update(dict.fromkeys(group, group))
    return groups
