"""What a page shows of a build and of its evidence: every figure as the text that stands on it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from msgspec.structs import asdict

from engines.speedup import tail_doubt
from sit_deploy.methods import method_words
from sit_deploy.outputs import can_be_reported, has_classes, listing
from sit_deploy.performance import threads_text
from sit_deploy.report import plots, speedup_text
from sit_deploy.report.build_types import (
    AccuracyRecord,
    BuildReport,
    EngineLayersRecord,
    HopRecord,
    LayerRecord,
)
from sit_deploy.report.elsewhere_text import elsewhere_view
from sit_deploy.report.embedding_text import embedding_view, key_figures
from sit_deploy.report.figure import figure
from sit_deploy.report.kernels_text import census_text, engine_text
from sit_deploy.report.quantization_view import quantization_view
from sit_deploy.report.search_view import found_view
from sit_deploy.report.slimming_view import slimming_words, token_bars
from sit_deploy.report.stages_view import stages_view
from sit_deploy.report.tuning_view import tuning_view
from sit_deploy.report.types import DriftRecord, Evidence, Stage
from sit_deploy.report.verdict import BuildVerdict, JudgedBundle, Verdict, Weight
from sit_deploy.report.verdict_text import sentence
from sit_deploy.text import file_size, first_of

_SLOWEST = 15  # layers listed
_WORST = 15  # classes listed


def preprocessing_words(fields: Mapping[str, Any], sources: Mapping[str, str] | None) -> str:
    """Return how pictures are prepared, and who said so; older bundles do not say who."""
    from sit_deploy.models.data_config import describe

    return describe(fields, sources)


def build_view(report: BuildReport) -> dict[str, Any]:
    """Return what a page says of a build."""
    accuracy = report.accuracy
    return {
        "name": f"{report.model.name} · {report.precision} · {report.engine.kind}",
        "verdict": _build_verdict(BuildVerdict.of(report.hops)),
        "notes": [{"text": note, "warns": report.warns(note)} for note in report.notes],
        "accuracy": accuracy and accuracy_view(accuracy),
        "no_accuracy": _no_accuracy(report),
        "tokens": token_bars(report.model),
        "slimmed": f"Merged by {method_words(method)}." if (method := report.model.slims_by) else None,
        "layers": _engine_layers(report.engine_layers),
        "compared_on": report.compared_on,
        "compared": "outputs" if _given(report) else "logits",
        "hops": [_hop(hop, report) for hop in report.hops],
        "quantization": quantization_view(report),
        "tuning": tuning_view(report.tuned),
        "held_back": [(n.node, n.op_type, n.reason) for n in report.plan.held_back],
        "facts": _facts(report),
        "seconds": [(step, f"{seconds:.2f}") for step, seconds in report.seconds.items()],
        "versions": _versions(report.versions),
    }


def evidence_view(judged: JudgedBundle) -> dict[str, Any]:
    """Return what a page says of a bundle that was measured; a plot is a function that draws it, which takes a while."""
    evidence = judged.evidence
    build, accuracy = evidence.build, evidence.accuracy
    mark = f"{evidence.name}: "
    return {
        **build_view(build),
        "name": evidence.name,
        "verdict": verdict_view(judged.verdict),
        "figures": _key_figures(evidence),
        "ledger": stages_view(
            evidence.ledger,
            speedup_text.time_doubt(evidence.speedups),
            engine_text(build.engine.details, build.precision),
            data=evidence.embedding is not None and evidence.embedding.is_data,
        ),
        "accuracy": embedding_view(evidence.embedding)
        if evidence.embedding
        else accuracy and accuracy_view(accuracy),
        "no_accuracy": "Not measured: no labelled images were given (--data).",
        "latency": _latency(evidence, mark) if evidence.timing else None,
        "elsewhere": elsewhere_view(evidence.elsewhere),
        "search": found_view(evidence, mark),
        "drift": _drift(evidence.drift, mark),
        "tuning": tuning_view(build.tuned, mark),
        "layers": _layers(evidence.layers, mark) or _engine_layers(build.engine_layers),
        "versions": _versions(evidence.versions),
    }


def verdict_view(verdict: Verdict) -> dict[str, Any]:
    """Return a verdict as a page has it: how it is to be taken, its headline, and the reasons, gravest first."""
    order = (Weight.AGAINST, Weight.MISSING, Weight.UNMEASURED, Weight.FAVOUR)
    return {
        "severity": verdict.severity.value,
        "headline": verdict.headline,
        "reasons": [
            (weight.severity.value, reason.text) for weight in order for reason in verdict.of_weight(weight)
        ],
    }


def _build_verdict(verdict: BuildVerdict) -> dict[str, Any]:
    return {"severity": verdict.severity.value, "headline": verdict.headline, "reasons": []}


def _versions(versions: Mapping[str, str | None]) -> list[tuple[str, str]]:
    return [(package, version or "—") for package, version in versions.items()]


def accuracy_rows(accuracy: AccuracyRecord) -> list[tuple[str, str, str, str, str]]:
    """Return the figures of both sides: who, top-1, its interval, top-5, agreement."""
    a = accuracy
    sides = (
        ("PyTorch", a.reference_top1, a.reference_top1_interval, a.reference_top5, ""),
        (a.measured_on, a.engine_top1, a.engine_top1_interval, a.engine_top5, f"{a.agreement:.2f}"),
    )
    return [
        (who, f"{top1:.2f}", f"{low:.1f} to {high:.1f}", figure(top5, ".2f"), agreement)
        for who, top1, (low, high), top5, agreement in sides
    ]


def accuracy_view(accuracy: AccuracyRecord) -> dict[str, Any]:
    """Return what a page says of an accuracy."""
    return {
        "heading": "Accuracy",
        "what": " ".join((f"{accuracy.images} images of {accuracy.data}.", *map(sentence, accuracy.notes))),
        "head": ("", "top-1 %", "95 %", "top-5 %", "agreement %"),
        "rows": accuracy_rows(accuracy),
        "difference": f"{difference(accuracy)} {logits_words(accuracy)}".strip(),
        "warning": accuracy.warning,
        "doubts": accuracy.doubts,
        "classes": [
            (row.name, str(row.images), str(row.reference), str(row.engine))
            for row in accuracy.by_class[:_WORST]
        ],
        "flips": [
            {
                "label": flip.label_name,
                "reference": f"{flip.reference_name}, {flip.reference_probability:.0%}",
                "engine": f"{flip.engine_name}, {flip.engine_probability:.0%}",
                "image": flip.image.replace("\\", "/").rsplit("/", 1)[-1],
                "picture": flip.picture,
            }
            for flip in accuracy.flips
        ],
    }


def difference(accuracy: AccuracyRecord) -> str:
    """Say in a sentence what the paired test of both sides found."""
    lost, gained = accuracy.lost, accuracy.gained
    if not lost + gained:
        return "Both are right on the same images."
    chance = "may be chance" if accuracy.p_value >= 0.05 else "is no chance"
    return (
        f"Only PyTorch is right on {lost}, only the engine on {gained}: the difference {chance} "
        f"(p = {accuracy.p_value:.2g})."
    )


def logits_words(accuracy: AccuracyRecord) -> str:
    """Say in a sentence how near the logits are."""
    if accuracy.sqnr_db is not None:
        sqnr = f"{accuracy.sqnr_db:.1f} dB"
    else:
        sqnr = "exact" if accuracy.agreement == 100 else "none"
    return f"Logits: SQNR {sqnr}; cosine {accuracy.cosine:.6f}, least {accuracy.lowest_cosine:.6f}."


def _key_figures(evidence: Evidence) -> list[tuple[str, str]]:
    figures, accuracy = [], evidence.accuracy
    if accuracy:
        figures.append((f"{accuracy.engine_top1:.2f} %", f"top-1, PyTorch {accuracy.reference_top1:.2f} %"))
        figures.append((f"{accuracy.agreement:.2f} %", "of images get the reference's class"))
    if found := evidence.embedding:
        figures += key_figures(found)
    engine, batch = evidence.ledger.engine_stage, evidence.ledger.batch_size
    if engine.latency_ms is not None:
        rate = f"{1e3 * batch / engine.latency_ms:.0f} images/s"
        speed = speedup_text.NOT_NOW if speedup_text.time_doubt(evidence.speedups) else rate
        figures.append((f"{engine.latency_ms:.2f} ms", f"a batch of {batch}, {speed}"))
    others = (
        (Stage.STUDENT, "PyTorch"),
        (Stage.TEACHER, "the teacher in PyTorch"),
        (Stage.TEACHER_ENGINE, "the teacher's engine"),
    )
    for stage, what in others:
        if gain := evidence.speedups.get(stage.value):
            known = f" ({speedup_text.rounds(gain)})" if gain.doubt is None else f"; {speedup_text.NOT_NOW}"
            figures.append((speedup_text.factor(gain), f"as fast as {what}{known}"))
    figures.append((file_size(engine.size), "engine"))
    return figures


def _latency(evidence: Evidence, mark: str) -> dict[str, Any]:
    around, host = evidence.around, evidence.machine
    rows = [
        (
            name,
            *(f"{ms:.2f}" for ms in (timing.p50_ms, timing.p90_ms, timing.p99_ms)),
            f"{timing.images_per_second:.1f}",
            str(timing.iterations),
        )
        for name, timing in evidence.timing.items()
    ]
    count = evidence.threads
    threads = "the runtime's own number of threads" if count is None else threads_text(count)
    threads += f" ({evidence.threads_note})" if evidence.threads_note else ""
    doubt = speedup_text.time_doubt(evidence.speedups)
    tails = list(filter(None, (tail_doubt(name, timing) for name, timing in evidence.timing.items())))
    return {
        "plot": partial(plots.latency_histogram, evidence.timing, mark + "latency of each hop"),
        "head": ("hop", "p50 ms", "p90 ms", "p99 ms", "images/s", "calls"),
        "rows": rows,
        "around": f"Each in a process of its own, in turn, {threads}, not pinned, on {host.cpu_model} "
        f"({host.usable_cpus} CPUs). Around the engine, for one image ({around.image}) on one thread: decoding "
        f"{around.decode_ms:.2f} ms, preparing {around.prepare_ms:.2f} ms"
        + (f", classes from logits {around.classes_ms:.2f} ms." if around.classes_ms is not None else ".")
        + (f" {doubt}" if doubt else "")
        + (f" Take p99 with care: {first_of(tails)}." if tails else ""),
    }


def _drift(drift: DriftRecord, mark: str) -> dict[str, Any] | None:
    if not drift.tensors:
        return {"what": drift.note, "plot": None} if drift.note else None
    shown = [t for t in drift.tensors if t.sqnr_db is not None]
    first = drift.first_bad
    what = (
        "The residual stream of the bundle's graph against that of the float32 graph, on the golden images."
    )
    if not shown:
        return {"what": what + " They are the same to the bit.", "plot": None}
    what += (
        f" The first tensor out of tolerance ({drift.tolerance:g}) is {first.tensor}."
        if first
        else f" Every tensor is within the tolerance ({drift.tolerance:g} of its spread). Dotted: token slimming."
    )
    return {"what": what, "plot": partial(plots.drift, drift.tensors, mark + "signal to noise by depth")}


def _layers(layers: Sequence[LayerRecord], mark: str) -> dict[str, Any] | None:
    if not layers:
        return None
    return {
        "plot": partial(plots.operators, layers, mark + "time by operator"),
        "what": "The slowest layers as the engine runs them; a profiler makes all of them slower.",
        **_layer_table(layers),
    }


def _engine_layers(layers: EngineLayersRecord | None) -> dict[str, Any] | None:
    """What a TensorRT engine tells of itself, where it could be run."""
    if layers is None:
        return None
    raised = f": {', '.join(layers.raised)}" if layers.raised else ""
    return {
        "plot": None,
        "what": f"{len(layers.kept)} low-precision products run in the types of the graph, {len(layers.raised)} do not"
        f"{raised}; of {len(layers.untold)} the engine does not tell. Times are with a profiler attached, one image or the "
        "smallest batch.",
        **_layer_table(layers.layers),
    }


def _layer_table(layers: Sequence[LayerRecord]) -> dict[str, Any]:
    rows = [
        (
            row.layer,
            ", ".join(row.types) or "not told",
            figure(row.ms, ".4f"),
            figure(row.share, ".1%"),
        )
        for row in layers[:_SLOWEST]
    ]
    return {"head": ("layer", "types", "ms", "share"), "rows": rows}


def agreement_cell(hop: HopRecord) -> str:
    """Return the share of images that get the same class; of embeddings, their least cosine."""
    if hop.agreement is not None:
        return f"{hop.agreement:.0%}"
    return f"cos {min(output.lowest_cosine for output in hop.outputs):.5f}" if hop.outputs else ""


def output_words(hop: HopRecord) -> list[str]:
    """Return the figures of each output of a step that has others than logits."""
    return [
        f"{one.name}: error {figure(one.error, '.1e')}, SQNR {figure(one.sqnr_db, '.1f')} dB, cosine {one.cosine:.6f}, "
        f"least {one.lowest_cosine:.6f}"
        + (f" (at least {one.least_cosine:g})" if one.least_cosine is not None else "")
        for one in hop.outputs
    ]


def _hop(hop: HopRecord, report: BuildReport) -> dict[str, Any]:
    of_engine = hop.name == Stage.of_engine(report.engine.kind)
    kernels = engine_text(report.engine.details, report.precision) if of_engine else None
    note = "; ".join(filter(None, (hop.note, kernels)))
    if not hop.compared:
        return {"name": hop.name, "cells": ("—", "", "", "", ""), "state": "", "note": note}
    cells = (
        figure(hop.error, ".1e"),
        figure(hop.tolerance, "g"),
        figure(hop.step_error, ".1e"),
        "exact" if hop.error == 0 else figure(hop.sqnr_db, ".1f"),
        agreement_cell(hop),
    )
    note = "; ".join(filter(None, (note, *output_words(hop))))
    state = "ok" if hop.passed else "out of tolerance"
    return {"name": hop.name, "cells": cells, "state": state, "note": note}


def _others_than_logits(report: BuildReport) -> list[str]:
    """Return the names of a bundle's outputs; none for one of logits alone."""
    return [one.name for one in report.hops[0].outputs] if report.hops else []


