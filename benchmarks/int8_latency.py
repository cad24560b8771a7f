"""INT8 against FP32 on ONNX Runtime's CPU: both engines as `sit-deploy build` makes them, side by side in one run.

    python benchmarks/int8_latency.py                                   # sit_s and sit_xs, batch 1 and 8, 1 and 2 threads
    python benchmarks/int8_latency.py --pair nano nano.onnx nano-int8.onnx   # graphs of one's own, FP32 and Q/DQ

    fp32    the FP32 graph's engine
    int8    the Q/DQ graph's engine
    as_is   the Q/DQ graph's engine without our rewrites: what ONNX Runtime makes of it by itself

Each runs in a process of its own and they take turns; a speed-up is the median over the rounds of the ratio of fp32's
median latency to the other's, so that other work on the machine slows both. Weights of the models are random, and their
ranges those of random images: latency depends on neither. Results go to benchmarks/results/int8_latency.json.
"""

from __future__ import annotations

import datetime
import json
import os
import sys
import tempfile
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

import click
import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks import gains  # noqa: E402
from benchmarks.documents import write_between  # noqa: E402
from benchmarks.random_weights import random_model  # noqa: E402
from engines.build_options import BuildOptions  # noqa: E402
from engines.onnxruntime.engine import OnnxRuntime  # noqa: E402
from engines.speedup import speedup  # noqa: E402
from engines.timing import EngineCall, TimingOptions, WorkerSpec, alternate, machine  # noqa: E402

CANDIDATES = ("fp32", "int8", "as_is")
BATCHES = (1, 8)


def make_graphs(name: str, folder: Path) -> tuple[Path, Path]:
    """Export a model with random weights; returns the FP32 graph and its Q/DQ form, with an open batch."""
    import onnx

    from calibration.formats import float16_scale, shifted_scale
    from calibration.insert_qdq import Scales, insert_qdq
    from calibration.layers import find_layers
    from calibration.plan import make_plan
    from calibration.ranges import observe_ranges
    from sit_deploy.graph.deploy_form import to_deploy_form
    from sit_deploy.graph.export import export_onnx

    model = random_model(name)
    size = model.img_size
    graph = export_onnx(to_deploy_form(model), size, batch="batch")
    layers = find_layers(graph)
    chosen = make_plan(layers).quantized
    images = np.random.default_rng(0).standard_normal((2, 3, *size)).astype(np.float32)
    ranges = observe_ranges(graph, [images], {tensor for layer in chosen for tensor in layers[layer].inputs})
    after_gelu = {output for node in graph.graph.node if node.op_type == "Gelu" for output in node.output}
    scales, shifts = {}, {}
    for tensor, seen in ranges.items():
        if tensor in after_gelu:
            scales[tensor], shifts[tensor] = shifted_scale(seen.min, seen.max)
        else:
            scales[tensor] = float(float16_scale(seen.absmax / 127))
    fp32, int8 = folder / f"{name}.onnx", folder / f"{name}-int8.onnx"
    onnx.save(graph, fp32)
    onnx.save(insert_qdq(graph, chosen, Scales(scales, shifts)), int8)
    return fp32, int8


def build(name: str, fp32: Path, int8: Path, folder: Path) -> tuple[dict[str, Path], dict]:
    """Build the three engines; returns their files, and facts about them."""
    sources = {
        "fp32": (fp32, OnnxRuntime()),
        "int8": (int8, OnnxRuntime()),
        "as_is": (int8, OnnxRuntime(rewrites=())),
    }
    paths, facts = {}, {}
    for key, (graph, engine) in sources.items():
        paths[key] = folder / f"{name}-{key}.engine.onnx"
        info = engine.build(graph, paths[key], BuildOptions())
        facts[key] = {"size_bytes": info.size_bytes} | {k: info.details[k] for k in ("rewrites", "int8")}
    return paths, facts


