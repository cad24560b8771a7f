"""What a page shows of a build and of its evidence: every figure as the text that stands on it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sit_deploy.measure import speed
from sit_deploy.measure.speed import of_build, sentence
from sit_deploy.report import plots
from sit_deploy.report.kernels import NOT_ALL, eight_bit_products, kernels_note

# how a note begins that a reader must not miss
IN_DOUBT = "the accuracy here is in doubt"
WARNINGS = (
    "preprocessing:",
    "EXIF:",
    "random weights",
    "do not ship",
    IN_DOUBT,
    "calibrated on images that",
    "the accuracy proves nothing",
    NOT_ALL,
)
_SLOWEST = 15  # layers listed
_WORST = 15  # classes listed


def file_size(count: int) -> str:
    """Return bytes in words."""
    return f"{count / 1e6:.1f} MB" if count >= 1e5 else f"{count / 1e3:.1f} kB"


def figure(value: float | None, form: str) -> str:
    """Return a number in a format, a dash where there is none."""
    return "—" if value is None else format(value, form)


def preprocessing_words(told: Mapping[str, Any]) -> str:
    """Return how a manifest or report says that pictures are prepared, and who said so; older ones do not say who."""
    from sit_deploy.models.data_config import describe

    return describe(told["preprocessing"], told.get("preprocessing_source"))


def build_view(report: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a page says of a build (report.json)."""
    model, accuracy = report["model"], report["accuracy"]
    return {
        "name": f"{model['name']} · {report['precision']} · {report['engine']['kind']}",
        "verdict": _build_verdict(report["hops"]),
        "notes": [{"text": note, "warns": note.startswith(WARNINGS)} for note in report["notes"]],
        "accuracy": accuracy and accuracy_view(accuracy),
        "no_accuracy": "Not measured: no --val-data was given.",
        "tokens": _tokens(model),
        "layers": _engine_layers(report.get("engine_layers")),
        "compared_on": report["compared_on"],
        "hops": [_hop(hop) for hop in report["hops"]],
        "quantization": _quantization(report),
        "held_back": [(n["node"], n["op_type"], n["reason"]) for n in report["plan"]["held_back"]],
        "facts": _facts(report),
        "seconds": [(step, f"{seconds:.2f}") for step, seconds in report["seconds"].items()],
        "versions": [(package, version or "—") for package, version in report["versions"].items()],
    }