def _given(report: BuildReport) -> str:
    """Return what a bundle gives that has others than logits: "gives features and patches"; nothing for one of logits alone."""
    names = _others_than_logits(report)
    return f"gives {listing(names)}" if names else ""


def _no_accuracy(report: BuildReport) -> str:
    names = _others_than_logits(report)
    if names and not has_classes(names):
        measured = can_be_reported(names)
        instead = "; sit-deploy report BUNDLE --data DIR measures nearest neighbours" if measured else ""
        return f"Accuracy is of logits, which this gives none of{instead}."
    return "Not measured: no --val-data was given."


def _facts(report: BuildReport) -> list[tuple[str, str]]:
    model, engine = report.model, report.engine
    size = f"{model.image_size[0]}×{model.image_size[1]}"
    return [
        ("Model", f"{model.name}, {size}, {_given(report) or f'{model.num_classes} classes'}"),
        (
            "Size",
            f"{model.parameters / 1e6:.2f} M parameters, {model.macs / 1e9:.2f} GMACs an image as deployed",
        ),
        ("Patch tokens", slimming_words(model)),
        *((("As PyTorch writes it", str(passed)),) if (passed := model.config.get("passed_through")) else ()),
        ("Weights", report.weights.source),
        ("Preprocessing", preprocessing_words(asdict(report.preprocessing), report.preprocessing_source)),
        ("Engine", f"{engine.kind} {engine.version}, target {engine.target}"),
        ("Why this engine", engine.why),
        *((("Kernels", census),) if (census := census_text(engine.details)) else ()),
        ("Batch", ", ".join(f"{k} {v}" for k, v in report.batch.items())),
        ("Operators", ", ".join(f"{k} {v}" for k, v in report.graph.operators.items())),
        ("Build it again", report.command),
    ]
