"""docs/benchmarks.md from the results of `runtime_peers.py`: tables, sentences and the picture."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from benchmarks import documents, gains

PRECISIONS = {"fp32": "FP32", "bf16": "BF16", "int8": "INT8"}
EVEN = 1.01  # two runs of the same candidate differ by about 0.01


def markdown(result: dict[str, Any]) -> str:
    """The tables of a run, and before them where it was made."""
    body = _pairs(result) if "pairs" in result else _ways(result)
    return f"{_where(result)}\n\n{body}"


def write(result: dict[str, Any]) -> None:
    """Put the tables of a run into docs/benchmarks.md, and of the whole comparison the picture beside it."""
    documents.write_between(
        "benchmarks.md", "pairs" if "pairs" in result else "runtime-peers", markdown(result)
    )
    if "cells" in result:
        plot(result, documents.DOCS / "benchmarks.png")


def _where(result: dict[str, Any]) -> str:
    machine, versions = result["machine"], result["versions"]
    told = [f"{name} {number}" for name, number in versions.items() if number]
    for answer in result.get("peers", {}).values():
        # the Optimum environment's own PyTorch and ONNX are ours
        told += [
            f"{name} {number}" for name, number in answer["versions"].items() if versions.get(name) != number
        ]
    before, after = result["load_average"]
    return (
        f"`{result['command']}`, {result['date']}: {machine['cpu_model']}, {machine['usable_cpus']} CPUs, "
        f"{', '.join(result['gpus']) or 'no GPU'}; {result['threads']} threads; {result['rounds']} rounds of {result['seconds_per_round']:g} s; "
        f"load average {before:.2f} before and {after:.2f} after, {result['seconds'] / 60:.0f} minutes in all. "
        f"{', '.join(dict.fromkeys(told))}."
    )


def _table(head: str, rows: Iterable[Iterable[str]]) -> str:
    columns = head.split(" | ")
    lines = [f"| {head} |", "|---" * len(columns) + "|"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])


# -------------------------------------------------------------------------------------------------- all ways to run one


def _ways(result: dict[str, Any]) -> str:
    models = list(dict.fromkeys(cell["model"] for cell in result["cells"]))
    # as measured, batch by batch; as read, model by model
    result = {**result, "cells": sorted(result["cells"], key=lambda cell: models.index(cell["model"]))}
    parts = []
    for precision, title in PRECISIONS.items():
        quality = "error" if precision == "fp32" else "SQNR dB"
        rows = [_row(cell) for cell in result["cells"] if cell["precision"] == precision]
        head = f"model | batch | {title} | ms | images/s | over plain | {quality}"
        parts.append(_table(head, rows))
    skipped = dict.fromkeys(
        f"{_bare(cell['title'])}{_at(result, cell)}: {cell['skipped'].rstrip('.')}"
        for cell in result["cells"]
        if cell["skipped"]
    )
    not_run = [f"{title}: {why}" for title, why in result["not_run"].items()]
    parts.append(f"Not run: {'; '.join([*skipped, *not_run])}.")
    if refusal := result["peers"].get("optimum", {}).get("refusal"):
        parts.append(f"Optimum's `onnx_export_from_model` refuses the model: “{refusal}”")
    if plans := result.get("plans"):
        told = "; ".join(f"{row['model']}, batch {row['batch']}: {row['plan']}" for row in plans)
        parts.append(f"What `--quantize auto` chose: {told}.")
    parts += [_verdict(result), _over_ours(result), _same_runtime(result), _slimming(result)]
    return "\n\n".join(part for part in parts if part)


def _at(result: dict[str, Any], cell: dict[str, Any]) -> str:
    """Which cell, where the reason is not the same in all."""
    same = [c["skipped"] for c in result["cells"] if c["key"] == cell["key"]]
    return "" if set(same) == {cell["skipped"]} else f" ({cell['model']}, batch {cell['batch']})"


def _row(cell: dict[str, Any]) -> list[str]:
    head = [cell["model"], str(cell["batch"]), cell["title"]]
    if cell["skipped"]:
        return [*head, "not run", "", "", ""]
    quality = f"{cell['error']:.1e}" if cell["precision"] == "fp32" else f"{cell['sqnr_db']:.1f}"
    over = gains.text(cell["over_plain"]) if "over_plain" in cell else ""
    return [*head, f"{cell['p50_ms']:.2f}", f"{cell['images_per_second']:.1f}", over, quality]


def _bare(title: str) -> str:
    return title.replace("*", "")


def _runtime(cell: dict[str, Any]) -> str:
    return cell["title"].rsplit(", ", 1)[-1]


def _verdict(result: dict[str, Any]) -> str:
    """Our quicker engine against the quickest of the others, and where one of them is quicker than that or than ours on its runtime."""
    rows, lost = [], []
    groups = dict.fromkeys((c["model"], c["batch"], c["precision"]) for c in result["cells"])
    for model, batch, precision in groups:
        timed = [
            c
            for c in result["cells"]
            if (c["model"], c["batch"], c["precision"]) == (model, batch, precision) and not c["skipped"]
        ]
        ours, others = ([c for c in timed if c["ours"] is own] for own in (True, False))
        if not ours or not others:
            continue
        best, rival = (min(cells, key=lambda c: c["p50_ms"]) for cells in (ours, others))
        factor = _ratio(rival, best)
        where = f"{model}, batch {batch}, {PRECISIONS[precision]}"
        rows.append([where, _bare(best["title"]), rival["title"], _figure(factor)])
        for own in ours:
            for other in others:
                slower = _ratio(own, other)
                if slower is not None and slower > EVEN and (own is best or _runtime(own) == _runtime(other)):
                    lost.append(
                        f"{where}: {other['title']} is {slower:.2f} times as fast as {_bare(own['title'])}"
                    )
    if not rows:
        return ""
    table = _table("where | our quicker engine | quickest of the others | ours is faster by", rows)
    if not lost:
        return f"{table}\n\nNo other way is quicker than our quicker engine, or than ours on the same runtime, by more than a hundredth."
    return f"{table}\n\nWhere we lose:\n\n" + "\n".join(f"- {line}" for line in lost)


def _over_ours(result: dict[str, Any]) -> str:
    """Our lower precisions over our FP32 and over each other, on OpenVINO."""
    pairs = {
        "BF16 over FP32": ("openvino-fp32", "openvino-bf16"),
        "INT8 auto over INT8 default": ("openvino-int8", "openvino-int8-auto"),
        "INT8 auto over BF16": ("openvino-bf16", "openvino-int8-auto"),
        "INT8 auto over NNCF": ("nncf", "openvino-int8-auto"),
        "INT8 auto over NNCF in BF16": ("nncf-bf16", "openvino-int8-auto"),
    }
    timed = {(c["model"], c["batch"], c["key"]): c for c in result["cells"] if not c["skipped"]}
    rows = []
    for model, batch in dict.fromkeys((c["model"], c["batch"]) for c in result["cells"]):
        cells = [tuple(timed.get((model, batch, key)) for key in keys) for keys in pairs.values()]
        if any(slow and fast for slow, fast in cells):
            figures = [_figure(_ratio(slow, fast)) if slow and fast else "" for slow, fast in cells]
            rows.append([model, str(batch), *figures])
    return _table(" | ".join(["on OpenVINO", "batch", *pairs]), rows) if rows else ""


def _same_runtime(result: dict[str, Any]) -> str:
    """Ours in FP32 over the plain export on the same runtime: what the graph gains by itself."""
    rows = []
    for own in result["cells"]:
        plain = [
            c
            for c in result["cells"]
            if (c["model"], c["batch"]) == (own["model"], own["batch"])
            and c["title"].startswith("plain export, ")
            and _runtime(c) == _runtime(own)
        ]
        if (
            own["ours"]
            and own["precision"] == "fp32"
            and plain
            and not (own["skipped"] or plain[0]["skipped"])
        ):
            where = f"{own['model']}, batch {own['batch']}"
            rows.append([where, _runtime(own), _figure(_ratio(plain[0], own))])
    if not rows:
        return ""
    return _table("FP32 | runtime | ours over the plain export there", rows)


def _ratio(slow: dict[str, Any], fast: dict[str, Any]) -> float | None:
    """The median of the rounds' ratios, timed in the same rounds; None where they bear none out."""
    if slow.get("held_up") or fast.get("held_up"):
        return None
    return gains.of_times(slow["round_medians_ms"], fast["round_medians_ms"]).median


