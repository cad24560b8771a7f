"""What one scale for the weight of queries, keys and values costs: the logits' SQNR against a scale for each channel.

    python benchmarks/split_scales.py WORK CHECKPOINT CALIB_DIR VAL_DIR --write-docs

CALIB_DIR: any images; VAL_DIR: likewise, held out. To see what channels that are far apart do, those of queries, keys and values are
multiplied by exp(SPREAD · n), n normal, and `proj` divides by the values' again. All graphs run on ONNX Runtime, against the float32 graph.
Results go to benchmarks/results/split_scales.json, the table to docs/quantization.md.
"""

from __future__ import annotations

import datetime
import json
import math
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.documents import write_between  # noqa: E402
from benchmarks.quantization_ablation import BASE, prepare  # noqa: E402
from engines.timing import machine  # noqa: E402

RESULTS = ROOT / "benchmarks/results/split_scales.json"
SPREADS = (0.0, 0.5, 1.0)
HELD_OUT = 256


def spread(graph: Any, amount: float) -> Any:
    """Return the graph with the channels of queries, keys and values multiplied by exp(amount · n), `proj` dividing by the values'."""
    import numpy as np

    from calibration.attention import find_attentions
    from calibration.graph_editor import GraphEditor

    edited, random = GraphEditor(graph), np.random.default_rng(0)
    for attention in find_attentions(graph):
        for part in (attention.queries, attention.keys, attention.values):
            factor = np.exp(amount * random.standard_normal(part.stop - part.start))
            node = edited.node(part.layer)
            weight = edited.constant(node.input[1])
            weight[:, part.slice] *= factor.astype(np.float32)
            edited.replace_constant(node, 1, weight)
        (proj,) = edited.readers(attention.merged)
        weight = edited.constant(proj.input[1]) / factor[:, None]
        edited.replace_constant(proj, 1, weight.astype(np.float32))
    return edited.finish()


def measure(graph: Any, stream: Any, held_out: Any, precision: str) -> dict[str, float]:
    """Return the SQNR in dB of the logits with a scale a channel, and with one for the whole weight of qkv."""
    import numpy as np

    from calibration.layers import find_layers
    from calibration.plan import make_plan
    from calibration.split_scales import share_split_scales
    from sit_deploy.quantize.calibrate import CalibrationMethod, calibrate
    from sit_deploy.quantize.logits import logits_error, run_logits
    from sit_deploy.quantize.quantizer import EngineForm, make_quantizer

    reference = run_logits(graph, held_out)
    power = float(np.square(reference.astype(np.float64)).mean())
    layers = make_plan(find_layers(graph), precision, BASE).quantized
    found, _ = calibrate(graph, stream, CalibrationMethod(precision), layers=layers)
    decibels = {}
    for title, form in (("a channel", EngineForm()), ("one", EngineForm(attends_unscaled=True))):
        quantizer = make_quantizer(graph, found, stream, BASE, form=form)
        low = quantizer.quantized()
        if form.attends_unscaled:
            low = share_split_scales(low, quantizer.graph)
        decibels[title] = 10 * math.log10(power / logits_error(run_logits(low, held_out), reference))
    return decibels


def table(found: dict[str, Any]) -> str:
    """Return the results as a table."""
    lines = [
        f"`python benchmarks/split_scales.py WORK CHECKPOINT CALIB_DIR VAL_DIR`, {found['date']}, {found['model']}, {found['images']} held-out images; dB.",
        "",
        "| | " + " | ".join(f"spread {amount:g}" for amount in SPREADS) + " |",
        "|---|" + "---|" * len(SPREADS),
    ]
    for precision, title in (("int8", "INT8"), ("fp8", "FP8")):
        for key, how in (("a channel", "a scale for each channel"), ("one", "one scale")):
            cells = " | ".join(f"{row[precision][key]:.1f}" for row in found["rows"])
            lines.append(f"| {title}, {how} | {cells} |")
    return "\n".join(lines)


@click.command(help=__doc__.split("\n", 1)[0])
@click.argument("work", type=click.Path(file_okay=False, path_type=Path))
@click.argument("checkpoint", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.argument("calibration", type=click.Path(exists=True, path_type=Path))
@click.argument("val", type=click.Path(exists=True, path_type=Path))
@click.option("--write-docs", is_flag=True, help="Put the table into docs/quantization.md.")
def main(work: Path, checkpoint: Path, calibration: Path, val: Path, write_docs: bool) -> None:
    """Measure, record and print."""
    from sit_deploy.quantize.image_stream import calibration_images

    work.mkdir(parents=True, exist_ok=True)
    made, stream = prepare(checkpoint, calibration, work)
    held_out = calibration_images(val, HELD_OUT, HELD_OUT, made.preprocessing)
    rows = []
    for amount in SPREADS:
        graph = spread(made.graph, amount)
        row = {precision: measure(graph, stream, held_out, precision) for precision in ("int8", "fp8")}
        rows.append({"spread": amount, **row})
        print(rows[-1], flush=True)
    found = {
        "date": datetime.date.today().isoformat(), "machine": asdict(machine()), "model": made.loaded.name, "calibration_images": len(stream.sources),
        "images": len(held_out.sources), "rows": rows,
    }  # fmt: skip
    RESULTS.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(table(found))
    if write_docs:
        write_between("quantization.md", "split-scales", table(found))


if __name__ == "__main__":
    main()
