"""Logits of the PyTorch model and of a graph as it is, which the hops compare."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import engines

if TYPE_CHECKING:
    import numpy as np

REFERENCE_BATCH = 8  # images the PyTorch model takes at once


def torch_logits(model: Any, images: np.ndarray) -> np.ndarray:
    """Return logits (n, classes) that a PyTorch model gives for images float32 (n, 3, H, W), on the CPU."""
    import numpy as np
    import torch

    with torch.inference_mode():
        parts = torch.from_numpy(images).split(REFERENCE_BATCH)
        return np.concatenate([model(part).numpy() for part in parts])


def graph_logits(path: Path, images: np.ndarray, batch: tuple[int, int]) -> np.ndarray:
    """Return logits (n, classes) that a graph gives on ONNX Runtime, neither optimised nor simulated.

    Args:
        path: of the graph.
        images: as the graph takes them.
        batch: smallest and largest batch that it takes.
    """
    from sit_deploy.inference import Classifier

    with Classifier(engines.get("onnxruntime").load(path), batch) as classifier:
        return classifier.logits(images)


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
