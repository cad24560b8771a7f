"""What each layer alone in 8 bits does to the logits, measured when it is first asked for."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any

from sit_deploy.pipeline.lower import LoweredGraph
from sit_deploy.pipeline.work import Work

if TYPE_CHECKING:
    from sit_deploy.quantize.image_stream import ImageStream

IMAGES = 32
LABELLED = 256  # of the labelled images


class Sensitivity:
    """The layers of a quantized graph, measured one at a time."""

    def __init__(self, work: Work, lowered: LoweredGraph) -> None:
        self._work = work
        self._lowered = lowered

    @cached_property
    def rows(self) -> dict[str, dict[str, float]]:
        """By layer, what `sit_deploy.quantize.sensitivity.measure_sensitivity` measures."""
        from sit_deploy.quantize.sensitivity import measure_sensitivity

        work, quantization = self._work, self._lowered.quantization
        assert quantization is not None
        with work.step("Quantizing one layer at a time") as report:
            stream = quantization.stream or self._validation_stream()
            labelled = self._labelled(LABELLED) if work.request.sensitivity and work.samples else []
            return measure_sensitivity(quantization.quantizer, stream.spread(IMAGES), labelled, report)

    @property
    def measured(self) -> dict[str, dict[str, float]]:
        """The rows, none where nobody asked for them."""
        return self.__dict__.get("rows", {})

    def noise(self) -> dict[str, float]:
        """Return by layer the power of the logits' error with that layer alone in 8 bits."""
        return {name: row["noise"] for name, row in self.rows.items()}

    def _validation_stream(self) -> ImageStream:
        """Return validation images to measure layers on, where there was no need of calibration images."""
        from sit_deploy.quantize.image_stream import ImageStream

        assert self._work.samples is not None
        chosen = [source for source, _ in self._labelled(IMAGES)]
        return ImageStream(chosen, self._lowered.float_graph.preprocessing, self._work.samples.name)

    def _labelled(self, count: int) -> list[tuple[Any, int]]:
        """Return some of the labelled images that can be read."""
        assert self._work.samples is not None
        preprocessing = self._lowered.float_graph.preprocessing
        return self._work.damaged.whole_samples(self._work.samples, count, preprocessing)
