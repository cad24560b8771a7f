"""A latency table's predictions against the measured latency of whole engines: random token schedules, each exported and built by itself.

    python benchmarks/latency_table.py make WORK                 # 40 schedules of lvvit_s, exported, quantized and built: no timing
    python benchmarks/latency_table.py time WORK onnxruntime fp32   # a table, then the 40 engines; for each engine and precision
    python benchmarks/latency_table.py write WORK --write-docs   # the results, and the table in docs/latency-table.md

Graphs are a table's own: a short one with other token counts and more blocks. Every twentieth of the 40 is a whole model of PyTorch besides,
exported as it is, and compared with that. All are timed against the table's reference schedule, in turns: on a machine whose clock drifts by
a tenth, a time by itself is no measure of a prediction. A script that is stopped goes on where it was.
"""

from __future__ import annotations

import datetime
import json
import random
import statistics
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from collections.abc import Iterator

    import onnx

    from sit_deploy.latency.table import LatencyTable

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.documents import write_between  # noqa: E402
from engines import TITLES  # noqa: E402
from engines.timing import machine  # noqa: E402
from sit_deploy.latency.bench import ScheduleBench  # noqa: E402
from sit_deploy.latency.graphs import lowered, random_model  # noqa: E402
from sit_deploy.latency.schedule import Schedule, random_schedule  # noqa: E402
from sit_deploy.latency.target import Target  # noqa: E402
from sit_deploy.models.catalog import get_config  # noqa: E402

MODEL, COUNT, SEED = "lvvit_s", 40, 20
CELLS = (("onnxruntime", "fp32"), ("openvino", "int8"), ("onnxruntime", "int8"), ("openvino", "fp32"))
EXPORTED = 20
CLOSE = 0.05  # that a prediction is to be within
AT_ONCE = 4  # engines that are timed in the same rounds, beside the reference


def schedules() -> list[Schedule]:
    """Return the random schedules: two to four stages."""
    target = Target(get_config(MODEL), *CELLS[0])
    rng = random.Random(SEED)
    return [
        random_schedule(rng, target.widths.depth, target.widths.patches, rng.randint(2, 4))
        for _ in range(COUNT)
    ]


def engine_path(work: Path, number: int, engine: str, precision: str) -> Path:
    import engines

    return work / f"{number}-{engine}-{precision}" / engines.get(engine).filename


@click.group()
def main() -> None:
    """Compare predicted latency with measured latency."""


@main.command()
@click.argument("work", type=click.Path(path_type=Path))
@click.option("--engine", help="Only this one's.")
@click.option("--precision", help="Only in this one.")
def make(work: Path, engine: str | None, precision: str | None) -> None:
    """Build the whole engines of all schedules, every EXPORTED-th of the model itself."""
    import engines
    from sit_deploy.graph.write import write_graph
    from sit_deploy.latency.graphs import ScheduleGraphs

    exported = {}
    asked = [cell for cell in CELLS if engine in (None, cell[0]) and precision in (None, cell[1])]
    for engine, precision in asked:
        target = Target(get_config(MODEL), engine, precision)
        graphs = ScheduleGraphs(target)
        for number, schedule in sorted(enumerate(schedules()), key=lambda one: len(one[1].kept)):
            path = engine_path(work, number, engine, precision)
            if path.exists():
                continue
            path.parent.mkdir(parents=True, exist_ok=True)
            graph = graphs.graph(schedule)
            if number % EXPORTED == 0:
                exported[number] = exported.get(number) or export(schedule)
                whole = lowered(target, exported[number])
                if anatomy(whole) != anatomy(graph):
                    raise SystemExit(
                        f"{schedule} in {precision} for {engine}: the short graph made another one"
                    )
                graph = whole
            source = path.with_name("model.onnx")
            write_graph(graph, source)
            engines.get(engine).build(source, path, engines.BuildOptions())
            source.unlink()
            click.echo(f"{engine} {precision} {number}: {schedule.stage_blocks} {schedule.kept}")


def export(schedule: Schedule) -> onnx.ModelProto:
    """Return the float32 graph of a whole model, as PyTorch's exporter writes it."""
    from sit_deploy.graph.deploy_form import to_deploy_form
    from sit_deploy.graph.export import export_onnx

    model = random_model(Target(get_config(MODEL), *CELLS[0]), schedule.stage_blocks, schedule.kept)
    return export_onnx(to_deploy_form(model), model.img_size)


def anatomy(graph: onnx.ModelProto) -> tuple[list, list]:
    """Return what two graphs have in common if weights alone tell them apart: operators with shapes, in order, and constants."""
    from calibration.graph_editor import shapes_of

    shapes = shapes_of(graph)
    nodes = [(node.op_type, *map(shapes.get, node.output)) for node in graph.graph.node]
    constants = {tensor.name: (tensor.data_type, tuple(tensor.dims)) for tensor in graph.graph.initializer}
    return nodes, [[constants.get(name) for name in node.input] for node in graph.graph.node]