def evidence_view(evidence: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a page says of a bundle that was measured (`evidence.gather`)."""
    build, accuracy, timing = evidence["build"], evidence["accuracy"], evidence["timing"]
    mark = f"{evidence['name']}: "
    return {
        **build_view(build),
        "name": evidence["name"],
        "verdict": evidence["verdict"],
        "figures": _key_figures(evidence),
        "ledger": ledger_view(evidence["ledger"], time_doubt(evidence)),
        "accuracy": accuracy and accuracy_view(accuracy),
        "no_accuracy": "Not measured: no labelled images were given (--data).",
        "latency": _latency(evidence, mark) if timing else None,
        "drift": _drift(evidence["drift"], mark),
        "layers": _layers(evidence["layers"], mark) or _engine_layers(build.get("engine_layers")),
        "versions": [(package, version or "—") for package, version in evidence["versions"].items()],
    }


def time_doubt(evidence: Mapping[str, Any]) -> str | None:
    """Return why the times of the hops may mean little, in one sentence; None where the rounds bear them out."""
    doubts = list(dict.fromkeys(told["doubt"] for told in evidence["speedups"].values() if told["doubt"]))
    if not doubts:
        return None
    more = f" (and {len(doubts) - 1} more of the kind)" if len(doubts) > 1 else ""
    return f"Take the times with care: {doubts[0]}{more}."


def ledger_view(ledger: Mapping[str, Any], doubt: str | None = None) -> dict[str, Any]:
    """Return the ledger as a table: a hop a row, what it changed in brackets.

    Args:
        ledger: of the evidence.
        doubt: of `time_doubt`.
    """
    entries = ledger["entries"]
    labelled = any(entry["top1"] is not None for entry in entries)
    head = ["hop", "runs on", "top-1 %", "agree %", "SQNR dB", "GMACs", "size", "ms"]
    if not labelled:
        head.remove("top-1 %")
    rows, before = [], None
    for entry in entries:
        top1 = figure(entry["top1"], ".2f")
        if entry["top1"] is not None and before is not None:
            top1 += f" ({entry['top1'] - before:+.2f})"
        before = entry["top1"] if entry["top1"] is not None else before
        exact = entry["agreement"] == 100 and entry["sqnr_db"] is None
        row = [
            entry["name"],
            entry["runtime"],
            *([top1] if labelled else []),
            figure(entry["agreement"], ".2f"),
            ("reference" if entry["name"] == "student" else "exact")
            if exact
            else figure(entry["sqnr_db"], ".1f"),
            f"{entry['macs'] / 1e9:.2f}" if entry["macs"] >= 1e8 else f"{entry['macs'] / 1e9:.3f}",
            file_size(entry["size"]),
            figure(entry["latency_ms"], ".2f"),
        ]
        rows.append(row)
    images = f"{ledger['images']} {'labelled' if labelled else 'synthetic'} images"
    return {
        "what": f"Every hop on the same {images}; agreement and SQNR are with the student in PyTorch, ms the median of a "
        f"batch of {ledger['batch_size']} over the rounds, the hops timed turn about."
        + (" All images get one class: their agreement says nothing." if ledger.get("given") == 1 else ""),
        "head": head,
        "rows": rows,
        "notes": [
            *([doubt] if doubt else []),
            *(f"{entry['name']}: {entry['note']}." for entry in entries if entry["note"]),
        ],
    }


def accuracy_view(accuracy: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the page shows of the accuracies of PyTorch and engine."""
    rows = []
    for who, side, agreement in (
        ("PyTorch", "reference", ""),
        (accuracy["measured_on"], "engine", f"{accuracy['agreement']:.2f}"),
    ):
        low, high = accuracy[f"{side}_top1_interval"]
        top1, top5 = accuracy[f"{side}_top1"], accuracy[f"{side}_top5"]
        rows.append((who, f"{top1:.2f}", f"{low:.1f} to {high:.1f}", figure(top5, ".2f"), agreement))
    return {
        "what": f"{accuracy['images']} images of {accuracy['data']}",
        "head": ("", "top-1 %", "95 %", "top-5 %", "agreement %"),
        "rows": rows,
        "difference": f"{difference(accuracy)} {logits_words(accuracy)}".strip(),
        "warning": accuracy.get("warning"),
        "doubts": accuracy.get("doubts", ()),
        "classes": [
            (row["name"], str(row["images"]), str(row["reference"]), str(row["engine"]))
            for row in accuracy.get("by_class", ())[:_WORST]
        ],
        "flips": [
            {
                "label": flip["label_name"],
                "reference": f"{flip['reference_name']}, {flip['reference_probability']:.0%}",
                "engine": f"{flip['engine_name']}, {flip['engine_probability']:.0%}",
                "image": flip["image"].replace("\\", "/").rsplit("/", 1)[-1],
                "picture": flip.get("picture"),
            }
            for flip in accuracy.get("flips", ())
        ],
    }


def difference(accuracy: Mapping[str, Any]) -> str:
    """Say in a sentence what the paired test of both sides found."""
    lost, gained = accuracy["lost"], accuracy["gained"]
    if not lost + gained:
        return "Both are right on the same images."
    chance = "may be chance" if accuracy["p_value"] >= 0.05 else "is no chance"
    return (
        f"Only PyTorch is right on {lost}, only the engine on {gained}: the difference {chance} "
        f"(p = {accuracy['p_value']:.2g})."
    )


def logits_words(accuracy: Mapping[str, Any]) -> str:
    """Say in a sentence how near the logits are."""
    if "cosine" not in accuracy:
        return ""
    if accuracy["sqnr_db"] is not None:
        sqnr = f"{accuracy['sqnr_db']:.1f} dB"
    else:
        sqnr = "exact" if accuracy["agreement"] == 100 else "none"
    return f"Logits: SQNR {sqnr}; cosine {accuracy['cosine']:.6f}, least {accuracy['lowest_cosine']:.6f}."


def engine_entry(evidence: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the ledger's entry of the engine itself, which may not have run."""
    return evidence["ledger"]["entries"][-1]


def _key_figures(evidence: Mapping[str, Any]) -> list[tuple[str, str]]:
    found, accuracy = [], evidence["accuracy"]
    if accuracy:
        found.append(
            (f"{accuracy['engine_top1']:.2f} %", f"top-1, PyTorch {accuracy['reference_top1']:.2f} %")
        )
        found.append((f"{accuracy['agreement']:.2f} %", "of images get the reference's class"))
    entry = engine_entry(evidence)
    if entry["latency_ms"] is not None:
        rate = 1e3 * evidence["ledger"]["batch_size"] / entry["latency_ms"]
        batch = evidence["ledger"]["batch_size"]
        told = speed.NOT_NOW if time_doubt(evidence) else f"{rate:.0f} images/s"
        found.append((f"{entry['latency_ms']:.2f} ms", f"a batch of {batch}, {told}"))
    others = (
        ("student", "PyTorch"),
        ("teacher", "the teacher in PyTorch"),
        ("teacher engine", "the teacher's engine"),
    )
    for name, what in others:
        if told := evidence["speedups"].get(name):
            where = f"; {speed.NOT_NOW}" if told["doubt"] else f" ({speed.rounds(told)})"
            found.append((speed.factor(told), f"as fast as {what}{where}"))
    found.append((file_size(entry["size"]), "engine"))
    return found


def _latency(evidence: Mapping[str, Any], mark: str) -> dict[str, Any]:
    timing, around, host = evidence["timing"], evidence["around"], evidence["machine"]
    rows = [
        (
            name,
            *(f"{row[key]:.2f}" for key in ("p50_ms", "p90_ms", "p99_ms")),
            f"{row['images_per_second']:.1f}",
            str(row["iterations"]),
        )
        for name, row in timing.items()
    ]
    threads = evidence["threads"] or "the runtime's own number of"
    doubt = time_doubt(evidence)
    return {
        "plot": plots.latency_histogram(timing, mark + "latency of each hop"),
        "head": ("hop", "p50 ms", "p90 ms", "p99 ms", "images/s", "calls"),
        "rows": rows,
        "around": f"Each in a process of its own, in turn, {threads} threads, not pinned, on {host['cpu_model']} "
        f"({host['usable_cpus']} CPUs). Around the engine, for one image ({around['image']}) on one thread: decoding "
        f"{around['decode_ms']:.2f} ms, preparing {around['prepare_ms']:.2f} ms, classes from logits "
        f"{around['classes_ms']:.2f} ms." + (f" {doubt}" if doubt else ""),
    }


def _drift(found: Mapping[str, Any], mark: str) -> dict[str, Any] | None:
    if not found["tensors"]:
        return {"what": found["note"], "plot": None} if found["note"] else None
    shown = [t for t in found["tensors"] if t["sqnr_db"] is not None]
    first = found["first_bad"]
    what = (
        "The residual stream of the bundle's graph against that of the float32 graph, on the golden images."
    )
    if not shown:
        return {"what": what + " They are the same to the bit.", "plot": None}
    what += (
        f" The first tensor out of tolerance ({found['tolerance']:g}) is {first['tensor']}."
        if first
        else f" Every tensor is within the tolerance ({found['tolerance']:g} of its spread). Dotted: token slimming."
    )
    return {"what": what, "plot": plots.drift(found["tensors"], mark + "signal to noise by depth")}


def _layers(layers: Sequence[Mapping[str, Any]], mark: str) -> dict[str, Any] | None:
    if not layers:
        return None
    return {
        "plot": plots.operators(layers, mark + "time by operator"),
        "what": "The slowest layers as the engine runs them; a profiler makes all of them slower.",
        **_layer_table(layers),
    }


def _engine_layers(told: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """What a TensorRT engine tells of itself, where it could be run."""
    if not told:
        return None
    raised = f": {', '.join(told['raised'])}" if told["raised"] else ""
    return {
        "plot": None,
        "what": f"{len(told['kept'])} low-precision products run in the types of the graph, {len(told['raised'])} do not"
        f"{raised}; of {len(told['untold'])} the engine does not tell. Times are with a profiler attached, one image or the "
        "smallest batch.",
        **_layer_table(told["layers"]),
    }


def _layer_table(layers: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    rows = [
        (
            row["layer"],
            ", ".join(row["types"]) or "not told",
            figure(row["ms"], ".4f"),
            figure(row["share"], ".1%"),
        )
        for row in layers[:_SLOWEST]
    ]
    return {"head": ("layer", "types", "ms", "share"), "rows": rows}


def _build_verdict(hops: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    compared = [hop for hop in hops if hop["compared"]]
    skipped = [hop["name"] for hop in hops if not hop["compared"]]
    good = all(hop["passed"] for hop in compared)
    text = (
        f"{len(compared)} hops compared, all within tolerance."
        if good
        else "A hop is out of tolerance: do not ship this."
    )
    if skipped:
        text += f" Not run on the machine that built it: {', '.join(skipped)}; validate it where a GPU is."
    outcome = "ship" if good else "do not ship"
    reasons = dict.fromkeys(("against", "missing", "unmeasured", "favour"), ())
    return {"outcome": outcome, "headline": text, **reasons}


def _hop(hop: Mapping[str, Any]) -> dict[str, Any]:
    if not hop["compared"]:
        return {"name": hop["name"], "cells": ("—", "", "", "", ""), "state": "", "note": hop["note"]}
    cells = (
        figure(hop["error"], ".1e"),
        figure(hop["tolerance"], "g"),
        figure(hop["step_error"], ".1e"),
        "exact" if hop["error"] == 0 else figure(hop["sqnr_db"], ".1f"),
        f"{hop['agreement']:.0%}",
    )
    state = "ok" if hop["passed"] else "out of tolerance"
    return {"name": hop["name"], "cells": cells, "state": state, "note": hop["note"]}


def _tokens(model: Mapping[str, Any]) -> list[tuple[str, str, float]]:
    stages, tokens = model.get("stages") or [], model["tokens"]
    most = max(tokens)
    found = []
    for i, count in enumerate(tokens):
        blocks = f", {stages[i]} block{'s' if stages[i] != 1 else ''}" if i < len(stages) else ""
        found.append((f"stage {i + 1}{blocks}", str(count), round(100 * count / most, 1)))
    return found


def _quantization(report: Mapping[str, Any]) -> dict[str, Any] | None:
    found = report.get("quantization")
    if not found:
        return None
    low = [row for row in found["layers"] if row["precision"] != "high"]
    text = (
        f"{len(low)} of {len(found['layers'])} layers, {found['share_of_macs']:.1%} of the work, in {report['precision']}; the "
        f"rest in {found['rest']}. Calibrated by {found['method']}. "
    )
    if found["speed"]:
        told = sentence(report["precision"], found["speed"]["over"], of_build(found["speed"]))
        text += f"{told[0].upper()}{told[1:]}, at batch {found['speed']['batch_size']} when it was built."
    else:
        text += "Speed was not measured: the engine does not run on the machine that built it."
    if products := eight_bit_products(report["engine"]["details"]):
        kernels = kernels_note(products, report["precision"])
        text += f" {kernels[0].upper()}{kernels[1:]}."
    columns = [("alone dB", "alone_db")] if any("alone_db" in row for row in low) else []
    rows = []
    for row in found["layers"]:
        cells = [figure(row["scale"], ".3g"), str(row["shift"] or "—"), figure(row["sqnr_db"], ".1f")]
        cells += [figure(row.get(key), ".1f") for _, key in columns]
        rows.append((row["layer"], row["precision"], *cells, row["reason"]))
    head = ("layer", "runs in", "scale", "shift", "SQNR dB", *(title for title, _ in columns), "why")
    return {"what": text, "head": head, "rows": rows}


def _facts(report: Mapping[str, Any]) -> list[tuple[str, str]]:
    model, engine = report["model"], report["engine"]
    size = f"{model['image_size'][0]}×{model['image_size'][1]}"
    return [
        ("Model", f"{model['name']}, {size}, {model['num_classes']} classes"),
        (
            "Size",
            f"{model['parameters'] / 1e6:.2f} M parameters, {model['macs'] / 1e9:.2f} GMACs an image as deployed",
        ),
        ("Patch tokens", " → ".join(map(str, model["tokens"]))),
        ("Weights", report["weights"]["source"]),
        ("Preprocessing", preprocessing_words(report)),
        ("Engine", f"{engine['kind']} {engine['version']}, target {engine['target']}"),
        ("Why this engine", engine["why"]),
        ("Batch", ", ".join(f"{k} {v}" for k, v in report["batch"].items())),
        ("Operators", ", ".join(f"{k} {v}" for k, v in report["graph"]["operators"].items())),
        ("Build it again", report["command"]),
    ]
