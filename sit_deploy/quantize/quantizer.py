"""From a calibrated float32 graph to one with Q/DQ: weights rounded, biases corrected, every layer's error measured."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from calibration.bias_correction import correct_biases
from calibration.cache import Calibration
from calibration.formats import INT8, float16_scale
from calibration.gptq import gptq_codes
from calibration.insert_qdq import Scales, insert_qdq
from calibration.layer_error import LayerError, measure_layer_errors
from calibration.layers import Layer, find_layers
from calibration.plan import HIGH, PlannedLayer, QuantPlan, Reason, make_plan
from calibration.session import Progress
from calibration.split_scales import balance_queries_and_keys, split_weight_scales
from sit_deploy.errors import InputError
from sit_deploy.quantize.image_stream import ImageStream
from sit_deploy.quantize.logits import logits_error, run_logits
from sit_deploy.quantize.scales import choose_scales, smoothed_graph

if TYPE_CHECKING:
    import onnx

GPTQ_IMAGES = 64  # images that weights are rounded with: thousands of tokens for every column
LAYER_ERROR_IMAGES = 32  # images that layers, and their bias correction, are measured on
# A layer stays high whose error alone is above a thirtieth of its output, among the tokens with most of the power or the others.
# Layers without outliers have 25 dB and more; those of which outliers take the codes, 12 and less.
LEAST_DB = 15.0


@dataclass(frozen=True)
class EngineForm:
    """What an engine asks of a graph in 8 bits.

    Attributes:
        attention_in_one_kernel: attention stays high where 8 bits would break it up (`calibration.plan.make_plan`).
        attends_unscaled: a weight whose product is split does with one scale, and nothing stands between it and attention
            (`calibration.split_scales`).
    """

    attention_in_one_kernel: bool = False
    attends_unscaled: bool = False


@dataclass(frozen=True)
class Quantizer:
    """A float32 graph and all that quantizing any of its layers takes.

    Attributes:
        graph: smoothed (`calibration.smoothquant`).
        plan: which of its layers are quantized.
        scales: of what its layers read, and the codes of their weights.
        errors: of each of its layers by itself; empty where there were no images.
        corrected: whether biases are corrected.
        method: of the thresholds.
        notes: what there is to tell of it, in sentences.
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
        """The graph's layers by name."""
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
        """Return what there is to say of every layer, as plain types: precision, why, scale, shift, error.

        Args:
            sensitivity: what more was measured, by layer (`sit_deploy.quantize.sensitivity`).
        """
        rows = []
        for planned in self.plan.layers:
            low = not planned.is_high
            source = self.layers[planned.name].inputs[0]
            error = self.errors.get(planned.name) if low else None
            rows.append(
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
        return rows


def make_quantizer(
    graph: onnx.ModelProto,
    calibration: Calibration,
    stream: ImageStream | None,
    groups: Collection[str] | None = None,
    method: str | None = None,
    progress: Progress | None = None,
    form: EngineForm = EngineForm(),
) -> Quantizer:
    """Return what quantizes a float32 graph as its calibration says, its biases corrected where that is better.

    Arguments and errors as of `prepare_quantizer`.
    """
    quantizer = prepare_quantizer(graph, calibration, stream, groups, method, progress, form)
    return choose_correction(quantizer, stream)


def prepare_quantizer(
    graph: onnx.ModelProto,
    calibration: Calibration,
    stream: ImageStream | None,
    groups: Collection[str] | None = None,
    method: str | None = None,
    progress: Progress | None = None,
    form: EngineForm = EngineForm(),
) -> Quantizer:
    """Return what quantizes a float32 graph as its calibration says, whether biases are corrected left open.

    Args:
        graph: as it was exported.
        calibration: of this graph.
        stream: calibration images, to round the weights and measure the layers with. Without any, weights are rounded
            to the nearest code, nothing is measured, and the notes say so.
        groups: of layers to quantize (`calibration.plan`); None for the default ones.
        method: of the thresholds, in place of the calibration's own.
        progress: called as progress(text, done, in all).
        form: what the engine asks for.

    Raises:
        calibration.CalibrationError: unknown groups, or a calibration that lacks one of the tensors.
    """
    report = progress or (lambda *_: None)
    smoothed = smoothed_graph(graph, calibration)
    layers = find_layers(smoothed)
    plan = make_plan(layers, calibration.grid, groups, one_kernel=form.attention_in_one_kernel)
    method = method or calibration.method
    scales = choose_scales(calibration, [layers[name] for name in plan.quantized], method)
    if form.attends_unscaled:
        if calibration.grid == INT8.name:
            smoothed = balance_queries_and_keys(smoothed, plan.quantized)
        channels = split_weight_scales(smoothed, plan.quantized, calibration.grid)
        scales = replace(scales, channels=channels)
    if stream is None:
        note = "no images were given beside the calibration: weights are rounded to nearest and layers are not measured"
        return Quantizer(smoothed, plan, scales, {}, False, method, (note,))
    codes = gptq_codes(
        smoothed, plan.quantized, stream.spread(GPTQ_IMAGES), calibration.grid, report, scales.channels
    )
    scales = replace(scales, weights=codes)
    few = stream.spread(LAYER_ERROR_IMAGES)
    errors = measure_layer_errors(smoothed, plan.quantized, few, scales, calibration.grid, report)
    lost = [name for name, error in errors.items() if error.worst_db < LEAST_DB]
    if 0 < len(lost) < len(plan.quantized):
        plan = plan.without_outliers(lost)
    return Quantizer(smoothed, plan, scales, errors, False, method, outlier_notes(plan))


def outlier_notes(plan: QuantPlan) -> tuple[str, ...]:
    """Say which layers of a plan stay high for outliers, if any do."""
    lost = plan.kept_for_outliers
    if not lost:
        return ()
    more = f" (and {len(lost) - 1} more)" if len(lost) > 1 else ""
    return (f"{lost[0]}{more} stays high: it reads outliers, and 8 bits hold them or the rest, not both",)


def choose_correction(quantizer: Quantizer, stream: ImageStream | None) -> Quantizer:
    """Return the quantizer with its biases corrected if the logits of its plan come out nearer then.

    Args:
        quantizer: of the graph.
        stream: of images; None where there were none to measure the layers with: then nothing is corrected.
    """
    if stream is None:
        return quantizer
    few = stream.spread(LAYER_ERROR_IMAGES)
    plain, corrected = replace(quantizer, corrected=False), replace(quantizer, corrected=True)
    reference = run_logits(quantizer.graph, few)
    # rounding against the inputs leaves little for a correction to mend, and now and then nothing: measured, not assumed
    better = logits_error(run_logits(corrected.quantized(), few), reference) < logits_error(
        run_logits(plain.quantized(), few), reference
    )
    return corrected if better else plain


def trained_quantizer(graph: onnx.ModelProto, thresholds: Mapping[str, float]) -> Quantizer:
    """Return what quantizes a model that was trained to be rounded (`train --qat`), with the thresholds it learned.

    Nothing is smoothed, shifted, rounded otherwise or corrected: the graph is to compute what was trained.

    Args:
        graph: as it was exported.
        thresholds: by layer name, the |x| of its input that has the largest code; other layers stay high.

    Raises:
        InputError: thresholds of layers that the graph does not have.
    """
    layers = find_layers(graph)
    thresholds = _of_layers(thresholds, layers)
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
        activations[layers[name].inputs[0]] = float(float16_scale(limit / INT8.largest))
    return Quantizer(graph, QuantPlan("int8", planned), Scales(activations), {}, False, "trained")


def _of_layers(thresholds: Mapping[str, float], layers: Collection[str]) -> dict[str, float]:
    """Return trained thresholds by the layers of a graph, whose outputs may be others than those that were trained.

    Where all tokens of the last block are read, its q and kv are one layer, of the one input that they have; a graph without logits has
    no head.

    Raises:
        InputError: a threshold of another layer that the graph has not.
    """
    found: dict[str, float] = {}
    for name, limit in sorted(thresholds.items()):
        block, _, part = name.rpartition("/")
        joined = {"q": ("qkv",), "kv": ("qkv",), "qkv": ("q", "kv")}.get(part, ())
        names = [name] if name in layers else [f"{block}/{other}" for other in joined]
        if name != "head" and not (names and all(one in layers for one in names)):
            raise InputError(
                f"the model card has a threshold for '{name}', which the deployed graph does not have; train it again"
            )
        found |= {one: limit for one in names}
    return found
