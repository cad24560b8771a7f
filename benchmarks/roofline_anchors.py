"""How far the estimate of `inspect --kernels --estimate` is from what others measured: ViT-B/16 at 224 in FP16 on an A100.

    python benchmarks/roofline_anchors.py WORK [--write-docs]

No GPU needed. The graph is PyTorch's export of timm's model, as it is (all tokens up to the end, as the engines below compute them), at each batch; its
kernels are those of TensorRT-RTX's builder for sm80, and not those of the engines that were measured. Weights are random (seed 0). A graph that
is in WORK is taken as it is. Figures go to benchmarks/results/roofline_anchors.json, the table to standard output.
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

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.documents import write_between  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results" / "roofline_anchors.json"
MODEL, GPU = "vit_base_patch16_224", "a100-40gb"
# both were measured on a card with 40 GB: milliseconds by batch
ANCHORS = {
    "FasterTransformer": {
        "source": "https://github.com/NVIDIA/FasterTransformer/blob/main/docs/vit_guide.md",
        "ms": {1: 1.53, 8: 3.03, 16: 5.30, 32: 10.04},
    },
    "AITemplate": {
        "source": "https://github.com/facebookincubator/AITemplate/blob/main/examples/04_vit",
        "ms": {1: 1.02, 8: 2.20, 16: 3.64, 32: 6.51, 128: 25.10},
    },
}


def export(batch: int, path: Path) -> None:
    """Export the model in FP16 for one batch."""
    import timm
    import torch

    torch.manual_seed(0)
    model = timm.create_model(MODEL, pretrained=False).eval().half()
    program = torch.onnx.export(
        model, (torch.zeros(batch, 3, 224, 224, dtype=torch.half),), dynamo=True, opset_version=20, input_names=["images"],
        output_names=["logits"], optimize=True, verbose=False,
    )  # fmt: skip
    program.save(path)


def estimated(path: Path) -> dict[str, Any]:
    """Return the estimate and the number of kernels; what the lint finds in graphs of others is no matter here."""
    words = ["inspect", str(path), "--kernels", "--target", "sm80", "--estimate", "--gpu", GPU, "--json"]
    done = subprocess.run(
        [sys.executable, "-m", "sit_deploy", *words], cwd=ROOT, capture_output=True, text=True
    )
    if not done.stdout:
        raise click.ClickException(done.stderr.strip())
    found = json.loads(done.stdout)
    (one,) = found["estimate"]["gpus"]
    return {
        **{key: value for key, value in one.items() if key != "kernel_us"},
        "kernels": found["census"]["kernels"],
    }


def table(rows: list[dict[str, Any]]) -> str:
    """Return the estimates beside what was measured, and how many times as long that is."""
    heads = [f"[{name}]({anchor['source']}) ms" for name, anchor in ANCHORS.items()]
    lines = [
        f"| batch | kernels | estimate ms | {' | '.join(heads)} |",
        "|---|---|---|" + "---|" * len(heads),
    ]
    for row in rows:
        ms = row["estimate"]["ms"]
        cells = [
            f"{measured:g} ({measured / ms:.1f}×)" if (measured := anchor["ms"].get(row["batch"])) else ""
            for anchor in ANCHORS.values()
        ]
        lines.append(f"| {row['batch']} | {row['estimate']['kernels']} | {ms:.2f} | {' | '.join(cells)} |")
    return "\n".join(lines)


@click.command(help=__doc__.split("\n")[0])
@click.argument("work", type=click.Path(file_okay=False, path_type=Path))
@click.option("--write-docs", is_flag=True, help="Put the table into docs/gpu.md.")
def main(work: Path, write_docs: bool) -> None:
    work = work.absolute()
    work.mkdir(parents=True, exist_ok=True)
    rows = []
    for batch in sorted({batch for anchor in ANCHORS.values() for batch in anchor["ms"]}):
        path = work / f"{MODEL}-{batch}.onnx"
        if not path.exists():
            export(batch, path)
        rows.append({"batch": batch, "estimate": estimated(path)})
    click.echo(table(rows))
    result = {
        "date": datetime.date.today().isoformat(), "model": MODEL, "gpu": GPU, "anchors": ANCHORS,
        "versions": {package: version(package) for package in ("tensorrt-rtx", "torch", "timm", "onnx")}, "rows": rows,
    }  # fmt: skip
    RESULTS.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    if write_docs:
        write_between("gpu.md", "roofline", table(rows))


if __name__ == "__main__":
    main()
