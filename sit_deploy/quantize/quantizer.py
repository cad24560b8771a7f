"""From a calibrated float32 graph to one with Q/DQ: weights rounded, biases corrected, every layer's error measured."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from calibration.bias_correction import correct_biases
from calibration.cache import Calibration
from calibration.formats import float16_scale
from calibration.gptq import gptq_codes
from calibration.insert_qdq import Scales, insert_qdq
from calibration.layer_error import LayerError, measure_layer_errors
from calibration.layers import Layer, find_layers
from calibration.plan import HIGH, PlannedLayer, QuantPlan, Reason, make_plan
from sit_deploy.errors import InputError
from sit_deploy.quantize.calibrate import ImageStream, choose_scales, logits_error, run_logits, smoothed_graph

if TYPE_CHECKING:
    import onnx

Progress = Callable[[str, int, int], None]

GPTQ_IMAGES = 64  # images that weights are rounded with: thousands of tokens for every column
LAYER_ERROR_IMAGES = 32  # images that layers, and their bias correction, are measured on


@dataclass(frozen=True)
class Quantizer:
    """A float32 graph and all that quantizing any of its layers takes.

    graph: smoothed (`calibration.smoothquant`). plan: what the user asked for. errors: of each of its layers by itself; empty where
    there were no images. corrected: whether biases are corrected.
    """

    graph: onnx.ModelProto
    plan: QuantPlan
    scales: Scales
    errors: Mapping[str, LayerError]
    corrected: bool
    method: str
    notes: tuple[str, ...] = ()

    @cached_property
    def layers(self) -> dict[str, Layer]:
        return find_layers(self.graph)

    def quantized(self, layers: Collection[str] | None = None) -> onnx.ModelProto:
        """Return the float32 graph with Q/DQ on some of the plan's layers, or on all of them."""
        names = self.plan.quantized if layers is None else layers
        low = insert_qdq(self.graph, names, self.scales, self.plan.precision)
        if not self.corrected:
            return low
        return correct_biases(low, {name: self.errors[name] for name in names})

    def with_plan(self, plan: QuantPlan) -> Quantizer:
        """Return the same with fewer layers quantized."""
        return replace(self, plan=plan)

    def rows(self, sensitivity: Mapping[str, Mapping[str, float]] | None = None) -> list[dict[str, Any]]:
        """Return what there is to say of every layer, as plain types: precision, why, scale, shift, error."""
        found = []
        for planned in self.plan.layers:
            low = not planned.is_high
            source = self.layers[planned.name].inputs[0]
            error = self.errors.get(planned.name) if low else None
            found.append(
                {
                    "layer": planned.name,
                    "group": planned.group,
                    "precision": planned.precision,
                    "reason": planned.sentence,
                    "macs": planned.macs,
                    "scale": self.scales.activations.get(source) if low else None,
                    "shift": self.scales.shifts.get(source, 0) if low else None,
                    "sqnr_db": error.sqnr_db if error and math.isfinite(error.sqnr_db) else None,
                    **(sensitivity or {}).get(planned.name, {}),
                }
            )
        return found


