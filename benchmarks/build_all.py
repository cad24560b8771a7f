"""Build every model, each in a process of its own, and record every hop's error, the time and the peak memory.

    python benchmarks/build_all.py                      # all models: fp16 for TensorRT-RTX, and bf16
    python benchmarks/build_all.py --models sit_s,sit_l --precisions fp16

Weights are random but far from their initial values (BatchNorm statistics, LayerNorm affines, TSM weights and scalars), so
that an error in any rewrite shows. Results go to benchmarks/results/build_all.json and docs/parity.md.
"""

from __future__ import annotations

import datetime
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import click

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
TABLE = ("sit_t", "sit_xs", "sit_s", "sit_m", "sit_l", "lvvit_t", "lvvit_s", "lvvit_m", "lvvit_l")


def write_checkpoint(name: str, path: Path) -> None:
    from safetensors.torch import save_file

    from benchmarks.random_weights import random_model

    save_file(random_model(name).state_dict(), path)


def build(name: str, precision: str, checkpoint: Path, folder: Path) -> dict:
    """Run the command in a process of its own; return its report with wall seconds and peak memory of the process."""
    output = folder / f"{name}-{precision}"
    command = [sys.executable, "-m", "sit_deploy", "build", "--model", name, "--precision", precision]
    command += ["--checkpoint", str(checkpoint), "-o", str(output), "--json"]
    started = time.perf_counter()
    with (folder / "out.json").open("wb") as out:
        process = subprocess.Popen(command, stdout=out, cwd=ROOT)
        _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - started
    if status:
        raise click.ClickException(f"{' '.join(command)} failed")
    report = json.loads((folder / "out.json").read_text())
    # Linux counts in KiB
    return {
        "model": name,
        "precision": precision,
        "engine": report["engine"]["kind"],
        "hops": report["hops"],
        "seconds": round(seconds, 1),
        "peak_memory_gb": round(usage.ru_maxrss * 1024 / 1e9, 2),
        "engine_mb": round((output / report["engine"]["file"]).stat().st_size / 1e6, 1),
        "steps": report["seconds"],
        "versions": report["versions"],
    }


def table(results: list[dict]) -> list[str]:
    """Return the Markdown table: a line a model and precision, a column a hop."""
    lines = [
        "| model | deploy form | ONNX fp32 | low precision | error | SQNR dB | engine MB | build s | peak GB |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in results:
        hops = {hop["name"]: hop for hop in row["hops"]}
        low = hops[f"ONNX {row['precision']}"]
        lines.append(
            f"| {row['model']} | {hops['deploy form']['error']:.1e} | {hops['ONNX fp32']['error']:.1e} "
            f"| {row['precision']} | {low['error']:.1e} | {low['sqnr_db']:.1f} "
            f"| {row['engine_mb']} | {row['seconds']} | {row['peak_memory_gb']} |"
        )
    return lines


@click.command()
@click.option("--models", default=",".join(TABLE), show_default=True)
@click.option("--precisions", default="fp16,bf16", show_default=True)
@click.option("--write/--no-write", default=True, help="Write the results and docs/parity.md.")
def main(models: str, precisions: str, write: bool) -> None:
    """Build every model and record every hop."""
    from dataclasses import asdict

    from engines.timing import machine

    results = []
    with tempfile.TemporaryDirectory() as folder:
        for name in models.split(","):
            checkpoint = Path(folder) / f"{name}.safetensors"
            write_checkpoint(name, checkpoint)
            for precision in precisions.split(","):
                results.append(build(name, precision, checkpoint, Path(folder)))
                click.echo(table(results[-1:])[-1])
            checkpoint.unlink()
    date = datetime.datetime.now(datetime.timezone.utc).date().isoformat()
    facts = {"date": date, "machine": asdict(machine()), "results": results}
    if not write:
        return
    (ROOT / "benchmarks/results/build_all.json").write_text(json.dumps(facts, indent=1) + "\n")
    versions = {k: v for k, v in results[0]["versions"].items() if v and k not in ("platform", "sit-deploy")}
    text = [
        "# Parity of every model",
        "",
        "Written by `python benchmarks/build_all.py`. Each line is one whole `sit-deploy build` in a process of its own. Errors",
        "are against the plain PyTorch model, in standard deviations of its logits; deploy form and ONNX fp32 may differ by",
        "1e-4, fp16 by 0.05, bf16 by 0.4. Weights are random and far from their initial values; images are synthetic. The low",
        "precision is compared with its rounding simulated on the CPU; the engine is a TensorRT-RTX engine, built and not run.",
        "",
        *table(results),
        "",
        f"{date}, {facts['machine']['cpu_model']}, {facts['machine']['usable_cpus']} CPUs, no GPU; "
        + ", ".join(f"{k} {v}" for k, v in versions.items())
        + ".",
    ]
    (ROOT / "docs/parity.md").write_text("\n".join(text) + "\n")


if __name__ == "__main__":
    main()
