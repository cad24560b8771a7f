"""Token schedules that a search finds against the paper's, at equal latency and after the same FRD.

    python benchmarks/found_schedules.py find WORK      # a latency table, then what keeps each paper schedule's time: a quiet machine
    python benchmarks/found_schedules.py train WORK --jobs 2
    python benchmarks/found_schedules.py write WORK     # benchmarks/results/found_schedules.json, and the table of docs/search.md

WORK is a folder of benchmarks/frd_ablation.py: a teacher (`teacher`) and labelled images (`data-…`, with `train` and `val`); a folder for each
model and task, and `write` adds to what is there. The paper's schedules halve the tokens, after blocks 2, 4 and 6 or after each of the first three. For the latency of each
`sit_deploy.search` finds another one: closest to the teacher by token transformation, on training images without their labels. All are
students with TSMs in the end, so it is their engines that are equally fast, as measured, and not those of the transformation.
Then both are trained: same teacher, images, seeds, recipe, from fitted TSMs. A script that is stopped goes on where it was.
"""

from __future__ import annotations

import dataclasses
import datetime
import json
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import click

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from documents import write_between  # noqa: E402
from frd_ablation import PICTURES, train  # noqa: E402
from warm_start import few_images  # noqa: E402

from engines.timing import machine  # noqa: E402
from sit_deploy.latency.schedule import Schedule  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results" / "found_schedules.json"
ENGINE = "onnxruntime"  # where predictions were nearest: docs/latency-table.md
LR = 0.004  # at a batch of 512: from fitted TSMs a quarter of what was best from new ones, which undoes what the fit gave
EVEN = 0.02  # that the found one may be slower, as timed
TRIES = 4  # at one that is not


def paper_schedules(depth: int, patches: int) -> dict[str, Schedule]:
    """Return the paper's two kinds, by name: stages of equal length, and a slimming after each of the first three blocks."""
    kept = tuple(patches >> i for i in range(4))
    quarter = depth // 4
    return {
        "equal stages": Schedule((quarter,) * 4, kept),
        "first blocks": Schedule((1, 1, 1, depth - 3), kept),
    }


@click.group()
def main() -> None:
    """Compare found schedules with the paper's."""


def _few(work: Path, per_class: int) -> Path:
    (cluttered,) = work.glob("data-*")
    return few_images(cluttered, work / f"few-{per_class}", per_class)


@main.command()
@click.argument("work", type=click.Path(path_type=Path, exists=True))
@click.option("--per-class", default=150, show_default=True, help="Images to compare schedules on.")
@click.option("--seconds", default=300.0, show_default=True, help="Of the search.")
def find(work: Path, per_class: int, seconds: float) -> None:
    """Find a schedule as fast as each of the paper's, and time all."""
    from sit_deploy.latency.bench import ScheduleBench
    from sit_deploy.pipeline.request import BuildRequest
    from sit_deploy.search.explore import explore
    from sit_deploy.search.folder import SearchFolder
    from sit_deploy.search.request import SearchRequest
    from sit_deploy.search.run import plan
    from sit_deploy.search.set_up import set_up

    kept = work / "schedules.json"
    if kept.exists():
        raise SystemExit(f"{kept} is there: remove it to search again")
    request = SearchRequest(
        build=BuildRequest(
            output=None, checkpoint=work / "teacher" / "model.safetensors", engine=ENGINE, precision="fp32"
        ),
        output=work / "search",
        data=str(_few(work, per_class) / "train"),
        unlabelled=True,
        speedup=1.5,  # asked for by the form; every limit below is a paper schedule's own time
        seconds=seconds,
        precisions=("fp32",),
    )
    request, engine = plan(request)
    with SearchFolder.open(request.output, True, ()) as folder:
        one = set_up(request, engine, folder, lambda *_: None)
        predict = partial(one.tables.predict_student, "fp32")
        papers = paper_schedules(one.space.depth, one.space.patches)
        target = one.tables._tables["fp32"].target
        rows = []
        with (
            tempfile.TemporaryDirectory() as place,
            ScheduleBench(target, one.space.unslimmed, Path(place) / "e") as bench,
        ):
            for name, paper in papers.items():
                limit, tried = predict(paper), []
                for _ in range(TRIES):
                    found = explore(one.space, predict, one.judge, limit, seed=0).best[0]
                    first, second = bench.time([paper, found])
                    off = second.ratio / first.ratio - 1
                    tried.append({"limit_ms": limit, "off": off, **_words(found)})
                    click.echo(
                        f"{name}: {paper.name} {first.ratio:.3f}, {found.name} {second.ratio:.3f} ({off:+.1%})"
                    )
                    if off <= EVEN:
                        break
                    limit /= 1 + off
                for kind, schedule, timed in (("paper", paper, first), ("found", found, second)):
                    rows.append(
                        {
                            "against": name,
                            "kind": kind,
                            **_words(schedule),
                            "predicted_ms": predict(schedule),
                            "of_unslimmed": timed.ratio,
                            "spread": timed.spread,
                            "divergence": one.judge(schedule, 2).divergence,
                            "agreement": one.judge(schedule, 2).agreement,
                        }
                    )
                rows[-1]["tried"] = tried
        one.scores.save(one.judge.counts, one.judge.kept)
    about = {
        "model": request.build.model or one.loaded.name,
        "engine": one.tables.engine_words,
        "unslimmed_ms": predict(one.space.unslimmed),
        "machine": dataclasses.asdict(machine()),
        "date": _today(),
    }
    kept.write_text(json.dumps({**about, "schedules": rows}, indent=1) + "\n", encoding="utf-8")


