"""Which of timm's vision transformers are taken, and how: every name, on shapes alone; and errors of the smallest of each family.

    python benchmarks/model_sweep.py                 # the sweep; docs/models.md is written of it
    python benchmarks/model_sweep.py --measure       # errors too: the smallest name of each family, random weights, small images

The sweep makes every name on the meta device, without weights, and slims it where it can be. What is measured is the path of a
build in float32 and float16: deploy form, ONNX graph on ONNX Runtime, and the same graph rounded to float16, in
standard deviations of the logits. Results go to benchmarks/results/model_sweep.json.
"""

from __future__ import annotations

import datetime
import json
import sys
import time
from collections import Counter
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

import click
import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.documents import write_between  # noqa: E402

RESULTS = ROOT / "benchmarks/results/model_sweep.json"
LARGE = 100  # millions of parameters, from which two blocks are measured and not all
SLIMMED, WHOLE, REFUSED = "slimmed", "whole", "refused"


@dataclass(frozen=True)
class Found:
    """What becomes of one name.

    Attributes:
        module: of timm, that makes it.
        kind: SLIMMED (and taken unslimmed), WHOLE (taken as it is) or REFUSED.
        reason: what keeps it from slimming, or from being taken at all.
        passed: what its blocks have that is deployed as PyTorch writes it.
        parts: what its architecture is made of, by timm's names of the classes.
        head: what its head reads.
        classes: outputs of its head by default; 0 for an embedding model.
        million: parameters, in millions.
        image_size: side in pixels.
    """

    name: str
    module: str
    kind: str
    reason: str | None = None
    passed: str | None = None
    parts: str = ""
    head: str = ""
    classes: int = 0
    million: float = 0.0
    image_size: int = 0


def sweep_one(name: str, module: str) -> Found:
    """Take a name as a build does, without weights."""
    import torch

    from sit_deploy.errors import InputError
    from sit_deploy.models import create_model, get_config
    from sit_deploy.models.config import example_stages
    from sit_deploy.models.timm_vit import why_not_rewritten

    try:
        with torch.device("meta"):
            config = get_config(name)
            stages = config.stage_blocks if config.unslimmable else example_stages(config.depth)
            model = create_model(config, stage_blocks=stages)
    except InputError as error:
        return Found(name, module, REFUSED, str(error))
    passed = None if config.unslimmable else next(filter(None, map(why_not_rewritten, model.blocks)), None)
    return Found(
        name,
        module,
        WHOLE if config.unslimmable else SLIMMED,
        config.unslimmable,
        passed,
        _parts(model),
        str(getattr(model, "global_pool", "")),
        config.num_classes,
        round(sum(p.numel() for p in model.parameters()) / 1e6, 1),
        config.image_size,
    )


def _parts(model: object) -> str:
    """Return the classes of a model's blocks, attention, MLP and rotary positions, and of a network that makes its patches."""
    block = model.blocks[0]
    parts = [block, getattr(block, "attn", None), getattr(block, "mlp", None), getattr(model, "rope", None)]
    if backbone := getattr(getattr(model, "patch_embed", None), "backbone", None):
        parts.append(backbone)
    return ", ".join(type(part).__name__ for part in parts if part is not None)


def measure(found: Found, image_size: int) -> dict[str, float]:
    """Return errors of a name's deploy form and of its graphs, in standard deviations of the logits, with random weights."""
    import onnxruntime
    import torch

    from sit_deploy.errors import InputError
    from sit_deploy.graph.deploy_form import to_deploy_form
    from sit_deploy.graph.export import export_onnx
    from sit_deploy.graph.lint import check
    from sit_deploy.graph.precision import to_precision
    from sit_deploy.graph.simulate import simulate
    from sit_deploy.models import create_model
    from tests.helpers.models import randomise

    with torch.no_grad():
        try:
            name = f"{found.name}:depth=2" if found.million > LARGE else found.name
            model = create_model(name, num_classes=10, img_size=image_size)
        except InputError:  # what its blocks are made of is said for each
            model = create_model(found.name, num_classes=10, img_size=image_size)
        model = randomise(model).eval()
        images = torch.randn(2, 3, *model.img_size, generator=torch.Generator().manual_seed(1))
        reference = model(images).numpy()
        form = to_deploy_form(model)
        made = {"deploy form": form(images).numpy()}
        graph = export_onnx(form, model.img_size, batch=2)
    check(graph)
    half, _ = to_precision(graph, "fp16")
    check(half)
    for name, written in (("fp32", graph), ("fp16", simulate(half))):
        session = onnxruntime.InferenceSession(
            written.SerializeToString(), providers=["CPUExecutionProvider"]
        )
        (made[name],) = session.run(None, {"images": images.numpy()})
    errors = {name: float(np.abs(y - reference).max() / reference.std()) for name, y in made.items()}
    cosine = float(
        (made["fp16"] * reference).sum() / np.linalg.norm(made["fp16"]) / np.linalg.norm(reference)
    )
    return {**errors, "fp16 cosine": cosine, "image size": image_size, "depth": model.depth}


