"""What each choice of the INT8 plan, and each tool, is worth: logits' SQNR and top-1 on held-out images.

    python benchmarks/quantization_ablation.py WORK NAME:CHECKPOINT:CALIB_DIR:VAL_DIR ...

CALIB_DIR: any images; VAL_DIR: a folder a class. All graphs run on ONNX Runtime, image by image, against the float32 graph of
the same checkpoint. Results go to benchmarks/results/quantization_ablation.json, the tables to docs/quantization.md.
"""

from __future__ import annotations

import dataclasses
import datetime
import json
import math
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import click

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.documents import write_between  # noqa: E402
from benchmarks.held_out import accuracy  # noqa: E402
from engines.timing import machine  # noqa: E402

CALIBRATION_IMAGES = 256
BASE = ("qkv", "proj", "fc1", "fc2", "tsm")
# what is quantized beside or without what the default plan quantizes
PLANS = {
    "default": BASE,
    "default + stem": (*BASE, "stem"),
    "default + head": (*BASE, "head"),
    "default + stem + head (every layer with weights)": (*BASE, "stem", "head"),
    "default + attention's products": (*BASE, "attention"),
    "default + TSM's aggregation": (*BASE, "aggregation"),
    "default + residual sums": (*BASE, "residual"),
    "default - TSM": ("qkv", "proj", "fc1", "fc2"),
    "default - proj": ("qkv", "fc1", "fc2", "tsm"),
    "default - fc2": ("qkv", "proj", "fc1", "tsm"),
}
EVERYTHING = (*BASE, "stem", "head", "attention", "aggregation", "residual")
EVERY_WEIGHT = (*BASE, "stem", "head")


def prepare(checkpoint: Path, calibration: Path, work: Path) -> tuple[Any, Any]:
    """Return the float graph of a checkpoint, with what goes with it, and the stream of its calibration images."""
    from sit_deploy.pipeline.calibration import calibration_stream
    from sit_deploy.pipeline.float_graph import make_float_graph
    from sit_deploy.pipeline.request import BuildRequest
    from sit_deploy.pipeline.work import Work

    request = BuildRequest(
        None,
        work,
        "int8",
        checkpoint,
        calib_data=calibration,
        calib_images=CALIBRATION_IMAGES,
        batch_size=1,
        quantize=EVERYTHING,
    ).completed()
    made = make_float_graph(Work(request, lambda *_: None), work)
    return made, calibration_stream(request, made.preprocessing)


class Judge:
    """Held-out images, the float graph's logits on them, and what another graph's are worth against these."""

    def __init__(self, graph: Any, val: Path, made: Any) -> None:
        import numpy as np

        from sit_deploy.data.image_folder import ImageFolder
        from sit_deploy.data.labelled import match_labels
        from sit_deploy.quantize.image_stream import ImageStream
        from sit_deploy.quantize.logits import run_logits

        samples = match_labels(ImageFolder(val), made.classes, made.loaded.model.num_classes)
        self.labels = np.array([label for _, label in samples])
        self.stream = ImageStream([path for path, _ in samples], made.preprocessing, str(val))
        self.reference = run_logits(graph, self.stream)

    def __call__(self, graph: Any) -> dict[str, float]:
        import numpy as np

        from sit_deploy.quantize.logits import logits_error, run_logits

        logits = run_logits(graph, self.stream)
        signal = float(np.square(self.reference.astype(np.float64)).mean())
        noise = logits_error(logits, self.reference)
        return {
            "sqnr_db": 10 * math.log10(signal / noise) if noise else math.inf,
            **accuracy(logits, self.reference, self.labels),
        }


def ablate(name: str, checkpoint: Path, calibration: Path, val: Path, work: Path) -> dict[str, Any]:
    """Return every row of the two tables for one model."""
    from calibration.layers import find_layers
    from calibration.plan import make_plan
    from sit_deploy.quantize.calibrate import CalibrationMethod, calibrate
    from sit_deploy.quantize.quantizer import make_quantizer

    made, stream = prepare(checkpoint, calibration, work)
    graph = made.graph
    layers = find_layers(graph)
    everything = make_plan(layers, "int8", EVERYTHING).quantized
    found, _ = calibrate(graph, stream, CalibrationMethod(), layers=everything)
    judge = Judge(graph, val, made)
    plans = {}
    for label, groups in PLANS.items():
        quantizer = make_quantizer(graph, found, stream, groups)
        plans[label] = {"share_of_macs": quantizer.plan.share, **judge(quantizer.quantized())}
        print(f"{name}: {label}: {plans[label]}", flush=True)
    tools = {label: {} for label in _tools(graph, found, stream, BASE)}
    for title, groups in (("default", BASE), ("every weight", EVERY_WEIGHT)):
        for label, low in _tools(graph, found, stream, groups).items():
            tools[label][title] = judge(low())
            print(f"{name}: {title}: {label}: {tools[label][title]}", flush=True)
    return {
        "model": made.loaded.name,
        "images": len(judge.labels),
        "float_top1": 100 * float((judge.reference.argmax(1) == judge.labels).mean()),
        "method": found.method,
        "plans": plans,
        "tools": tools,
    }


