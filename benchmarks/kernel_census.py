"""What TensorRT-RTX's builder makes of graphs of one model, ours and those of others: kernels, types of products, attention. No GPU needed.

    python benchmarks/kernel_census.py WORK --model sit_s [--target sm89] [--write-docs]

Ours are the graphs of `sit-deploy build`, with default layers unless the row says otherwise. The others start from what PyTorch's exporter makes of the same model, as it is
or in FP16: as it is, or quantized by ONNX Runtime's `quantize_static` (the Linear and Conv layers, or a choice of its own) or by NVIDIA
ModelOpt (a choice of its own, the rest in FP16). Weights are random (seed 0): they play no part in which kernels there are. Each peer lives in
an environment of its own, as in quantization_peers.py. All are listed by `sit-deploy inspect --kernels`. A graph that is in WORK is taken as
it is; a graph that is refused is a row, with the reason. Figures go to benchmarks/results/kernel_census.json, the table to standard output. With
--only the other rows stay as they are recorded, each with its date, if they are of the same model, GPU and releases.
"""

from __future__ import annotations

import datetime
import json
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import click
import numpy as np
import onnx

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.documents import write_between  # noqa: E402
from benchmarks.peer_environments import environment, linear_and_conv, quantize, run  # noqa: E402
from sit_deploy.data.synthetic import synthetic_images  # noqa: E402
from sit_deploy.models import create_model, get_config  # noqa: E402
from sit_deploy.preprocessing import Preprocessing  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results" / "kernel_census.json"
CALIBRATION_IMAGES = 16
OURS = "sit-deploy"
# (graph, who made it, how, title); ours: the precision, and options of `sit-deploy build`
ROWS = (
    ("plain-fp32", "PyTorch", "fp32", "PyTorch's export, FP32"),
    ("plain-fp16", "PyTorch", "fp16", "PyTorch's export, FP16"),
    ("ours-fp32", OURS, "fp32", "**sit-deploy**, FP32"),
    ("ours-fp16", OURS, "fp16", "**sit-deploy**, FP16"),
    ("ours-fp16-opset23", OURS, "fp16 --opset 23", "**sit-deploy**, FP16, `--opset 23`"),
    ("ours-int8", OURS, "int8", "**sit-deploy**, INT8"),
    ("ours-int8-attention", OURS, "int8 --quantize default,attention", "**sit-deploy**, INT8, attention too"),
    ("ours-fp8", OURS, "fp8", "**sit-deploy**, FP8"),
    ("ours-fp8-attention", OURS, "fp8 --quantize default,attention", "**sit-deploy**, FP8, attention too"),
    ("ort-layers", "onnxruntime", "minmax", "ONNX Runtime, INT8, Linear and Conv"),
    ("ort-default", "onnxruntime", "default", "ONNX Runtime, INT8, its own choice"),
    ("modelopt-int8", "modelopt", "default", "ModelOpt, INT8, its own choice"),
    ("modelopt-fp8", "modelopt", "fp8", "ModelOpt, FP8, its own choice"),
)


def plain_export(name: str, half: bool, path: Path) -> None:
    """Export the model as PyTorch has it, without a deploy form."""
    import torch

    torch.manual_seed(0)
    model = create_model(get_config(name)).eval()
    images = torch.zeros(1, 3, *(get_config(name).image_size,) * 2)
    if half:
        model, images = model.half(), images.half()
    program = torch.onnx.export(
        model, (images,), dynamo=True, opset_version=20, input_names=["images"], output_names=["logits"],
        optimize=True, verbose=False,
    )  # fmt: skip
    program.save(path)


def pictures(work: Path, name: str) -> tuple[Path, Path]:
    """Write calibration images, as files and preprocessed; return both places."""
    folder, array = work / "pictures", work / f"pictures-{name}.npy"
    folder.mkdir(exist_ok=True)
    images = synthetic_images(CALIBRATION_IMAGES, size=(256, 256))
    for number, image in enumerate(images):
        image.save(folder / f"{number:03}.png")
    prepare = Preprocessing.for_model(get_config(name).image_size)
    np.save(array, np.stack([prepare(image) for image in images]))
    return folder, array


def ours(name: str, how: str, images: Path, target: str, path: Path) -> None:
    """Build a bundle, and take its graph."""
    bundle, (precision, *more) = path.with_suffix(""), how.split()
    words = ["--calib-data", str(images), "--calib-method", "minmax"] if precision in ("int8", "fp8") else []
    run([
        sys.executable, "-m", "sit_deploy", "build", "--model", name, "--precision", precision, "--engine", "tensorrt-rtx",
        "--target", target, *words, *more, "--force", "-o", str(bundle),
    ])  # fmt: skip
    path.write_bytes((bundle / "model.onnx").read_bytes())


