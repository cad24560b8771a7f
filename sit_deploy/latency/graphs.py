"""The graph of any schedule of a model, in its precision, as a build makes it but for the values of its weights.

A graph with one block a stage goes the way that a build goes: exported, calibrated, quantized. It is made once for each number of
stages; the graph of a schedule is that one with other token counts (`retoken`) and more blocks (`lengthen`). Latency does not depend
on what weights are, so they are random.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from sit_deploy.latency.lengthen import lengthen
from sit_deploy.latency.retoken import retoken
from sit_deploy.latency.schedule import Schedule
from sit_deploy.latency.target import Target
from sit_deploy.precisions import EIGHT_BITS

if TYPE_CHECKING:
    import onnx
    from torch import nn

_AWAY = 0.02  # from where weights start, ones and zeros among them, on average
_MOST_PREFIX = 10  # tokens beside the patches, and more than any model has
_ONE_SIDED = 0.3  # share of a range below 0 where it is GELU's, or a softmax's
_LEAST = 10  # token counts that other numbers of a graph are likely to be


class ScheduleGraphs:
    """Makes graphs of a model's schedules.

    Args:
        target: whose.
    """

    def __init__(self, target: Target) -> None:
        self._target = target
        self._short: dict[tuple[int, ...], tuple[onnx.ModelProto, int]] = {}

    def graph(self, schedule: Schedule) -> onnx.ModelProto:
        """Return the graph of a schedule.

        Raises:
            InputError: a model whose blocks cannot be told from one another.
        """
        kept = self._stand_ins(len(schedule.kept)) or schedule.kept
        if kept not in self._short:
            self._short[kept] = self._made(kept)
        short, prefix = self._short[kept]
        if kept != schedule.kept:
            short = retoken(short, dict(zip(kept, schedule.kept, strict=True)), prefix)
        copies = dict(enumerate(schedule.stage_blocks))
        copies[len(kept) - 1] -= (
            1  # the last block is another one: it gives only the tokens that the head reads
        )
        return lengthen(short, copies)

    def _stand_ins(self, stages: int) -> tuple[int, ...] | None:
        """Return token counts that are like no other number of a model's graph; None where its images have too few patches."""
        target, widths = self._target, self._target.widths
        dim, hidden, heads = widths.dim, widths.hidden, target.config.num_heads
        numbers = {dim, 2 * dim, 3 * dim, dim // 2, hidden, 2 * hidden, heads, dim // heads, 3, target.batch}
        numbers |= {target.classes, target.side, target.side // target.config.patch_size}
        numbers |= {widths.patches + more for more in range(_MOST_PREFIX)}
        kept = [widths.patches]
        for count in range(widths.patches - 1, _LEAST, -1):
            if len(kept) == stages:
                break
            near = {count + more for more in range(_MOST_PREFIX)}
            if not near & numbers:
                kept.append(count)
                numbers |= near
        return tuple(kept) if len(kept) == stages else None

    def _made(self, kept: tuple[int, ...]) -> tuple[onnx.ModelProto, int]:
        """Return the graph of a block a stage, one more in the last, and how many tokens stand beside the patches."""
        from sit_deploy.graph.deploy_form import to_deploy_form
        from sit_deploy.graph.export import export_onnx

        target = self._target
        blocks = (*(1,) * (len(kept) - 1), 2)
        model = random_model(target, blocks, kept)
        graph = export_onnx(
            to_deploy_form(model), model.img_size, batch=target.batch, name=target.config.name
        )
        return lowered(target, graph), model.num_prefix_tokens


def random_model(target: Target, stage_blocks: tuple[int, ...], kept: tuple[int, ...]) -> nn.Module:
    """Return a model whose weights are random, and none of them what the deploy form or the exporter would leave out or share."""
    import torch

    from sit_deploy.models.registry import create_model

    config = target.config
    options: dict[str, Any] = {"img_size": target.side, "num_classes": target.classes}
    if target.dist_token:
        options["dist_token"] = True
    if config.base:  # the others are as deep as their stages
        options["depth"] = sum(stage_blocks)
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(0)
        model = create_model(config, stage_blocks=stage_blocks, kept=kept, **options).eval()
        for values in model.state_dict().values():
            if values.is_floating_point():
                values.add_(torch.randn_like(values), alpha=_AWAY)
    return model


def lowered(target: Target, graph: onnx.ModelProto) -> onnx.ModelProto:
    """Return a float32 graph in the precision asked for, as `sit_deploy.pipeline.lower` writes it."""
    from sit_deploy.graph.norms import float_form
    from sit_deploy.graph.precision import to_precision

    if target.precision not in EIGHT_BITS:
        return to_precision(float_form(graph, target.runtime), target.precision)[0]
    low = _quantized(target, graph)
    return low if target.high == "fp32" else to_precision(low, target.high)[0]


def _quantized(target: Target, graph: onnx.ModelProto) -> onnx.ModelProto:
    """Return a float32 graph in 8 bits, its ranges those of one image."""
    from calibration.layers import find_layers
    from calibration.plan import make_plan
    from calibration.split_scales import share_split_scales
    from calibration.thresholds import METHODS_OF
    from sit_deploy.data.synthetic import synthetic_images
    from sit_deploy.models.data_config import choose, from_name
    from sit_deploy.quantize.calibrate import CalibrationMethod, calibrate
    from sit_deploy.quantize.image_stream import ImageStream
    from sit_deploy.quantize.quantizer import EngineForm, prepare_quantizer

    engine, grid = target.runtime, target.precision
    form = EngineForm(
        engine.attention_in_one_kernel, engine.attends_unscaled(grid, engine.targets_with(grid, ()))
    )
    known = find_layers(graph)
    plan = make_plan(known, grid, target.groups, one_kernel=form.attention_in_one_kernel)
    prepared = choose(target.side, [], from_name(target.config), "stored").preprocessing
    image = ImageStream(synthetic_images(1), prepared, "a synthetic image")
    method = CalibrationMethod(grid, METHODS_OF[grid][0])
    calibration, _ = calibrate(graph, image, method, layers=plan.quantized)
    # what is subtracted before tensors of a lopsided range are rounded costs an addition: behind a GELU always, elsewhere by the luck of
    # weights that are random here
    calibration.tensors = {
        name: seen
        if seen.min > -_ONE_SIDED * seen.absmax
        else replace(seen, min=-seen.absmax, max=seen.absmax)
        for name, seen in calibration.tensors.items()
    }
    low = prepare_quantizer(graph, calibration, None, target.groups, form=form).quantized()
    return share_split_scales(low, graph) if engine.one_scale_where_split else low
