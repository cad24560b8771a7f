"""What an ONNX graph holds: types, shapes, parameters and multiply-accumulates."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

import onnx
from onnx import TensorProto

from sit_deploy.errors import InputError

Dim = int | str | None

_FLOATING = frozenset({TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE})
_LOW = frozenset({"float16", "bfloat16", "int8", "uint8", "float8e4m3fn", "float8e5m2", "int4", "uint4"})
# `blocks.3/attn/qkv`, `blocks.3.attn.qkv` and `patch_embed/conv1` belong to `blocks.3`, `blocks.3` and `patch_embed`.
_BLOCK = re.compile(r"([A-Za-z_]\w*(?:\.\d+)?)[./]")


@dataclass(frozen=True)
class TensorInfo:
    """Element type (`onnx.TensorProto.DataType`) and shape of a tensor; a dimension is an int, a symbol or None."""

    dtype: int
    shape: tuple[Dim, ...] | None

    @property
    def elements(self) -> int:
        """Number of elements, an open dimension counted as 1 and an unknown shape as 0."""
        if self.shape is None:
            return 0
        return math.prod(d if isinstance(d, int) else 1 for d in self.shape)


def dtype_name(dtype: int) -> str:
    """Return the common name of an ONNX element type: 1 -> 'float32', 11 -> 'float64', 16 -> 'bfloat16'."""
    name = TensorProto.DataType.Name(dtype).lower()
    return {"float": "float32", "double": "float64"}.get(name, name)


def tensor_info(model: onnx.ModelProto) -> dict[str, TensorInfo]:
    """Infer the type and shape of every tensor of the main graph (strictly, with data propagation).

    Raises:
        InputError: the graph contradicts itself (types or shapes that cannot be), with ONNX's first line of why.
    """
    try:
        inferred = onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True, data_prop=True)
    except (onnx.shape_inference.InferenceError, onnx.checker.ValidationError, ValueError) as error:
        raise InputError(
            f"the ONNX graph fails shape inference: {first_line(error)}; export it again"
        ) from error
    graph = inferred.graph
    info = {}
    for value in (*graph.value_info, *graph.input, *graph.output):
        if value.type.HasField("tensor_type"):
            info[value.name] = _info(value.type.tensor_type)
    for tensor in graph.initializer:
        info[tensor.name] = TensorInfo(tensor.data_type, tuple(tensor.dims))
    return info


def first_line(error: Exception) -> str:
    """Return the first line of an error's text that says something, without a trailing full stop."""
    lines = (line.strip() for line in str(error).splitlines())
    return next((line for line in lines if line), type(error).__name__).rstrip(".")


def _info(tensor_type: onnx.TypeProto.Tensor) -> TensorInfo:
    if not tensor_type.HasField("shape"):
        return TensorInfo(tensor_type.elem_type, None)
    dims: list[Dim] = []
    for dim in tensor_type.shape.dim:
        dims.append(dim.dim_value if dim.HasField("dim_value") else dim.dim_param or None)
    return TensorInfo(tensor_type.elem_type, tuple(dims))


def default_opset(model: onnx.ModelProto) -> int:
    """Return the version of the default operator set, 0 if the model declares none."""
    return next((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), 0)


def node_macs(model: onnx.ModelProto) -> dict[str, int]:
    """Return the multiply-accumulates of every Conv, Gemm, MatMul and Attention by the name of its output tensor.

    They are those of one run of the graph: of all N images where the batch is a fixed N, of one image where it is open.
    A bias adds none.

    Raises:
        InputError: a product's shape is not known.
    """
    return _macs(model, tensor_info(model))


def count_macs(model: onnx.ModelProto) -> int:
    """Return the multiply-accumulates of one run of the graph (see `node_macs`)."""
    return sum(node_macs(model).values())


def _macs(model: onnx.ModelProto, info: dict[str, TensorInfo]) -> dict[str, int]:
    macs = {}
    for node in model.graph.node:
        if node.op_type not in ("Conv", "Gemm", "MatMul", "Attention"):
            continue
        out, left, right = (info.get(name) for name in (node.output[0], *node.input[:2]))
        if not out or not left or not right or None in (out.shape, left.shape, right.shape):
            raise InputError(
                f"cannot count the MACs of node '{node.name}': its shapes are unknown; export with static shapes"
            )
        if node.op_type == "Conv":
            depth = math.prod(right.shape[1:])  # weight: (out, in / groups, *kernel)
        elif node.op_type == "Gemm":
            depth = left.shape[0 if _attribute(node, "transA", 0) else 1]
        elif node.op_type == "Attention":
            macs[node.output[0]] = _attention_macs(node, left, right, out)
            continue
        else:
            depth = left.shape[-1]
        macs[node.output[0]] = out.elements * depth
    return macs


def _attention_macs(node: onnx.NodeProto, queries: TensorInfo, keys: TensorInfo, out: TensorInfo) -> int:
    """Both products: every channel of queries and of the result meets every key."""
    if len(node.input) > 4 and node.input[4]:
        raise InputError(f"cannot count the MACs of node '{node.name}': it keeps keys of before")
    return (queries.elements + out.elements) * keys.shape[-2]


def _attribute(node: onnx.NodeProto, name: str, default: Any) -> Any:
    attribute = next((a for a in node.attribute if a.name == name), None)
    return default if attribute is None else onnx.helper.get_attribute_value(attribute)


