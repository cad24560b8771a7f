"""The inputs and outputs of a TensorRT engine, with the shapes that they take."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from engines.errors import EngineInputError, EngineLoadError
from engines.runner import TensorSpec, format_shape
from engines.tensorrt.library import Library
from engines.tensorrt.types import numpy_type


@dataclass(frozen=True)
class Bindings:
    """What goes in and comes out.

    Attributes:
        inputs, outputs: in the engine's order.
        ranges: of each input with an open dimension, the smallest and largest shape of its profile.
    """

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    ranges: dict[str, tuple[tuple[int, ...], tuple[int, ...]]]

    @property
    def largest_batch(self) -> int:
        """The most images a run; 1 where no dimension is open, since nothing is asked for then."""
        return max((high[0] for _, high in self.ranges.values()), default=1)

    def largest_shape(self, spec: TensorSpec) -> tuple[int, ...]:
        """The shape that a tensor needs memory for."""
        if spec.name in self.ranges:
            return self.ranges[spec.name][1]
        return tuple(self.largest_batch if size is None else size for size in spec.shape)

    def check_ranges(self, feeds: Mapping[str, Any]) -> None:
        """Refuse shapes outside the profile.

        Raises:
            EngineInputError: names the input, its shape and what the engine takes.
        """
        for name, (low, high) in self.ranges.items():
            got = tuple(feeds[name].shape)
            if not all(a <= size <= b for a, size, b in zip(low, got, high, strict=True)):
                raise EngineInputError(
                    f"input {name}: shape {format_shape(got)} is outside what the engine takes, {format_shape(low)} to "
                    f"{format_shape(high)}; split the batch, or build with another --dynamic-batch MIN:OPT:MAX"
                )


def read_bindings(library: Library, engine: Any) -> Bindings:
    """Ask an `ICudaEngine` for its inputs and outputs.

    Raises:
        EngineLoadError: an output is open in more than the batch.
    """
    inputs, outputs, ranges = [], [], {}
    for index in range(engine.num_io_tensors):
        name = engine.get_tensor_name(index)
        shape = tuple(None if size < 0 else int(size) for size in engine.get_tensor_shape(name))
        spec = TensorSpec(name, shape, numpy_type(engine.get_tensor_dtype(name)))
        if engine.get_tensor_mode(name) == library.trt.TensorIOMode.INPUT:
            inputs.append(spec)
            if None in shape:
                low, _, high = engine.get_tensor_profile_shape(name, 0)
                ranges[name] = (tuple(map(int, low)), tuple(map(int, high)))
        else:
            outputs.append(spec)
            if None in shape[1:]:
                raise EngineLoadError(
                    f"output {name} of this {library.title} engine has shape {format_shape(shape)}; only the batch may be open"
                )
    return Bindings(tuple(inputs), tuple(outputs), ranges)


def check_tensor(spec: TensorSpec, tensor: Any, number: int, role: str = "input") -> None:
    """Refuse what is not a contiguous PyTorch tensor of a dtype and shape on this GPU.

    Args:
        spec: what it has to be.
        tensor: what is given for it.
        number: of the GPU.
        role: "input" or "output", for the message.

    Raises:
        EngineInputError: says what is wrong, and what to do about it.
    """
    what = f"{role} {spec.name}"
    if not hasattr(tensor, "data_ptr"):
        raise EngineInputError(
            f"{what}: expected a PyTorch tensor on cuda:{number}, got {type(tensor).__name__}; use infer() for numpy"
        )
    if tensor.device.type != "cuda" or (tensor.device.index or 0) != number:
        raise EngineInputError(
            f"{what} is on {tensor.device}, the engine on cuda:{number}; move it with .to('cuda:{number}')"
        )
    dtype = str(tensor.dtype).removeprefix("torch.")
    if dtype != spec.dtype:
        raise EngineInputError(f"{what}: expected dtype {spec.dtype}, got {dtype}")
    shape = tuple(tensor.shape)
    fits = len(shape) == len(spec.shape) and all(
        size in (None, got) for size, got in zip(spec.shape, shape, strict=True)
    )
    if not fits:
        raise EngineInputError(
            f"{what}: expected shape {format_shape(spec.shape)}, got {format_shape(shape)}"
        )
    if not tensor.is_contiguous():
        raise EngineInputError(f"{what} is not contiguous; pass it through .contiguous()")
