"""Ways to run a model on a CPU, for `runtime_peers.py` and `auto_peers.py`: each opens it, and gives what makes logits of images.

They are named by what processes are started with, so they live apart from what makes the models.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

import engines
from benchmarks.random_weights import random_model

if TYPE_CHECKING:
    import torch

Logits = Callable[[np.ndarray], np.ndarray]


def open_eager(name: str, threads: int) -> Logits:
    import torch

    torch.set_num_threads(threads)
    return _on_torch(random_model(name))


def open_compiled(name: str, threads: int) -> Logits:
    """torch.compile in its default mode; it needs a C++ compiler."""
    import torch

    torch.set_num_threads(threads)
    # else a second batch size would be taken for a reason to compile for all of them
    torch.compiler.reset()
    return _on_torch(torch.compile(random_model(name)))


def open_autocast(name: str, threads: int) -> Logits:
    """torch.compile, its default mode, of the model under autocast to bfloat16."""
    import torch

    torch.set_num_threads(threads)
    torch.compiler.reset()
    compiled = torch.compile(random_model(name))

    def run_in_bfloat16(images: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return compiled(images).float()

    return _on_torch(run_in_bfloat16)


def open_half(name: str, threads: int) -> Logits:
    """torch.compile, its default mode, of the model with its weights in bfloat16."""
    import torch

    torch.set_num_threads(threads)
    torch.compiler.reset()
    compiled = torch.compile(random_model(name).bfloat16())
    return _on_torch(lambda images: compiled(images.bfloat16()).float())


def open_dynamic(name: str, threads: int) -> Logits:
    """Linear layers with 8-bit weights, and activations that are quantized as they come."""
    import torch
    from torch.ao.quantization import quantize_dynamic

    torch.set_num_threads(threads)
    return _on_torch(quantize_dynamic(random_model(name), {torch.nn.Linear}))


def _on_torch(model: Callable[..., Any]) -> Logits:
    import torch

    def logits(images: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return model(torch.from_numpy(images)).numpy()

    return logits


def open_onnxruntime(path: Path, threads: int | None) -> Logits:
    """A graph in a default session; `threads` None leaves even their number alone."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 3
    if threads is not None:
        options.intra_op_num_threads = threads
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    (images,) = (value.name for value in session.get_inputs())
    return lambda batch: session.run(None, {images: batch})[0]


def open_openvino(path: Path, threads: int, precision: str = "f32") -> Logits:
    """A model with OpenVINO's defaults, in float32 or in "bf16": its own default is one or the other, by the CPU."""
    import openvino as ov

    settings = {
        ov.properties.hint.inference_precision: getattr(ov.Type, precision),
        ov.properties.inference_num_threads: threads,
    }
    compiled = ov.Core().compile_model(str(path), "CPU", settings)
    return lambda batch: compiled(batch)[0]


def open_engine(kind: str, path: Path, threads: int) -> Logits:
    runner = engines.get(kind).load(path, threads=threads)
    return lambda batch: runner.infer({"images": batch})["logits"]


def timed(way: Callable[..., Logits], args: tuple[Any, ...], shape: tuple[int, ...]) -> Callable[[], object]:
    """Worker: a way on the same random images again and again."""
    images = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    logits = way(*args)
    return lambda: logits(images)
