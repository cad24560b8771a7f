"""Outliers planted into trained models: what FP16, INT8 and FP8 keep of their accuracy, here and by ONNX Runtime's quantizer.

    python benchmarks/outliers.py WORK CHECKPOINT... [--plant NAME]... [--write-docs]

Each checkpoint is one of `sit-deploy train`, whose card says which images it was trained on. `outlier_plants.py` says what is
planted and how; a plant in the TSMs is left out of a model without. Precisions are those of a default build with its number of
training images; FP16 is simulated (`graph/simulate.py`),
8 bits run on ONNX Runtime as the graph says. The peer is `quantize_static` with MinMax: with its own choice of what is
quantized, and on the layers that we quantize. A result that is in WORK is
taken as it is; delete it to make it anew. Figures go to benchmarks/results/outliers.json, the table to docs/quantization.md; models
and plants that are recorded and were not asked for stay as they are.
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

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.documents import write_between  # noqa: E402
from benchmarks.held_out import accuracy, shown  # noqa: E402
from engines.timing import machine  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results" / "outliers.json"
CALIBRATION_IMAGES = 256
TRAINING_IMAGES = 1500  # at most, of a planted model's two epochs
# title → precision, and the type of the rest
OURS = {
    "FP16": ("fp16", None),
    "INT8": ("int8", "fp32"),
    "INT8, rest FP16": ("int8", "fp16"),
    "FP8, rest FP16": ("fp8", "fp16"),
}
PEERS = {"ONNX Runtime, its own choice": "default", "ONNX Runtime, our layers": "minmax"}


class Data:
    """The images that a checkpoint was trained on and those held out, prepared as it wants them."""

    def __init__(self, checkpoint: Path, work: Path) -> None:
        import numpy as np

        from sit_deploy.data.datasets import open_data
        from sit_deploy.models.card_file import read_card

        self.card = read_card(checkpoint)
        if self.card is None:
            raise click.ClickException(
                f"{checkpoint} has no model card; take one that `sit-deploy train` wrote"
            )
        self.name = str(self.card.training["data"]).rpartition("/")[2]
        opened = open_data(str(self.card.training["data"]))
        prepare = self.card.preprocessing
        spread = np.linspace(0, len(opened.train), min(TRAINING_IMAGES, len(opened.train)), endpoint=False)
        parts = [[opened.train[int(i)] for i in spread], shown(opened.val)]
        (self.train, self.train_labels), (self.val, self.labels) = (
            (np.stack([prepare(image) for image, _ in pairs]), np.array([label for _, label in pairs]))
            for pairs in parts
        )
        self.calibration = work / "calibration"
        self.calibration.mkdir(parents=True, exist_ok=True)
        count = min(CALIBRATION_IMAGES, len(opened.train))
        for i in range(count):
            opened.train[i * len(opened.train) // count][0].save(self.calibration / f"{i:04}.png")
        self.calibrated = np.stack(
            [prepare(opened.train[i * len(opened.train) // count][0]) for i in range(count)]
        )


def plant(checkpoint: Path, name: str, data: Data, work: Path) -> Path:
    """Plant outliers into a checkpoint, train it again where that has to be; return the new one, made where it is not there."""
    import torch

    from benchmarks.outlier_plants import PLANTS, train
    from sit_deploy.models.card_file import save_weights
    from sit_deploy.models.load import load_model

    path = work / "model.safetensors"
    if path.exists():
        return path
    work.mkdir(parents=True, exist_ok=True)
    chosen = PLANTS[name]
    model = load_model(data.card.name, checkpoint, data.card.image_size, stages=data.card.stages).model
    torch.manual_seed(0)
    images, labels = torch.from_numpy(data.train), torch.from_numpy(data.train_labels)
    chosen.edit(model, images[:: max(1, len(images) // 256)])
    if chosen.retrain:
        train(model, images, labels)
    save_weights(path, model.state_dict(), data.card)
    return path


def lower_all(checkpoint: Path, data: Data, work: Path) -> tuple[Any, dict[str, Any]]:
    """Write each precision into the graph of a checkpoint as `sit-deploy build` does by default.

    Returns:
        The FP32 graph, and by title what was made, or the sentence that it was refused with.
    """
    import engines
    from calibration.errors import CalibrationError
    from sit_deploy.errors import GateError
    from sit_deploy.pipeline.calibration import make_quantization
    from sit_deploy.pipeline.float_graph import make_float_graph
    from sit_deploy.pipeline.lower import lower, lower_quantized
    from sit_deploy.pipeline.request import BuildRequest
    from sit_deploy.pipeline.work import Work

    folder = work / "graphs"
    shutil.rmtree(folder, ignore_errors=True)  # with ranges of another graph, maybe
    folder.mkdir(parents=True)
    request = BuildRequest(None, folder, "fp32", checkpoint, calib_data=data.calibration).completed()
    made = make_float_graph(Work(request, lambda *_: None), folder)
    found: dict[str, Any] = {}
    for title, (precision, rest) in OURS.items():
        # the same ranges for every engine; what it does with them is its own
        cache = folder / f"{precision}.json"
        asked = dataclasses.replace(
            request, precision=precision, rest=rest, calib_cache=cache if rest else None
        )
        engine = engines.get("tensorrt-rtx" if rest == "fp16" else "onnxruntime") if rest else None
        job = Work(asked, lambda *_: None, engine=engine)
        try:
            if rest is None:
                found[title] = lower(job, made, folder)
                continue
            found[title] = lower_quantized(job, made, make_quantization(job, made), folder)
        except (GateError, CalibrationError) as error:
            found[title] = str(error)
    return made.graph, found


def logits_of(graph: Any, images: Any) -> Any:
    """Return logits of a graph, its 16-bit rounding simulated."""
    import numpy as np

    from calibration.session import ImageSession, at_batch_one
    from sit_deploy.graph.simulate import simulate

    session = ImageSession(at_batch_one(simulate(graph)))
    return np.concatenate([session.run(image[None])[0] for image in images])


def judged(logits: Any, reference: Any, labels: Any) -> dict[str, Any]:
    """Return what logits are worth beside those of FP32."""
    import numpy as np

    finite = np.isfinite(logits).all()
    noise = np.square(logits.astype(np.float64) - reference).mean() if finite else np.inf
    return {
        **accuracy(logits, reference, labels),
        "sqnr_db": float(10 * np.log10(np.square(reference.astype(np.float64)).mean() / noise))
        if noise and finite
        else None,
        "not_finite": int((~np.isfinite(logits).all(1)).sum()),
    }


def largest(graph: Any, images: Any) -> dict[str, float]:
    """Return the largest |x| of some kinds of activation over images."""
    from calibration.ranges import observe_ranges
    from calibration.session import at_batch_one

    single = at_batch_one(graph)
    ranges = observe_ranges(single, [images[i : i + 1] for i in range(len(images))])
    adds = {o for n in single.graph.node if n.op_type == "Add" for o in n.output}
    norms = {n.input[0] for n in single.graph.node if n.op_type == "LayerNormalization"}
    softmax = {n.input[0] for n in single.graph.node if n.op_type == "Softmax"}
    gelu = {o for n in single.graph.node if n.op_type == "Gelu" for o in n.output}
    kinds = {"residual": adds & norms, "fc2 input": gelu, "softmax input": softmax}
    return {
        kind: max((ranges[n].absmax for n in names if n in ranges), default=0.0)
        for kind, names in kinds.items()
    }


def compare(checkpoint: Path, data: Data, name: str, work: Path, peers: dict[str, str]) -> dict[str, Any]:
    """Return the rows of one planted model."""
    import onnx

    from benchmarks.outlier_plants import PLANTS
    from calibration.layers import find_layers
    from calibration.plan import make_plan
    from sit_deploy.errors import GateError

    kept = work / "result.json"
    if kept.exists():
        return json.loads(kept.read_text(encoding="utf-8"))
    planted = plant(checkpoint, name, data, work)
    try:
        graph, made = lower_all(planted, data, work)
    except GateError as error:  # of the FP32 graph
        refused = {"plant": name, "title": PLANTS[name].title, "failed": str(error), "rows": []}
        kept.write_text(json.dumps(refused), encoding="utf-8")
        return refused
    onnx.save(graph, work / "fp32.onnx")
    reference = logits_of(graph, data.val)
    result: dict[str, Any] = {
        "plant": name, "title": PLANTS[name].title, "top1": 100 * float((reference.argmax(1) == data.labels).mean()),
        "largest": largest(graph, data.val[:: max(1, len(data.val) // 360)]), "rows": [],
    }  # fmt: skip
    print(f"{data.card.name} {name}: FP32 {result['top1']:.2f} {result['largest']}", flush=True)
    for title, outcome in made.items():
        row: dict[str, Any] = {"by": "sit-deploy", "title": title}
        if isinstance(outcome, str):
            row["failed"] = outcome
        else:
            low = outcome
            row |= judged(logits_of(low.graph, data.val), reference, data.labels)
            row["held_back"] = [n.node for n in low.plan.held_back]
            if low.quantization:
                row["method"] = low.quantization.quantizer.method
                row["kept_for_outliers"] = list(low.quantization.quantizer.plan.kept_for_outliers)
        result["rows"].append(row)
        print("  ", title, {k: v for k, v in row.items() if k not in ("by", "title")}, flush=True)
    names = make_plan(find_layers(graph)).quantized
    for title, method in peers.items():
        row = {"by": "onnxruntime", "title": title, **peer(work / "fp32.onnx", method, names, data, work)}
        if "failed" not in row:
            row |= judged(logits_of(onnx.load(row.pop("output")), data.val), reference, data.labels)
        result["rows"].append(row)
        print("  ", title, row, flush=True)
    kept.write_text(json.dumps(result), encoding="utf-8")
    return result


def peer(graph: Path, method: str, layers: Any, data: Data, work: Path) -> dict[str, Any]:
    """Have ONNX Runtime quantize the FP32 graph on the same images, in a process of its own."""
    import numpy as np

    from benchmarks.peer_environments import quantize

    images, output = work / "calibration.npy", work / f"onnxruntime-{method}.onnx"
    np.save(images, data.calibrated)
    try:
        quantize(
            "onnxruntime",
            Path(sys.executable),
            output=output,
            graph=graph,
            method=method,
            layers=list(layers),
            images=images,
        )
    except RuntimeError as error:
        return {"failed": str(error)}
    return {"output": str(output)}


def cell(row: dict[str, Any]) -> str:
    """Return what is lost, in points, and the logits' ratio."""
    if "failed" in row:
        return "refused"
    if row["not_finite"]:
        return f"{row['drop']:.2f}, {row['not_finite']} images NaN"
    return f"{row['drop']:.2f} ({row['sqnr_db']:.0f} dB)"


