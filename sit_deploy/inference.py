"""Running a bundle on images, without PyTorch: only NumPy, Pillow for image files, and the engine's own runtime."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from numbers import Integral
from pathlib import Path
from typing import TYPE_CHECKING, Any

import engines
from sit_deploy.bundle import Bundle, load_bundle
from sit_deploy.errors import GateError, InputError

if TYPE_CHECKING:
    import numpy as np


class Classifier:
    """An open engine that takes any number of images: it cuts and pads them to the batches the engine takes.

    Attributes:
        runner: the open engine, closed with the classifier.
        batch: smallest and largest batch that it takes.
    """

    def __init__(self, runner: engines.Runner, batch: tuple[int, int], bundle: Bundle | None = None) -> None:
        self.runner = runner
        self.batch = batch
        self.bundle = bundle

    def logits(self, images: np.ndarray) -> np.ndarray:
        """Return logits float32 (n, classes) of preprocessed images, n at least 1.

        The images are float32 (n, 3, H, W), or uint8 (n, H, W, 3) for an engine that normalises by itself.

        Raises:
            engines.EngineInputError: wrong dtype or image shape.
            InputError: no image.
        """
        import numpy as np

        if not isinstance(images, np.ndarray) or images.ndim == 0:
            raise InputError(
                f"logits() takes preprocessed images as an array, got {type(images).__name__}; call the classifier itself with "
                "pictures"
            )
        if len(images) == 0:
            raise InputError("no images to classify; pass at least one")
        smallest, largest = self.batch
        parts = []
        for start in range(0, len(images), largest):
            part = images[start : start + largest]
            short = max(0, smallest - len(part))
            if short:
                part = np.concatenate([part, np.repeat(part[-1:], short, axis=0)])
            (logits,) = self.runner.infer({self.runner.inputs[0].name: part}).values()
            parts.append(logits[: len(part) - short])
        found = np.concatenate(parts)
        classes = found.shape[-1] if self.bundle is None else self.bundle.manifest.model.num_classes
        if found.ndim != 2 or found.shape[1] != classes:
            raise InputError(
                f"the engine gives logits of shape {found.shape}, and the manifest says {classes} classes; build the bundle again"
            )
        return found

    def __call__(self, images: Any) -> np.ndarray:
        """Return logits float32 (n, classes) of images, preprocessed as the bundle says.

        Args:
            images: one image or several: paths, bytes of image files, Pillow images, or uint8 arrays (height, width, 3);
                several may also be one array of four dimensions.

        Raises:
            InputError: no image, one that cannot be read, or something else than images.
        """
        import numpy as np

        from sit_deploy.data.batches import batches

        if self.bundle is None:
            raise InputError("this classifier has no bundle to say how images are prepared; call logits()")
        sources = _sources(images)
        prepared = batches(sources, self.bundle.preprocessing(), self.batch[1])
        return np.concatenate([self.logits(batch) for batch, _ in prepared])

    def close(self) -> None:
        self.runner.close()

    def __enter__(self) -> Classifier:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _sources(images: Any) -> list[Any]:
    """Return the images of one or several, in a list; what each is, is checked where it is opened."""
    import numpy as np

    single = str | bytes | bytearray | memoryview | os.PathLike
    if isinstance(images, single) or hasattr(images, "convert"):
        return [images]
    if isinstance(images, np.ndarray):
        return list(images) if images.ndim == 4 else [images]
    try:
        sources = list(images)
    except TypeError:
        raise InputError(
            f"images must be one or several paths, bytes, Pillow images or arrays, got {type(images).__name__}"
        ) from None
    if any(isinstance(source, tuple) for source in sources):
        raise InputError("images come without labels here; pass the first of each pair")
    return sources


def load(
    bundle: str | Path | Bundle,
    engine: str | None = None,
    *,
    threads: int | None = None,
    device: str | None = None,
) -> Classifier:
    """Open a bundle for inference: `sit_deploy.load("sit_s-fp32")(images)` gives logits.

    Args:
        bundle: its folder, or an open one.
        engine: run the bundle's graph on another engine than the one it was built for; only "onnxruntime" can.
        threads: CPU threads; the runtime's choice by default.
        device: "cpu", "cuda" or "cuda:N"; by default the CPU for ONNX Runtime and the first GPU for TensorRT.

    Raises:
        InputError: not a whole and unchanged bundle, a graph that the engine asked for cannot run, or an argument that is no
            text or no whole number.
        engines.NoGpuError: its engine needs a GPU that is not here.
        engines.EngineLoadError: its engine was built for another release or another GPU.
    """
    for name, value, of, what in (
        ("engine", engine, str, "text"),
        ("device", device, str, "text"),
        ("threads", threads, Integral, "a whole number"),
    ):
        if value is not None and not isinstance(value, of):
            raise InputError(f"{name} must be {what} or None, got {value!r}")
    bundle = bundle if isinstance(bundle, Bundle) else load_bundle(bundle)
    kind = bundle.manifest.engine.kind
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


def top_classes(logits: np.ndarray, classes: list[str], count: int = 5) -> list[list[dict[str, Any]]]:
    """Return for each row of logits (n, classes) its `count` most probable classes: index, name and probability.

    Raises:
        GateError: logits that are NaN or infinite.
    """
    import numpy as np

    if not np.isfinite(logits).all():
        bad = int((~np.isfinite(logits).all(axis=1)).sum())
        raise GateError(
            f"the engine gives NaN or infinite logits for {bad} of {len(logits)} images; check it with sit-deploy validate"
        )
    shifted = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
    probabilities = shifted / shifted.sum(axis=1, keepdims=True)
    best = np.argsort(-logits, axis=1, kind="stable")[:, :count]
    return [
        [{"index": int(i), "name": classes[i], "probability": float(row[i])} for i in order]
        for row, order in zip(probabilities, best, strict=True)
    ]
