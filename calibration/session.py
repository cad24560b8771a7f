"""Running a graph on images with ONNX Runtime on the CPU, and the forms of a graph that are run.

Calibration sees images one at a time: whatever batch a graph was made for, `at_batch_one` makes it take one.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator

import numpy as np
import onnx
from onnx import TensorProto, helper

from calibration.errors import CalibrationError

Progress = Callable[
    [str, int, int], None
]  # what is done, arrays done, arrays in all: 0 where that is not known


class ImageSession:
    """An ONNX Runtime session on the CPU that takes runs of images, and holds an activation no longer than it must.

    Args:
        model: a graph with one input, (N, 3, H, W).
        threads: ONNX Runtime's threads; its own choice if None.

    Raises:
        CalibrationError: the graph has another number of inputs, or does not load.
    """

    def __init__(self, model: onnx.ModelProto, threads: int | None = None) -> None:
        # its official wheels report usage over the network
        os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
        import onnxruntime as ort

        images = image_input(model)
        dims = images.type.tensor_type.shape.dim
        self.input = images.name
        self._shape = tuple(d.dim_value if d.HasField("dim_value") else None for d in dims)
        options = ort.SessionOptions()
        options.log_severity_level = 4  # what fails is raised; the log would only say it twice
        if threads is not None:
            options.intra_op_num_threads = threads
        # Reduce a tensor soon after it is made, and plan no second pool from the first run: for a SiT-S at batch 8 the
        # process then peaks at 1.1 GB, not 2.4.
        options.execution_order = ort.ExecutionOrder.PRIORITY_BASED
        options.enable_mem_pattern = False
        if _holds_fp8(model):
            # Releases before 1.32 join Q/DQ of FP8 to INT8 operators, and then refuse those; the numbers are the same.
            options.add_session_config_entry("session.disable_quant_qdq", "1")
        try:
            self._session = ort.InferenceSession(model.SerializeToString(), options, ["CPUExecutionProvider"])
        except Exception as error:  # ONNX Runtime's exceptions have no common base of their own
            reason = str(error).splitlines()[0]
            raise CalibrationError(f"ONNX Runtime cannot load the graph: {reason}") from error

    def fit(self, batch: np.ndarray) -> Iterator[np.ndarray]:
        """Cut a batch into runs that the graph takes; a short last run repeats its own images."""
        wanted, got = self._shape, tuple(batch.shape)
        fits = len(got) == len(wanted) and all(
            w in (None, g) for w, g in zip(wanted[1:], got[1:], strict=True)
        )
        if batch.dtype != np.float32 or not fits or got[0] == 0:
            takes = ", ".join("N" if i == 0 or d is None else str(d) for i, d in enumerate(wanted))
            raise CalibrationError(
                f"a calibration batch is {batch.dtype} {got}; the graph takes float32 ({takes}) with N at least 1"
            )
        size = wanted[0] or got[0]
        for start in range(0, got[0], size):
            run = batch[start : start + size]
            yield run if len(run) == size else np.resize(run, (size, *run.shape[1:]))

    def run(self, images: np.ndarray) -> list[np.ndarray]:
        """Return the graph's outputs for one run of images."""
        try:
            return self._session.run(None, {self.input: images})
        except Exception as error:  # as above
            reason = str(error).splitlines()[0]
            raise CalibrationError(f"ONNX Runtime cannot run the graph: {reason}") from error


def _holds_fp8(model: onnx.ModelProto) -> bool:
    fp8 = {TensorProto.FLOAT8E4M3FN, TensorProto.FLOAT8E5M2}
    return any(tensor.data_type in fp8 for tensor in model.graph.initializer)


def image_input(model: onnx.ModelProto) -> onnx.ValueInfoProto:
    """Return the graph's one input, the images.

    Raises:
        CalibrationError: the graph has no input, or several.
    """
    weights = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in weights]
    if len(inputs) != 1:
        raise CalibrationError(f"the graph has {len(inputs)} inputs; calibration takes one, the images")
    return inputs[0]


def at_batch_one(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return the graph for one image: shapes inside it are inferred anew."""
    single = onnx.ModelProto()
    single.CopyFrom(model)
    del single.graph.value_info[:]
    for value in (image_input(single), *single.graph.output):
        if value.type.tensor_type.shape.dim:
            value.type.tensor_type.shape.dim[0].dim_value = 1
    return single


def with_outputs(model: onnx.ModelProto, names: Iterable[str]) -> onnx.ModelProto:
    """Return the graph with the named tensors as its outputs, in their order.

    Reducing them to channel maxima inside the graph is no faster (36 LayerNorms of a SiT-S: 0.8 ms an image outside), and
    a histogram needs the values.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    del copy.graph.output[:]
    given = image_input(model).name
    for name in names:
        shown = name
        if name == given:  # an input cannot be an output too
            shown = f"observed/{name}"
            copy.graph.node.append(helper.make_node("Identity", [name], [shown], shown))
        copy.graph.output.append(helper.make_tensor_value_info(shown, TensorProto.FLOAT, None))
    return copy
