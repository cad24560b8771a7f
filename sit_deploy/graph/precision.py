"""FP16 and BF16 as explicit types: which node computes in which, and as few Cast nodes between them as can be.

The result is strongly typed: every tensor has the type that is written in the graph, so TensorRT, TensorRT-RTX and ONNX
Runtime have nothing to decide. Products, GELU and residual sums go low; norms and Softmax, which sum and
exponentiate, stay FP32; operators that only move data take whichever type saves Casts.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from sit_deploy.errors import InputError, nearest
from sit_deploy.graph.casts import NUMPY_TYPES, TAGS, CastWriter, fewest_casts, round_to
from sit_deploy.graph.inspect import TensorInfo, default_opset, dtype_name, tensor_info
from sit_deploy.graph.patterns import angles, erf_gelus, selections, written_norms
from sit_deploy.precisions import FLOATS

if TYPE_CHECKING:
    from calibration.ranges import TensorRange

# A tensor may be held in low precision if the calibration images leave it this far below the largest finite value:
# for fp16, |x| <= 65504 / 2. Calibration sees a sample, and a factor of two is the room left for images it did not see.
HEADROOM = 2.0
# From here on float16's steps are a quarter: what is held there and taken back later is rounded away.
COARSE = 256.0

LOW_TYPES = {"fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}


class Reason(Enum):
    """Why a node computes in its type. The value is the sentence, with what `NodeType.facts` says in it."""

    AS_EXPORTED = "as exported"
    NO_FLOAT = "holds no floating point"
    MATRIX_PRODUCT = "matrix product"
    ATTENTION = "matrix products; the softmax between them is in whatever type its kernel has"
    ACTIVATION = "pointwise activation"
    SUM = "pointwise sum"
    PRODUCT = "pointwise product"
    GELU = "GELU"
    FEWEST_CASTS = "moves data; the type that needs fewest casts"
    SUMS_SQUARES = "normalisation sums squares"
    WRITTEN_NORM = "part of a root-mean-square normalisation, which sums squares"
    SUMS_TOKENS = "mean sums tokens"
    SUMS_EXPONENTIALS = "softmax sums exponentials"
    TURNS = "an angle: whole turns are taken off it, and what is left must be exact"
    SELECTS = "decides which tokens are merged: scores that are nearly equal must not change places"
    KEEPS_SCALE = "bfloat16 would round its scale"
    MULTIPLIES_CODES = "multiplies codes of 8 bits, by scales of float32"
    UNKNOWN_OPERATOR = "not known to be safe in low precision"
    # of a node whose kind is low, and that had to stay FP32
    NO_SUCH_FORM = "{op_type} of opset {opset} has no {dtype} form"
    WEIGHT_OVERFLOWS = "weight '{tensor}' overflows {tag}"
    NOT_FINITE = "'{tensor}' was not finite on the calibration images"
    OUT_OF_RANGE = "'{tensor}' reaches {absmax}, above {limit} ({tag} maximum / {headroom})"
    TOO_COARSE = "'{tensor}' reaches {absmax}, where the steps of {tag} are too coarse for this model"
    GELU_HELD_BACK = "its GELU is held back by '{node}'"


_LOW_REASON = {
    "Attention": Reason.ATTENTION,
    "Conv": Reason.MATRIX_PRODUCT,
    "Gemm": Reason.MATRIX_PRODUCT,
    "MatMul": Reason.MATRIX_PRODUCT,
    "Gelu": Reason.ACTIVATION,
    "Relu": Reason.ACTIVATION,
    "Sigmoid": Reason.ACTIVATION,
    "Add": Reason.SUM,
    "Mul": Reason.PRODUCT,
}
_FP32_REASON = {
    "Cos": Reason.TURNS,
    "Sin": Reason.TURNS,
    "LayerNormalization": Reason.SUMS_SQUARES,
    "ReduceMean": Reason.SUMS_TOKENS,
    "Softmax": Reason.SUMS_EXPONENTIALS,
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
        "ReduceMax",
        "Reshape",
        "Slice",
        "Split",
        "Squeeze",
        "Tile",
        "Transpose",
        "Unsqueeze",
    }
)

_QUANTIZATION = ("QuantizeLinear", "DequantizeLinear")
_PRODUCTS = ("Conv", "Gemm", "MatMul")


@dataclass(frozen=True)
class NodeType:
    """The type a node computes in, and why.

    Attributes:
        node: its name.
        op_type: its operator.
        dtype: the type.
        reason: why.
        held_back: whether its kind is low and it had to stay FP32.
        facts: what the reason's sentence names.
    """

    node: str
    op_type: str
    dtype: str
    reason: Reason
    held_back: bool = False
    facts: Mapping[str, str] = field(default_factory=dict)

    @property
    def sentence(self) -> str:
        """The reason in words."""
        return self.reason.value.format(**self.facts)

    def to_dict(self) -> dict[str, Any]:
        """Return plain types, for JSON; the reason in words."""
        return {
            "node": self.node,
            "op_type": self.op_type,
            "dtype": self.dtype,
            "reason": self.sentence,
            "held_back": self.held_back,
        }


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
        counted = {key: value for key, value in asdict(self).items() if key != "nodes"}
        return {**counted, "nodes": [node.to_dict() for node in self.nodes], "counts": self.counts}


def to_precision(
    model: onnx.ModelProto,
    precision: str,
    ranges: Mapping[str, TensorRange] | None = None,
    coarse: float | None = None,
) -> tuple[onnx.ModelProto, PrecisionPlan]:
    """Write a precision into a float32 graph. Inputs, outputs and node names stay as they are.

    A node of a low kind is held back in FP32, and the plan says why, if a weight of it would overflow, if `ranges` shows
    a tensor it reads or writes above the largest finite value divided by HEADROOM, or if its operator has no such
    type in the graph's opset (Conv takes bfloat16 from opset 22 on). A GELU written out around Erf is decided as one.

    Args:
        model: a float32 graph; it is not changed.
        precision: "fp32" (returns the graph itself), "fp16" or "bf16".
        ranges: observed ranges by tensor name (`calibration.ranges.observe_ranges`); tensors it lacks are trusted.
        coarse: the |x| that a tensor may reach in `ranges` and be held low, where that is to be less.

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
        nodes = (NodeType(n.name, n.op_type, "float32", Reason.AS_EXPORTED) for n in model.graph.node)
        return model, PrecisionPlan("fp32", tuple(nodes))
    for name, tensor in info.items():
        if tensor.dtype in NUMPY_TYPES:
            raise InputError(
                f"tensor '{name}' is {dtype_name(tensor.dtype)} already; convert the float32 graph instead"
            )
    if ranges is not None and not any(name in info for name in ranges):
        raise InputError("the ranges name no tensor of this graph; calibrate this graph again")
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    lift_constants(copy.graph)
    low = LOW_TYPES[precision]
    chooser = _TypeChooser(copy, info, low, ranges or {}, coarse)
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
        coarse: float | None,
    ) -> None:
        self.graph, self.info, self.low, self.ranges = model.graph, info, low, ranges
        self.opset = default_opset(model)
        self.weights = {t.name: t for t in model.graph.initializer if t.data_type == TensorProto.FLOAT}
        self.types: dict[int, int] = {}
        self._dequantized = {n.output[0] for n in model.graph.node if n.op_type == "DequantizeLinear"}
        self._limit = float(ml_dtypes.finfo(NUMPY_TYPES[low]).max) / HEADROOM
        self._coarse = math.inf if coarse is None else coarse
        self._overflows: dict[str, bool] = {}

    def decide(self) -> tuple[NodeType, ...]:
        nodes = self.graph.node
        reasons: dict[int, Reason] = {}
        facts: dict[int, dict[str, str]] = {}
        held: set[int] = set()
        free: list[int] = []
        gelus = erf_gelus(self.graph)
        norms = written_norms(self.graph)
        turned, selected = angles(self.graph), selections(self.graph)
        for index, node in enumerate(nodes):
            if not any(self._is_float(name) for name in (*node.input, *node.output)):
                reasons[index] = Reason.NO_FLOAT
                continue
            if self.low == TensorProto.BFLOAT16 and (reason := self._of_eight_bits(node)):
                self.types[index], reasons[index] = TensorProto.FLOAT, reason
                continue
            if index in norms:
                self.types[index], reasons[index] = TensorProto.FLOAT, Reason.WRITTEN_NORM
                continue
            if index in turned:
                self.types[index], reasons[index] = TensorProto.FLOAT, Reason.TURNS
                continue
            if index in selected:
                self.types[index], reasons[index] = TensorProto.FLOAT, Reason.SELECTS
                continue
            in_gelu = index in gelus
            is_low = in_gelu or node.op_type in _LOW_REASON
            if node.domain not in ("", "ai.onnx") or not (is_low or node.op_type in MOVEMENT):
                self.types[index] = TensorProto.FLOAT
                reasons[index] = _FP32_REASON.get(node.op_type, Reason.UNKNOWN_OPERATOR)
            elif obstacle := self._obstacle(node):
                self.types[index] = TensorProto.FLOAT
                reasons[index], facts[index] = obstacle
                held.add(index)
            elif is_low:
                self.types[index] = self.low
                reasons[index] = Reason.GELU if in_gelu else _LOW_REASON[node.op_type]
            else:
                free.append(index)
        for group in {id(g): g for g in gelus.values()}.values():
            blocked = next((i for i in group if i in held), None)
            for index in group if blocked is not None else ():
                if index not in held:
                    reasons[index], facts[index] = Reason.GELU_HELD_BACK, {"node": nodes[blocked].name}
                    self.types[index] = TensorProto.FLOAT
                    held.add(index)
        for index, dtype in fewest_casts(self.graph, self.info, self.types, free, self.low).items():
            self.types[index], reasons[index] = dtype, Reason.FEWEST_CASTS
        return tuple(
            NodeType(n.name, n.op_type, self._dtype(i, n), reasons[i], i in held, facts.get(i, {}))
            for i, n in enumerate(nodes)
        )

    def _dtype(self, index: int, node: onnx.NodeProto) -> str:
        if index in self.types:
            return dtype_name(self.types[index])
        output = self.info.get(node.output[0])
        return dtype_name(output.dtype) if output else "undefined"

    def _is_float(self, name: str) -> bool:
        tensor = self.info.get(name)
        return tensor is not None and tensor.dtype == TensorProto.FLOAT

    def _of_eight_bits(self, node: onnx.NodeProto) -> Reason | None:
        """Return why a node of 8 bits stays float32 beside bfloat16, whose 8 bits of precision no scale fits; None for other nodes."""
        if node.op_type in _QUANTIZATION:
            return Reason.KEEPS_SCALE
        factors = node.input[:2]
        if node.op_type in _PRODUCTS and all(name in self._dequantized for name in factors):
            return Reason.MULTIPLIES_CODES
        return None

    def _obstacle(self, node: onnx.NodeProto) -> tuple[Reason, dict[str, str]] | None:
        """Return why a node may not be low, with what the sentence names, or None."""
        tag = TAGS[self.low]
        if not self._operator_takes_low(node):
            names = {"op_type": node.op_type, "opset": str(self.opset), "dtype": dtype_name(self.low)}
            return Reason.NO_SUCH_FORM, names
        for name in (*node.input, *node.output):
            if name in self.weights:
                if self._overflow(name):
                    return Reason.WEIGHT_OVERFLOWS, {"tensor": name, "tag": tag}
            elif seen := self.ranges.get(name):
                if seen.non_finite:
                    return Reason.NOT_FINITE, {"tensor": name}
                if seen.absmax > self._limit:
                    reach = {"absmax": f"{seen.absmax:.6g}", "limit": f"{self._limit:.6g}"}
                    return Reason.OUT_OF_RANGE, {
                        **reach,
                        "tensor": name,
                        "tag": tag,
                        "headroom": f"{HEADROOM:g}",
                    }
                if seen.absmax > self._coarse:
                    return Reason.TOO_COARSE, {"absmax": f"{seen.absmax:.6g}", "tensor": name, "tag": tag}
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
