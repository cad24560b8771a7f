"""Exported graphs of small models, once for all tests, and ONNX Runtime that computes them as they are written."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np
import onnx
import onnxruntime

from calibration.collect import collect_observations
from calibration.formats import GRIDS, float16_scale, shifted_scale
from calibration.insert_qdq import Scales
from calibration.layers import Layer, find_layers
from calibration.plan import make_plan
from sit_deploy.graph import export
from sit_deploy.graph.deploy_form import to_deploy_form
from tests.helpers.models import named_model, tiny_model, tiny_vit, vit_of

_MODELS = {
    "sit_nano": lambda: named_model("sit_nano"),
    "sit": tiny_model,
    "sit with dist token": lambda: tiny_model(dist_token=True),
    "vit": lambda: tiny_vit("layer scale"),
}
MODELS = tuple(_MODELS)
_MODELS["vit of rms norms"] = lambda: vit_of("RMS norms everywhere", (2, 1, 1, 2))
EVERY_GROUP = ("all", "attention", "aggregation", "residual")


@functools.cache
def _exported(name: str, batch: int | str, opset: int) -> bytes:
    model = _MODELS[name]()
    form = to_deploy_form(model)
    return export.export_onnx(form, model.img_size, batch=batch, opset=opset).SerializeToString()


def exported(name: str, batch: int | str = 1, opset: int = 20) -> onnx.ModelProto:
    """Return the FP32 graph of one of MODELS, randomised: a new copy each time."""
    return onnx.load_from_string(_exported(name, batch, opset))


def images_for(model: onnx.ModelProto, count: int = 4, seed: int = 0) -> list[np.ndarray]:
    """Return random images of a graph's size, one an array."""
    size = [d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim][1:]
    random = np.random.default_rng(seed)
    return [random.normal(size=(1, *size)).astype(np.float32) for _ in range(count)]


@functools.lru_cache(maxsize=2)  # a graph is often run for one image after the other
def _session(graph: bytes, optimised: bool) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    if not optimised:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return onnxruntime.InferenceSession(graph, options, ["CPUExecutionProvider"])


def run(
    model: onnx.ModelProto, images: np.ndarray, names: Sequence[str] | None = None, optimised: bool = False
) -> dict[str, np.ndarray]:
    """Return tensors of a graph by name, its outputs if None; without optimisations nothing is fused or reordered."""
    shown = onnx.ModelProto()
    shown.CopyFrom(model)
    there = {value.name for value in model.graph.output}
    for name in dict.fromkeys(names or ()):
        if name not in there:
            shown.graph.output.append(onnx.helper.make_empty_tensor_value_info(name))
    session = _session(shown.SerializeToString(), optimised)
    wanted = list(dict.fromkeys(names or [value.name for value in model.graph.output]))
    feed = {session.get_inputs()[0].name: images}
    return dict(zip(wanted, session.run(wanted, feed), strict=True))


def scales_of(
    model: onnx.ModelProto,
    layers: Sequence[Layer],
    images: Sequence[np.ndarray],
    precision: str = "int8",
    shifted: bool = False,
) -> Scales:
    """Return the scales that hold all that a graph's layers read on some images; `shifted`: with the best shift too."""
    tensors = list(dict.fromkeys(name for layer in layers for name in layer.inputs))
    fixed = {name for layer in layers if layer.weight is None for name in layer.inputs}
    seen = collect_observations(model, images, tensors).tensors
    activations: dict[str, float] = {}
    shifts: dict[str, int] = {}
    for name in tensors:
        if shifted and name not in fixed:
            activations[name], shifts[name] = shifted_scale(seen[name].min, seen[name].max)
        else:
            activations[name] = float(float16_scale(seen[name].absmax / GRIDS[precision].largest))
    return Scales(activations, {name: shift for name, shift in shifts.items() if shift})


def prepared(
    name: str,
    precision: str = "int8",
    opset: int = 20,
    shifted: bool = False,
    groups: Sequence[str] | None = EVERY_GROUP,
) -> tuple[onnx.ModelProto, tuple[str, ...], Scales]:
    """Return the graph of a model, the layers of some groups, and scales for them."""
    model = exported(name, 1, opset)
    layers = find_layers(model)
    names = make_plan(layers, precision, groups).quantized
    return model, names, scales_of(model, [layers[n] for n in names], images_for(model), precision, shifted)


def sqnr_db(value: np.ndarray, reference: np.ndarray) -> float:
    """Return the power of the reference over that of the error, in dB."""
    reference = reference.astype(np.float64)
    return float(10 * np.log10((reference**2).sum() / ((value - reference) ** 2).sum()))