def table(model: dict[str, Any]) -> str:
    """Return one model's Markdown table."""
    titles = list(dict.fromkeys(row["title"] for plant in model["plants"] for row in plant["rows"]))
    lines = [
        f"{model['model']}, trained on {model['data']}, {model['calibration_images']} calibration images, {model['date']}: FP32 top-1 on "
        f"{model['held_out_images']} held-out pictures, and the points that each loses of it (SQNR of the logits).",
        "",
        f"| planted | largest value behind GELU | FP32 | {' | '.join(titles)} |",
        f"|---|---|---|{'---|' * len(titles)}",
    ]
    for plant in model["plants"]:
        if "failed" in plant:
            lines.append(
                f"| {plant['title']} | refused: {plant['failed'].partition(';')[0]} | |{' |' * len(titles)}"
            )
            continue
        found = {row["title"]: cell(row) for row in plant["rows"]}
        cells = " | ".join(found.get(title, "not run") for title in titles)
        lines.append(
            f"| {plant['title']} | {plant['largest']['fc2 input']:.0f} | {plant['top1']:.2f} | {cells} |"
        )
    return "\n".join(lines)


def with_recorded(models: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return models with those that are recorded and their plants, in the order of PLANTS.

    Raises:
        ClickException: recorded plants of such a model were measured otherwise.
    """
    from benchmarks.outlier_plants import PLANTS

    if not RESULTS.exists():
        return models
    recorded = json.loads(RESULTS.read_text(encoding="utf-8"))
    known = {(m["model"], m["data"]): {"date": recorded["date"], **m} for m in recorded["models"]}
    for model in models:
        before = known.get((model["model"], model["data"]))
        plants = {plant["plant"]: plant for plant in model["plants"]}
        if before and (kept := [plant for plant in before["plants"] if plant["plant"] not in plants]):
            if any(before[name] != model[name] for name in ("held_out_images", "calibration_images")):
                raise click.ClickException(f"{model['model']} was recorded otherwise; leave --plant out")
            plants |= {plant["plant"]: plant for plant in kept}
        ordered = [plants[name] for name in PLANTS if name in plants]
        known[model["model"], model["data"]] = {**model, "plants": ordered}
    return list(known.values())


@click.command()
@click.argument("work", type=click.Path(path_type=Path))
@click.argument("checkpoints", nargs=-1, required=True, type=click.Path(exists=True, path_type=Path))
@click.option("--plant", "plants", multiple=True, help="Some of them, in this order; all by default.")
@click.option("--ours", is_flag=True, help="Leave ONNX Runtime's quantizer out.")
@click.option("--write-docs", is_flag=True, help="Write the results and the table of docs/quantization.md.")
def main(
    work: Path, checkpoints: tuple[Path, ...], plants: tuple[str, ...], ours: bool, write_docs: bool
) -> None:
    """Plant outliers into each checkpoint, lower it, and compare."""
    from benchmarks.outlier_plants import PLANTS

    if unknown := [name for name in plants if name not in PLANTS]:
        raise click.BadParameter(
            f"there is no plant {unknown[0]!r}; there are {', '.join(PLANTS)}", param_hint="--plant"
        )
    models = []
    for checkpoint in checkpoints:
        folder = work.absolute() / checkpoint.parent.name
        data = Data(checkpoint.absolute(), folder)
        models.append(
            {
                "model": data.card.name,
                "data": data.name,
                "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
                "held_out_images": len(data.labels),
                "calibration_images": CALIBRATION_IMAGES,
                "plants": [
                    compare(
                        checkpoint.absolute(),
                        data,
                        name,
                        folder / name.replace(" ", "-"),
                        {} if ours else PEERS,
                    )
                    for name in plants or PLANTS
                    if (len(data.card.stages) > 1 or not PLANTS[name].slimmed)
                ],
            }
        )
    result = {
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
        "command": "python benchmarks/outliers.py WORK CHECKPOINT...",
        "machine": dataclasses.asdict(machine()),
        "versions": {p: version(p) for p in ("onnxruntime", "onnx", "numpy", "torch")},
        "models": with_recorded(models),
    }
    tables = "\n\n".join(table(model) for model in result["models"])
    print(tables)
    if write_docs:
        RESULTS.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
        heading = f"`{result['command']}`, {result['machine']['cpu_model']}, ONNX Runtime {result['versions']['onnxruntime']}."
        write_between("quantization.md", "outliers", f"{heading}\n\n{tables}")


if __name__ == "__main__":
    main()