@dataclass(frozen=True)
class Interface:
    """An input or output of the graph."""

    name: str
    dtype: str
    shape: tuple[Dim, ...]


@dataclass(frozen=True)
class BlockSummary:
    """The nodes whose names start alike (`blocks.3/...`): their number, MACs and MACs by the type they run in."""

    name: str
    nodes: int
    macs: int
    macs_by_dtype: dict[str, int]


@dataclass(frozen=True)
class GraphSummary:
    """What a graph holds. `parameters` are weights only: floating point or quantized, not the shapes of Reshapes."""

    inputs: tuple[Interface, ...]
    outputs: tuple[Interface, ...]
    opset: int
    ir_version: int
    nodes: int
    operators: dict[str, int]
    parameters: int
    parameter_bytes: int
    parameters_by_dtype: dict[str, dict[str, int]]
    tensors_by_dtype: dict[str, int]
    macs: int
    macs_by_dtype: dict[str, int]
    blocks: tuple[BlockSummary, ...]

    @property
    def low_precision_fraction(self) -> float:
        """Fraction of the MACs whose operands hold 16 bits or fewer."""
        low = sum(count for dtype, count in self.macs_by_dtype.items() if dtype in _LOW)
        return low / self.macs if self.macs else 0.0

    def to_dict(self) -> dict[str, Any]:
        """Return plain types, for JSON."""
        return {**asdict(self), "low_precision_fraction": self.low_precision_fraction}


def summarize(model: onnx.ModelProto) -> GraphSummary:
    """Describe a graph: interface, operators, parameters and MACs by type and by block.

    Raises:
        InputError: the graph fails shape inference or a product's shape is unknown.
    """
    graph = model.graph
    info = tensor_info(model)
    macs = _macs(model, info)
    ran_in = {name: _product_dtype(name, graph, info) for name in macs}
    weights = [t for t in graph.initializer if t.data_type in _FLOATING or _bits(t.data_type) <= 8]
    by_dtype: dict[str, dict[str, int]] = {}
    for tensor in weights:
        row = by_dtype.setdefault(dtype_name(tensor.data_type), {"count": 0, "bytes": 0})
        row["count"] += math.prod(tensor.dims)
        row["bytes"] += -(-math.prod(tensor.dims) * _bits(tensor.data_type) // 8)
    outputs = (info[name].dtype for node in graph.node for name in node.output if name in info)
    initializers = {t.name for t in graph.initializer}
    return GraphSummary(
        inputs=_interfaces((v for v in graph.input if v.name not in initializers), info),
        outputs=_interfaces(graph.output, info),
        opset=default_opset(model),
        ir_version=model.ir_version,
        nodes=len(graph.node),
        operators=_ranked(node.op_type for node in graph.node),
        parameters=sum(row["count"] for row in by_dtype.values()),
        parameter_bytes=sum(row["bytes"] for row in by_dtype.values()),
        parameters_by_dtype=by_dtype,
        tensors_by_dtype=_ranked(map(dtype_name, outputs)),
        macs=sum(macs.values()),
        macs_by_dtype=_sums((ran_in[name], count) for name, count in macs.items()),
        blocks=_blocks(graph, macs, ran_in),
    )


def _interfaces(values: Iterable[onnx.ValueInfoProto], info: dict[str, TensorInfo]) -> tuple[Interface, ...]:
    named = ((value.name, info[value.name]) for value in values)
    return tuple(Interface(name, dtype_name(i.dtype), i.shape or ()) for name, i in named)


def _bits(dtype: int) -> int:
    if dtype in (TensorProto.INT4, TensorProto.UINT4, TensorProto.FLOAT4E2M1):
        return 4
    return 8 * onnx.helper.tensor_dtype_to_np_dtype(dtype).itemsize


def _product_dtype(output: str, graph: onnx.GraphProto, info: dict[str, TensorInfo]) -> str:
    """Return the type a product's operands are held in: the quantized one if both are dequantized just before it."""
    producer = {name: node for node in graph.node for name in node.output}
    left, right = producer[output].input[:2]
    sources = [producer.get(left), producer.get(right)]
    if all(source is not None and source.op_type == "DequantizeLinear" for source in sources):
        return dtype_name(info[sources[0].input[0]].dtype)
    return dtype_name(info[left].dtype)


def _ranked(names: Iterable[str]) -> dict[str, int]:
    counts = Counter(names)
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def _sums(pairs: Iterable[tuple[str, int]]) -> dict[str, int]:
    sums: Counter[str] = Counter()
    for name, count in pairs:
        sums[name] += count
    return dict(sorted(sums.items()))


def _blocks(graph: onnx.GraphProto, macs: dict[str, int], ran_in: dict[str, str]) -> tuple[BlockSummary, ...]:
    members: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        match = _BLOCK.match(node.name)
        members.setdefault(match[1] if match else "other", []).append(node)
    rows = []
    for name, nodes in members.items():
        products = [node.output[0] for node in nodes if node.output[0] in macs]
        by_dtype = _sums((ran_in[out], macs[out]) for out in products)
        rows.append(BlockSummary(name, len(nodes), sum(by_dtype.values()), by_dtype))
    return tuple(rows)
