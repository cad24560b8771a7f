"""What takes a build seconds is done once in a test run: exporting a model, and drawing the synthetic images.

That the same model gives the same bytes, in another process too, is what tests/sit_deploy/graph/test_export.py proves.
"""

from __future__ import annotations

import functools
import hashlib
import io
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.shared import shared


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
    """Let `export_onnx` take the graph that any process of this run has exported of the same model, weights included."""
    import onnx

    from sit_deploy.data import synthetic
    from sit_deploy.graph import export as module

    export_onnx = module.export_onnx

    def once(model: Any, *arguments: Any, **options: Any) -> onnx.ModelProto:
        def write(path: Path) -> None:
            path.write_bytes(export_onnx(model, *arguments, **options).SerializeToString())

        key = _key(model, arguments, sorted(options.items()))
        return onnx.load(shared(tmp_path_factory, f"export-{key}.onnx", write))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "export_onnx", once)
        patch.setattr(synthetic, "synthetic_images", functools.lru_cache(synthetic.synthetic_images))
        yield
