"""What an engine has to know of an ONNX file before a runtime sees it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from engines.errors import EngineBuildError
from engines.runner import TensorSpec, format_shape

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    import onnx

_PRODUCTS = ("MatMul", "Gemm", "Conv")
_OF_WEIGHTS = ("Cast", "DequantizeLinear", "QuantizeLinear", "Transpose")
_ELEMENTWISE = ("Add", "Cast", "DequantizeLinear", "Div", "Mul", "QuantizeLinear", "Sub", "Where")


@dataclass(frozen=True)
class GraphNodes:
    """The nodes of a graph that an engine's layers and kernels are held to, by name: all there is to know of it where onnx is not.

    Attributes:
        types: the type of each product, as `product_types`.
        products: all products, as `product_nodes`.
        attention: as `attention_nodes`.
    """

    types: Mapping[str, str]
    products: tuple[str, ...]
    attention: tuple[str, ...]

    @classmethod
    def of(cls, graph: Path | GraphNodes) -> GraphNodes:
        """Return the nodes of an ONNX file, or those that were read before.

        Raises:
            EngineBuildError: as `read_model`.
        """
        if isinstance(graph, cls):
            return graph
        return cls.of_model(read_model(graph))

    @classmethod
    def of_model(cls, model: onnx.ModelProto) -> GraphNodes:
        """Return the nodes of a graph that is read already."""
        return cls(product_types(model), product_nodes(model), attention_nodes(model))


def read_model(path: Path, *, weights: bool = False) -> onnx.ModelProto:
    """Read an ONNX file; tensors stored in files beside it are read only if `weights`.

    Runtimes differ on damaged files (TensorRT-RTX takes plain text for an empty graph), so the
    question is settled here.

    Raises:
        EngineBuildError: there is no such file, or it is not a readable ONNX model.
    """
    import onnx
    from google.protobuf.message import DecodeError

    if not path.is_file():
        raise EngineBuildError(f"{path}: no such ONNX file")
    try:
        model = onnx.load(path, load_external_data=weights)
    except (DecodeError, UnicodeDecodeError):
        raise EngineBuildError(
            f"{path} is not a readable ONNX model (not a protobuf, or cut short)"
        ) from None
    except (OSError, ValueError, onnx.checker.ValidationError) as error:
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise EngineBuildError(f"{path} is not a readable ONNX model ({first})") from error
    if not model.opset_import or not model.graph.output:
        raise EngineBuildError(f"{path} is not a readable ONNX model (it holds no graph)")
    return model


def input_specs(model: onnx.ModelProto) -> tuple[TensorSpec, ...]:
    """The graph's inputs, leaving out initializers that are listed as inputs."""
    weights = {tensor.name for tensor in model.graph.initializer}
    return _specs(value for value in model.graph.input if value.name not in weights)


def output_specs(model: onnx.ModelProto) -> tuple[TensorSpec, ...]:
    """The graph's outputs."""
    return _specs(model.graph.output)


def tensor_types(model: onnx.ModelProto) -> set[str]:
    """The types that weights, inputs, outputs, casts and quantization give the graph, by numpy's names."""
    graph = model.graph
    types = {tensor.data_type for tensor in graph.initializer}
    types |= {value.type.tensor_type.elem_type for value in (*graph.input, *graph.output)}
    types |= {a.i for node in graph.node if node.op_type == "Cast" for a in node.attribute if a.name == "to"}
    return {_type_name(kind) for kind in types if kind}


def holds_fp8(model: onnx.ModelProto) -> bool:
    """Whether a weight, an input, an output or a quantization of the graph is in FP8."""
    return any(name.startswith("float8_") for name in tensor_types(model))


def product_types(model: onnx.ModelProto) -> dict[str, str]:
    """The type that each product (MatMul, Gemm, Conv) of a graph computes in: of its inputs, or of the Q/DQ before it."""
    from onnx import shape_inference

    graph = shape_inference.infer_shapes(model).graph
    types = {tensor.name: tensor.data_type for tensor in graph.initializer}
    for value in (*graph.input, *graph.value_info, *graph.output):
        types[value.name] = value.type.tensor_type.elem_type
    made_by = {output: node for node in graph.node for output in node.output}

    types_of = {}
    for node in graph.node:
        if node.op_type not in _PRODUCTS:
            continue
        sources = [made_by.get(tensor) for tensor in node.input[:2]]
        if all(source is not None and source.op_type == "DequantizeLinear" for source in sources):
            kind = types.get(sources[0].input[0])
        else:
            kind = types.get(node.input[0])
        if kind:
            types_of[node.name] = _type_name(kind)
    return types_of