def _figure(ratio: float | None) -> str:
    return gains.NONE if ratio is None else f"{ratio:.2f}"


def _slimming(result: dict[str, Any]) -> str:
    rows = [
        [
            *(row["student"], row["teacher"], str(row["batch"]), PRECISIONS[row["precision"]]),
            *(_bare(row["title"]), f"{row['student_p50_ms']:.2f}", f"{row['teacher_p50_ms']:.2f}"),
            *(gains.text(row["speedup"]), f"{row['macs_ratio']:.2f}"),
        ]
        for row in result["over_teachers"]
    ]
    head = (
        "student | teacher | batch | precision | engine | student ms | teacher ms | faster by | fewer MACs by"
    )
    return _table(head, rows) if rows else ""


# --------------------------------------------------------------------------------------------------------------- pairs


def _pairs(result: dict[str, Any]) -> str:
    rows = []
    for row in result["pairs"]:
        aim = row["aim"]
        reached = row["speedup"]["median"]
        met = "" if aim is None else gains.NONE if reached is None else "yes" if reached >= aim else "**no**"
        rows.append(
            [
                *(row["student"], row["teacher"], _bare(row["title"])),
                *(f"{row['student_p50_ms']:.2f}", f"{row['teacher_p50_ms']:.2f}"),
                *(
                    gains.text(row["speedup"]),
                    f"{row['macs_ratio']:.2f}",
                    "" if aim is None else f"{aim:g}",
                    met,
                ),
            ]
        )
    head = "student | teacher | engine | student ms | teacher ms | faster by | fewer MACs by | aim at least | met"
    return _table(head, rows)


