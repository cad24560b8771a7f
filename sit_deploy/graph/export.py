"""Exports a deploy form to one static ONNX graph of standard operators, named after the model and reproducible.

PyTorch's exporter (`dynamo=True`) writes the graph; what follows here makes it canonical: names that read like the
model (`blocks.3/attn/qkv`), a batch dimension that is a plain number or the only open one, the operator set that was
asked for, and no trace of the machine it was made on. `sit_deploy.graph.lint` proves the result.
"""

from __future__ import annotations

import ast
import contextlib
import io
import logging
import re
import warnings
from collections import Counter
from collections.abc import Iterator

import onnx
import torch
from onnx import ModelProto, NodeProto, helper, numpy_helper
from torch import nn

from engines.base import ATTENTION_OPSET
from sit_deploy.errors import InputError
from sit_deploy.graph.attention import write_attention
from sit_deploy.graph.deploy_form import DeployForm, passed_through
from sit_deploy.graph.fold_constants import fold_constants
from sit_deploy.graph.fold_padding import fold_padding
from sit_deploy.graph.open_batch import EXPORTED, open_batch, open_batch_by_comparison

INPUT, BATCH = "images", "batch"
DEFAULT_OPSET = 20  # Gelu is one operator from here on; TensorRT 10 and newer read it
# 17: the most that TensorRT 8.6 reads; 23: attention is one operator
OPSETS = (17, 18, 19, 20, ATTENTION_OPSET)

_SCOPES = "pkg.torch.onnx.name_scopes"
# what the inputs of an operator are called in the names of its initializers
_ROLES = {
    "Conv": ("", "weight", "bias"),
    "MatMul": ("weight", "weight"),
    "Gemm": ("", "weight", "bias"),
    "LayerNormalization": ("", "weight", "bias"),
    "Add": ("value", "value"),
    "Mul": ("value", "value"),
    "Div": ("value", "value"),
    "Pow": ("", "exponent"),
    "Reshape": ("", "shape"),
    "Pad": ("", "pads", "value"),
    "ReduceMax": ("", "axes"),
    "ReduceMean": ("", "axes"),
    "Slice": ("", "starts", "ends", "axes", "steps"),
    "Split": ("", "sizes"),
}
# the operator that stands for its whole module, and so bears the module's name
_MAIN = {"Conv", "MatMul", "Gemm", "LayerNormalization", "Gelu"}


def export_onnx(
    model: DeployForm,
    image_size: tuple[int, int],
    *,
    batch: int | str = 1,
    opset: int = DEFAULT_OPSET,
    name: str = "sit",
    one_attention: bool = True,
) -> ModelProto:
    """Return the ONNX graph of a deploy form: `images` float32 (batch, 3, H, W) → its outputs float32 (batch, ...), by name.

    Args:
        model: what is exported.
        image_size: height and width in pixels.
        batch: a number, or "batch" for an open dimension 0; nothing else is ever open.
        opset: version of the standard operator set.
        name: of the graph.
        one_attention: write attention as one operator where the operator set has it (`graph.attention`).

    Raises:
        InputError: an operator set that is not offered, a batch below 1, or an open one of a model that counts images
            together with something else.
    """
    if opset not in OPSETS:
        raise InputError(f"opset {opset} is not offered; pass --opset {' or '.join(map(str, OPSETS))}")
    if isinstance(batch, int) and batch < 1:
        raise InputError(f"batch size must be at least 1, got {batch}; pass --batch-size 1 or more")
    graph = _written(model, image_size, EXPORTED, opset)
    if passed_through(model):
        open_batch_by_comparison(graph, _written(model, image_size, EXPORTED + 1, opset))
    else:
        open_batch(graph)
    made = set_batch(_clean(graph, name), batch)
    if isinstance(batch, str) and passed_through(model) and not _open_in_front_alone(made, batch):
        raise InputError(
            "this model counts its images together with their windows, so that a batch cannot be left open; pass --batch-size N in place "
            "of --dynamic-batch"
        )
    return write_attention(made) if one_attention and opset >= ATTENTION_OPSET else made