def measure(paths: dict[str, Path], batch: int, threads: int, rounds: int, seconds: float) -> dict:
    """Time the engines turn about."""
    workers = {
        key: WorkerSpec(EngineCall, ("onnxruntime", path, batch, threads), batch)
        for key, path in paths.items()
    }
    before = os.getloadavg()[0]
    results = alternate(workers, TimingOptions(rounds, seconds))
    speedups = {key: speedup(results["fp32"], results[key], ("fp32", key)) for key in CANDIDATES[1:]}
    return {
        "batch": batch,
        "threads": threads,
        "load_average": [round(before, 2), round(os.getloadavg()[0], 2)],
        "latency": {
            key: asdict(result.stats) | {"round_medians_ms": result.round_medians_ms}
            for key, result in results.items()
        },
        "speedup": {
            key: {
                **gains.fields(found),
                "of_best": results["fp32"].stats.min_ms / results[key].stats.min_ms
                if found.measurable
                else None,
            }
            for key, found in speedups.items()
        },
    }


def _figure(ratio: float | None) -> str:
    return gains.NONE if ratio is None else f"{ratio:.2f}"


def table(report: dict) -> str:
    """The report as a Markdown table."""
    lines = [
        "| model | batch | threads | fp32 ms | int8 ms | int8 over fp32 (quartiles) | of the best calls | as is over fp32 |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for model in report["models"]:
        for row in model["runs"]:
            p50 = {key: row["latency"][key]["p50_ms"] for key in CANDIDATES}
            int8, as_is = row["speedup"]["int8"], row["speedup"]["as_is"]
            lines.append(
                f"| {model['name']} | {row['batch']} | {row['threads']} | {p50['fp32']:.2f} | {p50['int8']:.2f} | "
                f"{gains.text(int8)} | {_figure(int8['of_best'])} | {_figure(as_is['median'])} |"
            )
    return "\n".join(lines)


@click.command()
@click.option("--model", "models", multiple=True, default=("sit_s", "sit_xs"), show_default=True)
@click.option(
    "--pair",
    "pairs",
    nargs=3,
    multiple=True,
    type=(str, click.Path(exists=True, path_type=Path), click.Path(exists=True, path_type=Path)),
    help="NAME, FP32 graph and Q/DQ graph to time as well; both with an open batch.",
)
@click.option("--threads", multiple=True, type=click.IntRange(1), default=(1, 2), show_default=True)
@click.option("--rounds", type=click.IntRange(1), default=15, show_default=True)
@click.option("--seconds", type=float, default=0.5, show_default=True, help="Length of a turn.")
def main(
    models: tuple[str, ...],
    pairs: tuple[tuple[str, Path, Path], ...],
    threads: tuple[int, ...],
    rounds: int,
    seconds: float,
) -> None:
    """Time INT8 engines against FP32 ones on this CPU."""
    report = {
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
        "machine": asdict(machine()),
        "versions": {"python": sys.version.split()[0]}
        | {package: version(package) for package in ("onnxruntime", "onnx", "numpy")},
        "rounds": rounds,
        "seconds_per_round": seconds,
        "models": [],
    }
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        graphs = [(name, *make_graphs(name, folder)) for name in models] + list(pairs)
        for name, fp32, int8 in graphs:
            paths, facts = build(name, fp32, int8, folder)
            runs = [measure(paths, batch, count, rounds, seconds) for batch in BATCHES for count in threads]
            report["models"].append({"name": name, "engines": facts, "runs": runs})
    path = ROOT / "benchmarks" / "results" / "int8_latency.json"
    path.write_text(json.dumps(report, indent=2) + "\n")
    about = (
        f"`python benchmarks/int8_latency.py`, {report['date']}, {report['machine']['cpu_model']}, "
        f"{report['machine']['usable_cpus']} CPUs, ONNX Runtime {report['versions']['onnxruntime']}; ratios are medians over "
        f"{rounds} rounds in which the engines take turns; “as is” leaves the Q/DQ graph to ONNX Runtime alone."
    )
    write_between("quantization.md", "latency", f"{about}\n\n{table(report)}")
    click.echo(table(report))
    click.echo(f"written to {path.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
