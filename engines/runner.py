"""An engine that is open: a `Runner`, and the tensors that it takes and gives."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .errors import EngineInputError

if TYPE_CHECKING:
    from types import TracebackType

    import numpy as np
    from typing_extensions import Self

CLOSED = "this engine is closed; load it again to run it"


@dataclass(frozen=True)
class TensorSpec:
    """An input or output. A dimension of None is open; `dtype` is numpy's name ("float32")."""

    name: str
    shape: tuple[int | None, ...]
    dtype: str

    def __str__(self) -> str:
        return f"{self.dtype} {format_shape(self.shape)}"


class Runner(ABC):
    """An open engine. Use as a context manager, or call `close`; several threads may call it.

    Attributes:
        at_once: calls that run at a time; others wait for one of them, or share the CPUs with it.
    """

    at_once: int = 1

    def __init__(self, inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...]) -> None:
        self.inputs = inputs
        self.outputs = outputs
        self._closed = False

    def infer(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Run once: an array for each of `inputs` in, one for each of `outputs` out.

        Raises:
            EngineInputError: the runner is closed, or a name, dtype or shape is not as in `inputs`.
        """
        if self._closed:
            raise EngineInputError(CLOSED)
        self._check_names(feeds)
        for spec in self.inputs:
            _check_array(spec, feeds[spec.name])
        return self._infer(feeds)

    def close(self) -> None:
        """Free the engine; a second call does nothing."""
        if not self._closed:
            self._closed = True
            self._close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    @abstractmethod
    def _infer(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Run on feeds already checked."""

    @abstractmethod
    def _close(self) -> None:
        """Free what the runtime holds; called once."""

    def _check_names(self, feeds: Mapping[str, np.ndarray]) -> None:
        expected = {spec.name for spec in self.inputs}
        if set(feeds) != expected:
            raise EngineInputError(f"expected inputs {_join(expected)}, got {_join(feeds) or 'none'}")


def format_shape(shape: tuple[int | None, ...]) -> str:
    """Spell a shape: (None, 3, 224, 224) is "(N, 3, 224, 224)"."""
    return "(" + ", ".join("N" if size is None else str(size) for size in shape) + ")"


def _check_array(spec: TensorSpec, array: np.ndarray) -> None:
    if not hasattr(array, "dtype") or not hasattr(array, "shape"):
        raise EngineInputError(
            f"input {spec.name}: expected a numpy array of {spec}, got {type(array).__name__}"
        )
    if array.dtype.name != spec.dtype or not array.dtype.isnative:
        got = array.dtype.name if array.dtype.isnative else f"byte-swapped {array.dtype.name}"
        raise EngineInputError(f"input {spec.name}: expected dtype {spec.dtype}, got {got}")
    fits = len(array.shape) == len(spec.shape) and all(
        got >= 1 if want is None else got == want for got, want in zip(array.shape, spec.shape, strict=True)
    )
    if not fits:
        raise EngineInputError(
            f"input {spec.name}: expected shape {format_shape(spec.shape)}, got {format_shape(array.shape)}"
        )


def _join(names: object) -> str:
    return ", ".join(sorted(map(str, names)))  # type: ignore[call-overload]
