"""GPTQ: rounding weights so that the layer's output, not the weight itself, comes out nearest.

Rounding each weight to the nearest code minimises |w - q|. What matters is |Xw - Xq| over the layer's real inputs X, and
there an error of one weight can be made good by the others that see correlated inputs. This is GPTQ (Frantar et al.,
"GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers", arXiv 2210.17323): weights are rounded
column by column, and the error of each is made good by the columns still to come, by way of a Cholesky factor of H = XᵀX.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized

import numpy as np
import onnx
from onnx import numpy_helper

from calibration.errors import CalibrationError
from calibration.formats import GRIDS, Grid, scale_of_layer
from calibration.layers import Layer, find_layers
from calibration.session import ImageSession, Progress, at_batch_one, with_outputs

DAMPING = 0.01  # of H's mean diagonal, added to its diagonal: the paper's
_ROWS = 512  # rows of X gathered for one product
_BLOCK = 32  # columns whose errors are gathered before the rest of the weight is touched
# elements of H held at once: 256 MB in float32; more layers take another pass over the images
_HELD = 64_000_000


def gptq_codes(
    model: onnx.ModelProto,
    layers: Sequence[str],
    images: Iterable[np.ndarray],
    precision: str = "int8",
    progress: Progress | None = None,
    channels: Mapping[str, np.ndarray] | None = None,
) -> dict[str, np.ndarray]:
    """Return the codes of every layer's weight, in the weight's own shape, for the scales that `weight_scale` gives.

    Args:
        model: a float32 graph.
        layers: names of those of its layers that are to be quantized; those without a weight are passed over.
        images: float32 arrays (n, 3, H, W), which may be iterated more than once; a few dozen do.
            The scales of the activations have no say: a shift is given back with the rounded weights, so that x itself
            is what they multiply.
        precision: "int8" or "fp8".
        progress: called as progress(text, arrays done, arrays in all), over all passes.
        channels: scales of output channels, by layer, in place of those of `weight_scale`.

    Raises:
        CalibrationError: as `calibration.collect.collect_observations`, or a convolution with groups, dilations or automatic padding.
    """
    known = find_layers(model)
    wanted = [known[name] for name in layers if known[name].weight is not None]
    grid = GRIDS[precision]
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    single = at_batch_one(model)
    parts = list(_parts(wanted, tensors))
    arrays = len(images) if isinstance(images, Sized) else 0
    codes: dict[str, np.ndarray] = {}
    for number, part in enumerate(parts):
        before = number * arrays

        def report(done: int, before: int = before) -> None:
            if progress:
                progress("Rounding weights", before + done, len(parts) * arrays)

        hessians = _hessians(single, part, tensors, images, report)
        for layer in part:
            if not np.isfinite(hessians[_key(layer)]).all():
                raise CalibrationError(f"'{layer.inputs[0]}' is not finite; no weight is rounded to it")
            weight = numpy_helper.to_array(tensors[layer.weight])
            scale = scale_of_layer(layer.name, weight, layer.channel_axis, grid, channels or {})
            rounded = gptq_matrix_codes(_rows(weight, layer), hessians[_key(layer)], scale, grid)
            codes[layer.name] = _restored(rounded, weight, layer)
    return codes


def gptq_matrix_codes(
    weight: np.ndarray, hessian: np.ndarray, scale: np.ndarray, grid: Grid, damping: float = DAMPING
) -> np.ndarray:
    """Round a weight (outputs, inputs) to codes so that tr((w - q) H (w - q)ᵀ) is small.

    Args:
        weight: float32 (outputs, inputs).
        hessian: H = XᵀX over the inputs, symmetric (inputs, inputs), up to a factor.
        scale: of each output, (outputs,).
        grid: of the codes.
        damping: share of H's mean diagonal that is added to its diagonal.

    Returns:
        Codes in the grid's dtype, (outputs, inputs).
    """
    columns = weight.shape[1]
    h = hessian.astype(np.float64)
    diagonal = np.diag(h).copy()
    dead = diagonal == 0  # an input that is always 0 has no say
    h[dead, dead] = 1
    h[np.diag_indices(columns)] += damping * (diagonal.mean() or 1.0)
    # the inputs that matter most come first, while their errors can still be made good
    order = np.argsort(-np.diag(h), kind="stable")
    # H = A·Aᵀ, A upper triangular: |(w - q)·A|² is the error, and its term k knows w₀…w_k alone. Each code is chosen so
    # that its term is nearest 0. That is GPTQ without the inverse of H.
    spread = np.linalg.cholesky(h[np.ix_(order[::-1], order[::-1])])[::-1, ::-1]
    spread /= np.diag(spread).copy()
    w = np.ascontiguousarray(weight.astype(np.float64).T[order])  # (inputs, outputs)
    step = scale.astype(np.float64)
    limit = grid.largest * step
    codes = np.empty(w.shape, grid.dtype)
    errors = np.empty_like(w)
    for start in range(0, columns, _BLOCK):
        stop = min(start + _BLOCK, columns)
        owed = spread[:start, start:stop].T @ errors[:start]
        for i in range(start, stop):
            wanted = w[i] + owed[i - start] + spread[start:i, i] @ errors[start:i]
            codes[i] = grid.codes(np.clip(wanted, -limit, limit), step)
            errors[i] = w[i] - codes[i].astype(np.float64) * step
    restored = np.empty((weight.shape[0], columns), grid.dtype)
    restored[:, order] = codes.T
    return restored


def _parts(layers: Sequence[Layer], tensors: Mapping[str, onnx.TensorProto]) -> Iterator[list[Layer]]:
    """Cut the layers, in graph order, into runs whose Hessians fit in memory together."""
    part: list[Layer] = []
    keys: set[tuple] = set()
    held = 0
    for layer in layers:
        key, dims = _key(layer), tensors[layer.weight].dims
        size = (math.prod(dims) // dims[layer.channel_axis]) ** 2
        if part and key not in keys and held + size > _HELD:
            yield part
            part, keys, held = [], set(), 0
        held += 0 if key in keys else size
        part.append(layer)
        keys.add(key)
    if part:
        yield part


def _key(layer: Layer) -> tuple:
    """Return what layers that see the same inputs share; a convolution sees windows of its own."""
    return (layer.inputs[0], layer.name if layer.op_type == "Conv" else None)


def _rows(weight: np.ndarray, layer: Layer) -> np.ndarray:
    """Return a weight as (outputs, inputs)."""
    return np.moveaxis(weight, layer.channel_axis, 0).reshape(weight.shape[layer.channel_axis], -1)


def _restored(rows: np.ndarray, weight: np.ndarray, layer: Layer) -> np.ndarray:
    """Undo `_rows`."""
    moved = np.moveaxis(weight, layer.channel_axis, 0).shape
    return np.ascontiguousarray(np.moveaxis(rows.reshape(moved), 0, layer.channel_axis))


def _hessians(
    single: onnx.ModelProto,
    layers: Sequence[Layer],
    tensors: Mapping[str, onnx.TensorProto],
    images: Iterable[np.ndarray],
    report: Callable[[int], None],
) -> dict[tuple, np.ndarray]:
    """Return H = XᵀX of every input that the layers see, summed over images and tokens, float32."""
    nodes = {node.name: node for node in single.graph.node}
    sources = {_key(layer): layer for layer in layers}
    names = list(dict.fromkeys(layer.inputs[0] for layer in layers))
    session = ImageSession(with_outputs(single, names))
    hessians = {key: _Hessian() for key in sources}
    seen = 0
    for done, batch in enumerate(images, 1):
        for image in session.fit(batch):
            values = dict(zip(names, session.run(image), strict=True))
            for key, layer in sources.items():
                x = values[key[0]]
                if layer.op_type == "Conv":
                    x = _windows(x, nodes[layer.name], tensors[layer.weight].dims[2:])
                hessians[key].add(x.reshape(-1, x.shape[-1]))
            seen += 1
        report(done)
    if not seen:
        raise CalibrationError("no images to round the weights with; pass at least one")
    return {key: hessian.total() for key, hessian in hessians.items()}


class _Hessian:
    """XᵀX of rows that come a few at a time; they are gathered, as many small products take longer than a large one."""

    def __init__(self) -> None:
        self._rows: list[np.ndarray] = []
        self._total: np.ndarray | None = None

    def add(self, rows: np.ndarray) -> None:
        self._rows.append(rows)
        if sum(map(len, self._rows)) >= _ROWS:
            self.total()

    def total(self) -> np.ndarray:
        if self._rows:
            x = np.concatenate(self._rows)
            self._rows.clear()
            hessian = x.T @ x
            if self._total is not None:
                hessian += self._total
            self._total = hessian
        return self._total


def _windows(x: np.ndarray, conv: onnx.NodeProto, kernel: Sequence[int]) -> np.ndarray:
    """Return the windows that a convolution multiplies, (positions, channels · kernel), zeros where it pads.

    Raises:
        CalibrationError: a convolution with groups, dilations or automatic padding, which no model here has.
    """
    attributes = {a.name: onnx.helper.get_attribute_value(a) for a in conv.attribute}
    if (
        attributes.get("group", 1) != 1
        or set(attributes.get("dilations", [1])) != {1}
        or attributes.get("auto_pad", b"NOTSET") != b"NOTSET"
    ):
        raise CalibrationError(
            f"'{conv.name}' has groups, dilations or automatic padding, which weights are not rounded for"
        )
    top, left, bottom, right = attributes.get("pads", [0, 0, 0, 0])
    down, across = attributes.get("strides", [1, 1])
    padded = np.pad(x, ((0, 0), (0, 0), (top, bottom), (left, right)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, tuple(kernel), axis=(2, 3))
    windows = windows[:, :, ::down, ::across]
    return windows.transpose(0, 2, 3, 1, 4, 5).reshape(-1, x.shape[1] * kernel[0] * kernel[1])
