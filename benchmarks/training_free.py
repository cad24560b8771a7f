"""Slimming without training: accuracy against tokens kept, of token transformation and of bipartite merging.

    python benchmarks/training_free.py WORK...      # WORK: folders of benchmarks/frd_ablation.py, whose teachers are slimmed

Each folder has a teacher of plain digits (`plain`) and one of cluttered digits (`teacher`), and the images of the latter. Each is slimmed
after every quarter of its blocks, so that each stage keeps a share of the tokens of the stage before, in PyTorch in FP32, on all
held-out images. Nothing is trained and nothing drawn at random, so there are no seeds. MACs are those of `sit_deploy.models.cost`.
Results go to benchmarks/results/training_free.json, the tables to docs/slimming.md.
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

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.documents import write_between  # noqa: E402
from engines.timing import machine  # noqa: E402

RATIOS = (0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3)
METHODS = ("transform", "merge")
BATCH = 50


def held_out(weights: Path, data: str) -> tuple[Any, Any]:
    """Return all held-out images (N, 3, H, W) as a checkpoint's card has them prepared, and their labels (N,)."""
    import torch

    from sit_deploy.data.datasets import open_data
    from sit_deploy.models.card_file import read_card
    from training.loaders import HeldOut

    images = HeldOut(open_data(data).val, read_card(weights).preprocessing, 0)
    pairs = [images[i] for i in range(len(images))]
    return torch.stack([torch.as_tensor(p[0]) for p in pairs]), torch.tensor([p[1] for p in pairs])


def logits_of(model: Any, images: Any) -> Any:
    """Return the logits of images, in batches."""
    import torch

    with torch.inference_mode():
        return torch.cat([model(part) for part in images.split(BATCH)])


def measure(weights: Path, data: str) -> dict[str, Any]:
    """Return the accuracy of a teacher, and of each way of slimming it."""
    from sit_deploy.models.card_file import read_card
    from sit_deploy.models.catalog import get_config
    from sit_deploy.models.cost import cost
    from sit_deploy.models.load import load_model

    card = read_card(weights)
    images, labels = held_out(weights, data)
    taught = logits_of(load_model(card.name, weights, card.image_size).model, images)

    def figures(logits: Any) -> dict[str, float]:
        right, same = (
            (logits.argmax(1) == other).float().mean().item() for other in (labels, taught.argmax(1))
        )
        p, q = (t.log_softmax(1) for t in (taught, logits))
        return {"top1": 100 * right, "agreement": 100 * same, "kl": (p.exp() * (p - q)).sum(1).mean().item()}

    size, classes = card.image_size, card.num_classes
    whole = cost(get_config(card.name), size, classes).macs
    depth = get_config(card.name).depth
    result = {"model": card.name, "images": len(labels), "macs": whole, **figures(taught), "slimmed": []}
    print(f"{card.name}, {data}: {result['top1']:.2f} %", flush=True)
    for ratio in RATIOS:
        for method in METHODS:
            slimming = {"stages": (depth // 4,) * 4, "keeping_ratio": ratio, "method": method}
            config = get_config(card.name, **slimming)
            model = load_model(card.name, weights, size, **slimming).model
            row = {
                "method": method,
                "stages": list(config.stage_blocks),
                "tokens": list(config.tokens(size)),
                "fewer_macs": whole / cost(config, size, classes).macs,
                **figures(logits_of(model, images)),
            }
            row["of_teacher"] = 100 * row["top1"] / result["top1"]
            result["slimmed"].append(row)
            print(
                f"  {method:9} {'/'.join(map(str, row['tokens'])):12} {row['fewer_macs']:.2f}x fewer MACs: {row['top1']:6.2f} %, "
                f"{row['of_teacher']:6.2f} % of the teacher's, agreement {row['agreement']:6.2f} %, KL {row['kl']:.4f}",
                flush=True,
            )
    return result


def table(result: dict[str, Any]) -> str:
    """Return the tables of docs/slimming.md: a row for each count of tokens, both methods side by side."""
    parts = [
        f"Written by `python benchmarks/training_free.py` ({result['date']}; PyTorch {result['versions']['torch']}, FP32), every run in\n"
        "[json](../benchmarks/results/training_free.json). Of the teacher's: its top-1 is 100 %. Agreement: same class as the teacher."
    ]
    for task in result["tasks"]:
        parts.append(
            f"{task['model']}, {task['task']}, {task['images']} held-out images, teacher {task['top1']:.2f} %:\n\n"
            "| tokens | fewer MACs | transform: top-1 % | of the teacher's % | agreement % | merge: top-1 % | of the teacher's % | agreement % |\n"
            "|---|---|---|---|---|---|---|---|"
        )
        ways = [[row for row in task["slimmed"] if row["method"] == method] for method in METHODS]
        for rows in zip(*ways, strict=True):
            cells = [f"{row[key]:.2f}" for row in rows for key in ("top1", "of_teacher", "agreement")]
            fewer = " / ".join(dict.fromkeys(f"{row['fewer_macs']:.2f}×" for row in rows))
            parts[-1] += f"\n| {'/'.join(map(str, rows[0]['tokens']))} | {fewer} | {' | '.join(cells)} |"
    return "\n\n".join(parts)


@click.command()
@click.argument("work", nargs=-1, required=True, type=click.Path(path_type=Path, exists=True))
def main(work: tuple[Path, ...]) -> None:
    """Measure every teacher, and write the results."""
    tasks = []
    for folder in work:
        cluttered = next(iter(sorted(folder.glob("data-*"))))
        for task, weights, data in (
            ("plain digits", folder / "plain" / "model.safetensors", "digits"),
            ("cluttered digits", folder / "teacher" / "model.safetensors", str(cluttered)),
        ):
            tasks.append({"task": task, **measure(weights, data)})
    result = {
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
        "tasks": tasks,
        "versions": {name: version(name) for name in ("torch", "timm")},
        "machine": dataclasses.asdict(machine()),
    }
    path = ROOT / "benchmarks" / "results" / "training_free.json"
    path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    write_between("slimming.md", "training-free", table(result))


if __name__ == "__main__":
    main()
