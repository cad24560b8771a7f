"""From an ONNX file to an engine of OpenVINO: `engine.xml` with its weights in `engine.bin` beside it."""

from __future__ import annotations

import io
import shutil
from collections import Counter
from copy import deepcopy
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engines.base import Progress
from engines.build_options import BuildOptions
from engines.errors import EngineBuildError, EngineError
from engines.files import atomic_path
from engines.graph_file import GraphNodes, check_batch, input_specs, read_model
from engines.head_biases import join_head_biases
from engines.openvino.bfloat16 import keep_precision, widen
from engines.openvino.kernels import details, read_kernels
from engines.openvino.lacking import lacking
from engines.openvino.library import one_line, settings
from engines.openvino.projections import split_projections

if TYPE_CHECKING:
    from types import ModuleType

    from engines.kernels import Kernel


def build_model(
    ov: ModuleType, onnx_path: Path, engine_path: Path, options: BuildOptions, progress: Progress | None
) -> tuple[tuple[Kernel, ...], dict[str, Any]]:
    """Convert, compile once to see that it can be, and save; return its kernels, and what is worth knowing of it as JSON values.

    Raises:
        EngineBuildError: the graph does not suit OpenVINO.
    """
    report = progress or (lambda *_: None)
    report("reading ONNX", 0, 3)
    typed = read_model(onnx_path)
    known, graph = GraphNodes.of_model(typed), deepcopy(typed)  # what follows rewrites the copy
    _require_kernels(ov, onnx_path, set(known.types.values()))
    low = widen(graph)
    nodes = len(graph.graph.node)
    check_batch(input_specs(graph), options.dynamic_batch, required=False)
    joined = join_head_biases(graph)  # first: a bias is split with its product
    split = split_projections(graph)
    if not engine_path.parent.is_dir():
        raise EngineError(f"cannot write {engine_path}: folder {engine_path.parent} does not exist")
    try:
        core = ov.Core()
        model = core.read_model(io.BytesIO(graph.SerializeToString()))
        report("compiling for this CPU", 1, 3)
        if low:
            keep_precision(model)
        compiled = core.compile_model(model, "CPU", settings(ov, options.threads, low=low))
        kernels = read_kernels(compiled, typed, known)
    except RuntimeError as error:
        raise EngineBuildError(f"OpenVINO cannot build {onnx_path}: {one_line(error)}") from error
    report("saving the engine", 2, 3)
    _save(ov, model, engine_path)
    operators = Counter(op.get_type_name() for op in model.get_ordered_ops())
    report("engine saved", 3, 3)
    return kernels, {
        **details(kernels, known),
        "operators": dict(sorted(operators.items())),
        "rewrites": {
            "products split for queries, keys and values": split,
            **({"biases of heads joined to products": joined} if joined else {}),
            **({"casts to and from bfloat16 taken out": len(typed.graph.node) - nodes} if low else {}),
        },
    }


def _require_kernels(ov: ModuleType, onnx_path: Path, types: set[str]) -> None:
    """Refuse a graph whose products this CPU would emulate, or compute wrongly.

    Raises:
        EngineBuildError: names the type, and what to do.
    """
    for precision, dtypes in (("int8", {"int8", "uint8"}), ("bf16", {"bfloat16"})):
        reason = lacking(ov, precision) if dtypes & types else None
        if reason:
            other = "--engine onnxruntime, or with " if precision == "int8" else ""
            raise EngineBuildError(
                f"{onnx_path} is in {precision}, and {reason}; build it with {other}--precision fp32"
            )


def _save(ov: ModuleType, model: Any, engine_path: Path) -> None:
    """Write both files beside their places and move them there, the weights first."""
    try:
        with atomic_path(engine_path) as temporary:
            ov.save_model(model, str(temporary), compress_to_fp16=False)
            temporary.with_suffix(".bin").replace(engine_path.with_suffix(".bin"))
    except RuntimeError as error:  # a full disk, in its words
        reason = one_line(error)
        if (
            "iostream" in reason
        ):  # what it wrote has gone by now, so that the space which is left does not tell
            left = shutil.disk_usage(engine_path.parent).free / 1e6
            reason = f"the disk is full or fails; {left:.1f} MB are free there without the engine"
        raise EngineError(f"cannot write {engine_path}: {reason}") from error
