"""PyTorch tensors on the GPU as inputs and outputs: checked once for what they are, and known at the next call by one look-up."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from engines.errors import EngineInputError
from engines.runner import TensorSpec
from engines.tensorrt.bindings import Bindings, check_tensor

if TYPE_CHECKING:
    import torch

# TensorRT's demand on the address of a tensor (`IExecutionContext.setTensorAddress`)
_ALIGNMENT = 256


@dataclass(frozen=True)
class DeviceCall:
    """What all calls with tensors of the same shapes have in common.

    Attributes:
        shapes: of the inputs, by name.
        outputs: name, shape and dtype of each, in the order of the bindings.
        device: of all of them.
    """

    shapes: dict[str, tuple[int, ...]]
    outputs: tuple[tuple[str, tuple[int, ...], torch.dtype], ...]
    device: torch.device

    def new_outputs(self) -> dict[str, torch.Tensor]:
        """Tensors for the outputs, in memory of PyTorch's allocator."""
        import torch

        return {
            name: torch.empty(shape, dtype=dtype, device=self.device) for name, shape, dtype in self.outputs
        }


class DeviceCalls:
    """The calls that were checked before.

    Args:
        bindings: of the engine.
        number: of the GPU.
    """

    def __init__(self, bindings: Bindings, number: int) -> None:
        self._bindings = bindings
        self._number = number
        self._known: dict[Any, DeviceCall] = {}  # no more than shapes that the engine takes

    def find(self, feeds: Mapping[str, Any], out: Mapping[str, Any] | None) -> DeviceCall:
        """Return what is known of tensors like these.

        Args:
            feeds: a tensor for each input.
            out: a tensor for each output, or None.

        Raises:
            EngineInputError: they are not what the engine takes.
        """
        key = _signature(feeds), None if out is None else _signature(out)
        call = self._known.get(key)
        if call is None:
            call = self._known[key] = self._check(feeds, out)
        return call

    def addresses(self, feeds: Mapping[str, Any], outputs: Mapping[str, Any]) -> tuple[int, ...]:
        """Where inputs and outputs lie, in the order of the bindings.

        Raises:
            EngineInputError: one begins where TensorRT takes no tensor.
        """
        inputs, results = self._bindings.inputs, self._bindings.outputs
        found = (
            *[feeds[spec.name].data_ptr() for spec in inputs],
            *[outputs[spec.name].data_ptr() for spec in results],
        )
        for address, spec in zip(found, (*inputs, *results), strict=True):
            if address % _ALIGNMENT:
                raise EngineInputError(
                    f"tensor {spec.name} is a view that begins at no multiple of {_ALIGNMENT} bytes; pass it through .clone()"
                )
        return found

    def _check(self, feeds: Mapping[str, Any], out: Mapping[str, Any] | None) -> DeviceCall:
        import torch

        for spec in self._bindings.inputs:
            check_tensor(spec, feeds[spec.name], self._number)
        self._bindings.check_ranges(feeds)
        shapes = {spec.name: tuple(feeds[spec.name].shape) for spec in self._bindings.inputs}
        batch = next(iter(shapes.values()))[0]
        outputs = [
            TensorSpec(spec.name, tuple(batch if size is None else size for size in spec.shape), spec.dtype)
            for spec in self._bindings.outputs
        ]
        if out is not None:
            missing = {spec.name for spec in outputs} ^ set(out)
            if missing:
                names = ", ".join(spec.name for spec in outputs)
                raise EngineInputError(
                    f"out needs a tensor for each output and no other: {names}; got {', '.join(map(str, out)) or 'none'}"
                )
            for spec in outputs:
                check_tensor(spec, out[spec.name], self._number, "output")
        return DeviceCall(
            shapes,
            tuple((spec.name, spec.shape, getattr(torch, spec.dtype)) for spec in outputs),
            torch.device("cuda", self._number),
        )


def _signature(tensors: Mapping[str, Any]) -> Any:
    """What decides whether tensors are taken; of anything else than tensors, something that no tensor has."""
    try:
        return tuple(
            [
                (name, tensor.shape, tensor.dtype, tensor.device, tensor.is_contiguous())
                for name, tensor in tensors.items()
            ]
        )
    except AttributeError:
        return object()
