"""Outputs of the PyTorch model and of a graph as it is, which the hops compare."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import engines
from sit_deploy.outputs import LOGITS

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

REFERENCE_BATCH = 8  # images the PyTorch model takes at once


def torch_logits(model: Any, images: np.ndarray) -> np.ndarray:
    """Return the first output (n, ...) of a PyTorch model for images float32 (n, 3, H, W), on the CPU: its logits, where it gives any."""
    import numpy as np

    return np.concatenate([part[0].numpy() for part in _parts(model, images)])


def torch_outputs(model: Any, images: np.ndarray, names: Sequence[str]) -> dict[str, np.ndarray]:
    """Return the outputs (n, ...) that a PyTorch model gives for images float32 (n, 3, H, W), on the CPU.

    Args:
        model: gives a tensor, or one for each name (`models.outputs.with_outputs`).
        images: prepared.
        names: of what it gives, in its order.
    """
    import numpy as np

    rows = zip(*_parts(model, images), strict=True)
    return {
        name: np.concatenate([values.numpy() for values in row])
        for name, row in zip(names, rows, strict=True)
    }


def _parts(model: Any, images: np.ndarray) -> list[tuple[Tensor, ...]]:
    """Return every output of a PyTorch model for a few images after the other."""
    import torch

    with torch.inference_mode():
        return [all_given(model(part)) for part in torch.from_numpy(images).split(REFERENCE_BATCH)]


def all_given(values: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Return what a PyTorch model gave, a tensor or several, as several."""
    return values if isinstance(values, tuple) else (values,)


def graph_logits(path: Path, images: np.ndarray, batch: tuple[int, int]) -> np.ndarray:
    """Return the logits (n, classes) among `graph_outputs`."""
    return graph_outputs(path, images, batch)[LOGITS]


def graph_outputs(path: Path, images: np.ndarray, batch: tuple[int, int]) -> dict[str, np.ndarray]:
    """Return the outputs (n, ...) that a graph gives on ONNX Runtime, neither optimised nor simulated.

    Args:
        path: of the graph.
        images: as the graph takes them.
        batch: smallest and largest batch that it takes.
    """
    from sit_deploy.inference import Classifier

    with Classifier(engines.get("onnxruntime").load(path), batch) as classifier:
        return classifier.outputs(images)


class RememberedLogits:
    """PyTorch's logits, computed once for all plans; `measure` asks for the same batches in the same order each time."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self._known: list[np.ndarray] = []
        self._next = 0

    def again(self) -> RememberedLogits:
        """Return it, back at the first batch."""
        self._next = 0
        return self

    def __call__(self, images: np.ndarray) -> np.ndarray:
        if self._next == len(self._known):
            self._known.append(torch_logits(self._model, images))
        self._next += 1
        return self._known[self._next - 1]
