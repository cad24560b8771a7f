"""What precisions do to an embedding: least and mean cosine of its features with PyTorch's, and nearest neighbours, on photographs and on digits.

    python benchmarks/embedding_precisions.py --checkpoint teacher/model.safetensors --photos skimage/data

The photographs are those that scikit-image's wheel and scikit-learn bring; each is cut into nine. Calibrated is on some of them, measured on
others; on scikit-learn's digits likewise (what the model was trained on may be made of the same ones). Graphs run on ONNX Runtime's CPU, the rounding of 16 bits
simulated. Results go to benchmarks/results/embedding_precisions.json and into docs/outputs.md.
"""

from __future__ import annotations

import datetime
import json
import shutil
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.documents import write_between  # noqa: E402

RESULTS = ROOT / "benchmarks/results/embedding_precisions.json"
PRECISIONS = ("fp32", "fp16", "int8")
# photographs by the names of their files; no scene is on both sides
CALIBRATED = ("astronaut", "brick", "camera", "china", "coffee", "motorcycle_left", "rocket")
MEASURED = ("chelsea", "coins", "flower", "grass", "gravel", "hubble_deep_field", "ihc", "moon", "retina")
TILES = 3  # a side
DIGITS = 256  # that are calibrated on


def cut(names: Sequence[str], photos: Path, folder: Path) -> Path:
    """Cut photographs into tiles, in a folder of their own."""
    from PIL import Image
    from sklearn import datasets

    folder.mkdir()
    places = (photos, Path(datasets.__file__).parent / "images")
    for name in names:
        path = next(
            (p for place in places for end in ("png", "jpg") if (p := place / f"{name}.{end}").is_file()),
            None,
        )
        if path is None:
            raise click.ClickException(
                f"{photos} has no {name}.png or {name}.jpg; give the data folder of scikit-image"
            )
        with Image.open(path) as opened:
            picture = opened.convert("RGB")
        width, height = picture.width // TILES, picture.height // TILES
        for i in range(TILES * TILES):
            left, top = i % TILES * width, i // TILES * height
            picture.crop((left, top, left + width, top + height)).save(folder / f"{name}-{i}.png")
    return folder


def digits(folder: Path) -> Path:
    """Write digits of the training part, evenly spread."""
    from sit_deploy.data.datasets import open_data
    from sit_deploy.data.samples import spread_over

    folder.mkdir()
    for number, (picture, _) in enumerate(spread_over(open_data("digits").train, DIGITS)):
        picture.save(folder / f"{number:04}.png")
    return folder


def measure(checkpoint: Path, calibration: Path, data: str, folder: Path) -> list[dict[str, Any]]:
    """Build every precision, and compare them with PyTorch on the same images."""
    from sit_deploy.bundle import load_bundle
    from sit_deploy.inference import Classifier, graph_on_onnxruntime
    from sit_deploy.measure.neighbours import compare_neighbours
    from sit_deploy.models.outputs import with_outputs
    from sit_deploy.outputs import FEATURES
    from sit_deploy.pipeline.build import build
    from sit_deploy.pipeline.request import BuildRequest
    from sit_deploy.validation.checks import open_labelled_for
    from sit_deploy.validation.reference import reference_logits, reference_model

    with ExitStack() as opened:
        candidates = {}
        for precision in PRECISIONS:
            groups = ("default",) if precision == "int8" else None
            request = BuildRequest(
                None, folder / precision, precision, checkpoint, engine="onnxruntime", batch_size=8, outputs=(FEATURES,),
                calib_data=calibration, quantize=groups,
            )  # fmt: skip
            bundle = load_bundle(build(request).path)
            runner = opened.enter_context(graph_on_onnxruntime(bundle.model_path))
            candidates[precision] = opened.enter_context(Classifier(runner, bundle.batch_range)).logits
        model = with_outputs(reference_model(bundle), (FEATURES,))
        samples = open_labelled_for(bundle, data)
        found = compare_neighbours(
            FEATURES, reference_logits(model), candidates, samples, bundle.preprocessing()
        )
    return [
        {
            "precision": name,
            **one.to_dict(),
            "model": bundle.manifest.model.name,
            "parameters": bundle.manifest.model.parameters,
        }
        for name, one in found.items()
    ]


def table(rows: list[dict[str, Any]], model: str, date: str, about: str) -> str:
    lines = [
        f"`{model}`, {rows[0]['parameters'] / 1e6:.1f} million parameters{about}; INT8 in the default groups; {date}. Of photographs its training knew nothing: "
        "cosines of those tell of arithmetic alone. Large models trained on much have channels that stand out, and lose more in INT8: measure yours.",
        "",
        "| images | precision | least cosine | mean | nearest right, PyTorch | engine | same nearest |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        right = ["—" if row[side] is None else f"{row[side]:.2f} %" for side in ("reference", "engine")]
        lines.append(
            f"| {row['images']} {row['what']} | {row['precision']} | {row['cosine_min']:.6f} | {row['cosine_mean']:.6f} | "
            f"{' | '.join(right)} | {row['same_neighbour']:.2f} % |"
        )
    return "\n".join(lines)


@click.command(help=__doc__, context_settings={"max_content_width": 120})
@click.option(
    "--checkpoint", type=click.Path(path_type=Path, exists=True), required=True, help="A model with a card."
)
@click.option(
    "--photos",
    type=click.Path(path_type=Path, exists=True),
    required=True,
    help="scikit-image's data folder.",
)
@click.option(
    "--about",
    default=", trained on cluttered handwritten digits at 112 pixels ([frd.md](frd.md))",
    help="What to say of the model in docs/outputs.md.",
)
def main(checkpoint: Path, photos: Path, about: str) -> None:
    from engines.timing import machine
    from sit_deploy.doctor import versions

    rows = []
    folder = Path(tempfile.mkdtemp(prefix="embedding-precisions-"))
    try:
        sets = (
            (
                "tiles of photographs",
                cut(CALIBRATED, photos, folder / "calibrated"),
                str(cut(MEASURED, photos, folder / "measured")),
            ),
            ("plain digits", digits(folder / "digits"), "digits"),
        )
        for number, (what, calibration, data) in enumerate(sets):
            (folder / str(number)).mkdir()
            found = measure(checkpoint, calibration, data, folder / str(number))
            rows += [{"what": what, **row, "farthest": Path(row["farthest"]).name} for row in found]
    finally:
        shutil.rmtree(folder)
    date, model = datetime.date.today().isoformat(), rows[0]["model"]
    result = {
        "date": date,
        "model": model,
        "about": about,
        "machine": asdict(machine()),
        "versions": versions(),
        "rows": rows,
    }
    RESULTS.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    text = table(rows, model, date, about)
    write_between("outputs.md", "embedding-precisions", text)
    click.echo(text)


if __name__ == "__main__":
    main()
