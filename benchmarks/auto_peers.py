"""What OpenVINO makes of trained models in each precision: speed, SQNR and accuracy of ours, `--quantize auto` and NNCF, side by side.

    python benchmarks/auto_peers.py WORK student/model.safetensors ... --write-docs

Each checkpoint is one of `sit-deploy train`, whose card says which images it was trained on; every held-out image is shown straight and
turned by six degrees to either side. All have the same calibration images. Ours are built by the public command line. NNCF quantizes the plain
export, told that it is a transformer, with its own choice of layers, and runs in float32 and in BF16 beside its 8 bits; it lives in an environment of its own
(WORK/env-nncf-openvino). Logits are those of OpenVINO for every held-out view. Then each has a process of its own and they take turns; a ratio
is the median of the rounds' ratios over our FP32, with quartiles. Figures go to benchmarks/results/auto_peers.json, the table to
docs/quantization.md. A bundle or model that is in WORK is taken as it is; delete it to make it anew.
"""

from __future__ import annotations

import dataclasses
import datetime
import json
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import click
import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks import gains  # noqa: E402
from benchmarks.documents import write_between  # noqa: E402
from benchmarks.fp8_peers import prepare_shown  # noqa: E402
from benchmarks.held_out import accuracy  # noqa: E402
from benchmarks.peer_environments import PEERS, environment, run  # noqa: E402
from benchmarks.quantization_peers import Case, sit_deploy, sqnr_db  # noqa: E402
from benchmarks.runtime_peers_ways import open_engine, open_openvino, timed  # noqa: E402
from engines.speedup import speedup  # noqa: E402
from engines.timing import TimingOptions, WorkerSpec, alternate, machine  # noqa: E402
from sit_deploy.report.build_types import BuildReport  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results" / "auto_peers.json"
# title → options of `sit-deploy build`
OURS = {
    "**sit-deploy**, FP32": ("--precision", "fp32"),
    "**sit-deploy**, BF16": ("--precision", "bf16"),
    "**sit-deploy**, INT8 `--quantize default`": ("--precision", "int8", "--quantize", "default"),
    "**sit-deploy**, INT8 `--quantize auto`": ("--precision", "int8", "--quantize", "auto"),
}
PEER = {"NNCF, INT8": "f32", "NNCF, INT8 in BF16": "bf16"}
BASE = next(iter(OURS))


def build(case: Case, options: tuple[str, ...], threads: int) -> tuple[Path, str | None]:
    """Build by the public command line; return the engine, and the plan where one was chosen by measuring."""
    bundle = case.folder / "-".join(word.strip("-") for word in options[1::2])
    if not bundle.exists():
        calibration = (
            ("--calib-data", case.calibration, "--calib-images", case.calibration_images)
            if "int8" in options
            else ()
        )
        sit_deploy(
            *("build", "--checkpoint", case.checkpoint, *options, "--engine", "openvino"),
            *(*calibration, "--threads", threads, "-o", bundle),
        )
    report = BuildReport.from_dict(json.loads((bundle / "report.json").read_text(encoding="utf-8")))
    tuning = report.quantization.tuning if report.quantization else None
    chosen = tuning.chosen.words(tuning.default) if tuning and tuning.chosen else None
    return bundle / "engine.xml", chosen


def quantize_by_nncf(case: Case, work: Path) -> Path:
    """Have NNCF quantize the plain export of the same weights."""
    output = case.folder / "nncf.xml"
    if not output.exists():
        plain = case.folder / "plain.onnx"
        export_plain(case.checkpoint, case.images[:1], plain)
        job = {"graph": str(plain), "output": str(output), "method": "default", "layers": []}
        job["images"] = str(case.calibration.with_suffix(".npy"))
        asked, answer = case.folder / "nncf.job.json", case.folder / "nncf.answer.json"
        asked.write_text(json.dumps(job), encoding="utf-8")
        python = environment("nncf-openvino", work)
        run([str(python), str(PEERS / "nncf_openvino.py"), str(asked), str(answer)])
    return output


def export_plain(checkpoint: Path, image: np.ndarray, path: Path) -> None:
    """`torch.onnx.export(model, (images,), file)` of a checkpoint, nothing else set."""
    import torch

    from sit_deploy.models.card_file import read_card
    from sit_deploy.models.load import load_model

    card = read_card(checkpoint)
    loaded = load_model(
        card.name, checkpoint, card.image_size, stages=card.stages, keeping_ratio=card.keeping_ratio
    )
    torch.onnx.export(loaded.model.eval(), (torch.from_numpy(image),), path)