def _words(schedule: Schedule) -> dict[str, list[int]]:
    return {"stages": list(schedule.stage_blocks), "kept": list(schedule.kept)}


def _today() -> str:
    return datetime.datetime.now(datetime.timezone.utc).date().isoformat()


@main.command("train")
@click.argument("work", type=click.Path(path_type=Path, exists=True))
@click.option("--per-class", default=150, show_default=True)
@click.option("--epochs", default=3, show_default=True)
@click.option("--seeds", default=3, show_default=True)
@click.option("--jobs", default=1, show_default=True, help="Runs at a time, a thread each.")
def train_all(work: Path, per_class: int, epochs: int, seeds: int, jobs: int) -> None:
    """Train a student of every schedule by FRD, with every seed."""
    known = json.loads((work / "schedules.json").read_text(encoding="utf-8"))
    data = _few(work, per_class)

    def run(job: tuple[tuple[str, str], int]) -> dict[str, Any]:
        (stages, kept), seed = job
        schedule = {
            "stages": stages,
            "kept": kept,
            "seed": seed,
            "epochs": epochs,
            "lr": LR,
            "min_lr": 1.6e-4,
        }
        summary = train(
            work / f"found-{per_class}" / f"{stages}-{kept}-{epochs}-{seed}",
            1,
            "--warm-start",
            model=known["model"],
            data=data,
            teacher=work / "teacher" / "model.safetensors",
            **PICTURES,
            **schedule,
        )
        return {"stages": stages, "kept": kept, "seed": seed, "top1": round(summary["student"]["top1"], 2)}

    schedules = dict.fromkeys(
        (",".join(map(str, row["stages"])), ",".join(map(str, row["kept"]))) for row in known["schedules"]
    )
    with ThreadPoolExecutor(jobs) as pool:
        runs = list(pool.map(run, [(schedule, seed) for seed in range(seeds) for schedule in schedules]))
    kept = {
        "epochs": epochs,
        "images": sum(1 for _ in (data / "train").glob("*/*")),
        "lr": LR,
        "runs": runs,
    }
    (work / "found_runs.json").write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")


@main.command()
@click.argument("work", type=click.Path(path_type=Path, exists=True))
@click.option("--task", default="cluttered digits", show_default=True, help="What the images are of.")
@click.option("--write-docs", is_flag=True, help="Put the tables into docs/search.md.")
def write(work: Path, task: str, write_docs: bool) -> None:
    """Write what was found and trained, beside what other models and tasks gave."""
    result = json.loads((work / "schedules.json").read_text(encoding="utf-8"))
    teacher = json.loads((work / "teacher" / "model.json").read_text(encoding="utf-8"))
    result["teacher_top1"] = teacher["metrics"]["top1"]
    result["training"] = json.loads((work / "found_runs.json").read_text(encoding="utf-8"))
    result["versions"] = {name: version(name) for name in ("torch", "timm")}
    known = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}
    result["task"] = task
    known[f"{result['model']}, {task}"] = result
    RESULTS.write_text(json.dumps(known, indent=1) + "\n", encoding="utf-8")
    text = "\n\n".join(map(_table, known.values()))
    click.echo(text)
    if write_docs:
        write_between("search.md", "found", text)


def _table(result: dict[str, Any]) -> str:
    training = result["training"]
    lines = [
        f"{result['model']} on {result['task']} (teacher {result['teacher_top1']:.2f} %), {result['engine']}, FP32, batch 1, {result['date']}; {training['epochs']} epochs of "
        f"{training['images']} images, held-out top-1 in % with seeds 0, 1, 2:",
        "",
        "| at the time of | schedule | times as fast as the teacher | divergence before training | seed 0 | 1 | 2 | mean |",
        "|---|---|---:|---:|---:|---:|---:|---:|",
    ]
    for row in result["schedules"]:
        stages, kept = (",".join(map(str, row[name])) for name in ("stages", "kept"))
        top1 = [run["top1"] for run in training["runs"] if (run["stages"], run["kept"]) == (stages, kept)]
        who = "the paper's" if row["kind"] == "paper" else "found"
        lines.append(
            f"| {row['against']} | {who}: `--stages {stages} --kept {kept}` | {1 / row['of_unslimmed']:.2f} | {row['divergence']:.3g} | "
            + " | ".join(f"{one:.2f}" for one in top1)
            + f" | {sum(top1) / len(top1):.2f} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