# ------------------------------------------------------------------------------------------------------------- picture

OURS, OTHERS = "#c0392b", "#9aa5b1"


def plot(result: dict[str, Any], path: Path) -> None:
    """Speed over the plain export on ONNX Runtime: a panel a model and batch size, a bar a way to run it."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    models = list(dict.fromkeys(cell["model"] for cell in result["cells"]))
    batches = list(dict.fromkeys(cell["batch"] for cell in result["cells"]))
    figure, axes = plt.subplots(
        len(batches), len(models), figsize=(4 + 3.2 * len(models), 0.8 + 3.4 * len(batches)), squeeze=False,
        sharex=True, sharey=True, layout="constrained",
    )  # fmt: skip
    for row, batch in enumerate(batches):
        for column, model in enumerate(models):
            axis = axes[row][column]
            cells = [c for c in result["cells"] if (c["model"], c["batch"]) == (model, batch)]
            labels = [f"{PRECISIONS[c['precision']]} {_bare(c['title'])}" for c in cells]
            heights = [(c["over_plain"]["median"] or 0.0) if "over_plain" in c else 0.0 for c in cells]
            colours = [OURS if c["ours"] else OTHERS for c in cells]
            bars = axis.barh(labels, heights, color=colours)
            texts = [
                f"{height:.2f}" if height else gains.NONE if "over_plain" in c else "not run"
                for height, c in zip(heights, cells, strict=True)
            ]
            axis.bar_label(bars, texts, padding=2, fontsize=7)
            axis.axvline(1, color="black", linewidth=0.6)
            axis.set_title(f"{model}, batch {batch}", fontsize=9)
            axis.tick_params(labelsize=7)
            axis.spines[["top", "right"]].set_visible(False)
    axes[0][0].invert_yaxis()  # shared: the first candidate on top everywhere
    axes[0][0].set_xlim(right=1.15 * axes[0][0].get_xlim()[1])
    machine = result["machine"]
    figure.supxlabel(
        f"speed over the plain export on ONNX Runtime in FP32; {machine['cpu_model']}, {result['threads']} threads, {result['date']}",
        fontsize=8,
    )
    figure.savefig(path, dpi=110, metadata={"Software": None})
    plt.close(figure)
