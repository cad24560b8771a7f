"""Collecting statistics of a graph's activations, image by image.

The graph runs at batch 1, whatever batch it was made for, so that every image is seen once and the batch size has no
part in the result. What is kept is the observers: their size depends on the tensors, not on how many images there were.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sized
from dataclasses import dataclass, field

import numpy as np
import onnx

from calibration.errors import CalibrationError
from calibration.observers import ChannelObserver, TensorObserver
from calibration.ranges import observable_tensors, observe_ranges, require_observable
from calibration.session import ImageSession, Progress, at_batch_one, image_input, with_outputs

_FORMAT = 1


@dataclass
class Observations:
    """The observers of a graph by tensor name. `Observations()` is the identity of `merge`."""

    images: int = 0
    tensors: dict[str, TensorObserver] = field(default_factory=dict)
    channels: dict[str, ChannelObserver] = field(default_factory=dict)

    def merge(self, other: Observations) -> Observations:
        """Return what both saw together: exact, so shards in any number and order give what one run gives.

        Raises:
            CalibrationError: they observed other tensors, or in other ways.
        """
        if self.images == 0 or other.images == 0:
            return other if self.images == 0 else self
        if self.tensors.keys() != other.tensors.keys() or self.channels.keys() != other.channels.keys():
            raise CalibrationError(
                "these observations are of different tensors; observe the same ones in every shard"
            )
        try:
            return Observations(
                self.images + other.images,
                {name: seen.merge(other.tensors[name]) for name, seen in self.tensors.items()},
                {name: seen.merge(other.channels[name]) for name, seen in self.channels.items()},
            )
        except ValueError as error:
            raise CalibrationError(f"these observations do not merge: {error}") from error

    def to_arrays(self) -> dict[str, np.ndarray]:
        """Return everything as plain arrays, for `np.savez` or another process."""
        arrays = {
            "format": np.array(_FORMAT),
            "images": np.array(self.images),
            "tensors": np.array(list(self.tensors), dtype=np.str_),
            "channels": np.array(list(self.channels), dtype=np.str_),
        }
        kinds: dict[str, Mapping[str, TensorObserver | ChannelObserver]]
        kinds = {"tensors": self.tensors, "channels": self.channels}
        for kind, observers in kinds.items():
            for index, observer in enumerate(observers.values()):
                arrays |= {f"{kind}/{index}/{key}": value for key, value in observer.to_arrays().items()}
        return arrays

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> Observations:
        """Return the observations that `to_arrays` wrote.

        Raises:
            CalibrationError: another format, or something is missing.
        """
        try:
            if int(arrays["format"]) != _FORMAT:
                raise CalibrationError(
                    f"observations of format {arrays['format']}; this version reads format {_FORMAT}, observe again"
                )
            members: dict[str, dict[str, np.ndarray]] = {}
            for key in arrays:
                owner, _, member = key.partition("/")
                if member:
                    index, _, member = member.partition("/")
                    members.setdefault(f"{owner}/{index}", {})[member] = arrays[key]
            return cls(
                int(arrays["images"]),
                {
                    str(name): TensorObserver.from_arrays(members[f"tensors/{index}"])
                    for index, name in enumerate(arrays["tensors"])
                },
                {
                    str(name): ChannelObserver.from_arrays(members[f"channels/{index}"])
                    for index, name in enumerate(arrays["channels"])
                },
            )
        except KeyError as error:
            raise CalibrationError(f"observations lack {error}; observe again") from error


def collect_observations(
    model: onnx.ModelProto,
    images: Iterable[np.ndarray],
    tensors: Collection[str],
    channels: Mapping[str, int] | None = None,
    progress: Progress | None = None,
    *,
    channel_bits: int | None = None,
    threads: int | None = None,
) -> Observations:
    """Run the graph on every image and return what was seen of its activations.

    Args:
        model: a float32 graph with one input, (N, 3, H, W), that can run at N = 1.
        images: float32 arrays (n, 3, H, W), preprocessed as at inference. Read once, held one at a time.
        tensors: names of the tensors to observe whole.
        channels: names of the tensors to observe by channel, each with the axis of its channels.
        progress: called as progress(text, arrays done, arrays in all), with 0 in all where it is not known.
        channel_bits: mantissa bits of a histogram for every channel (`observers.CHANNEL_BITS` will do); none if None.
        threads: ONNX Runtime's threads; its own choice if None.

    Returns:
        The observers, in the graph's topological order.

    Raises:
        CalibrationError: no image, an image that does not fit the graph, an unknown tensor or axis, a graph that does
            not run, or an activation that is NaN or infinite; the first one of the graph is named.
    """
    axes = dict(channels or {})
    single = at_batch_one(model)
    known = dict.fromkeys(observable_tensors(single))
    wanted = {*tensors, *axes}
    require_observable(known, wanted)
    names = [name for name in known if name in wanted]
    session = ImageSession(with_outputs(single, names), threads)
    del single  # a copy of the weights
    seen = Observations(
        0,
        {name: TensorObserver() for name in names if name in set(tensors)},
        {name: ChannelObserver(axes[name], channel_bits) for name in names if name in axes},
    )
    total = len(images) if isinstance(images, Sized) else 0
    for done, batch in enumerate(images, 1):
        for image in session.fit(batch):
            seen.images += 1
            _update(seen, dict(zip(names, session.run(image), strict=True)))
            if any(observer.non_finite for observer in (*seen.tensors.values(), *seen.channels.values())):
                raise CalibrationError(_blame(at_batch_one(model), image, seen.images))
        if progress is not None:
            progress("Observing activations", done, total)
    if seen.images == 0:
        raise CalibrationError("no images to calibrate on; pass at least one")
    return seen


def _update(seen: Observations, values: Mapping[str, np.ndarray]) -> None:
    """Show one image's activations to their observers."""
    for name, observer in seen.tensors.items():
        observer.update(values[name])
    for name, channels in seen.channels.items():
        rank = values[name].ndim
        if not -rank <= channels.axis < rank:
            raise CalibrationError(f"tensor '{name}' has {rank} axes; there is no axis {channels.axis}")
        channels.update(values[name])


def _blame(single: onnx.ModelProto, image: np.ndarray, number: int) -> str:
    """Say where an image's first NaN or infinity arose, among all activations and not the observed ones alone."""
    first = next((name for name, seen in observe_ranges(single, [image]).items() if seen.non_finite), "?")
    what = "the image itself" if first == image_input(single).name else "mend the model's weights"
    return f"tensor '{first}' holds a NaN or infinity on calibration image {number}; look at {what}"