@main.command("time")
@click.argument("work", type=click.Path(path_type=Path))
@click.argument("engine")
@click.argument("precision")
def time_cell(work: Path, engine: str, precision: str) -> None:
    """Measure the table of an engine and a precision, then the whole engines."""
    from sit_deploy.latency.table import LatencyTable

    target = Target(get_config(MODEL), engine, precision)
    path, kept = work / "tables.json", work / f"{engine}-{precision}.json"
    cell = json.loads(kept.read_text()) if kept.exists() else {"engine": engine, "precision": precision}
    if "table_seconds" not in cell:
        started = time.monotonic()
        table = LatencyTable.measure(target, path=path)
        cell |= {"table_seconds": round(time.monotonic() - started, 1), "probes": len(table.probes)}
        kept.write_text(json.dumps(cell))
        click.echo(f"table: {cell['table_seconds']} s, {cell['probes']} schedules")
    cell |= {"machine": asdict(machine()), "runtime": target.here.runtime}
    cell["date"] = datetime.datetime.now(datetime.timezone.utc).date().isoformat()
    for row in _time_whole(work, LatencyTable.load(path, target), cell.setdefault("rows", [])):
        cell["rows"].append(row)
        kept.write_text(json.dumps(cell))
    click.echo(_line(cell))


def _time_whole(work: Path, table: LatencyTable, known: list[dict]) -> Iterator[dict]:
    """Time the engines that there are and were not timed yet, a few at a time beside the table's reference."""
    target, timed = table.target, {row["number"] for row in known}
    paths = {n: engine_path(work, n, target.engine, target.precision) for n in range(COUNT)}
    left = [n for n, path in paths.items() if n not in timed and path.exists()]
    with (
        tempfile.TemporaryDirectory() as folder,
        ScheduleBench(target, table.reference, Path(folder) / "engines") as bench,
    ):
        for place in range(0, len(left), AT_ONCE):
            some = left[place : place + AT_ONCE]
            for number, measured in zip(some, bench.time_engines([paths[n] for n in some]), strict=True):
                schedule = schedules()[number]
                said = table.predict(schedule.stage_blocks, schedule.kept)
                yield {
                    "number": number,
                    **asdict(schedule),
                    "predicted_ms": said.ms,
                    "error_ms": said.error,
                    "measured_ms": measured.ratio * table.reference_ms,
                    **asdict(measured),
                }


def _off(row: dict) -> float:
    return row["predicted_ms"] / row["measured_ms"] - 1


def _line(cell: dict) -> str:
    rows = cell["rows"]
    off = sorted(abs(_off(row)) for row in rows)
    close = sum(one <= CLOSE for one in off)
    held = sum(abs(row["predicted_ms"] - row["measured_ms"]) <= row["error_ms"] for row in rows)
    low, high = (f(row["measured_ms"] for row in rows) for f in (min, max))
    return (
        f"| {TITLES[cell['engine']]} | {cell['precision'].upper()} | {cell['table_seconds']:.0f} s, {cell['probes']} | {low:.1f} to {high:.1f} ms | "
        f"{close} of {len(rows)} | {statistics.median(off):.1%} | {off[-1]:.1%} | {held} of {len(rows)} |"
    )


@main.command()
@click.argument("work", type=click.Path(path_type=Path))
@click.option("--write-docs", is_flag=True, help="Put the table into docs/latency-table.md.")
def write(work: Path, write_docs: bool) -> None:
    """Write the results of all that was timed to benchmarks/results/latency_table.json."""
    cells = [
        json.loads((work / f"{e}-{p}.json").read_text())
        for e, p in CELLS
        if (work / f"{e}-{p}.json").exists()
    ]
    cells = [cell for cell in cells if cell.get("rows")]
    report = {
        "model": MODEL,
        "schedules": COUNT,
        "seed": SEED,
        "versions": {"python": sys.version.split()[0]},
        "cells": cells,
    }
    path = ROOT / "benchmarks" / "results" / "latency_table.json"
    path.write_text(json.dumps(report, indent=2) + "\n")
    lines = [
        "| engine | precision | table: time, schedules | the engines | predicted within 5 % | median off | most off | within the error bar |",
        "|---|---|---|---|---|---|---|---|",
        *map(_line, cells),
    ]
    first = cells[0]
    about = (
        f"`python benchmarks/latency_table.py`, {first['date']}, {first['machine']['cpu_model']}, {first['machine']['usable_cpus']} CPUs, "
        + ", ".join(dict.fromkeys(f"{TITLES[cell['engine']]} {cell['runtime']}" for cell in cells))
        + f"; {MODEL}, batch 1, random schedules of two to four stages."
    )
    text = f"{about}\n\n" + "\n".join(lines)
    click.echo(text)
    if write_docs:
        write_between("latency-table.md", "predictions", text)


if __name__ == "__main__":
    main()
