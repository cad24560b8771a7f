"""BF16 for OpenVINO: the typed graph in the form that its CPU plugin lowers by itself, and whether the CPU has it.

A graph says its types with Casts between them, and those keep OpenVINO from fusing attention and norms: its kernels read and write
bfloat16, and sum squares and exponentials in float32 inside, so that a Cast, a norm and a Cast back are one kernel. So the
Casts are taken out, weights stay rounded, and the plugin is told to infer in bfloat16
(https://docs.openvino.ai/2024/openvino-workflow/running-inference/inference-devices-and-modes/cpu-device.html). What its kernels then
compute in is read back (`engines.openvino.kernels`). The file keeps the setting, so that everything that opens it runs the same.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..errors import EngineLoadError
from .instructions import multiplies_bfloat16

if TYPE_CHECKING:
    from types import ModuleType

    import onnx

KEY = ["sit_deploy", "inference_precision"]  # of a model's runtime information


def has_bfloat16(ov: ModuleType) -> bool:
    """Whether OpenVINO multiplies bfloat16 here; on other CPUs with AVX-512 it would emulate it, slower than float32.

    https://docs.openvino.ai/2021.4/openvino_docs_IE_DG_Bfloat16Inference.html
    """
    return "BF16" in _listed(ov) and multiplies_bfloat16(ov)


def capabilities(ov: ModuleType) -> str:
    """Return the types that there are kernels for, in OpenVINO's words."""
    found = set(_listed(ov)) & {"FP32", "FP16", "BF16", "INT8"}
    if not has_bfloat16(ov):
        found.discard("BF16")
    return ", ".join(sorted(found))


def _listed(ov: ModuleType) -> list[str]:
    return ov.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


def widen(model: onnx.ModelProto) -> bool:
    """Take the bfloat16 out of a typed graph, in place: weights keep their rounded values, tensors and borders are float32.

    Returns:
        Whether it had any. A graph whose inputs or outputs are bfloat16 is left as it is.
    """
    from onnx import TensorProto, numpy_helper  # engines are opened where there is no ONNX

    floats, graph = (TensorProto.FLOAT, TensorProto.BFLOAT16), model.graph
    borders = [value.type.tensor_type.elem_type for value in (*graph.input, *graph.output)]
    types = {value.name: value.type.tensor_type.elem_type for value in (*graph.value_info, *graph.input)}
    types |= {tensor.name: tensor.data_type for tensor in graph.initializer}
    casts = [node for node in graph.node if node.op_type == "Cast" and node.attribute[0].i in floats]
    low = TensorProto.BFLOAT16
    if low in borders or not (low in types.values() or any(node.attribute[0].i == low for node in casts)):
        return False
    for tensor in graph.initializer:
        if tensor.data_type == low:
            values = numpy_helper.to_array(tensor).astype("float32")
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    for value in graph.value_info:
        if value.type.tensor_type.elem_type == low:
            value.type.tensor_type.elem_type = TensorProto.FLOAT
    for node in casts:
        types[node.output[0]] = node.attribute[0].i
    outputs = {value.name for value in graph.output}
    same: dict[str, str] = {}  # what a Cast that goes gives, by what it reads
    kept = []
    for node in graph.node:
        if node.op_type != "Cast" or node.attribute[0].i not in floats:
            kept.append(node)
        elif types.get(node.input[0]) in floats and node.output[0] not in outputs:
            same[node.output[0]] = node.input[0]
        else:
            node.attribute[0].i = TensorProto.FLOAT
            kept.append(node)
    for node in kept:
        for place, name in enumerate(node.input):
            while name in same:
                name = same[name]
            node.input[place] = name
    del graph.node[:]
    graph.node.extend(kept)
    return True


def keep_precision(model: Any) -> None:
    """Write into a model that it is to be inferred in bfloat16."""
    model.set_rt_info("bf16", KEY)


def in_bfloat16(model: Any) -> bool:
    """Whether a model is to be inferred in bfloat16 (`keep_precision`).

    Raises:
        EngineLoadError: it is to be inferred in what this release does not know.
    """
    if not model.has_rt_info(KEY):
        return False
    said = model.get_rt_info(KEY).value
    if said != "bf16":
        raise EngineLoadError(
            f"the engine is to be inferred in {str(said)!r:.40}, which this release does not know; build it again, or update sit-deploy"
        )
    return True