def _tools(graph: Any, found: Any, stream: Any, groups: tuple[str, ...]) -> dict[str, Any]:
    """Return graphs, made when asked for, that add one tool after the other to plain min-max; then the methods."""
    from calibration.bias_correction import correct_biases
    from calibration.collect import collect_observations
    from calibration.formats import float16_scale
    from calibration.insert_qdq import Scales, insert_qdq
    from calibration.layer_error import measure_layer_errors
    from calibration.layers import find_layers
    from calibration.plan import make_plan
    from sit_deploy.quantize.quantizer import LAYER_ERROR_IMAGES, make_quantizer
    from sit_deploy.quantize.scales import choose_scales, smoothed_graph

    smoothed = smoothed_graph(graph, found)
    known = find_layers(smoothed)
    names = make_plan(known, "int8", groups).quantized
    chosen = [known[name] for name in names]

    def plain() -> Any:
        tensors = list(dict.fromkeys(tensor for layer in chosen for tensor in layer.inputs))
        seen = collect_observations(graph, stream, tensors)
        return insert_qdq(
            graph, names, Scales({t: float(float16_scale(o.absmax / 127)) for t, o in seen.tensors.items()})
        )

    def unshifted() -> Scales:
        activations = {
            t: float(float16_scale(found.threshold(t, "minmax") / 127))
            for layer in chosen
            for t in layer.inputs
        }
        return Scales(activations)

    def corrected() -> Any:
        scales = choose_scales(found, chosen, "minmax")
        errors = measure_layer_errors(smoothed, names, stream.spread(LAYER_ERROR_IMAGES), scales)
        return correct_biases(insert_qdq(smoothed, names, scales), errors)

    def rounded(method: str) -> Any:
        quantizer = make_quantizer(graph, found, stream, groups, method)
        return dataclasses.replace(quantizer, corrected=False).quantized()

    def with_all(method: str) -> Any:
        quantizer = make_quantizer(graph, found, stream, groups, method)
        return dataclasses.replace(quantizer, corrected=True).quantized()

    return {
        "min-max alone": plain,
        "+ scale migration": lambda: insert_qdq(smoothed, names, unshifted()),
        "+ shift": lambda: insert_qdq(smoothed, names, choose_scales(found, chosen, "minmax")),
        "+ bias correction, nearest rounding": corrected,
        "+ weight rounding, no bias correction": lambda: rounded("minmax"),
        "+ weight rounding and bias correction": lambda: with_all("minmax"),
        "the same, average": lambda: with_all("average"),
        "the same, percentile": lambda: with_all("percentile"),
        "the same, entropy": lambda: with_all("entropy"),
        "the same, mse": lambda: with_all("mse"),
    }


def tables(result: dict[str, Any]) -> str:
    """Return the two tables as Markdown."""
    models = result["models"]
    head = "".join(f" {name}: work in INT8 | SQNR dB | top-1 |" for name in models)
    lines = [f"| quantized |{head}", "|---|" + "---:|" * (3 * len(models))]
    floats = "".join(f" 0 % | | {m['float_top1']:.2f} |" for m in models.values())
    lines.append(f"| nothing (float32) |{floats}")
    for label in PLANS:
        cells = "".join(
            f" {row['share_of_macs']:.0%} | {row['sqnr_db']:.1f} | {row['top1']:.2f} |"
            for row in (m["plans"][label] for m in models.values())
        )
        lines.append(f"| {label} |{cells}")
    columns = [(name, plan) for name in models for plan in ("default", "every weight")]
    lines += ["", "| tools, SQNR in dB |" + "".join(f" {name}, {plan} |" for name, plan in columns)]
    lines.append("|---|" + "---:|" * len(columns))
    for label in next(iter(models.values()))["tools"]:
        cells = "".join(f" {models[name]['tools'][label][plan]['sqnr_db']:.1f} |" for name, plan in columns)
        lines.append(f"| {label} |{cells}")
    return "\n".join(lines)


@click.command(context_settings={"show_default": True})
@click.argument("work", type=click.Path(path_type=Path))
@click.argument("models", nargs=-1, required=True, metavar="NAME:CHECKPOINT:CALIB_DIR:VAL_DIR...")
def main(work: Path, models: tuple[str, ...]) -> None:
    """Run the ablation over the models, and write results and tables."""
    work.mkdir(parents=True, exist_ok=True)
    found = {}
    for words in models:
        name, *paths = words.split(":")
        found[name] = ablate(name, *map(Path, paths), work)
    result = {
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
        "calibration_images": CALIBRATION_IMAGES,
        "models": found,
        "versions": {name: version(name) for name in ("onnxruntime", "onnx", "numpy", "torch")},
        "machine": dataclasses.asdict(machine()),
    }
    path = ROOT / "benchmarks" / "results" / "quantization_ablation.json"
    path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    text = tables(result)
    write_between("quantization.md", "ablation", text)
    print(text)


if __name__ == "__main__":
    main()
