"""INT8 side by side: sit-deploy, ONNX Runtime's quantize_static, NVIDIA ModelOpt and NNCF on the same graph and images.

    python benchmarks/quantization_peers.py WORK student/model.safetensors ...

Each checkpoint is one of `sit-deploy train`, whose card says which images it was trained on.
All quantize the FP32 graph of `sit-deploy export` with the same calibration images, spread over the training part. There
are two comparisons, for SQNR says nothing of graphs with different layers in 8 bits: in the first all quantize every
Linear and Conv, in the second the Linear of blocks and TSMs, which is sit-deploy's default. Attention products, sums,
softmax, LayerNorm and GELU stay float. Rows of a peer's own choice of layers come last, to themselves.
Every result runs on ONNX Runtime's CPU over the same held-out images.

Each peer lives in a virtual environment of its own, WORK/env-PEER, made from benchmarks/peers/requirements-PEER.txt where
it is not there yet, and runs in a process of its own. A result that is in WORK is taken as it is; delete it to make it
anew. Ours is always made anew. Figures go to benchmarks/results/quantization_peers.json, the table to standard output.
"""

from __future__ import annotations

import dataclasses
import datetime
import json
import shutil
import sys
from fnmatch import fnmatch
from importlib.metadata import version
from pathlib import Path
from typing import Any

import click
import numpy as np
import onnx

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.documents import write_between  # noqa: E402
from benchmarks.held_out import accuracy  # noqa: E402
from benchmarks.peer_environments import LAYER_TYPES, environment, linear_and_conv, quantize, run  # noqa: E402
from engines.timing import machine  # noqa: E402
from sit_deploy.data.batches import batches  # noqa: E402
from sit_deploy.data.image_files import list_images  # noqa: E402
from sit_deploy.models.card import ModelCard  # noqa: E402
from sit_deploy.models.card_file import read_card  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results" / "quantization_peers.json"
OURS = "sit-deploy"
# (who, method, title); "default" leaves the choice of layers to the peer
ROWS = (
    ("onnxruntime", "minmax", "ONNX Runtime, min-max"),
    ("onnxruntime", "entropy", "ONNX Runtime, entropy"),
    ("onnxruntime", "percentile", "ONNX Runtime, percentile"),
    ("modelopt", "max", "ModelOpt, max"),
    ("modelopt", "entropy", "ModelOpt, entropy"),
    ("nncf", "fast_bias", "NNCF, fast bias correction"),
    ("nncf", "accurate_bias", "NNCF, accurate bias correction"),
    ("nncf", "tuned", "NNCF, accurate bias correction, full ranges and weights"),
    (OURS, "auto", "**sit-deploy**"),
    ("onnxruntime", "default", "ONNX Runtime, layers and outputs of its own choice"),
    ("modelopt", "default", "ModelOpt, layers of its own choice, rest FP16"),
    ("nncf", "default", "NNCF, layers of its own choice"),
)
# title, groups of `sit-deploy build --quantize`, and patterns of the layers outside them
PLANS = (
    ("every Linear and Conv", "qkv,proj,fc1,fc2,tsm,stem,head", ()),
    ("the Linear of blocks and TSMs", "qkv,proj,fc1,fc2,tsm", ("stem/*", "head")),
)
# what moves or retypes values and computes nothing
CARRIERS = ("Cast", "Transpose", "Reshape", "Identity", "Slice", "Split", "Concat", "Pad")


@dataclasses.dataclass(frozen=True)
class Case:
    """One model under one plan: its FP32 graph, the names of the layers to quantize, and its images.

    Attributes:
        plan, groups: the plan's title, and the same for `sit-deploy build --quantize`.
        calibration: folder of pictures, and beside it the same preprocessed, .npy of float32 (n, 3, H, W).
        images: held out, float32 (m, 3, H, W).
        labels: int64 (m,).
        reference: FP32 logits (m, classes).
    """

    name: str
    checkpoint: Path
    plan: str
    groups: str
    data: str
    folder: Path
    graph: Path
    layers: list[str]
    calibration: Path
    calibration_images: int
    images: np.ndarray
    labels: np.ndarray
    reference: np.ndarray


