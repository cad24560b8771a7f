"""Ranges of a graph's activations, observed over a stream of batches.

Every tensor is reduced inside the graph: the session's only outputs are scalars, and ONNX Runtime frees an activation
when its last reader has run. So memory depends on the batch and the model, never on the number of images.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator, Sized
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import TensorProto, helper

from calibration.errors import CalibrationError
from calibration.session import ImageSession, Progress


@dataclass(frozen=True)
class TensorRange:
    """Smallest and largest value of a tensor over the images seen.

    A tensor that held a NaN or an infinity has no usable range: it is (-inf, inf) and `non_finite` is set. The range of
    nothing is (inf, -inf), so that `merge` is associative and commutative with `TensorRange()` as its identity.
    """

    min: float = math.inf
    max: float = -math.inf
    non_finite: bool = False

    @property
    def absmax(self) -> float:
        """Largest magnitude; 0 where nothing was seen."""
        return max(-self.min, self.max, 0.0)

    def merge(self, other: TensorRange) -> TensorRange:
        """Return the range of both observations together."""
        return TensorRange(
            min(self.min, other.min), max(self.max, other.max), self.non_finite or other.non_finite
        )


def observe_ranges(
    model: onnx.ModelProto,
    batches: Iterable[np.ndarray],
    tensors: Collection[str] | None = None,
    progress: Progress | None = None,
) -> dict[str, TensorRange]:
    """Run the graph on every batch and return the range of its activations by tensor name.

    A graph with a fixed batch N takes batches of any size: they are cut into runs of N images, and a last run that is
    short repeats its own images, which changes neither a minimum nor a maximum.

    Args:
        model: a float32 graph with one input, (N, 3, H, W).
        batches: float32 arrays (n, 3, H, W), preprocessed as at inference. Read once, held one at a time.
        tensors: names to observe; all float32 activations and the input if None.
        progress: called as progress(text, batches done, batches in all), with 0 in all where it is not known.

    Returns:
        The ranges in the graph's topological order. NaN and infinity are flagged, not raised: the caller decides.

    Raises:
        CalibrationError: no image, a batch that does not fit the graph, an unknown tensor, or a graph that does not run.
    """
    names = observable_tensors(model) if tensors is None else list(tensors)
    session = ImageSession(with_range_outputs(model, names))
    total = len(batches) if isinstance(batches, Sized) else 0
    ranges = {name: TensorRange() for name in names}
    done = 0
    for done, batch in enumerate(batches, 1):
        for images in session.fit(batch):
            for name, seen in zip(names, _ranges(session.run(images)), strict=True):
                ranges[name] = ranges[name].merge(seen)
        if progress is not None:
            progress("Observing activations", done, total)
    if done == 0:
        raise CalibrationError("no images to calibrate on; pass at least one batch")
    return ranges


def observable_tensors(model: onnx.ModelProto) -> list[str]:
    """Return the graph's input and every float32 tensor that a node computes, in topological order."""
    inferred = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    types = {
        value.name: value.type.tensor_type.elem_type
        for value in (*inferred.input, *inferred.value_info, *inferred.output)
    }
    weights = {tensor.name for tensor in model.graph.initializer}
    names = [value.name for value in model.graph.input if value.name not in weights]
    names += [name for node in model.graph.node for name in node.output if name]
    return [name for name in names if types.get(name) == TensorProto.FLOAT]


def with_range_outputs(model: onnx.ModelProto, names: Iterable[str]) -> onnx.ModelProto:
    """Return the graph with three scalars a tensor as its only outputs: minimum, maximum and L1 norm.

    The norm is the NaN probe. ONNX Runtime's ReduceMin and ReduceMax compare, so they lose a NaN unless it happens to
    come where their vector loop starts (they dropped it in 31 of 41 placements tried with release 1.32); a sum of
    magnitudes keeps it wherever it stands, and no finite or infinite magnitude can make one.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    names = list(names)
    require_observable(set(observable_tensors(model)), names)
    del copy.graph.output[:]
    for index, name in enumerate(names):
        for op_type in ("ReduceMin", "ReduceMax", "ReduceL1"):
            scalar = f"observed/{index}/{op_type}"
            copy.graph.node.append(helper.make_node(op_type, [name], [scalar], scalar, keepdims=0))
            copy.graph.output.append(helper.make_tensor_value_info(scalar, TensorProto.FLOAT, []))
    return copy


def require_observable(known: Collection[str], names: Iterable[str]) -> None:
    """Raise CalibrationError for a name that is not among those of `observable_tensors`."""
    for name in names:
        if name not in known:
            raise CalibrationError(
                f"the graph has no float32 tensor '{name}' to observe; check that the graph is the one meant"
            )


def _ranges(scalars: Iterable[np.ndarray]) -> Iterator[TensorRange]:
    """Yield the range of each tensor from the outputs of a `with_range_outputs` graph."""
    values = iter(scalars)
    for low, high, norm in zip(values, values, values, strict=True):
        # The norm of huge finite values may overflow to infinity; only the extremes tell of a true infinity.
        if math.isnan(norm) or math.isinf(low) or math.isinf(high):
            yield TensorRange(-math.inf, math.inf, True)
        else:
            yield TensorRange(float(low), float(high))
