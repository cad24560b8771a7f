"""report.json and report.html: the evidence of a build, for machines and for people."""

from __future__ import annotations

import json
from html import escape
from pathlib import Path
from typing import Any

_STYLE = """
:root { color-scheme: light dark; --line: #8884; --good: #188038; --bad: #c5221f; --dim: #777; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; width: 100%; margin: .5rem 0 1.5rem; font-size: .93rem; }
th, td { text-align: left; padding: .3rem .8rem .3rem 0; border-bottom: 1px solid var(--line); vertical-align: top; }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; }
.good { color: var(--good); } .bad { color: var(--bad); } .dim { color: var(--dim); }
.scroll { overflow-x: auto; } code { overflow-wrap: anywhere; }
"""


def write_report(folder: Path, report: dict[str, Any]) -> None:
    """Write report.json and a self-contained report.html of the same facts into `folder`."""
    text = json.dumps(report, indent=2, ensure_ascii=False, allow_nan=False, default=str)
    (folder / "report.json").write_text(text + "\n", encoding="utf-8")
    (folder / "report.html").write_text(render(report), encoding="utf-8")


def render(report: dict[str, Any]) -> str:
    """Return the page of a report; every value of it is escaped."""
    model, engine = report["model"], report["engine"]
    title = f"{model['name']} · {report['precision']} · {engine['kind']}"
    tokens = " → ".join(map(str, model["tokens"]))
    facts = [
        (
            "Model",
            f"{model['name']}, {model['image_size'][0]}×{model['image_size'][1]}, {model['num_classes']} classes",
        ),
        (
            "Size",
            f"{model['parameters'] / 1e6:.2f} M parameters, {model['macs'] / 1e9:.2f} GMACs an image as deployed",
        ),
        ("Patch tokens", tokens),
        ("Weights", report["weights"]["source"]),
        ("Engine", f"{engine['kind']} {engine['version']}, target {engine['target']}"),
        ("Why this engine", engine["why"]),
        ("Batch", ", ".join(f"{k} {v}" for k, v in report["batch"].items())),
        ("Operators", ", ".join(f"{k} {v}" for k, v in report["graph"]["operators"].items())),
        ("Build it again", report["command"]),
    ]
    notes = "".join(f"<p><strong>{escape(note)}</strong></p>" for note in report["notes"])
    body = [
        f"<h1>{escape(title)}</h1>",
        _verdict(report),
        notes,
        f"<h2>Every hop against PyTorch</h2><p class=dim>On {escape(report['compared_on'])}. Errors are in standard "
        "deviations of the reference logits; “step” is against the hop before.</p>",
        _hops(report["hops"]),
        _accuracy(report["accuracy"]),
        _quantization(report),
        _held_back(report["plan"]["held_back"]),
        _engine_layers(report.get("engine_layers")),
        "<h2>Facts</h2>",
        _table(("", ""), [(escape(k), f"<code>{escape(str(v))}</code>") for k, v in facts]),
        "<h2>Time of each step</h2>",
        _table(("step", "seconds"), [(escape(k), f"{v:.2f}") for k, v in report["seconds"].items()]),
        "<h2>Versions</h2>",
        _table(
            ("package", "version"),
            [(escape(k), escape(str(v or "—"))) for k, v in report["versions"].items()],
        ),
    ]
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style>{''.join(body)}</html>\n"
    )


def _verdict(report: dict[str, Any]) -> str:
    compared = [hop for hop in report["hops"] if hop["compared"]]
    skipped = [hop["name"] for hop in report["hops"] if not hop["compared"]]
    good = all(hop["passed"] for hop in compared)
    text = (
        f"{len(compared)} hops compared, all within tolerance."
        if good
        else "A hop is out of tolerance: do not ship this."
    )
    if skipped:
        text += f" Not run on the machine that built it: {', '.join(skipped)}; validate it where a GPU is."
    return f'<p class="{"good" if good else "bad"}">{escape(text)}</p>'


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    """Return a table of cells that are already HTML; columns after the first are numbers if they look so."""

    def cell(tag: str, text: str, column: int) -> str:
        number = column > 0 and (tag == "th" or text[:1].isdigit())
        return f"<{tag}{' class=n' if number and len(head) > 2 else ''}>{text}</{tag}>"

    lines = ["".join(cell("td", text, i) for i, text in enumerate(row)) for row in rows]
    top = "".join(cell("th", text, i) for i, text in enumerate(head)) if any(head) else ""
    body = "".join(f"<tr>{line}</tr>" for line in lines)
    return f"<div class=scroll><table>{f'<tr>{top}</tr>' if top else ''}{body}</table></div>"