def prepare(checkpoint: Path, count: int, work: Path) -> Case:
    """Export the graph, and write the calibration images where every tool reads the same pixels."""
    from sit_deploy.data.datasets import open_data

    card = read_card(checkpoint)
    if card is None:
        raise click.ClickException(f"{checkpoint} has no model card; take one that `sit-deploy train` wrote")
    source = str(card.training["data"])
    opened = open_data(source)
    folder = work / card.name
    graph, pictures = folder / "fp32.onnx", folder / "calibration"
    shutil.rmtree(pictures, ignore_errors=True)
    pictures.mkdir(parents=True)
    for i in range(count):
        # spread over the training part, whose folders are in class order
        opened.train[i * len(opened.train) // count][0].save(pictures / f"{i:06d}.png")
    ((calibration, _),) = batches(list_images(pictures), card.preprocessing, count)
    np.save(pictures.with_suffix(".npy"), calibration)
    sit_deploy("export", "--checkpoint", checkpoint, "--force", "-o", graph)
    images, labels = held_out(opened.val, card)
    layers = linear_and_conv(onnx.load(graph))
    reference = run_graph(graph, images)
    title, groups, _ = PLANS[0]
    return Case(
        name=card.name, checkpoint=checkpoint, plan=title, groups=groups, data=Path(source).name, folder=folder, graph=graph,
        layers=layers, calibration=pictures, calibration_images=count, images=images, labels=labels, reference=reference,
    )  # fmt: skip


def narrowed(case: Case, plan: str, groups: str, left_float: tuple[str, ...]) -> Case:
    """Return the case with the layers of a plan, and a folder of its own for what comes of it."""
    layers = [name for name in case.layers if not any(fnmatch(name, pattern) for pattern in left_float)]
    folder = case.folder / groups.replace(",", "-")
    folder.mkdir(exist_ok=True)
    return dataclasses.replace(case, plan=plan, groups=groups, layers=layers, folder=folder)


def held_out(samples: Any, card: ModelCard) -> tuple[np.ndarray, np.ndarray]:
    pairs = [samples[i] for i in range(len(samples))]
    ((images, labels),) = batches(pairs, card.preprocessing, len(pairs))
    return images, labels


def sit_deploy(*arguments: Any) -> tuple[float, int]:
    """Run our command line; return wall seconds and peak memory in bytes."""
    return run([sys.executable, "-m", "sit_deploy", *map(str, arguments)])


# ------------------------------------------------------------------------------------------------------- quantizers


def ours(case: Case, output: Path) -> dict[str, Any]:
    """Quantize by the public command line, and take the graph out of the bundle.

    Its seconds and memory are of the whole command: PyTorch, export, calibration, comparisons and the engine.
    """
    bundle = case.folder / "bundle"
    seconds, peak = sit_deploy(
        "build", "--checkpoint", case.checkpoint, "--precision", "int8", "--quantize", case.groups, "--engine", "onnxruntime",
        "--calib-data", case.calibration, "--calib-images", case.calibration_images, "--force", "-o", bundle,
    )  # fmt: skip
    shutil.copyfile(bundle / "model.onnx", output)
    return {"seconds": seconds, "process_seconds": seconds, "peak_bytes": peak, "versions": {}}


def peer(case: Case, who: str, method: str, output: Path, python: Path) -> dict[str, Any]:
    """Have a peer quantize in its own environment and a process of its own."""
    images = case.calibration.with_suffix(".npy")
    return quantize(
        who, python, graph=case.graph, output=output, method=method, layers=case.layers, images=images
    )


# ------------------------------------------------------------------------------------------------- what came of them


def quantized_nodes(model: onnx.ModelProto) -> tuple[set[str], int]:
    """Return the layers whose input and weight are both dequantized, and how many other nodes have such an input."""
    producers = {name: node for node in model.graph.node for name in node.output}
    constants = {tensor.name for tensor in model.graph.initializer}

    def origin(name: str) -> onnx.NodeProto | None:
        node = producers.get(name)
        while node is not None and node.op_type in CARRIERS:
            node = producers.get(node.input[0])
        return node

    def is_constant(name: str) -> bool:
        node = producers.get(name)
        if node is None:
            return name in constants
        return node.op_type == "Constant" or all(is_constant(n) for n in node.input if n)

    layers, others = set(), 0
    for node in model.graph.node:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear", *CARRIERS):
            continue
        moving = [name for name in node.input if name and not is_constant(name)]
        dequantized = {n for n in node.input[:2] if (o := origin(n)) and o.op_type == "DequantizeLinear"}
        if node.op_type in LAYER_TYPES and len(moving) == 1 and len(dequantized) == 2:
            layers.add(node.name)
        elif dequantized.intersection(moving):
            others += 1
    return layers, others


def run_graph(path: Path, images: np.ndarray, optimize: bool = True) -> np.ndarray:
    """Return the logits, float32 (n, classes), of images taken one at a time."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    if not optimize:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return np.concatenate([session.run(None, {name: image[None]})[0] for image in images]).astype(np.float32)


def sqnr_db(logits: np.ndarray, reference: np.ndarray) -> float:
    """Return the power of the reference over that of the error, in dB."""
    reference = reference.astype(np.float64)
    return float(10 * np.log10(np.square(reference).sum() / np.square(logits - reference).sum()))


def figures(case: Case, path: Path) -> dict[str, Any]:
    """Return what the quantized graph is worth.

    sqnr_db: by ONNX Runtime with all its optimisations, thus with integer kernels; sqnr_db_unoptimized: node by node as
    the graph says. The difference is the runtime's doing.
    """
    layers, others = quantized_nodes(onnx.load(path))
    logits = run_graph(path, case.images)
    plain = run_graph(path, case.images, optimize=False)
    return {
        "layers": len(layers),
        "other_nodes": others,
        "same_layers": layers == set(case.layers),
        "sqnr_db": sqnr_db(logits, case.reference),
        "sqnr_db_unoptimized": sqnr_db(plain, case.reference),
        **accuracy(logits, case.reference, case.labels),
    }


def measure(case: Case, who: str, method: str, work: Path) -> dict[str, Any]:
    """Return one row: made, or taken from WORK, and evaluated; or why it failed."""
    output = case.folder / f"{who}-{method}.onnx"
    kept = output.with_suffix(".json")
    if who == OURS or not kept.exists():
        try:
            made = (
                ours(case, output) if who == OURS else peer(case, who, method, output, environment(who, work))
            )
        except RuntimeError as error:
            return {"failed": str(error)}
        kept.write_text(json.dumps({**made, **figures(case, output)}), encoding="utf-8")
    return json.loads(kept.read_text(encoding="utf-8"))


def compare(case: Case, rows: tuple[tuple[str, str, str], ...], work: Path) -> dict[str, Any]:
    """Return one model's rows under what they have in common."""
    measured = []
    for who, method, title in rows:
        row = {"by": who, "method": method, "title": title, **measure(case, who, method, work)}
        print(
            f"{case.name}: {title}: {row.get('failed') or format(row['sqnr_db'], '.2f') + ' dB'}", flush=True
        )
        measured.append(row)
    return {
        "model": case.name,
        "data": case.data,
        "calibration_images": case.calibration_images,
        "held_out_images": len(case.labels),
        "top1": 100 * float((case.reference.argmax(1) == case.labels).mean()),
        "layers": len(case.layers),
        "plan": case.plan,
        "rows": measured,
    }


# ---------------------------------------------------------------------------------------------------------- results


def table(case: dict[str, Any]) -> str:
    """Return one model's Markdown table."""
    lines = [
        f"{case['model']}, {case['data']}: {case['calibration_images']} calibration images, "
        f"{case['held_out_images']} held out, FP32 top-1 {case['top1']:.2f} %. INT8: {case['plan']}",
        "",
        "| INT8 by | layers | other nodes | SQNR dB | top-1 % | drop | same class % | seconds | peak GB |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in case["rows"]:
        if "failed" in row:
            lines.append(f"| {row['title']} | failed: {row['failed']} |" + " |" * 7)
            continue
        # figures of other layers than asked for must not pass for a comparison
        other = "" if row["same_layers"] or row["method"] == "default" else " (OTHER LAYERS)"
        lines.append(
            f"| {row['title']}{other} | {row['layers']} | {row['other_nodes']} | {row['sqnr_db']:.1f} | {row['top1']:.2f} "
            f"| {row['drop']:.2f} | {row['agreement']:.2f} | {row['seconds']:.0f} | {row['peak_bytes'] / 1e9:.2f} |"
        )
    return "\n".join(lines)


@click.command()
@click.argument("work", type=click.Path(path_type=Path))
@click.argument("checkpoints", nargs=-1, required=True, type=click.Path(exists=True, path_type=Path))
@click.option("--calib-images", default=256, show_default=True)
def main(work: Path, checkpoints: tuple[Path, ...], calib_images: int) -> None:
    """Quantize each checkpoint by every tool, and compare."""
    work = work.absolute()
    same_layers = tuple(row for row in ROWS if row[1] != "default")
    cases = []
    for checkpoint in checkpoints:
        case = prepare(checkpoint.absolute(), calib_images, work)
        cases.append(compare(case, ROWS, work))
        cases += [compare(narrowed(case, *plan), same_layers, work) for plan in PLANS[1:]]
    result = {
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
        "command": f"python benchmarks/quantization_peers.py WORK CHECKPOINT... --calib-images {calib_images}",
        "machine": dataclasses.asdict(machine()),
        "vnni": has_vnni(),
        "versions": {
            "python": sys.version.split()[0],
            **{p: version(p) for p in ("onnxruntime", "onnx", "numpy")},
        },
        "cases": cases,
    }
    RESULTS.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    text = "\n\n".join(map(table, cases))
    about = (
        f"`{result['command']}`, {result['date']}, {result['machine']['cpu_model']}, ONNX Runtime "
        f"{result['versions']['onnxruntime']}. Peers' versions are in benchmarks/peers/requirements-*.txt. Seconds and memory are "
        "of the whole `sit-deploy build` here, with export, checks and timing, and of the quantizer's call alone for the others."
    )
    write_between("quantization.md", "peers", f"{about}\n\n{text}")
    print("\n" + text)


def has_vnni() -> bool:
    """Whether this CPU adds products of bytes without saturating the sum of two at 16 bits."""
    flags = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    return "avx512_vnni" in flags or "avx_vnni" in flags


if __name__ == "__main__":
    main()