def product_nodes(model: onnx.ModelProto) -> tuple[str, ...]:
    """The products (MatMul, Gemm, Conv) of a graph."""
    return tuple(node.name for node in model.graph.node if node.op_type in _PRODUCTS)


def attention_nodes(model: onnx.ModelProto) -> tuple[str, ...]:
    """The nodes of a graph that are attention's: Attention, and Softmax between two products of activations, of which one is scores.

    A softmax over the outputs of a layer with weights, as a token slimming module has, is none.
    """
    graph = model.graph
    made_by = {output: node for node in graph.node for output in node.output}
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        for tensor in node.input:
            readers.setdefault(tensor, []).append(node)

    def behind(tensor: str, through: Sequence[str]) -> str:
        """The tensor that one is made of by operators that change its elements alone."""
        while tensor in made_by and made_by[tensor].op_type in through:
            tensor = next((name for name in made_by[tensor].input if name in made_by), "")
        return tensor

    def multiplies_activations(node: onnx.NodeProto | None) -> bool:
        if node is None or node.op_type != "MatMul":
            return False
        sources = [behind(tensor, _OF_WEIGHTS) for tensor in node.input]
        return all(name in made_by and made_by[name].op_type != "Constant" for name in sources)

    def reader(tensor: str) -> onnx.NodeProto | None:
        nodes = readers.get(tensor, [])
        while len(nodes) == 1 and nodes[0].op_type in _ELEMENTWISE:
            nodes = readers.get(nodes[0].output[0], [])
        return nodes[0] if len(nodes) == 1 else None

    return tuple(
        node.name
        for node in graph.node
        if (node.op_type == "Attention" and node.domain in ("", "ai.onnx"))
        or (
            node.op_type == "Softmax"
            and multiplies_activations(made_by.get(behind(node.input[0], _ELEMENTWISE)))
            and multiplies_activations(reader(node.output[0]))
        )
    )


def attention_graph() -> bytes:
    """The smallest graph with ONNX's Attention, to try a runtime with: its input `x` is queries, keys and values."""
    from onnx import TensorProto, helper

    node = helper.make_node("Attention", ["x", "x", "x"], ["y"], "attention", scale=1.0)
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 1, 2, 4]) for name in ("x", "y")]
    graph = helper.make_graph([node], "attention", values[:1], values[1:])
    opset = [helper.make_opsetid("", 23)]
    return helper.make_model(graph, opset_imports=opset, ir_version=11).SerializeToString()


def check_batch(
    inputs: tuple[TensorSpec, ...], dynamic_batch: tuple[int, int, int] | None, *, required: bool
) -> None:
    """Check that open dimensions and the batch range asked for agree.

    Args:
        inputs: of the graph.
        dynamic_batch: (min, opt, max), None for a fixed batch.
        required: the runtime cannot build an open batch without a range.

    Raises:
        EngineBuildError: a range is given for a fixed batch; or, if required, the range is
            missing or another dimension is open.
    """
    for spec in inputs:
        if required and None in spec.shape[1:]:
            raise EngineBuildError(
                f"input {spec.name} has shape {format_shape(spec.shape)}; "
                "only the first dimension (the batch) may be open"
            )
        is_open = bool(spec.shape) and spec.shape[0] is None
        if dynamic_batch is not None and not is_open:
            raise EngineBuildError(
                f"dynamic batch {':'.join(map(str, dynamic_batch))} asked for, but input "
                f"{spec.name} has the fixed shape {format_shape(spec.shape)}; "
                "export the graph with an open batch"
            )
        if dynamic_batch is None and is_open and required:
            raise EngineBuildError(
                f"input {spec.name} has an open batch {format_shape(spec.shape)}; "
                "give its range as --dynamic-batch MIN:OPT:MAX"
            )


def _type_name(kind: int) -> str:
    """A type of ONNX by numpy's name.

    Raises:
        EngineBuildError: it is none, as a damaged file may have it.
    """
    from onnx import helper

    try:
        return helper.tensor_dtype_to_np_dtype(kind).name
    except KeyError:
        raise EngineBuildError(
            f"the ONNX graph has a tensor of type {kind}, which is none; export it again"
        ) from None


def _specs(values: Iterable[onnx.ValueInfoProto]) -> tuple[TensorSpec, ...]:
    specs = []
    for value in values:
        tensor = value.type.tensor_type
        shape = tuple(dim.dim_value if dim.HasField("dim_value") else None for dim in tensor.shape.dim)
        specs.append(TensorSpec(value.name, shape, _type_name(tensor.elem_type)))
    return tuple(specs)