def compare(checkpoint: Path, calib_images: int, threads: int, rounds: int, work: Path) -> dict[str, Any]:
    """Return one model's rows."""
    case = prepare_shown(checkpoint.absolute(), calib_images, work)
    ways: dict[str, tuple[Any, tuple[Any, ...]]] = {}
    plans = {}
    for title, options in OURS.items():
        engine, plans[title] = build(case, options, threads)
        ways[title] = (open_engine, ("openvino", engine, threads))
    model = quantize_by_nncf(case, work)
    ways |= {title: (open_openvino, (model, threads, precision)) for title, precision in PEER.items()}
    rows = []
    for title, (way, arguments) in ways.items():
        logits_of = way(*arguments)
        logits = np.concatenate([np.array(logits_of(image[None])) for image in case.images])
        del logits_of
        row = {"title": title, "plan": plans.get(title), "sqnr_db": sqnr_db(logits, case.reference)}
        rows.append({**row, **accuracy(logits, case.reference, case.labels)})
    shape = (1, *case.images.shape[1:])
    workers = {
        title: WorkerSpec(timed, (way, arguments, shape), 1) for title, (way, arguments) in ways.items()
    }
    results = alternate(workers, TimingOptions(rounds, 0.4, 0.5))
    for row in rows:
        mine = results[row["title"]]
        row["p50_ms"] = mine.stats.p50_ms
        row["over_fp32"] = gains.fields(speedup(results[BASE], mine, (BASE, row["title"])))
    return {
        "model": case.name,
        "data": case.data,
        "calibration_images": calib_images,
        "held_out_images": len(case.labels),
        "top1": 100 * float((case.reference.argmax(1) == case.labels).mean()),
        "rows": rows,
    }


def table(cases: list[dict[str, Any]]) -> str:
    """Return the Markdown table."""
    lines = [
        "| model, data (held out, FP32 top-1) | on OpenVINO | ms | over our FP32 | SQNR dB | top-1 % | drop | same class % |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for case in cases:
        about = f"{case['model']}, {case['data']} ({case['held_out_images']}, {case['top1']:.2f} %)"
        for row in case["rows"]:
            title = f"{row['title']}: {row['plan']}" if row["plan"] else row["title"]
            # PyTorch's logits are the reference: of FP32 nothing is lost, whatever the rounding
            noise = "" if row["sqnr_db"] > 90 else f"{row['sqnr_db']:.1f}"
            figures = (
                f"{row['p50_ms']:.2f} | {gains.text(row['over_fp32'])} | {noise} | "
                f"{row['top1']:.2f} | {row['drop']:.2f} | {row['agreement']:.2f}"
            )
            lines.append(f"| {about} | {title} | {figures} |")
    return "\n".join(lines)


@click.command(help=__doc__.split("\n")[0])
@click.argument("work", type=click.Path(path_type=Path))
@click.argument("checkpoints", nargs=-1, required=True, type=click.Path(exists=True, path_type=Path))
@click.option("--calib-images", default=256, show_default=True)
@click.option("--threads", default=2, show_default=True)
@click.option("--rounds", default=11, show_default=True)
@click.option("--write-docs", is_flag=True, help="Put the table into docs/quantization.md.")
def main(
    work: Path, checkpoints: tuple[Path, ...], calib_images: int, threads: int, rounds: int, write_docs: bool
) -> None:
    work = work.absolute()
    cases = []
    for checkpoint in checkpoints:
        cases.append(compare(checkpoint, calib_images, threads, rounds, work))
        click.echo(table(cases[-1:]))
    result = {
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
        "command": f"python benchmarks/auto_peers.py WORK CHECKPOINT... --calib-images {calib_images} --threads {threads}",
        "machine": dataclasses.asdict(machine()),
        "versions": {p: version(p) for p in ("openvino", "onnxruntime", "onnx", "numpy")},
        "cases": cases,
    }
    RESULTS.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    if write_docs:
        where = result["machine"]
        about = (
            f"`{result['command']}`, {result['date']}, {where['cpu_model']}, {where['usable_cpus']} CPUs, "
            f"OpenVINO {result['versions']['openvino']}; NNCF's version in benchmarks/peers."
        )
        write_between("quantization.md", "auto-peers", f"{about}\n\n{table(cases)}")


if __name__ == "__main__":
    main()
