"""What the manifest and the report say of a build."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from sit_deploy.bundle import CALIBRATION
from sit_deploy.manifest import RANDOM, Batch, BuildFacts, EngineFacts, Model, OutputFacts, Weights
from sit_deploy.methods import TRAINING_FREE
from sit_deploy.models.hub import origin
from sit_deploy.pipeline.command import rebuild_command
from sit_deploy.pipeline.engine import BuiltEngine
from sit_deploy.pipeline.lower import LoweredGraph
from sit_deploy.pipeline.request import BuildRequest
from sit_deploy.pipeline.sensitivity import Sensitivity
from sit_deploy.pipeline.work import Work
from sit_deploy.text import is_warning

if TYPE_CHECKING:
    from sit_deploy.models.load import LoadedModel

# fields of a configuration that a manifest has in other places
_ELSEWHERE = (
    "name",
    "method",
    "aliases",
    "top1",
    "mean",
    "std",
    "crop_pct",
    "interpolation",
    "crop_mode",
    "unslimmable",
)


def build_facts(work: Work, lowered: LoweredGraph, built: BuiltEngine) -> BuildFacts:
    """Return what the manifest says of a build."""
    from sit_deploy.doctor import versions

    request, info, float_graph = work.request, built.info, lowered.float_graph
    return BuildFacts(
        model=model_of(work, lowered),
        outputs=outputs_of(lowered),
        classes=float_graph.classes,
        preprocessing=lowered.preprocessing.to_dict(),
        preprocessing_source=float_graph.sources,
        precision=request.precision,
        batch=_batch(request),
        opset=request.opset,
        engine=EngineFacts(
            kind=info.kind,
            why=built.why,
            version=info.version,
            file=info.filename,
            target=info.target,
            build_seconds=round(info.build_seconds, 2),
            details=info.details,
            threads=request.threads,
        ),
        weights=weights_of(request, float_graph.loaded),
        calibration=_calibration(lowered),
        compared_on=float_graph.compared.source,
        versions=versions(),
        command=rebuild_command(request, info.kind, tuned=lowered.tuning is not None),
    )


def graph_report(work: Work, lowered: LoweredGraph) -> dict[str, Any]:
    """Return what there is to say of the graph and of how it was checked, as plain types."""
    from sit_deploy.graph.inspect import summarize

    if left_out := work.damaged.words:
        work.warn(left_out)
    notes = list(dict.fromkeys(work.notes))
    return {
        "weights": weights_of(work.request, lowered.float_graph.loaded).to_dict(),
        "preprocessing": lowered.preprocessing.to_dict(),
        "preprocessing_source": lowered.float_graph.sources,
        "notes": notes,
        "warnings": [note for note in notes if is_warning(note)],
        "compared_on": lowered.float_graph.compared.source,
        "hops": [hop.to_dict() for hop in work.hops],
        "plan": {
            "counts": lowered.plan.counts,
            "held_back": [node.to_dict() for node in lowered.plan.held_back],
            "casts": lowered.plan.casts,
        },
        "graph": summarize(lowered.graph).to_dict(),
    }


def quantization_report(
    work: Work, lowered: LoweredGraph, sensitivity: Sensitivity, tries: tuple[tuple[float, float], ...]
) -> dict[str, Any]:
    """Return what the report says of 8 bits; their speed is measured later.

    Args:
        work: of the build.
        lowered: a graph in 8 bits.
        sensitivity: of its layers, as far as it was asked for.
        tries: share in 8 bits and drop of each plan that was measured.
    """
    assert lowered.quantization is not None
    quantizer = lowered.quantization.quantizer
    return {
        "method": quantizer.method,
        "bias_correction": quantizer.corrected,
        "rest": work.request.high,
        "share_of_macs": quantizer.plan.share,
        "layers": quantizer.rows(sensitivity.measured),
        "tries": [{"share_of_macs": share, "drop": drop} for share, drop in tries],
        **({"tuning": lowered.tuning.to_dict()} if lowered.tuning else {}),
    }


def weights_of(request: BuildRequest, loaded: LoadedModel) -> Weights:
    """Return where the weights came from."""
    checkpoint = loaded.checkpoint
    if checkpoint is None:
        return Weights(source=RANDOM, seed=0)
    repository, revision = origin(checkpoint.path) or (None, None)
    return Weights(
        repository=repository,
        revision=revision,
        source=str(checkpoint.path.absolute()),
        sha256=checkpoint.sha256,
        entry=checkpoint.source,
        key=request.checkpoint_key,
        ema=request.ema,
        top1=request.card.metrics.get("top1") if request.card else None,
    )


def model_of(work: Work, lowered: LoweredGraph) -> Model:
    """Return what is in the engine."""
    from sit_deploy.graph.inspect import count_macs

    loaded = lowered.float_graph.loaded
    request, model, config = work.request, loaded.model, loaded.config
    return Model(
        name=loaded.name,
        stages=list(model.stage_blocks),
        keeping_ratio=None if config.kept else config.keeping_ratio,
        method=config.method if config.method in TRAINING_FREE else None,
        image_size=tuple(model.img_size),
        num_classes=model.num_classes,
        dist_token=model.has_dist_token,
        tokens=list(model.kept),
        parameters=sum(p.numel() for p in model.parameters()),
        macs=count_macs(lowered.graph) // (1 if request.dynamic_batch else request.batch_size),
        config={
            k: v
            for k, v in asdict(config).items()
            if k not in (*_ELSEWHERE, "keeping_ratio" if config.kept else "kept")
        }
        | ({"passed_through": passed} if (passed := lowered.float_graph.passed_through) else {}),
        published_top1=config.top1,
    )


def outputs_of(lowered: LoweredGraph) -> list[OutputFacts] | None:
    """Return what is given, None where that is the logits alone."""
    outputs = lowered.float_graph.outputs
    return [OutputFacts.of(one) for one in outputs] if any(one.is_embedding for one in outputs) else None


def _batch(request: BuildRequest) -> Batch:
    low, high = request.batch_range
    if request.dynamic_batch:
        return Batch(min=low, opt=request.dynamic_batch[1], max=high)
    return Batch(size=low)


def _calibration(lowered: LoweredGraph) -> dict[str, Any] | None:
    """Return how a graph in 8 bits came by its ranges, None for one that is not."""
    if lowered.quantization is None:
        return None
    calibration = lowered.quantization.calibration
    if calibration is None:
        return {"method": "trained", "file": None}
    images = calibration.images
    return {
        "method": lowered.quantization.quantizer.method,
        "file": CALIBRATION,
        "images": images.count,
        "source": images.description,
        "images_key": images.key,
        "graph": calibration.graph,
    }