def _written(model: nn.Module, image_size: tuple[int, int], batch: int, opset: int) -> ModelProto:
    """Return what PyTorch's exporter makes of a model for a number of images, in the operator set and with names of its modules."""
    sample = torch.zeros(batch, model.in_chans, *image_size)
    with _quiet():
        program = torch.onnx.export(
            model, (sample,), dynamo=True, opset_version=min(max(opset, 18), DEFAULT_OPSET), input_names=[INPUT], output_names=list(model.outputs),
            optimize=True, verbose=False,
        )  # fmt: skip
    graph = program.model_proto
    fold_constants(graph)
    fold_padding(graph)
    _declare_opset(graph, opset)
    _rename(graph)
    del graph.graph.value_info[:]  # of the names before
    return graph


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence the exporter's progress prints, deprecation warnings and logs: none concerns the user's model."""
    loggers = [logging.getLogger(n) for n in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)


def _declare_opset(model: ModelProto, opset: int) -> None:
    """Declare another operator set after making every node valid in it (the checker proves that it is).

    A newer one takes every node as it is: what the deploy form is written with was given more types since, and nothing else.

    onnx's converter has no adapter from 18 to 17 for Pad, whose only change is an optional input that is not used
    here; Split's only change is an attribute that repeats the number of outputs, and that of ReduceMean and ReduceMax that their axes, an
    attribute before, are an input.
    """
    (declared,) = [o for o in model.opset_import if o.domain in ("", "ai.onnx")]
    if declared.version == opset:
        return
    for node in model.graph.node:
        schema = onnx.defs.get_schema(node.op_type, opset)
        if node.op_type == "Split" and "num_outputs" not in schema.attributes:
            kept = [a for a in node.attribute if a.name != "num_outputs"]
            del node.attribute[:]
            node.attribute.extend(kept)
        if node.op_type in ("ReduceMean", "ReduceMax") and len(schema.inputs) == 1 and len(node.input) == 2:
            (axes,) = [t for t in model.graph.initializer if t.name == node.input[1]]
            kept = [a for a in node.attribute if a.name == "keepdims"]
            del node.attribute[:], node.input[1:]
            node.attribute.extend(
                [*kept, helper.make_attribute("axes", numpy_helper.to_array(axes).tolist())]
            )
    declared.version = opset


def _scope(node: NodeProto) -> str | None:
    """Return the path of the module that a node comes from, e.g. `blocks.3/attn/qkv`; None where it is not recorded."""
    for prop in node.metadata_props:
        if prop.key == _SCOPES:
            modules = ast.literal_eval(prop.value)[:-1]
            return re.sub(r"\.(?!\d)", "/", modules[-1]) if modules else ""
    return None


def _node_names(model: ModelProto) -> list[str]:
    """Return a unique readable name for every node, in order."""
    nodes = model.graph.node
    producer = {out: i for i, node in enumerate(nodes) for out in node.output}
    scopes: list[str] = []
    for node in nodes:
        scope = _scope(node)
        if scope is None:  # made by an optimisation of the exporter: it belongs where its input was made
            made_by = [producer[i] for i in node.input if i in producer]
            scope = scopes[made_by[0]].rsplit("/", 1)[0] if made_by else ""
        scopes.append(scope)
    parents = {"/".join(s.split("/")[:n]) for s in scopes for n in range(1, s.count("/") + 1)}
    initializers = {t.name for t in model.graph.initializer}
    used: Counter[str] = Counter()
    names = []
    for node, scope in zip(nodes, scopes, strict=True):
        leaf = scope and scope not in parents
        if leaf and node.op_type in _MAIN:
            name = scope
        elif leaf and node.op_type == "Add" and used[scope] and any(i in initializers for i in node.input):
            name = f"{scope}/bias"
        else:
            name = f"{scope}/{node.op_type.lower()}".lstrip("/")
        used[name] += 1
        names.append(name if used[name] == 1 else f"{name}_{used[name]}")
    return names


def _rename(model: ModelProto) -> None:
    """Name nodes after their module, tensors after the node that makes them, initializers after their first reader."""
    graph = model.graph
    names = {i.name: i.name for i in (*graph.input, *graph.output)}
    initializers = {t.name for t in graph.initializer}
    taken: set[str] = set()
    for node, name in zip(graph.node, _node_names(model), strict=True):
        node.name = name
        for position, tensor in enumerate(node.input):
            if tensor in initializers and tensor not in names:
                roles = _ROLES.get(node.op_type, ())
                role = roles[position] if position < len(roles) else f"input{position}"
                wanted = f"{name}/{role}"
                names[tensor] = wanted if wanted not in taken else f"{wanted}_{position}"
                taken.add(names[tensor])
        for position, tensor in enumerate(node.output):
            if tensor not in names:
                names[tensor] = name if len(node.output) == 1 else f"{name}:{position}"
    for node in graph.node:
        node.input[:] = [names.get(t, t) for t in node.input]
        node.output[:] = [names.get(t, t) for t in node.output]
    for tensor in graph.initializer:
        tensor.name = names.get(tensor.name, tensor.name)


def _clean(model: ModelProto, name: str) -> ModelProto:
    """Return the model with nothing but its graph: no stack traces, no stale shapes, a fixed order of initializers."""
    graph = model.graph
    order = {t: i for i, t in enumerate(dict.fromkeys(t for node in graph.node for t in node.input))}
    initializers = sorted((t for t in graph.initializer if t.name in order), key=lambda t: order[t.name])
    for item in (*graph.node, *initializers, *graph.input, *graph.output):
        item.doc_string = ""
        del item.metadata_props[:]
    clean = helper.make_graph(list(graph.node), name, list(graph.input), list(graph.output), initializers)
    opset = [o for o in model.opset_import if o.domain in ("", "ai.onnx")]
    return helper.make_model(
        clean, opset_imports=opset, producer_name="sit-deploy", ir_version=_ir_version(opset[0].version)
    )


def _ir_version(opset: int) -> int:
    """Return the version of ONNX's format that came with an operator set."""
    if opset < 19:
        return 8
    return 9 if opset < ATTENTION_OPSET else 11


def _open_in_front_alone(model: ModelProto, batch: str) -> bool:
    """Say whether every inferred shape is known but for the open batch itself."""
    dimensions = (d for value in model.graph.value_info for d in value.type.tensor_type.shape.dim)
    return all(d.dim_param == batch if d.dim_param else d.HasField("dim_value") for d in dimensions)


def set_batch(model: ModelProto, batch: int | str) -> ModelProto:
    """Return an exported graph with dimension 0 of input and output set to a number or to an open name.

    Shapes of all other tensors are inferred anew.
    """
    result = ModelProto()
    result.CopyFrom(model)
    del result.graph.value_info[:]
    for value in (*result.graph.input, *result.graph.output):
        dimension = value.type.tensor_type.shape.dim[0]
        dimension.Clear()
        if isinstance(batch, int):
            dimension.dim_value = batch
        else:
            dimension.dim_param = batch
    return onnx.shape_inference.infer_shapes(result, strict_mode=True, data_prop=True)
