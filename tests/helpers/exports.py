"""What takes a build seconds is done once in a test run: exporting a model, drawing the synthetic images, calibrating.

That the same model gives the same bytes is what tests/sit_deploy/graph/test_export.py proves, and in another process
tests/sit_deploy/cli/test_build.py.
"""

from __future__ import annotations

import functools
import hashlib
import io
import pickle
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.shared import shared, shared_value

_EXPORTS = all(find_spec(package) for package in ("torch", "onnxscript"))  # else no test here asks for it


class _Content(pickle.Pickler):
    """A pickle that says what a model is, weights included, and not where in memory."""

    def persistent_id(self, value: Any) -> Any:
        import torch

        if not isinstance(value, torch.Tensor):
            return None
        flat = value.detach().reshape(-1).view(torch.uint8).numpy()
        return type(value).__name__, str(value.dtype), tuple(value.shape), flat.tobytes()


def _key(*values: Any) -> str:
    content = io.BytesIO()
    _Content(content).dump(values)
    return hashlib.sha256(content.getbuffer()).hexdigest()[:20]


@pytest.fixture(scope="session", autouse=True)
def exported_once(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Let `export_onnx` take what PyTorch's exporter has written in any process of this run of the same model, weights included.

    Whatever else is asked of the graph: its batch, its name, how attention is written. `exported_anew` is without it.
    """
    if not _EXPORTS:
        yield
        return
    import onnx

    from sit_deploy.data import synthetic
    from sit_deploy.graph import export as module

    written, synthetic_images = module._written, synthetic.synthetic_images

    @functools.cache
    def scene(index: int, size: tuple[int, int], seed: int) -> Any:
        return shared_value(
            tmp_path_factory,
            "image-{}-{}x{}-{}".format(index, *size, seed),
            lambda: synthetic._scene(synthetic._Bits((seed, index)), *size),
        )

    @functools.wraps(synthetic_images)
    def drawn(count: int = 16, size: int | tuple[int, int] = (384, 288), seed: int = 0) -> Any:
        sides = (size, size) if isinstance(size, int) else tuple(size)
        if count < 1 or min(sides) < 16 or seed < 0:
            return synthetic_images(count, size, seed)  # which refuses it
        return [scene(index, sides, seed) for index in range(count)]

    @functools.wraps(written)
    def once(*arguments: Any) -> onnx.ModelProto:
        def write(path: Path) -> None:
            path.write_bytes(written(*arguments).SerializeToString())

        return onnx.load(shared(tmp_path_factory, f"export-{_key(arguments)}.onnx", write))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_written", once)
        patch.setattr(synthetic, "synthetic_images", drawn)
        yield


@pytest.fixture(scope="module")
def exported_anew() -> Iterator[None]:
    """Let the exporter write every graph of this module itself, where what it writes is what is tested."""
    from sit_deploy.graph import export as module

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_written", module._written.__wrapped__)
        yield


@pytest.fixture(scope="session", autouse=True)
def operators_read_once() -> Iterator[None]:
    """Let PyTorch's exporter read the 500 functions of its operators once a process: it does so anew at every export."""
    if not _EXPORTS:
        yield
        return
    from torch.onnx._internal.exporter._registration import ONNXRegistry

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            ONNXRegistry, "from_torchlib", staticmethod(functools.cache(ONNXRegistry.from_torchlib))
        )
        yield


@pytest.fixture
def calibrated_once(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let builds take the calibration that a process of this run has made of the same graph, images and options."""
    from sit_deploy.quantize import calibrate as module

    calibrate = module.calibrate

    def once(graph: Any, stream: Any, *arguments: Any, progress: Any = None, **options: Any) -> Any:
        images = stream.digests(), stream.preprocessing, stream.description
        key = _key(module.graph_key(graph), images, arguments, sorted(options.items()))
        return shared_value(
            tmp_path_factory, f"calibration-{key}", lambda: calibrate(graph, stream, *arguments, **options)
        )

    monkeypatch.setattr(module, "calibrate", once)
