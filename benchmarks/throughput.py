"""What throughput mode gains over latency mode on this CPU: the same engines, one batch at a time and several.

    python benchmarks/throughput.py

Every mode is a process of its own, and all of a row take turns in the same rounds: OpenVINO and ONNX Runtime, each one call after
another on all threads, and kept busy with as many calls as the open engine takes. A ratio is the median of the rounds', of images a
second. Weights are random: they decide no time. The results go to benchmarks/results/throughput.json and the table to docs/serving.md.
"""

from __future__ import annotations

import datetime
import json
import sys
import tempfile
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import click

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks import gains  # noqa: E402
from benchmarks.documents import write_between  # noqa: E402
from benchmarks.random_weights import random_model  # noqa: E402
from engines.build_options import BuildOptions  # noqa: E402
from engines.registry import get  # noqa: E402
from engines.speedup import speedup  # noqa: E402
from engines.timing import (  # noqa: E402
    TimingOptions,
    WorkerResult,
    alternate,
    engine_worker,
    machine,
    throughput_worker,
)

KINDS = ("openvino", "onnxruntime")
MODES = ("latency", "throughput")


def export(name: str, batch: int, folder: Path) -> Path:
    """Write the graph of a model with random weights, at one batch size."""
    from sit_deploy.graph.deploy_form import to_deploy_form
    from sit_deploy.graph.export import export_onnx
    from sit_deploy.graph.write import write_graph

    path = folder / f"{name}-{batch}.onnx"
    if not path.exists():
        model = random_model(name)
        write_graph(export_onnx(to_deploy_form(model), model.img_size, batch=batch), path)
    return path


def measure(graph: Path, batch: int, threads: int, rounds: int, seconds: float) -> list[dict[str, Any]]:
    """Time both modes of both runtimes, turn about; returns a row a runtime."""
    timing = TimingOptions(rounds, seconds, 0.5, threads)
    workers = {}
    for kind in KINDS:
        engine = get(kind)
        path = graph.with_name(f"{graph.stem}-{kind}-{engine.filename}")
        if not path.exists():
            engine.build(graph, path, BuildOptions(threads=threads))
        workers[f"{kind}, latency"] = engine_worker(kind, path, batch, timing)
        workers[f"{kind}, throughput"] = throughput_worker(kind, path, batch, timing)
    results = alternate(workers, timing)
    return [row(kind, {mode: results[f"{kind}, {mode}"] for mode in MODES}) for kind in KINDS]


def row(kind: str, results: dict[str, WorkerResult]) -> dict[str, Any]:
    """JSON values of a runtime's two modes."""
    told = {
        mode: {
            "images_per_second": result.stats.images_per_second,
            # of one batch from beginning to end, while so many are under way (Little's law)
            "batch_ms": result.in_flight * result.stats.p50_ms,
            "in_flight": result.in_flight,
            "round_medians_ms": result.round_medians_ms,
        }
        for mode, result in results.items()
    }
    gained = speedup(*(results[mode] for mode in MODES), MODES)
    return {"engine": kind, **told, "gain": gains.fields(gained)}


def table(report: dict[str, Any]) -> str:
    """The report as a Markdown table."""
    lines = [
        "| model | batch | engine | latency: images/s | a batch, ms | throughput: images/s | at a time | a batch, ms | throughput gains |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for run in report["runs"]:
        one, many = run["latency"], run["throughput"]
        lines.append(
            f"| {run['model']} | {run['batch']} | {get(run['engine']).title} | {one['images_per_second']:.1f} | {one['batch_ms']:.1f} | "
            f"{many['images_per_second']:.1f} | {many['in_flight']} | {many['batch_ms']:.1f} | {gains.text(run['gain'])} |"
        )
    return "\n".join(lines)


def with_others(report: dict[str, Any], before: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the rows of a run, and those of an earlier one that it has not, where it was made in the same way."""
    alike = ("versions", "threads", "rounds", "seconds_per_round", "date")
    name = report["machine"]["cpu_model"]
    if not before or before["machine"]["cpu_model"] != name or any(before[k] != report[k] for k in alike):
        return report["runs"]
    mine = {(row["model"], row["batch"]) for row in report["runs"]}
    kept = [row for row in before["runs"] if (row["model"], row["batch"]) not in mine]
    return sorted(
        [*kept, *report["runs"]], key=lambda row: (row["model"] != "sit_s", row["model"], row["batch"])
    )


def about(report: dict[str, Any]) -> str:
    """Where it was measured."""
    host, versions = report["machine"], report["versions"]
    return (
        f"`python benchmarks/throughput.py`, {report['date']}, {host['cpu_model']}, {host['usable_cpus']} CPUs, {report['threads']} "
        f"threads in all, OpenVINO {versions['openvino'].split('-')[0]}, ONNX Runtime {versions['onnxruntime']}; FP32; medians of "
        f"{report['rounds']} rounds of {report['seconds_per_round']:g} s in which both modes of both runtimes take turns (half of the rounds); "
        "a model and batch size is a run of its own."
    )


@click.command()
@click.option("--model", "models", multiple=True, default=("sit_s", "sit_nano"), show_default=True)
@click.option("--batch", "batches", multiple=True, type=click.IntRange(1), default=(1, 8), show_default=True)
@click.option("--rounds", type=click.IntRange(3), default=5, show_default=True)
@click.option("--seconds", type=float, default=0.3, show_default=True, help="Length of a turn.")
@click.option(
    "--threads", type=click.IntRange(1), default=2, show_default=True, help="Of all calls together."
)
@click.option(
    "--work", type=click.Path(path_type=Path), help="Folder that keeps the engines for another run."
)
@click.option(
    "--output", type=click.Path(path_type=Path), help="File of the result; the docs are left alone with it."
)
def main(
    models: tuple[str, ...],
    batches: tuple[int, ...],
    rounds: int,
    seconds: float,
    threads: int,
    work: Path | None,
    output: Path | None,
) -> None:
    """Time both modes of OpenVINO and of ONNX Runtime on this CPU.

    Rows of other models and batch sizes stay in the results, where the rest was the same.
    """
    report: dict[str, Any] = {
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
        "machine": asdict(machine()),
        "versions": {package: version(package) for package in ("openvino", "onnxruntime", "numpy")},
        "threads": threads,
        "rounds": rounds,
        "seconds_per_round": seconds,
        "runs": [],
    }
    with tempfile.TemporaryDirectory() as temporary:
        folder = work or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        for model in models:
            for batch in batches:
                rows = measure(export(model, batch, folder), batch, threads, rounds, seconds)
                report["runs"] += [{"model": model, "batch": batch, **found} for found in rows]
    path = output or ROOT / "benchmarks/results/throughput.json"
    report["runs"] = with_others(report, json.loads(path.read_text()) if path.exists() else {})
    path.write_text(json.dumps(report, indent=2) + "\n")
    if not output:
        write_between("serving.md", "throughput", f"{about(report)}\n\n{table(report)}")
    click.echo(table(report))


if __name__ == "__main__":
    main()