def _hops(hops: list[dict[str, Any]]) -> str:
    rows = []
    for hop in hops:
        if not hop["compared"]:
            rows.append(
                (escape(hop["name"]), "—", "", "", "", "", f"<span class=dim>{escape(hop['note'])}</span>")
            )
            continue
        state = "<span class=good>ok</span>" if hop["passed"] else "<span class=bad>out of tolerance</span>"
        rows.append(
            (
                escape(hop["name"]),
                _figure(hop["error"], ".1e"),
                _figure(hop["tolerance"], "g"),
                _figure(hop["step_error"], ".1e"),
                "exact" if hop["error"] == 0 else _figure(hop["sqnr_db"], ".1f"),
                f"{hop['agreement']:.0%}",
                f"{state} {escape(hop['note'])}",
            )
        )
    return _table(("hop", "error", "tolerance", "step", "SQNR dB", "agreement", ""), rows)


def _figure(value: float | None, form: str) -> str:
    return "—" if value is None else format(value, form)


def _accuracy(accuracy: dict[str, Any] | None) -> str:
    if accuracy is None:
        return "<h2>Accuracy</h2><p class=dim>Not measured: no --val-data was given.</p>"
    rows = []
    for who, side, agreement in (
        ("PyTorch", "reference", ""),
        (escape(accuracy["measured_on"]), "engine", f"{accuracy['agreement']:.2f}"),
    ):
        low, high = accuracy[f"{side}_top1_interval"]
        top1, top5 = accuracy[f"{side}_top1"], accuracy[f"{side}_top5"]
        rows.append((who, f"{top1:.2f}", f"{low:.1f} to {high:.1f}", f"{top5:.2f}", agreement))
    where = f"<p class=dim>{accuracy['images']} images of {escape(accuracy['data'])}</p>"
    return "<h2>Accuracy</h2>" + where + _table(("", "top-1 %", "95 %", "top-5 %", "agreement %"), rows)


def _quantization(report: dict[str, Any]) -> str:
    found = report.get("quantization")
    if not found:
        return ""
    low = [row for row in found["layers"] if row["precision"] != "high"]
    text = (
        f"{len(low)} of {len(found['layers'])} layers, {found['share_of_macs']:.1%} of the work, in {report['precision']}; the "
        f"rest in {found['rest']}. Calibrated by {found['method']}. "
    )
    speed = found["speed"]
    if speed:
        text += f"{speed['ratio']:.2f}× as fast as {speed['over']} at batch {speed['batch_size']}."
    else:
        text += "Speed was not measured: the engine does not run on the machine that built it."
    columns = [("alone dB", "alone_db")] if any("alone_db" in row for row in low) else []
    rows = []
    for row in found["layers"]:
        figures = [_figure(row["scale"], ".3g"), str(row["shift"] or "—"), _figure(row["sqnr_db"], ".1f")]
        figures += [_figure(row.get(key), ".1f") for _, key in columns]
        why = escape(row["reason"])
        rows.append((escape(row["layer"]), escape(row["precision"]), *figures, why))
    head = ("layer", "runs in", "scale", "shift", "SQNR dB", *(title for title, _ in columns), "why")
    return f"<h2>8 bits</h2><p>{escape(text)}</p>" + _table(head, rows)


def _engine_layers(told: dict[str, Any] | None) -> str:
    """What a TensorRT engine tells of itself, where it could be run."""
    if not told:
        return ""
    text = (
        f"{len(told['kept'])} low-precision products run in the types of the graph, {len(told['raised'])} do not"
        f"{': ' + ', '.join(told['raised']) if told['raised'] else ''}; of {len(told['untold'])} the engine does not tell. "
        "Times are with a profiler attached, one image or the smallest batch."
    )
    rows = [
        (
            escape(row["layer"]),
            _figure(row["ms"], ".4f"),
            _figure(row["share"], ".1%"),
            escape(", ".join(row["types"]) or "not told"),
            escape(row["tactic"]),
        )
        for row in told["layers"]
    ]
    return f"<h2>Layers of the engine</h2><p>{escape(text)}</p>" + _table(
        ("layer", "ms", "share", "types", "tactic"), rows
    )


def _held_back(nodes: list[dict[str, Any]]) -> str:
    if not nodes:
        return ""
    rows = [(escape(n["node"]), escape(n["op_type"]), escape(n["reason"])) for n in nodes]
    return "<h2>Kept in fp32</h2>" + _table(("node", "operator", "why"), rows)
