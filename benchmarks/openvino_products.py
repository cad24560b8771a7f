"""What limits the products of an OpenVINO engine at batch 1: their weights' bytes, their work, or how small they are.

    python benchmarks/openvino_products.py sit_xs-bf16/engine.xml lvvit_s-bf16/engine.xml [--threads 2] [-o FILE.json]

Of each engine: its time (the engines turn about), the profiler's time by kind of layer, and that of its products by the number of their
rows (tokens), as GB/s of weights and GFLOP/s. Beside them a chain of products alone, whose weights no core's cache holds: with one row it
tells how fast weights can be read, with many how fast they can be multiplied.
"""

from __future__ import annotations

import json
import re
import statistics
import sys
import time
from collections import defaultdict
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
import numpy as np
import openvino as ov
from openvino import opset13 as ops

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from engines.openvino.layers import profile  # noqa: E402
from engines.openvino.runner import compile_engine  # noqa: E402
from engines.timing import machine  # noqa: E402

WIDTH, HIDDEN, PAIRS = 384, 1152, 20  # of the chain: the MLP of sit_xs and sit_s
ROWS = (1, 25, 49, 98, 197, 788)
ROUNDS, SECONDS, WARM_UP, PROFILED = 5, 0.2, 5, 40
_BYTES = {"f32": 4, "float32": 4, "bf16": 2, "bfloat16": 2}  # else 8 bits


def chain(rows: int, threads: int) -> tuple[Any, np.ndarray]:
    """Return a request and an input of `PAIRS` MLPs in BF16, each with weights of its own."""
    random = np.random.default_rng(0)
    given = values = ops.parameter([rows, WIDTH], ov.Type.f32)
    for _ in range(PAIRS):
        for shape in ((HIDDEN, WIDTH), (WIDTH, HIDDEN)):
            weight = ops.constant((random.standard_normal(shape) / 30).astype(np.float32))
            values = ops.relu(ops.matmul(values, weight, False, True))
    hint = ov.properties.hint
    settings = {hint.inference_precision: ov.Type.bf16, hint.performance_mode: hint.PerformanceMode.LATENCY}
    settings[ov.properties.inference_num_threads] = threads
    compiled = ov.Core().compile_model(ov.Model([values], [given], "chain"), "CPU", settings)
    return compiled.create_infer_request(), np.ones((rows, WIDTH), np.float32)


def take_turns(requests: dict[Any, tuple[Any, np.ndarray]]) -> dict[Any, tuple[float, float, float]]:
    """Return of each request the median of the rounds' medians, the least and the largest of these, in milliseconds."""
    found: dict[Any, list[float]] = defaultdict(list)
    for _ in range(ROUNDS):
        for name, (request, values) in requests.items():
            for _ in range(WARM_UP):
                request.infer({0: values})
            taken, end = [], time.perf_counter() + SECONDS
            while time.perf_counter() < end:
                started = time.perf_counter()
                request.infer({0: values})
                taken.append(1e3 * (time.perf_counter() - started))
            found[name].append(statistics.median(taken))
    return {name: (statistics.median(ms), min(ms), max(ms)) for name, ms in found.items()}


def products(compiled: Any) -> dict[str, tuple[int, int, int, int]]:
    """Return rows, inputs, outputs and bytes a weight of every product with weights, by its name."""
    found = {}
    for operator in compiled.get_runtime_model().get_ordered_ops():
        if not operator.get_rt_info()["layerType"].value.startswith("FullyConnected"):
            continue
        *rows, outputs = operator.output(0).get_partial_shape().to_shape()
        given = operator.input_value(0)
        kind = re.search(r"'(\w+)'", str(given.get_element_type()))[1]
        inputs = given.get_partial_shape().to_shape()[-1]
        found[operator.get_friendly_name()] = (int(np.prod(rows)), inputs, outputs, _BYTES.get(kind, 1))
    return found


def by_rows(compiled: Any, layers: Any) -> dict[int, dict[str, float]]:
    """Return count, multiply-accumulates, megabytes of weights and milliseconds of products, by their rows."""
    known, found = products(compiled), defaultdict(lambda: dict(count=0, macs=0, mb=0.0, ms=0.0))
    for layer in layers:
        if layer.layer in known:
            rows, inputs, outputs, size = known[layer.layer]
            row, weights = found[rows], inputs * outputs
            row["count"] += 1
            row["macs"] += rows * weights
            row["mb"] += weights * size / 1e6
            row["ms"] += layer.ms
    return dict(sorted(found.items(), reverse=True))


@click.command()
@click.argument("engines", type=click.Path(path_type=Path, exists=True), nargs=-1, required=True)
@click.option("--threads", default=2, show_default=True)
@click.option("-o", "--output", type=click.Path(path_type=Path))
def main(engines: tuple[Path, ...], threads: int, output: Path | None) -> None:
    """Measure, and print tables."""
    times = take_turns({rows: chain(rows, threads) for rows in ROWS})
    pair = 2 * WIDTH * HIDDEN
    result: dict[str, Any] = {"machine": asdict(machine()), "chain_ms": times, "engines": {}}
    print("| rows | µs a pair | GB/s of weights | GFLOP/s |\n|---|---|---|---|")
    for rows in ROWS:
        ms = times[rows][0] / PAIRS
        print(f"| {rows} | {1e3 * ms:.0f} | {2 * pair / ms / 1e6:.0f} | {2 * rows * pair / ms / 1e6:.0f} |")
    opened = {path: compile_engine(ov, path, threads) for path in engines}
    random = np.random.default_rng(0)
    inputs = {
        path: random.standard_normal(one.inputs[0].partial_shape.to_shape()).astype(np.float32)
        for path, one in opened.items()
    }
    whole = take_turns({path: (one.create_infer_request(), inputs[path]) for path, one in opened.items()})
    for path, one in opened.items():
        name, kinds = path.parent.name, defaultdict(float)
        layers = profile(ov, path, {one.inputs[0].any_name: inputs[path]}, PROFILED, threads)
        for layer in layers:
            kinds[layer.operator] += layer.ms
        rows = by_rows(one, layers)
        result["engines"][name] = {"ms": whole[path], "kinds": kinds, "products": rows}
        ordered = sorted(kinds.items(), key=lambda item: -item[1])
        print(
            f"\n{name}: {whole[path][0]:.2f} ms ({whole[path][1]:.2f} to {whole[path][2]:.2f}); profiled ms: ",
            end="",
        )
        print(", ".join(f"{kind} {ms:.2f}" for kind, ms in ordered if ms >= 0.01))
        print(
            "\n| rows | products | GMAC | MB of weights | ms | GB/s | GFLOP/s |\n|---|---|---|---|---|---|---|"
        )
        for count, row in rows.items():
            figures = (row["mb"] / row["ms"], 2 * row["macs"] / row["ms"] / 1e6)
            print(
                f"| {count} | {row['count']} | {row['macs'] / 1e9:.3f} | {row['mb']:.1f} | {row['ms']:.2f} | {figures[0]:.1f} | {figures[1]:.0f} |"
            )
    if output:
        output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
