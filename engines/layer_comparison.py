"""ONNX Runtime and TensorRT compared tensor by tensor, through Polygraphy: where do the two part?

Every tensor becomes an output, which keeps TensorRT from fusing across it. So this is not the engine that ships: what is wrong
here is wrong in a kernel or in a type, and what is right here and wrong there is wrong in a fusion.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engines.errors import EngineError, EngineNotInstalledError, NoGpuError
from engines.gpus import find_gpus

if TYPE_CHECKING:
    import numpy as np
    import onnx

_INSTALL = "run `pip install polygraphy` (sit-deploy[tensorrt] brings it)"


@dataclass(frozen=True)
class TensorError:
    """One tensor on both sides.

    Attributes:
        error: largest |difference| ÷ std of the reference tensor; None where one side has NaN or infinity that the other has
            not.
        sqnr_db: power of the reference over that of the difference, None where they are equal or either is not finite.
    """

    tensor: str
    node: str
    operator: str
    error: float | None
    sqnr_db: float | None
    passed: bool


@dataclass(frozen=True)
class LayerComparison:
    """All tensors that both sides have, in the order of the graph.

    Attributes:
        missing: those that only one side has.
    """

    tensors: tuple[TensorError, ...]
    missing: tuple[str, ...]
    tolerance: float

    @property
    def first_bad(self) -> TensorError | None:
        """The first tensor out of tolerance: what feeds it is in tolerance, so the fault is in its node."""
        return next((tensor for tensor in self.tensors if not tensor.passed), None)

    def worst(self, count: int = 10) -> list[TensorError]:
        """The tensors of the largest errors, those that are not finite first."""
        return sorted(self.tensors, key=lambda t: math.inf if t.error is None else t.error, reverse=True)[
            :count
        ]

    def to_dict(self) -> dict[str, Any]:
        first = self.first_bad
        return {
            "tolerance": self.tolerance,
            "compared": len(self.tensors),
            "missing": list(self.missing),
            "first_bad": asdict(first) if first else None,
            "tensors": [asdict(tensor) for tensor in self.tensors],
        }


def compare_layers(
    model: onnx.ModelProto,
    reference: Mapping[str, np.ndarray],
    candidate: Mapping[str, np.ndarray],
    tolerance: float,
) -> LayerComparison:
    """Compare the tensors of a graph, in its order.

    Args:
        model: the graph.
        reference: arrays by tensor name, of any floating-point type.
        candidate: likewise.
        tolerance: of `TensorError.error`.

    Raises:
        EngineError: the two have no tensor in common.
    """
    rows, missing = [], []
    for node in model.graph.node:
        for tensor in node.output:
            if tensor in reference and tensor in candidate:
                error, sqnr = _difference(reference[tensor], candidate[tensor])
                passed = error is not None and error <= tolerance
                rows.append(TensorError(tensor, node.name, node.op_type, error, sqnr, passed))
            elif tensor in reference or tensor in candidate:
                missing.append(tensor)
    if not rows:
        raise EngineError("the two sides have no tensor in common; compare graphs of one export")
    return LayerComparison(tuple(rows), tuple(missing), tolerance)


def _difference(reference: np.ndarray, candidate: np.ndarray) -> tuple[float | None, float | None]:
    import numpy as np

    a, b = (np.asarray(array, np.float64) for array in (reference, candidate))
    if a.shape != b.shape:
        return None, None
    finite = np.isfinite(a)
    if not np.array_equal(finite, np.isfinite(b)):
        return None, None
    a, b = a[finite], b[finite]
    if a.size == 0:
        return 0.0, None
    difference = a - b
    noise = float((difference**2).mean())
    if noise == 0:
        return 0.0, None
    # a tensor of one value has no spread; its size then is the measure
    spread = float(a.std()) or float(np.abs(a).max()) or 1.0
    power = float((a**2).mean())
    return float(np.abs(difference).max()) / spread, 10 * math.log10(power / noise) if power else None


def onnxruntime_outputs(
    model: Path, feeds: Mapping[str, np.ndarray], tensors: Sequence[str] | None = None
) -> dict[str, np.ndarray]:
    """Every tensor of a graph on ONNX Runtime's CPU, without its optimisations, so that each is there.

    Args:
        model: file of the graph.
        feeds: an array for each of its inputs.
        tensors: the names of those to return, all by default.

    Raises:
        EngineNotInstalledError: Polygraphy is missing.
        EngineError: the graph does not run.
    """
    _import("polygraphy")
    import onnx
    import onnxruntime as ort
    from polygraphy import constants
    from polygraphy.backend.onnx import modify_outputs
    from polygraphy.backend.onnxrt import OnnxrtRunner

    marked = modify_outputs(onnx.load(model), outputs=list(tensors) if tensors else constants.MARK_ALL)
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL

    def session() -> Any:
        return ort.InferenceSession(marked.SerializeToString(), options, providers=["CPUExecutionProvider"])

    return _run(OnnxrtRunner(session), feeds, "ONNX Runtime")


def tensorrt_outputs(kind: str, model: Path, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Every tensor of a graph on a TensorRT engine that is built here for that.

    Raises:
        NoGpuError: there is none.
        EngineNotInstalledError: Polygraphy or the library is missing.
        EngineError: it does not
            build or run.
    """
    status = find_gpus()
    if not status:
        raise NoGpuError(
            f"comparing layers runs them on an NVIDIA GPU; none found here ({status.reason}). Leave --debug out, or "
            "copy the bundle to a machine with one"
        )
    build = marked_engine(kind, model, feeds)
    from polygraphy.backend.trt import TrtRunner

    return _run(TrtRunner(build), feeds, kind)


def marked_engine(kind: str, model: Path, feeds: Mapping[str, np.ndarray]) -> Any:
    """Return a Polygraphy loader of an engine with every tensor an output, for the shapes of `feeds`."""
    if kind == "tensorrt-rtx":
        # read when Polygraphy is imported, and asked for when its TensorRT backend is
        os.environ["POLYGRAPHY_USE_TENSORRT_RTX"] = "1"
    _import("polygraphy")
    from polygraphy import constants
    from polygraphy.backend import trt as backend

    shapes = backend.Profile()
    for name, array in feeds.items():
        shapes.add(name, min=array.shape, opt=array.shape, max=array.shape)
    network = backend.NetworkFromOnnxPath(str(model), strongly_typed=True)
    marked = backend.ModifyNetworkOutputs(network, outputs=constants.MARK_ALL)
    # TF32 off, as in every build here
    config = backend.CreateConfig(profiles=[shapes], tf32=False)
    return backend.EngineFromNetwork(marked, config=config)


def _run(runner: Any, feeds: Mapping[str, np.ndarray], title: str) -> dict[str, np.ndarray]:
    import numpy as np
    from polygraphy.logger import G_LOGGER

    with G_LOGGER.verbosity(G_LOGGER.CRITICAL):
        try:
            with runner:
                found = runner.infer(feed_dict=dict(feeds))
        except Exception as error:  # Polygraphy's own, the library's, and whatever lies between
            text = " ".join(str(error).split()) or type(error).__name__
            raise EngineError(
                f"{title} does not run the graph with every tensor an output: {text}"
            ) from error
    return {name: np.array(value) for name, value in found.items()}


def _import(name: str) -> None:
    import importlib

    try:
        importlib.import_module(name)
    except ImportError as error:
        raise EngineNotInstalledError("comparing layers needs Polygraphy", _INSTALL) from error
