"""The C++ library against OpenVINO's own Python interface, and how long each way of embedding takes to its first result.

    python benchmarks/cpp_latency.py            # writes results/cpp_latency.json and the tables of docs/cpp.md

Every measurement is a process of its own; the sides take turns. Latency: the median of a process's runs of one batch, images
in memory to logits in memory. First result: from the start of the process to the logits of its first image, a bundle checked
on the way (in Python with OpenVINO alone, not checked).
"""

from __future__ import annotations

import datetime
import json
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import click

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks import gains  # noqa: E402
from benchmarks.documents import write_between  # noqa: E402
from engines.timing import machine  # noqa: E402
from sit_deploy.pipeline.build import build  # noqa: E402
from sit_deploy.pipeline.request import BuildRequest  # noqa: E402

# the same settings as engines/cpp/src/openvino.cpp
OPENVINO = """
import json, statistics, sys, time
import numpy as np, openvino as ov
import openvino.properties.hint as hint
graph, seconds, threads = sys.argv[1], float(sys.argv[2]), int(sys.argv[3])
core = ov.Core()
settings = {hint.inference_precision: ov.Type.f32, hint.performance_mode: hint.PerformanceMode.LATENCY,
            ov.properties.inference_num_threads: threads}
request = core.compile_model(core.read_model(graph), "CPU", settings).create_infer_request()
images = np.zeros((1, *[d.get_length() for d in list(request.model_inputs[0].partial_shape)[1:]]), np.float32)
def run():
    request.set_input_tensor(ov.Tensor(images, shared_memory=True))
    request.infer()
    return request.get_output_tensor().data.copy()
run()
taken, begun = [], time.perf_counter()
while time.perf_counter() - begun < seconds or len(taken) < 3:
    before = time.perf_counter()
    run()
    taken.append(1e3 * (time.perf_counter() - before))
print(json.dumps({"p50_ms": statistics.median(taken), "runs": len(taken)}))
"""
EMBEDDED = """
import sys
import numpy as np, sit_deploy
with sit_deploy.load(sys.argv[1], threads=int(sys.argv[2])) as classify:
    classify.logits(np.zeros((1, 3, *classify.bundle.preprocessing().size), np.float32))
assert "torch" not in sys.modules
"""


def compile_library(folder: Path) -> Path:
    """Build the library's programs; returns their folder."""
    import openvino.utils

    for command in (
        [
            "cmake",
            "-S",
            ROOT / "engines/cpp",
            "-B",
            folder,
            f"-DOpenVINO_DIR={openvino.utils.get_cmake_path()}",
        ],
        ["cmake", "--build", folder, "--parallel"],
    ):
        subprocess.run(list(map(str, command)), check=True, capture_output=True)
    return folder


def timed(*command: object) -> tuple[float, str]:
    """Run a process; returns its milliseconds and what it printed."""
    started = time.perf_counter()
    done = subprocess.run(list(map(str, command)), check=True, capture_output=True, text=True)
    return 1e3 * (time.perf_counter() - started), done.stdout


def measure(
    model: str, programs: Path, rounds: int, seconds: float, threads: int, folder: Path
) -> dict[str, Any]:
    """Measure one model in every way, turn about."""
    bundle = build(BuildRequest(model, folder / model, engine="onnxruntime")).path
    latency: dict[str, list[float]] = {"cpp": [], "python": []}
    first: dict[str, list[float]] = {"cpp": [], "openvino": [], "sit_deploy": []}
    for _ in range(rounds):
        _, told = timed(programs / "sit_latency", bundle, seconds, threads)
        latency["cpp"].append(json.loads(told)["p50_ms"])
        _, told = timed(sys.executable, "-c", OPENVINO, bundle / "model.onnx", seconds, threads)
        latency["python"].append(json.loads(told)["p50_ms"])
        # no loop: three runs more than the first, which are taken off
        for name, command in (
            ("cpp", (programs / "sit_latency", bundle, 0, threads)),
            ("openvino", (sys.executable, "-c", OPENVINO, bundle / "model.onnx", 0, threads)),
        ):
            wall, told = timed(*command)
            first[name].append(wall - 3 * json.loads(told)["p50_ms"])
        first["sit_deploy"].append(timed(sys.executable, "-c", EMBEDDED, bundle, threads)[0])
    found = gains.of_times(latency["cpp"], latency["python"])
    return {
        "model": model,
        "latency_ms": latency,
        "cpp_over_python": {
            "median": found.median,
            "per_round": list(found.per_round),
            "doubt": found.doubt,
        },
        "first_result_ms": first,
    }


def tables(report: dict[str, Any]) -> str:
    """The report as two Markdown tables."""
    lines = [
        "| model | C++ ms | Python ms | C++ over Python (lowest–highest round) |",
        "|---|---|---|---|",
    ]
    for run in report["runs"]:
        ours, theirs = (statistics.median(run["latency_ms"][side]) for side in ("cpp", "python"))
        ratio, text = run["cpp_over_python"], gains.NONE
        if ratio["median"] is not None:
            low, high = min(ratio["per_round"]), max(ratio["per_round"])
            text = f"{ratio['median']:.3f} ({low:.3f}–{high:.3f})"
        lines.append(f"| {run['model']} | {ours:.2f} | {theirs:.2f} | {text} |")
    lines += [
        "",
        "| model | first result: C++ with OpenVINO | Python, OpenVINO alone | Python, `sit_deploy.load` (ONNX Runtime) |",
        "|---|---|---|---|",
    ]
    for run in report["runs"]:
        cells = [
            f"{statistics.median(run['first_result_ms'][k]):.0f} ms"
            for k in ("cpp", "openvino", "sit_deploy")
        ]
        lines.append(f"| {run['model']} | {' | '.join(cells)} |")
    return "\n".join(lines)


@click.command()
@click.option("--model", "models", multiple=True, default=("sit_s", "sit_xs"), show_default=True)
@click.option("--rounds", type=click.IntRange(1), default=9, show_default=True)
@click.option("--seconds", type=float, default=2.0, show_default=True, help="Length of a turn.")
@click.option("--threads", type=click.IntRange(1), default=2, show_default=True)
def main(models: tuple[str, ...], rounds: int, seconds: float, threads: int) -> None:
    """Time the C++ library against Python on this CPU."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        programs = compile_library(folder / "cpp")
        report: dict[str, Any] = {
            "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
            "machine": asdict(machine()),
            "versions": {p: version(p) for p in ("openvino", "onnxruntime", "numpy")},
            "compiler": subprocess.run(
                ["c++", "--version"], capture_output=True, text=True
            ).stdout.splitlines()[0],
            "threads": threads,
            "rounds": rounds,
            "seconds_per_round": seconds,
            "runs": [measure(model, programs, rounds, seconds, threads, folder) for model in models],
        }
    (ROOT / "benchmarks/results/cpp_latency.json").write_text(json.dumps(report, indent=2) + "\n")
    about = (
        f"`python benchmarks/cpp_latency.py`, {report['date']}, {report['machine']['cpu_model']}, "
        f"{report['machine']['usable_cpus']} CPUs, {threads} threads, OpenVINO {report['versions']['openvino']}, "
        f"{report['compiler']}; FP32, batch 1; medians of {rounds} rounds in which the sides take turns."
    )
    write_between("cpp.md", "latency", f"{about}\n\n{tables(report)}")
    click.echo(tables(report))


if __name__ == "__main__":
    main()
