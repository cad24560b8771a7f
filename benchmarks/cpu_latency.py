"""CPU latency side by side, in one run: PyTorch eager, the plain export on ONNX Runtime, and sit-deploy's engine.

    python benchmarks/cpu_latency.py                    # sit_s, batch 1, 2 threads
    python benchmarks/cpu_latency.py --model sit_t --batch 8 --rounds 15 --json

    eager   the plain model in PyTorch, inference mode
    plain   torch.onnx.export(model, (images,), file) and onnxruntime.InferenceSession(file), nothing else set
    ours    deploy form → export → ONNX Runtime engine, built and loaded as `sit-deploy build` does

Each runs in a process of its own and they take turns. `--threads` is given to eager and to ours; plain takes it only where
it differs from ONNX Runtime's own choice, one thread a core, so that its session options stay the defaults. Weights are random,
with every foldable parameter away from its initial value. Results go to benchmarks/results/cpu_latency_<model>_b<batch>.json.
"""

from __future__ import annotations

import contextlib
import datetime
import io
import json
import sys
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

import click
import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks import gains  # noqa: E402
from benchmarks.random_weights import random_model  # noqa: E402
from engines.speedup import speedup  # noqa: E402
from engines.timing import EngineCall, TimingOptions, WorkerResult, WorkerSpec, alternate, machine  # noqa: E402

TOLERANCE = 1e-4  # largest difference from eager, in standard deviations of the logits


def random_images(batch: int, size: tuple[int, int]) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((batch, 3, *size)).astype(np.float32)


def eager_call(name: str, batch: int, threads: int) -> Callable[[], np.ndarray]:
    """Worker: the plain model in PyTorch."""
    import torch

    torch.set_num_threads(threads)
    model = random_model(name)
    images = torch.from_numpy(random_images(batch, model.img_size))

    def call() -> np.ndarray:
        with torch.inference_mode():
            return model(images).numpy()

    return call


def plain_call(
    path: Path, batch: int, size: tuple[int, int], threads: int | None
) -> Callable[[], np.ndarray]:
    """Worker: an exported graph in a default session; `threads` None leaves even their number alone."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    if threads is not None:
        options.intra_op_num_threads = threads
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    feeds = {session.get_inputs()[0].name: random_images(batch, size)}
    return lambda: session.run(None, feeds)[0]


def prepare(name: str, batch: int, threads: int, folder: Path) -> tuple[dict[str, WorkerSpec], dict]:
    """Export and build; returns the workers, and how far each runtime's logits are from PyTorch's."""
    import onnx
    import torch

    import engines
    from sit_deploy.graph.deploy_form import to_deploy_form
    from sit_deploy.graph.export import export_onnx

    model = random_model(name)
    images = random_images(batch, model.img_size)
    plain, ours, engine_path = folder / "plain.onnx", folder / "ours.onnx", folder / "engine.onnx"
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(model, (torch.from_numpy(images),), plain)
    onnx.save(export_onnx(to_deploy_form(model), model.img_size, batch=batch), ours)
    engine = engines.get("onnxruntime")
    info = engine.build(ours, engine_path, engines.BuildOptions(threads=threads))

    with torch.inference_mode():
        reference = model(torch.from_numpy(images)).numpy()
    with engine.load(engine_path, threads=threads) as runner:
        logits = {"ours": runner.infer({"images": images})["logits"]}
    own_threads = None if threads == machine().usable_cpus else threads
    logits["plain"] = plain_call(plain, batch, model.img_size, own_threads)()
    errors = {key: float(np.abs(value - reference).max() / reference.std()) for key, value in logits.items()}
    workers = {
        "eager": WorkerSpec(eager_call, (name, batch, threads), batch),
        "plain": WorkerSpec(plain_call, (plain, batch, model.img_size, own_threads), batch),
        "ours": WorkerSpec(EngineCall, ("onnxruntime", engine_path, batch, threads), batch),
    }
    return workers, {"error_in_logit_std": errors, "rewrites": info.details["rewrites"]}


def summary(name: str, batch: int, threads: int, facts: dict, results: dict[str, WorkerResult]) -> dict:
    """Everything measured, as JSON; a speed-up is the median over the rounds of the other's latency over ours."""
    packages = ("torch", "onnx", "onnxruntime", "numpy")
    gained = {key: speedup(results[key], results["ours"], (key, "ours")) for key in ("eager", "plain")}
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
        "model": name,
        "batch": batch,
        "threads": threads,
        "machine": asdict(machine()),
        "versions": {"python": sys.version.split()[0], **{package: version(package) for package in packages}},
        **facts,
        "latency": {
            key: asdict(result.stats) | {"round_medians_ms": result.round_medians_ms, "quiet": result.quiet}
            for key, result in results.items()
        },
        "speedup_of_ours": {key: found.median for key, found in gained.items()},
        "doubts": {key: found.doubt for key, found in gained.items()},
    }


def show(report: dict) -> None:
    from rich.console import Console
    from rich.table import Table

    title = f"{report['model']} · FP32 · batch {report['batch']} · {report['threads']} threads · {report['machine']['cpu_model']}"
    table = Table(title=title)
    for column in ("", "p50 ms", "p90 ms", "images/s", "ours is faster by", "error ÷ σ(logits)"):
        table.add_column(column, justify="left" if not column else "right")
    for key, stats in report["latency"].items():
        over = report["speedup_of_ours"]
        speedup = over.get(key)
        error = report["error_in_logit_std"].get(key)
        table.add_row(
            key,
            f"{stats['p50_ms']:.2f}",
            f"{stats['p90_ms']:.2f}",
            f"{stats['images_per_second']:.1f}",
            "" if key not in over else gains.NONE if speedup is None else f"{speedup:.3f}×",
            "reference" if error is None else f"{error:.1e}",
        )
    Console().print(table)


@click.command()
@click.option("--model", default="sit_s", show_default=True)
@click.option("--batch", type=click.IntRange(1), default=1, show_default=True)
@click.option("--rounds", type=click.IntRange(1), default=15, show_default=True)
@click.option("--seconds", type=float, default=1.0, show_default=True, help="Length of a turn.")
@click.option("--threads", type=click.IntRange(1), default=2, show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON in place of a table.")
def main(model: str, batch: int, rounds: int, seconds: float, threads: int, as_json: bool) -> None:
    """Time the three ways to run a model on this CPU."""
    with tempfile.TemporaryDirectory() as folder:
        workers, facts = prepare(model, batch, threads, Path(folder))
        worst = max(facts["error_in_logit_std"].values())
        if not worst <= TOLERANCE:
            raise click.ClickException(
                f"logits differ by {worst:.1e} of their standard deviation; nothing was timed"
            )
        results = alternate(workers, TimingOptions(rounds, seconds))
    report = summary(model, batch, threads, facts, results)
    path = ROOT / "benchmarks" / "results" / f"cpu_latency_{model}_b{batch}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(report, indent=2) + "\n")
    if as_json:
        click.echo(json.dumps(report, indent=2))
    else:
        show(report)
        click.echo(f"written to {path.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
