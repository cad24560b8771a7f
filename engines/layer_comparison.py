"""Two runs of one graph compared tensor by tensor: where do they part?"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from engines.errors import EngineError

if TYPE_CHECKING:
    import numpy as np
    import onnx


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
