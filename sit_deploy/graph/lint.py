"""Rules that an ONNX graph must keep so that every engine takes it and runs it as it was validated."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import onnx
from onnx import AttributeProto, TensorProto, numpy_helper

from sit_deploy.errors import InputError
from sit_deploy.graph.inspect import (
    TensorInfo,
    default_opset,
    dtype_name,
    first_line,
    tensor_info,
)

_DEFAULT_DOMAINS = ("", "ai.onnx")
_CONTROL_FLOW = frozenset({"If", "Loop", "Scan", "SequenceMap"})
# Operators that exist to compute shapes, or whose output shape depends on values.
_SHAPE_OPERATORS = frozenset({"Shape", "Size", "ConstantOfShape", "Range", "NonZero"})
# Operands that decide a shape: engines want them constant.
_SHAPE_OPERANDS: dict[str, tuple[int, ...]] = {
    "Expand": (1,),
    "Pad": (1, 3),
    "ReduceMax": (1,),
    "ReduceMean": (1,),
    "ReduceMin": (1,),
    "ReduceSum": (1,),
    "Reshape": (1,),
    "Resize": (1, 2, 3),
    "Slice": (1, 2, 3, 4),
    "Split": (1,),
    "Squeeze": (1,),
    "Tile": (1,),
    "TopK": (1,),
    "Unsqueeze": (1,),
}
# What may stand between an initializer and the product that it is the weight of.
_WEIGHT_PATH = frozenset({"Cast", "DequantizeLinear", "Identity", "QuantizeLinear", "Transpose"})


Rule = Literal[
    "invalid",
    "domain",
    "opset",
    "control-flow",
    "shape-arithmetic",
    "unknown-shape",
    "dtype",
    "non-finite",
    "static-weights",
    "unused",
    "unnamed",
    "duplicate-name",
    "metadata",
]


@dataclass(frozen=True)
class Finding:
    """A rule that the graph breaks, the node or tensor that breaks it, and what to do."""

    rule: Rule
    where: str
    message: str

    def __str__(self) -> str:
        return f"[{self.rule}] {self.where}: {self.message}"


def unsound(model: onnx.ModelProto) -> str | None:
    """Return why nothing can be said of what is in a graph: a node without its operands, a weight that is not as long as it says.

    Args:
        model: the graph, its weights with it.
    """
    try:
        onnx.checker.check_model(model)
        for tensor in model.graph.initializer:
            numpy_helper.to_array(tensor)
        for node in model.graph.node:
            # asked for its TypeError, of an opset beyond an int; what is not a standard operator `domain` reports
            with contextlib.suppress(onnx.defs.SchemaError):
                onnx.defs.get_schema(node.op_type, default_opset(model), node.domain)
    # of a file that says what cannot be, these make any of them
    except (
        onnx.checker.ValidationError,
        ValueError,
        TypeError,
        KeyError,
        IndexError,
        OverflowError,
    ) as error:
        return f"ONNX's check fails: {first_line(error)}; export it again"
    return None


def lint(
    model: onnx.ModelProto, *, max_opset: int | None = None, dynamic_batch: bool = False
) -> list[Finding]:
    """Return every breach of the rules below, none for a deployable graph.

    `invalid` ONNX's own full check fails, alone where nothing else can be said of it (`unsound`) · `domain` an operator, opset or function from outside ai.onnx ·
    `opset` newer than `max_opset` · `control-flow` a subgraph · `shape-arithmetic` shapes computed at run time ·
    `unknown-shape` a dimension that inference cannot tell · `dtype` float64, or int64 where it is not a shape or index ·
    `non-finite` NaN or infinity among the weights · `static-weights` a weight that is computed at run time ·
    `unused` what no output depends on · `unnamed`, `duplicate-name` nodes that cannot be told apart ·
    `metadata` source locations of the exporting machine.

    Args:
        model: the graph.
        max_opset: highest version of the default operator set that the engine takes.
        dynamic_batch: allow one symbol, that of dimension 0 of the input: as dimension 0 of inputs and outputs, and
            once in the shape of any tensor between them (attention moves the batch behind the q, k, v axis).
    """
    if reason := unsound(model):
        return [Finding("invalid", "model", reason)]
    graph = _LintedGraph(model, max_opset, dynamic_batch)
    return [finding for rule in _RULES for finding in rule(graph)]


def check(model: onnx.ModelProto, *, max_opset: int | None = None, dynamic_batch: bool = False) -> None:
    """Raise InputError naming what `lint` finds; return if it finds nothing."""
    findings = lint(model, max_opset=max_opset, dynamic_batch=dynamic_batch)
    if not findings:
        return
    shown = "; ".join(map(str, findings[:5]))
    rest = f"; and {len(findings) - 5} more" if len(findings) > 5 else ""
    plural = "problem" if len(findings) == 1 else "problems"
    raise InputError(f"the ONNX graph is not deployable, {len(findings)} {plural}: {shown}{rest}")


@dataclass
class _LintedGraph:
    """A model with the lookups that the rules share."""

    model: onnx.ModelProto
    max_opset: int | None
    dynamic_batch: bool
    producer: dict[str, onnx.NodeProto] = field(init=False)
    consumers: dict[str, list[tuple[onnx.NodeProto, int]]] = field(init=False)
    initializers: dict[str, TensorProto] = field(init=False)
    info: dict[str, TensorInfo] | None = field(init=False)

    def __post_init__(self) -> None:
        graph = self.model.graph
        self.producer = {name: node for node in graph.node for name in node.output if name}
        self.consumers = {}
        for node in graph.node:
            for index, name in enumerate(node.input):
                if name:
                    self.consumers.setdefault(name, []).append((node, index))
            for name in _names_in_subgraphs(node):
                self.consumers.setdefault(name, []).append((node, -1))
        self.initializers = {tensor.name: tensor for tensor in graph.initializer}
        try:
            self.info = tensor_info(self.model)
        except InputError:
            self.info = None  # `invalid` reports it: the full check runs the same inference

    def is_constant(self, name: str) -> bool:
        if not name or name in self.initializers:
            return True
        node = self.producer.get(name)
        return node is not None and node.op_type == "Constant"


def _label(node: onnx.NodeProto) -> str:
    kind = node.op_type if not node.domain else f"{node.domain}.{node.op_type}"
    return f"{kind} '{node.name or (node.output[0] if node.output else '')}'"


def _subgraphs(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    for attribute in node.attribute:
        if attribute.type == AttributeProto.GRAPH:
            yield attribute.g
        elif attribute.type == AttributeProto.GRAPHS:
            yield from attribute.graphs


def _names_in_subgraphs(node: onnx.NodeProto) -> Iterator[str]:
    for graph in _subgraphs(node):
        for inner in graph.node:
            yield from inner.input
            yield from _names_in_subgraphs(inner)
        yield from (value.name for value in graph.output)


def _invalid(graph: _LintedGraph) -> Iterator[Finding]:
    try:  # what the full check looks at besides: `unsound` has done the rest of it
        onnx.shape_inference.infer_shapes(graph.model, check_type=True, strict_mode=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError, ValueError) as error:
        yield Finding("invalid", "model", f"ONNX's check fails: {first_line(error)}; export it again")


def _domain(graph: _LintedGraph) -> Iterator[Finding]:
    for opset in graph.model.opset_import:
        if opset.domain not in _DEFAULT_DOMAINS:
            yield Finding("domain", f"opset '{opset.domain}'", "only ai.onnx is portable; drop it at export")
    for node in graph.model.graph.node:
        if node.domain not in _DEFAULT_DOMAINS:
            yield Finding("domain", _label(node), "only ai.onnx is portable; export standard operators")
    for function in graph.model.functions:
        yield Finding("domain", f"function '{function.name}'", "inline it: engines want plain nodes")


def _opset(graph: _LintedGraph) -> Iterator[Finding]:
    version = default_opset(graph.model)
    if graph.max_opset is not None and version > graph.max_opset:
        message = f"the engine takes at most {graph.max_opset}; export with --opset {graph.max_opset}"
        yield Finding("opset", f"opset {version}", message)


def _control_flow(graph: _LintedGraph) -> Iterator[Finding]:
    for node in graph.model.graph.node:
        if node.op_type in _CONTROL_FLOW or next(_subgraphs(node), None) is not None:
            yield Finding(
                "control-flow",
                _label(node),
                "decide it at export: the graph must be one straight line",
            )


def _shape_arithmetic(graph: _LintedGraph) -> Iterator[Finding]:
    for node in graph.model.graph.node:
        if node.op_type in _SHAPE_OPERATORS:
            yield Finding(
                "shape-arithmetic",
                _label(node),
                "export with fixed sizes so that shapes are constants",
            )
        for index in _SHAPE_OPERANDS.get(node.op_type, ()):
            if index < len(node.input) and not graph.is_constant(node.input[index]):
                message = f"its operand '{node.input[index]}' is computed at run time; make it a constant"
                yield Finding("shape-arithmetic", _label(node), message)


def _unknown_shape(graph: _LintedGraph) -> Iterator[Finding]:
    if graph.info is None:
        return
    model = graph.model.graph
    inputs = [v.name for v in model.input if v.name not in graph.initializers]
    border = {*inputs, *(v.name for v in model.output)}
    first = graph.info[inputs[0]].shape if inputs and inputs[0] in graph.info else None
    batch = first[0] if graph.dynamic_batch and first and isinstance(first[0], str) else None
    produced = (name for node in model.node for name in node.output if name)
    for name in (*inputs, *produced):
        tensor = graph.info.get(name)
        if tensor is None or tensor.shape is None:
            yield Finding("unknown-shape", f"tensor '{name}'", "its rank is unknown; export static shapes")
            continue
        is_open = [i for i, dim in enumerate(tensor.shape) if not isinstance(dim, int)]
        is_batch = len(is_open) == 1 and batch is not None and tensor.shape[is_open[0]] == batch
        if is_open and not (is_batch and (is_open[0] == 0 or name not in border)):
            shape = ", ".join("?" if dim is None else str(dim) for dim in tensor.shape)
            allowed = f"only the batch '{batch}' may be open" if batch else "no dimension may be open"
            yield Finding("unknown-shape", f"tensor '{name}'", f"shape ({shape}): {allowed}; export it again")


def _dtype(graph: _LintedGraph) -> Iterator[Finding]:
    opset = default_opset(graph.model)
    for name, info in (graph.info or {}).items():
        if info.dtype == TensorProto.DOUBLE:
            yield Finding("dtype", f"tensor '{name}'", "float64 has no fast kernel; make it float32")
    for name, tensor in graph.initializers.items():
        if tensor.data_type != TensorProto.INT64:
            continue
        for node, index in graph.consumers.get(name, []):
            if not _takes_integers_only(node, index, opset):
                message = f"{_label(node)} computes with int64; make it float32 or int32"
                yield Finding("dtype", f"initializer '{name}'", message)


def _takes_integers_only(node: onnx.NodeProto, index: int, opset: int) -> bool:
    """Say whether an operand is a shape, axes, a repeat or an index: one that the operator never takes as a float."""
    try:
        schema = onnx.defs.get_schema(node.op_type, opset, node.domain)
    except onnx.defs.SchemaError:
        return True  # not a standard operator: `domain` reports it
    if index < 0 or not schema.inputs:
        return True
    return "tensor(float)" not in schema.inputs[min(index, len(schema.inputs) - 1)].types


def _non_finite(graph: _LintedGraph) -> Iterator[Finding]:
    for name, tensor in graph.initializers.items():
        array = numpy_helper.to_array(tensor)
        if array.dtype.kind not in "fV":  # V: bfloat16 and float8 of ml_dtypes
            continue
        values = array.astype(np.float32) if array.dtype.kind == "V" else array
        bad = values.size - int(np.count_nonzero(np.isfinite(values)))
        if bad:
            message = (
                f"{bad} of {values.size} {dtype_name(tensor.data_type)} values are NaN or infinite; "
                "the checkpoint is broken"
            )
            yield Finding("non-finite", f"initializer '{name}'", message)


def _static_weights(graph: _LintedGraph) -> Iterator[Finding]:
    # A MatMul of two activations is attention; a Conv or Gemm whose weight is one is an export gone wrong.
    for node in graph.model.graph.node:
        if node.op_type not in ("Conv", "Gemm"):
            continue
        name = node.input[1]
        while (source := graph.producer.get(name)) and source.op_type in _WEIGHT_PATH:
            name = source.input[0]
        if not graph.is_constant(name):
            message = f"its weight '{node.input[1]}' is computed at run time; fold it into a constant"
            yield Finding("static-weights", _label(node), message)


def _unused(graph: _LintedGraph) -> Iterator[Finding]:
    model = graph.model.graph
    live = {value.name for value in model.output}
    pending = list(live)
    while pending:
        node = graph.producer.get(pending.pop())
        if node is None:
            continue
        needed = {name for name in (*node.input, *_names_in_subgraphs(node)) if name} - live
        live |= needed
        pending += needed
    for node in model.node:
        if not live.intersection(node.output):
            yield Finding("unused", _label(node), "no graph output depends on it; remove it")
    for name in graph.initializers:
        if name not in live:
            yield Finding("unused", f"initializer '{name}'", "no graph output depends on it; remove it")
    for value in model.input:
        if value.name not in live and value.name not in graph.initializers:
            yield Finding("unused", f"input '{value.name}'", "no graph output depends on it; remove it")


def _names(graph: _LintedGraph) -> Iterator[Finding]:
    nodes = graph.model.graph.node
    for node in nodes:
        if not node.name:
            yield Finding("unnamed", _label(node), "give every node a name: reports and profiles use it")
    for name, count in _repeated(node.name for node in nodes):
        yield Finding("duplicate-name", f"node '{name}'", f"{count} nodes have this name; make it unique")


def _repeated(names: Iterable[str]) -> list[tuple[str, int]]:
    return [(name, count) for name, count in Counter(names).items() if name and count > 1]


def _metadata(graph: _LintedGraph) -> Iterator[Finding]:
    nodes = graph.model.graph.node
    traced = [n for n in nodes if any("stack_trace" in p.key for p in n.metadata_props)]
    if traced:
        message = f"{len(traced)} nodes carry stack traces with source paths; clear metadata_props"
        yield Finding("metadata", _label(traced[0]), message)


_RULES: tuple[Callable[[_LintedGraph], Iterator[Finding]], ...] = (
    _invalid,
    _domain,
    _opset,
    _control_flow,
    _shape_arithmetic,
    _unknown_shape,
    _dtype,
    _non_finite,
    _static_weights,
    _unused,
    _names,
    _metadata,
)