def count(path: Path, target: str) -> dict[str, Any]:
    """Return the census of a graph; what the lint finds in graphs of others is no matter here."""
    words = ["inspect", str(path), "--kernels", "--target", target, "--json"]
    done = subprocess.run(
        [sys.executable, "-m", "sit_deploy", *words], cwd=ROOT, capture_output=True, text=True
    )
    if not done.stdout:
        return {"error": done.stderr.strip().splitlines()[-1].removeprefix("Error: ")}
    found = json.loads(done.stdout)
    inside = [kernel["reads"] for kernel in found["kernel_list"] if kernel["role"] == "attention"]
    low = sum(sum(read.startswith(("int8", "float8")) for read in reads) >= 3 for reads in inside)
    return {**found["census"], "attention_8_bits": low}


def with_recorded(rows: list[dict[str, Any]], conditions: dict[str, Any]) -> list[dict[str, Any]]:
    """Return rows with those that are recorded and were not made anew, in the order of ROWS.

    Raises:
        ClickException: the recorded ones are of another model, GPU or release.
    """
    recorded = json.loads(RESULTS.read_text(encoding="utf-8"))
    if any(recorded[name] != value for name, value in conditions.items()):
        raise click.ClickException(f"{RESULTS.name} was recorded otherwise; leave --only out")
    known = {row["graph"]: row for row in (*recorded["rows"], *rows)}
    return [known[graph] for graph, *_ in ROWS if graph in known]


def table(rows: list[dict[str, Any]]) -> str:
    lines = [
        "| graph | kernels | products in 8 bits | in FP16 | in FP32 | attention in one kernel | of 8 bits | weights widened at every run |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        census = row["census"]
        if "error" in census:
            lines.append(f"| {row['title']} | {census['error']} | | | | | | |")
            continue
        products = census["products"]
        low = products.get("int8", 0) + products.get("float8_e4m3fn", 0)
        fused = f"{census['attention']} of {census['attentions']}"
        cells = (
            census["kernels"],
            low,
            products.get("float16", 0),
            products.get("float32", 0),
            fused,
            census.get("attention_8_bits", "?"),
            len(census["widened"]),
        )
        lines.append(f"| {row['title']} | {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


@click.command(help=__doc__.split("\n")[0])
@click.argument("work", type=click.Path(file_okay=False, path_type=Path))
@click.option("--model", "name", default="sit_s", show_default=True)
@click.option("--target", default="sm89", show_default=True)
@click.option("--only", multiple=True, type=click.Choice([graph for graph, *_ in ROWS]), help="May repeat.")
@click.option("--write-docs", is_flag=True, help="Put the table into docs/gpu.md.")
def main(work: Path, name: str, target: str, only: tuple[str, ...], write_docs: bool) -> None:
    work = work.absolute()
    work.mkdir(parents=True, exist_ok=True)
    folder, array = pictures(work, name)
    rows = []
    for graph, who, how, title in ROWS:
        if only and graph not in only:
            continue
        path = work / f"{name}-{graph}.onnx"
        try:
            if not path.exists():
                if who == "PyTorch":
                    plain_export(name, how == "fp16", path)
                elif who == OURS:
                    ours(name, how, folder, target, path)
                else:
                    python = Path(sys.executable) if who == "onnxruntime" else environment(who, work)
                    plain = work / f"{name}-plain-fp32.onnx"
                    layers = linear_and_conv(onnx.load(plain))
                    quantize(who, python, graph=plain, output=path, method=how, layers=layers, images=array)
            census = count(path, target)
        except RuntimeError as error:
            path.unlink(missing_ok=True)
            census = {"error": str(error)}
        if "error" in census:
            census["error"] = census["error"].replace(f"{work}/", "")
        today = datetime.date.today().isoformat()
        rows.append({"graph": graph, "by": who, "title": title, "date": today, "census": census})
        click.echo(f"{title}: {census}", err=True)
    conditions = {
        "model": name, "target": target,
        "versions": {p: version(p) for p in ("tensorrt-rtx", "torch", "onnx", "onnxruntime")},
    }  # fmt: skip
    if only:
        rows = with_recorded(rows, conditions)
    RESULTS.write_text(json.dumps({**conditions, "rows": rows}, indent=1) + "\n", encoding="utf-8")
    click.echo(table(rows))
    if write_docs:
        write_between("gpu.md", "kernel-census", table(rows))


if __name__ == "__main__":
    main()
