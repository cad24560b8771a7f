"""What Triton costs: the same engine bare and behind the server's Python backend, turn about, by concurrency.

    python benchmarks/triton_load.py            # writes results/triton_load.json and the table of docs/serving.md

Bare: ONNX Runtime in a process of its own, one batch after another. Triton: a gRPC client sends N batches at a time, and the
next N when all are answered; a latency is from sending to the answer of one of them. Client and server share this machine.
"""

from __future__ import annotations

import datetime
import json
import sys
import tempfile
import threading
import time
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import click
import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks import gains  # noqa: E402
from benchmarks.documents import write_between  # noqa: E402
from engines.speedup import speedup  # noqa: E402
from engines.timing import EngineCall, TimingOptions, WorkerSpec, alternate, machine  # noqa: E402
from sit_deploy.pipeline.build import build  # noqa: E402
from sit_deploy.pipeline.request import BuildRequest  # noqa: E402
from sit_deploy.triton import server  # noqa: E402
from sit_deploy.triton.config import Serving  # noqa: E402
from sit_deploy.triton.install import WHEEL  # noqa: E402
from sit_deploy.triton.repository import write_repository  # noqa: E402

BATCH = 8


class TritonCall:
    """A worker's callable: `concurrency` requests of one batch at a time over gRPC, until all are answered.

    Attributes:
        latencies: file that gets the time of each request in seconds, a line each, when the worker ends.
    """

    def __init__(
        self, port: int, model: str, shape: tuple[int, ...], dtype: str, concurrency: int, latencies: str
    ) -> None:
        import tritonclient.grpc as grpc

        self._client = grpc.InferenceServerClient(f"localhost:{port}")
        images = np.random.default_rng(0).integers(0, 256, (BATCH, *shape)).astype(dtype)
        given = grpc.InferInput("images", list(images.shape), "UINT8" if dtype == "uint8" else "FP32")
        given.set_data_from_numpy(images)
        self._model, self._inputs, self._concurrency = model, [given], concurrency
        self._path, self._seconds = Path(latencies), []

    def __call__(self) -> None:
        waiting, failed = threading.Semaphore(0), []

        def send() -> None:
            started = time.perf_counter()

            def answered(result: Any, error: Any) -> None:
                self._seconds.append(time.perf_counter() - started)
                if error is not None:
                    failed.append(error)
                waiting.release()

            self._client.async_infer(self._model, self._inputs, answered)

        for _ in range(self._concurrency):
            send()
        for _ in range(self._concurrency):
            waiting.acquire()
        if failed:
            raise failed[0]

    def close(self) -> None:
        self._path.write_text("\n".join(map(repr, self._seconds)))
        self._client.close()


def measure(
    model: str,
    dtype: str,
    concurrency: tuple[int, ...],
    threads: int,
    rounds: int,
    seconds: float,
    folder: Path,
) -> dict[str, Any]:
    """Build an engine, serve it, and time it bare and behind the server."""
    name = f"{model}_{dtype}"
    bundle = build(
        BuildRequest(
            model, folder / name, engine="onnxruntime", dynamic_batch=(1, BATCH, 2 * BATCH), input=dtype
        )
    )
    repository = folder / f"{name}_models"
    write_repository([(bundle, Serving(name, threads=threads))], repository)
    shape = bundle.preprocessing().shape
    ports = server.Ports(18000, 18001, 18002)
    files = {n: folder / f"{name}_{n}.txt" for n in concurrency}
    with server.running(server.find_server(), repository, folder / "log", ports):
        workers = {"bare": WorkerSpec(EngineCall, ("onnxruntime", bundle.engine_path, BATCH, threads), BATCH)}
        for n, path in files.items():
            job = (ports.grpc, name, shape, dtype, n, str(path))
            workers[f"triton {n}"] = WorkerSpec(TritonCall, job, BATCH * n)
        results = alternate(workers, TimingOptions(rounds, seconds))
    rows = []
    for n, path in files.items():
        found = speedup(results[f"triton {n}"], results["bare"], ("Triton", "bare"), work=n)
        took = np.array([float(line) for line in path.read_text().split()]) * 1e3
        rows.append(
            {
                "concurrency": n,
                "images_per_second": 1e3 * BATCH * n / results[f"triton {n}"].stats.p50_ms,
                # of throughput: a call of `n` batches against one of one
                "of_bare": n / found.median if found.median else None,
                "doubt": found.doubt,
                "per_round": [n / r for r in found.per_round],
                "request_p50_ms": float(np.percentile(took, 50)),
                "request_p99_ms": float(np.percentile(took, 99)),
                "requests": len(took),
            }
        )
    bare = results["bare"].stats
    return {
        "model": model,
        "input": dtype,
        "batch": BATCH,
        "megabytes_per_request": BATCH * int(np.prod(shape)) * np.dtype(dtype).itemsize / 1e6,
        "bare": {**asdict(bare), "images_per_second": 1e3 * BATCH / bare.p50_ms},
        "triton": rows,
    }


