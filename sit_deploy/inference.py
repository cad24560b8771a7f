"""Running a bundle on images, without PyTorch: only NumPy, Pillow for image files, and the engine's own runtime."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from numbers import Integral
from pathlib import Path

import engines
from engines.performance import Performance
from sit_deploy.bundle import Bundle, load_bundle
from sit_deploy.classifier import Classifier, top_classes
from sit_deploy.errors import InputError
from sit_deploy.performance import Threads, read_performance, require_several_at_once

__all__ = ["Classifier", "graph_on_onnxruntime", "is_low_precision", "load", "top_classes"]


def load(
    bundle: str | Path | Bundle,
    engine: str | None = None,
    *,
    threads: int | None = None,
    device: str | None = None,
    performance: str = "latency",
    streams: int | None = None,
) -> Classifier:
    """Open a bundle for inference: `sit_deploy.load("sit_s-fp32")(images)` gives logits, and `.predict("cat.jpg")` classes.

    Args:
        bundle: its folder, or an open one.
        engine: run the bundle's graph on another engine than the one it was built for; only "onnxruntime" can.
        threads: CPU threads; what it was built for by default, or the runtime's choice.
        device: "cpu", "cuda" or "cuda:N"; by default the CPU for ONNX Runtime and the first GPU for TensorRT.
        performance: "throughput" runs several batches at a time, each on some of the threads: of several threads of yours that
            call the classifier, and of one that gives it many images. "latency" has all threads work on one.
        streams: how many at a time, for throughput; the runtime's choice by default.

    Raises:
        InputError: not a whole and unchanged bundle, a graph that the engine asked for cannot run, throughput of an engine
            that has no such mode, or an argument that is no text or no whole number.
        engines.NoGpuError: its engine needs a GPU that is not here.
        engines.EngineLoadError: its engine was built for another release or another GPU.
    """
    for name, value, of, what in (
        ("engine", engine, str, "text"),
        ("device", device, str, "text"),
        ("threads", threads, Integral, "a whole number"),
        ("performance", performance, str, "text"),
        ("streams", streams, Integral, "a whole number"),
    ):
        if value is not None and not isinstance(value, of):
            raise InputError(f"{name} must be {what} or None, got {value!r}")
    bundle = bundle if isinstance(bundle, Bundle) else load_bundle(bundle)
    kind = bundle.manifest.engine.kind
    threads = Threads.of(bundle, threads).count
    if read_performance(performance, streams, device) is Performance.THROUGHPUT:
        if engine not in (None, kind):
            raise InputError(
                f"throughput is of the bundle's own engine ({kind}), and {engine} was asked for; build one with --engine {engine}"
            )
        require_several_at_once(bundle, kind)
        runner = engines.get(kind).load_for_throughput(
            bundle.engine_path, threads=threads, streams=streams, origin=bundle.origin
        )
        return Classifier(runner, bundle.batch_range, bundle)
    if engine in (None, kind):
        runner = engines.get(kind).load(
            bundle.engine_path, threads=threads, device=device, origin=bundle.origin
        )
        return Classifier(runner, bundle.batch_range, bundle)
    if engine != "onnxruntime":
        engines.get(engine)
        raise InputError(
            f"{bundle.path} holds a {kind} engine, not {engine}; build one with --engine {engine}"
        )
    with graph_on_onnxruntime(bundle.model_path, threads=threads, device=device) as runner:
        return Classifier(runner, bundle.batch_range, bundle)


@contextlib.contextmanager
def graph_on_onnxruntime(
    model: Path, *, threads: int | None = None, device: str | None = None
) -> Iterator[engines.Runner]:
    """Give a graph optimised for ONNX Runtime and loaded; the caller closes the runner.

    On a CPU ONNX Runtime computes FP16 nodes in FP32 without rounding, and has no kernels for BF16; so graphs of both
    are run there with their rounding simulated, which is what they stand for.
    """
    import onnx

    runtime, device = engines.get("onnxruntime"), device or "cpu"
    with tempfile.TemporaryDirectory(prefix="sit-deploy-") as folder:
        source = model
        if device == "cpu" and is_low_precision(model):
            from sit_deploy.graph.simulate import simulate

            source = Path(folder) / "simulated.onnx"
            onnx.save(simulate(onnx.load(model)), source)
        built = Path(folder) / runtime.filename
        runtime.build(source, built, engines.BuildOptions(threads=threads, device=device))
        yield runtime.load(built, threads=threads, device=device)


def is_low_precision(path: Path) -> bool:
    """Whether a graph holds weights in 16 bits."""
    import onnx

    low = (onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16)
    return any(
        tensor.data_type in low for tensor in onnx.load(path, load_external_data=False).graph.initializer
    )