def make_quantizer(
    graph: onnx.ModelProto,
    calibration: Calibration,
    stream: ImageStream | None,
    groups: Collection[str] | None = None,
    method: str | None = None,
    progress: Progress | None = None,
) -> Quantizer:
    """Return what quantizes a float32 graph as its calibration says.

    Args:
        graph: the float32 graph; it is not changed.
        calibration: of it.
        stream: calibration images, to round the weights and measure the layers with. Without any, weights are rounded to the
            nearest code, nothing is measured, and the notes say so.
        groups: of layers to quantize (`calibration.plan`); None for the default ones.
        method: of the thresholds, in place of the calibration's own.
        progress: called with a step, how much of it is done, and of how much.

    Raises:
        calibration.CalibrationError: unknown groups, or a calibration that lacks one of the tensors.
    """
    report = progress or (lambda *_: None)
    smoothed = smoothed_graph(graph, calibration)
    layers = find_layers(smoothed)
    plan = make_plan(layers, calibration.grid, groups)
    method = method or calibration.method
    scales = choose_scales(calibration, [layers[name] for name in plan.quantized], method)
    if stream is None:
        note = "no images were given beside the calibration: weights are rounded to nearest and layers are not measured"
        return Quantizer(smoothed, plan, scales, {}, False, method, (note,))
    codes = gptq_codes(smoothed, plan.quantized, stream.spread(GPTQ_IMAGES), calibration.grid, report)
    scales = replace(scales, weights=codes)
    few = stream.spread(LAYER_ERROR_IMAGES)
    errors = measure_layer_errors(smoothed, plan.quantized, few, scales, calibration.grid, report)
    plain = Quantizer(smoothed, plan, scales, errors, False, method)
    corrected = replace(plain, corrected=True)
    reference = run_logits(smoothed, few)
    # rounding against the inputs leaves little for a correction to mend, and now and then nothing: measured, not assumed
    better = logits_error(run_logits(corrected.quantized(), few), reference) < logits_error(
        run_logits(plain.quantized(), few), reference
    )
    return corrected if better else plain


def trained_quantizer(graph: onnx.ModelProto, thresholds: Mapping[str, float]) -> Quantizer:
    """Return what quantizes a model that was trained to be rounded (`train --qat`), with the thresholds it learned.

    Nothing is smoothed, shifted, rounded otherwise or corrected: the graph is to compute what was trained.

    Args:
        graph: the float32 graph; it is not changed.
        thresholds: by layer name, the |x| of its input that has the largest code; other layers stay high.

    Raises:
        InputError: thresholds of layers that the graph does not have.
    """
    layers = find_layers(graph)
    if unknown := sorted(thresholds.keys() - layers.keys()):
        raise InputError(
            f"the model card has a threshold for '{unknown[0]}', which the deployed graph does not have; train it again"
        )
    planned = tuple(
        PlannedLayer(
            layer.name,
            layer.group,
            "int8" if layer.name in thresholds else HIGH,
            Reason.TRAINED_IN_8_BITS if layer.name in thresholds else Reason.TRAINED_IN_FLOAT,
            layer.macs,
        )
        for layer in layers.values()
    )
    activations: dict[str, float] = {}
    for name, limit in thresholds.items():
        activations[layers[name].inputs[0]] = float(float16_scale(limit / 127))
    return Quantizer(graph, QuantPlan("int8", planned), Scales(activations), {}, False, "trained")


def sensitivity(
    quantizer: Quantizer,
    stream: ImageStream,
    labelled: Iterable[tuple[Any, int]] = (),
    progress: Progress | None = None,
) -> dict[str, dict[str, float]]:
    """Quantize one layer at a time; return for each what it alone does to the logits.

    Args:
        quantizer: of the graph.
        stream: images to compare logits on.
        labelled: (image, class) pairs; with any, top-1 in percent is measured on them beside the SQNR on the stream.
        progress: called with a step, how much of it is done, and of how much.

    Returns:
        By layer: `alone_db`, the SQNR of the logits (absent where there is no error, or nothing but), `noise`, the power of their error,
        and `alone_drop`, points of top-1 lost.
    """
    import numpy as np

    samples = list(labelled)
    labels = np.array([label for _, label in samples])
    images = replace(stream, sources=[source for source, _ in samples]) if samples else None
    reference = run_logits(quantizer.graph, stream)
    signal = float(np.square(reference.astype(np.float64)).mean())
    right = float((run_logits(quantizer.graph, images).argmax(1) == labels).mean()) if images else 0.0
    found: dict[str, dict[str, float]] = {}
    names = quantizer.plan.quantized
    for done, name in enumerate(names):
        if progress:
            progress("One layer at a time", done, len(names))
        alone = quantizer.quantized([name])
        noise = logits_error(run_logits(alone, stream), reference)
        row = {"noise": noise}
        if noise > 0 and signal > 0:
            row["alone_db"] = 10 * math.log10(signal / noise)
        if images:
            kept = float((run_logits(alone, images).argmax(1) == labels).mean())
            row["alone_drop"] = round(100 * (right - kept), 9)
        found[name] = row
    return found