def table(report: dict[str, Any]) -> str:
    """The report as a Markdown table: a row for each model and input, a column for so many requests at a time."""
    counts = [row["concurrency"] for row in report["runs"][0]["triton"]]
    titles = [f"{count} request{'s' * (count > 1)} at a time" for count in counts]
    lines = [
        f"| model | input | MB a request | bare ONNX Runtime | {' | '.join(titles)} |",
        f"|---|---|---|---|{'---|' * len(titles)}",
    ]
    for run in report["runs"]:
        bare = run["bare"]
        cells = [f"**{bare['images_per_second']:.1f}**, 1, {bare['p50_ms']:.0f} / {bare['p99_ms']:.0f} ms"]
        for row in run["triton"]:
            of_bare = gains.NONE
            if row["of_bare"] is not None:
                of_bare = f"{row['of_bare']:.2f} ({min(row['per_round']):.2f}–{max(row['per_round']):.2f})"
            took = f"{row['request_p50_ms']:.0f} / {row['request_p99_ms']:.0f} ms"
            cells.append(f"**{row['images_per_second']:.1f}**, {of_bare}, {took}")
        size = f"{run['megabytes_per_request']:.1f}"
        lines.append(f"| {run['model']} | {run['input']} | {size} | {' | '.join(cells)} |")
    return "\n".join(lines)


@click.command()
@click.option("--model", "models", multiple=True, default=("sit_s", "sit_xs"), show_default=True)
@click.option("--concurrency", multiple=True, type=click.IntRange(1), default=(1, 2, 4), show_default=True)
@click.option(
    "--threads", type=click.IntRange(1), default=2, show_default=True, help="Of ONNX Runtime, on both sides."
)
@click.option("--rounds", type=click.IntRange(1), default=7, show_default=True)
@click.option("--seconds", type=float, default=1.5, show_default=True, help="Length of a turn.")
@click.option(
    "--output", type=click.Path(path_type=Path), help="File of the result; the docs are left alone with it."
)
def main(
    models: tuple[str, ...],
    concurrency: tuple[int, ...],
    threads: int,
    rounds: int,
    seconds: float,
    output: Path | None,
) -> None:
    """Time engines behind Triton against the same engines bare, on this CPU."""
    report: dict[str, Any] = {
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
        "machine": asdict(machine()),
        "versions": {p: version(p) for p in ("onnxruntime", "numpy", "tritonclient")} | {"triton": WHEEL},
        "threads": threads,
        "rounds": rounds,
        "seconds_per_round": seconds,
        "runs": [],
    }
    with tempfile.TemporaryDirectory() as temporary:
        for model in models:
            for dtype in ("float32", "uint8"):
                found = measure(model, dtype, concurrency, threads, rounds, seconds, Path(temporary))
                report["runs"].append(found)
    text = json.dumps(report, indent=2) + "\n"
    if output:
        output.write_text(text)
    else:
        (ROOT / "benchmarks/results/triton_load.json").write_text(text)
        about = (
            f"`python benchmarks/triton_load.py`, {report['date']}, {report['machine']['cpu_model']}, "
            f"{report['machine']['usable_cpus']} CPUs shared by client and server, ONNX Runtime "
            f"{report['versions']['onnxruntime']} with {threads} threads on both sides, batches of {BATCH} over gRPC; medians "
            f"of {rounds} rounds in which the sides take turns (lowest and highest round)."
        )
        write_between("serving.md", "load", f"{about}\n\n{table(report)}")
    click.echo(table(report))


if __name__ == "__main__":
    main()