def smallest(rows: list[Found]) -> dict[tuple[str, ...], Found]:
    """Return the name of fewest parameters of each family: of the same module, parts and head."""
    chosen: dict[tuple[str, ...], Found] = {}
    for row in sorted((r for r in rows if r.kind != REFUSED), key=lambda r: (r.million, r.name)):
        chosen.setdefault(_family(row), row)
    return chosen


def _family(row: Found) -> tuple[str, ...]:
    return row.module, row.parts, row.head, row.passed or ""


def table_of_modules(rows: list[Found]) -> str:
    lines = ["| module of timm | names | slimmed | taken whole | refused |", "|---|---|---|---|---|"]
    for module in (*dict.fromkeys(row.module for row in rows), "all"):
        kinds = Counter(row.kind for row in rows if module in (row.module, "all"))
        lines.append(f"| {module} | {kinds.total()} | {kinds[SLIMMED]} | {kinds[WHOLE]} | {kinds[REFUSED]} |")
    return "\n".join(lines)


def table_of_families(rows: list[Found], errors: dict[str, dict[str, float]]) -> str:
    """One line a family: how many names, how it is taken, and the errors of its smallest."""
    counts = Counter(_family(row) for row in rows)
    lines = [
        "| module | parts | head reads | names | taken | smallest | fp32 | fp16 | cosine |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for family, row in sorted(smallest(rows).items()):
        taken = row.kind + (f"; as PyTorch writes them: {row.passed}" if row.passed else "")
        found = errors.get(row.name)
        of_two = ", two blocks" if found and found["depth"] == 2 else ""
        shown = (
            "not measured | | "
            if found is None
            else f"{found['fp32']:.1e} | {found['fp16']:.1e} | {found['fp16 cosine']:.6f}"
        )
        lines.append(
            f"| {row.module} | {row.parts} | {row.head} | {counts[family]} | {taken} | {row.name}{of_two} | {shown} |"
        )
    return "\n".join(lines)


def table_of_names(rows: list[Found]) -> str:
    lines = ["| name | taken | parameters, M | image | classes |", "|---|---|---|---|---|"]
    for row in rows:
        taken = {SLIMMED: "slimmed", WHOLE: f"whole: {row.reason}", REFUSED: f"refused: {row.reason}"}[
            row.kind
        ]
        lines.append(
            f"| {row.name} | {taken} | {row.million:g} | {row.image_size} | {row.classes or 'none'} |"
        )
    return "\n".join(lines)


def _image_size(row: Found) -> int:
    """Return a small size that a model takes: six patches or seven, of windows of a SAM two."""
    from sit_deploy.models import get_config

    side = get_config(row.name).patch_size
    return side * (14 if row.module.endswith("sam") else 6)


@click.command(help=__doc__, context_settings={"max_content_width": 120})
@click.option(
    "--measure", "with_errors", is_flag=True, help="Measure the smallest of each family too (minutes)."
)
@click.option(
    "--only",
    default="",
    help="Measure families whose smallest name has this in it; others keep their figures.",
)
@click.option("--missing", is_flag=True, help="Measure only what has no figures yet.")
def main(with_errors: bool, only: str, missing: bool) -> None:
    import timm

    started = time.monotonic()
    from sit_deploy.models.timm_vit import MODULES

    rows = [sweep_one(name, module) for module in MODULES for name in timm.list_models(module=module)]
    seconds = time.monotonic() - started
    click.echo(f"{len(rows)} names in {seconds:.0f} s: {dict(Counter(row.kind for row in rows))}")
    kept = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}
    measured = {row.name for row in smallest(rows).values()}
    errors = {name: found for name, found in kept.get("errors", {}).items() if name in measured}
    for row in smallest(rows).values() if with_errors else ():
        if only not in row.name or (missing and row.name in errors):
            continue
        try:
            errors[row.name] = measure(row, _image_size(row))
            click.echo(f"{row.name}: {errors[row.name]}")
            RESULTS.write_text(json.dumps({**kept, "errors": errors}, indent=1) + "\n", encoding="utf-8")
        except Exception as error:  # one family's failure is a result, and the others are still wanted
            errors.pop(row.name, None)
            click.echo(f"{row.name}: FAILED, {type(error).__name__}: {str(error)[:300]}", err=True)
    versions = {name: version(name) for name in ("timm", "torch", "onnx", "onnxruntime")}
    result = {
        "date": datetime.date.today().isoformat(),
        "versions": versions,
        "seconds": round(seconds, 1),
        "names": [asdict(row) for row in rows],
        "errors": errors,
    }
    RESULTS.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    write_between("models.md", "modules", table_of_modules(rows))
    write_between("models.md", "families", table_of_families(rows, errors))
    write_between("models.md", "names", table_of_names(rows))


if __name__ == "__main__":
    main()
