"""What each layer alone in 8 bits does to the logits, measured when it is first asked for."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any

from sit_deploy.data.samples import spread
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
            labelled = self._labelled if work.request.sensitivity and work.samples else []
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
        chosen = [source for source, _ in spread(self._labelled, IMAGES)]
        return ImageStream(chosen, self._lowered.float_graph.preprocessing, self._work.samples.name)

    @cached_property
    def _labelled(self) -> list[tuple[Any, int]]:
        """Some of the labelled images that can be read, decoded once where they are no files: as many as are asked for."""
        work = self._work
        assert work.samples is not None
        count = LABELLED if work.request.sensitivity else IMAGES
        return work.damaged.whole_samples(work.samples, count, self._lowered.float_graph.preprocessing)
