"""FP8 side by side: sit-deploy's default, the same with attention in 8 bits, and ModelOpt's own choice.

    python benchmarks/fp8_peers.py WORK student/model.safetensors ...

Each checkpoint is one of `sit-deploy train`, whose card says which images it was trained on. All start from the FP32 graph of `sit-deploy export`
and the same calibration images; the rest of every graph is FP16. Every result runs on ONNX Runtime's CPU over the same held-out images (turned
either way too, if there are fewer than 1000), where FP8 is rounded as the graph says and FP16 is not. ModelOpt lives in an environment of its own, as in quantization_peers.py. Figures go to
benchmarks/results/fp8_peers.json, the table to docs/quantization.md. A graph that is in WORK is taken as it is; delete it to make it anew.
"""

from __future__ import annotations

import dataclasses
import datetime
import json
import shutil
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import click
import onnx

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.documents import write_between  # noqa: E402
from benchmarks.held_out import accuracy, shown  # noqa: E402
from benchmarks.peer_environments import environment  # noqa: E402
from benchmarks.quantization_peers import Case, held_out, peer, prepare, run_graph, sit_deploy, sqnr_db  # noqa: E402
from engines.timing import machine  # noqa: E402
from sit_deploy.data.datasets import open_data  # noqa: E402
from sit_deploy.models.card_file import read_card  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results" / "fp8_peers.json"
# title, groups of `sit-deploy build --quantize`; None is ModelOpt's own choice
ROWS = (
    ("**sit-deploy**, default", "default"),
    ("**sit-deploy**, default + attention", "default,attention"),
    ("ModelOpt, its own choice", None),
)


def ours(case: Case, groups: str, output: Path) -> None:
    """Build for TensorRT-RTX by the public command line, and take the graph out of the bundle."""
    bundle = output.with_suffix("")
    sit_deploy(
        "build", "--checkpoint", case.checkpoint, "--precision", "fp8", "--quantize", groups, "--engine", "tensorrt-rtx",
        "--target", "sm89", "--calib-data", case.calibration, "--calib-images", case.calibration_images, "--force", "-o", bundle,
    )  # fmt: skip
    shutil.copyfile(bundle / "model.onnx", output)


def prepare_shown(checkpoint: Path, calib_images: int, work: Path) -> Case:
    """Return the case with its held-out pictures in several ways where they are few."""
    case, card = prepare(checkpoint, calib_images, work), read_card(checkpoint)
    assert card is not None  # or `prepare` has refused it
    images, labels = held_out(shown(open_data(str(card.training["data"])).val), card)
    return dataclasses.replace(case, images=images, labels=labels, reference=run_graph(case.graph, images))


def measure(case: Case, title: str, groups: str | None, work: Path) -> dict[str, Any]:
    """Return one row: what a graph quantizes, and what it is worth."""
    output = case.folder / f"fp8-{(groups or 'modelopt').replace(',', '-')}.onnx"
    row: dict[str, Any] = {"title": title, "quantize": groups}
    try:
        if groups is None:
            if not output.exists():
                peer(case, "modelopt", "fp8", output, environment("modelopt", work))
        elif not output.exists():
            ours(case, groups, output)
    except RuntimeError as error:
        return {**row, "failed": str(error)}
    logits = run_graph(output, case.images)
    return {
        **row,
        "quantizations": sum(n.op_type == "QuantizeLinear" for n in onnx.load(output).graph.node),
        "sqnr_db": sqnr_db(logits, case.reference),
        **accuracy(logits, case.reference, case.labels),
    }


def table(cases: list[dict[str, Any]]) -> str:
    lines = [
        "| model, data (held out, FP32 top-1) | FP8 by | SQNR dB | top-1 % | drop | same class % |",
        "|---|---|---|---|---|---|",
    ]
    for case in cases:
        about = f"{case['model']}, {case['data']} ({case['held_out_images']}, {case['top1']:.2f} %)"
        for row in case["rows"]:
            if "failed" in row:
                lines.append(f"| {about} | {row['title']} | failed: {row['failed']} | | | |")
                continue
            figures = f"{row['sqnr_db']:.1f} | {row['top1']:.2f} | {row['drop']:.2f} | {row['agreement']:.2f}"
            lines.append(f"| {about} | {row['title']} | {figures} |")
    return "\n".join(lines)


@click.command(help=__doc__.split("\n")[0])
@click.argument("work", type=click.Path(path_type=Path))
@click.argument("checkpoints", nargs=-1, required=True, type=click.Path(exists=True, path_type=Path))
@click.option("--calib-images", default=256, show_default=True)
@click.option("--write-docs", is_flag=True, help="Put the table into docs/quantization.md.")
def main(work: Path, checkpoints: tuple[Path, ...], calib_images: int, write_docs: bool) -> None:
    work = work.absolute()
    cases = []
    for checkpoint in checkpoints:
        case = prepare_shown(checkpoint.absolute(), calib_images, work)
        rows = [measure(case, title, groups, work) for title, groups in ROWS]
        cases.append(
            {
                "model": case.name,
                "data": case.data,
                "calibration_images": calib_images,
                "held_out_images": len(case.labels),
                "top1": 100 * float((case.reference.argmax(1) == case.labels).mean()),
                "rows": rows,
            }
        )
        click.echo(table(cases[-1:]))
    result = {
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
        "command": f"python benchmarks/fp8_peers.py WORK CHECKPOINT... --calib-images {calib_images}",
        "machine": dataclasses.asdict(machine()),
        "versions": {p: version(p) for p in ("onnxruntime", "onnx", "numpy")},
        "cases": cases,
    }
    RESULTS.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    if write_docs:
        about = f"`{result['command']}`, {result['date']}, ONNX Runtime {result['versions']['onnxruntime']}; peers' versions in benchmarks/peers."
        write_between("quantization.md", "fp8-peers", f"{about}\n\n{table(cases)}")


if __name__ == "__main__":
    main()
