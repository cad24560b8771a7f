"""What `gpu.py` makes of its rows: speed-ups, targets, figures that others have published, and the tables of docs/gpu.md."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks import gains
from benchmarks.gpu_cells import Cell
from engines.speedup import FEWEST_ROUNDS
from sit_deploy.models.catalog import CONFIGS, get_config
from sit_deploy.models.cost import cost

TEACHERS = {
    "sit_nano": "lvvit_nano",
    "sit_t": "lvvit_t",
    "sit_xs": "lvvit_s",
    "sit_s": "lvvit_s",
    "sit_m": "lvvit_m",
    "sit_l": "lvvit_l",
}
# plain ones of timm are our slimmed ones in one stage
_PLAIN = {
    "vit_base_patch16_224": "sit_deit_b",
    "deit_base_patch16_224": "sit_deit_b",
    "deit_small_patch16_224": "sit_deit_s",
}


@dataclass(frozen=True)
class Published:
    """A latency that somebody else has published.

    Attributes:
        ms: by batch size.
    """

    by: str
    model: str
    precision: str
    hardware: str
    ms: dict[int, float]
    address: str


PUBLISHED = (
    Published(
        "FasterTransformer",
        "vit_base_patch16_224",
        "FP16",
        "A100, clocks fixed at 1410 MHz, CUDA 11.4",
        {1: 1.53, 8: 3.03, 16: 5.30, 32: 10.04},
        "https://github.com/NVIDIA/FasterTransformer/blob/main/docs/vit_guide.md#int8-vs-fp16-speedup-on-vit-1",
    ),
    Published(
        "FasterTransformer",
        "vit_base_patch16_224",
        "INT8",
        "A100, clocks fixed at 1410 MHz, CUDA 11.4",
        {1: 1.52, 8: 2.38, 16: 3.74, 32: 6.43},
        "https://github.com/NVIDIA/FasterTransformer/blob/main/docs/vit_guide.md#int8-vs-fp16-speedup-on-vit-1",
    ),
    Published(
        "AITemplate",
        "vit_base_patch16_224",
        "FP16",
        "A100 40 GB, CUDA 11.6",
        {1: 1.02, 8: 2.20, 16: 3.64, 32: 6.51, 128: 25.10, 256: 48.55},
        "https://github.com/facebookincubator/AITemplate/tree/main/examples/04_vit",
    ),
)


def macs(name: str) -> int | None:
    """Multiply-accumulates of an image in the deployed model; None for one of timm's that we have no count of."""
    if name in _PLAIN:
        return cost(get_config(_PLAIN[name], (12,))).macs
    return cost(get_config(name)).macs if name in CONFIGS else None


def find(cells: Sequence[Cell], model: str, runtime: str, batch: int) -> Cell | None:
    """Return the row of a runtime that was timed; before others, the one that was asked for by its name."""
    found = [
        cell
        for cell in cells
        if (cell.model, cell.runtime, cell.batch) == (model, runtime, batch) and not cell.skipped
    ]
    return min(found, key=lambda cell: cell.asked is not None, default=None)


def speedup(ours: Cell | None, theirs: Cell | None) -> float | None:
    """How much faster `ours` is an image, by the median of the rounds' ratios.

    None where one was not measured, or three and more rounds lie too far apart: somebody else was on the GPU.
    """
    if ours is None or theirs is None:
        return None
    scale = ours.batch / theirs.batch
    slow, fast = [scale * ms for ms in theirs.medians()], ours.medians()
    if len(slow) < FEWEST_ROUNDS:  # a session cut short: all there is
        return statistics.median(b / a for a, b in zip(fast, slow, strict=True))
    return gains.of_times(slow, fast).median


def over_teachers(cells: Sequence[Cell]) -> list[dict[str, Any]]:
    """Realised speed-ups of students over teachers in each runtime, beside the ratio of their work."""
    rows = []
    for cell in cells:
        teacher = TEACHERS.get(cell.model)
        if teacher is None or cell.skipped or cell.asked:
            continue
        gain = speedup(cell, find(cells, teacher, cell.runtime, cell.batch))
        if gain is not None:
            work = macs(teacher) / macs(cell.model)
            rows.append(
                {"model": cell.model, "teacher": teacher, "runtime": cell.runtime, "batch": cell.batch, "speedup": gain, "macs_ratio": work}
            )  # fmt: skip
    return rows


def targets(cells: Sequence[Cell], peak: float) -> list[dict[str, Any]]:
    """What the project wants to reach on a GPU, and what was measured: True, False, or None for not measured."""
    engine = next(
        (c.runtime for c in cells if c.runtime.endswith(" fp16") and not c.skipped), "tensorrt fp16"
    )
    rows: list[tuple[str, float, float | None]] = []
    for batch, least in ((1, 1.5), (128, 1.2)):
        gain = speedup(find(cells, "sit_s", engine, batch), find(cells, "sit_s", "pytorch compiled", batch))
        rows.append((f"sit_s FP16 engine over torch.compile at batch {batch}", least, gain))
    large = find(cells, "sit_l", engine, 256)
    share = None if large is None else 2 * macs("sit_l") * large.images_per_second() / peak
    rows.append(("sit_l FP16 engine at batch 256, share of the matmul peak", 0.45, share))
    best = None
    for batch in sorted({cell.batch for cell in cells}):
        gain = speedup(find(cells, "sit_xs", engine, batch), find(cells, "lvvit_s", engine, batch))
        best = gain if best is None or (gain is not None and gain > best) else best
    rows.append(("sit_xs over lvvit_s in images/s, FP16 engine, best batch", 3.5, best))
    return [
        {"target": text, "at_least": least, "measured": got, "met": None if got is None else got >= least}
        for text, least, got in rows
    ]


def published(cells: Sequence[Cell]) -> list[dict[str, Any]]:
    """What others have published, beside our engine's time of the same model, type and batch size where it was measured here."""
    rows = []
    for other in PUBLISHED:
        for batch, ms in other.ms.items():
            runtimes = (f"{kind} {other.precision.lower()}" for kind in ("tensorrt", "tensorrt-rtx"))
            ours = next((c for r in runtimes if (c := find(cells, other.model, r, batch))), None)
            rows.append(
                {
                    "by": other.by,
                    "model": other.model,
                    "precision": other.precision,
                    "batch": batch,
                    "hardware": other.hardware,
                    "ms": ms,
                    "here_ms": None if ours is None else 1e3 * statistics.median(ours.medians()),
                    "address": other.address,
                }
            )
    return rows


def markdown(result: dict[str, Any]) -> str:
    """The tables of docs/gpu.md."""
    where = f"{result['device']['name']}, {result['date']}, PyTorch {result['versions']['torch']}"
    lines = [
        f"{where}; matmul peak {result['matmul_peak']['flops'] / 1e12:.0f} TFLOP/s in {result['low_type']}.",
        "",
    ]
    if not result["complete"]:
        lines += ["Incomplete: the run ended before its end.", ""]
    lines += [
        "| model | batch | runtime | ms | end to end ms | images/s | share of peak |",
        "|---|---|---|---|---|---|---|",
    ]
    for cell in result["cells"]:
        head = f"| {cell['model']} | {cell['batch']} | {cell['runtime']}"
        head += f" ({cell['asked']} was asked for) |" if cell["asked"] else " |"
        if cell["skipped"]:
            lines.append(f"{head} {cell['skipped'].replace('|', '/')} | | | |")
            continue
        share = "" if cell["share_of_peak"] is None else f"{cell['share_of_peak']:.1%}"
        lines.append(
            f"{head} {cell['device']['p50_ms']:.3f} | {cell['end_to_end']['p50_ms']:.3f} | "
            f"{cell['images_per_second']:.0f} | {share} |"
        )
    lines += _teachers(result["over_teachers"]) + _targets(result["targets"]) + _others(result["published"])
    said = dict.fromkeys(
        f"{cell['model']}, {cell['runtime']}: {cell['note']}" for cell in result["cells"] if cell["note"]
    )
    lines += ["", f"Notes: {'; '.join(said)}."] if said else []
    skipped = "; ".join(f"{kind}: {why}" for kind, why in result["runtimes_skipped"].items())
    return "\n".join([*lines, "", f"Not run: {skipped}." if skipped else ""]).rstrip()


def _teachers(rows: list[dict[str, Any]]) -> list[str]:
    lines = ["", "| student | teacher | runtime | batch | faster | fewer MACs |", "|---|---|---|---|---|---|"]
    for row in rows:
        lines.append(
            f"| {row['model']} | {row['teacher']} | {row['runtime']} | {row['batch']} | {row['speedup']:.2f}× | {row['macs_ratio']:.2f}× |"
        )
    return lines


def _targets(rows: list[dict[str, Any]]) -> list[str]:
    lines = ["", "| wanted | at least | measured |", "|---|---|---|"]
    for row in rows:
        got = (
            "not measured"
            if row["met"] is None
            else f"{row['measured']:.2f}, {'met' if row['met'] else 'not met'}"
        )
        lines.append(f"| {row['target']} | {row['at_least']} | {got} |")
    return lines


def _others(rows: list[dict[str, Any]]) -> list[str]:
    """One line for each publication: its batch sizes, and the times in their order."""
    lines = ["", "| published by | model | type | their hardware | batch | ms | our engine here, ms |"]
    lines.append("|---|---|---|---|---|---|---|")
    for other in PUBLISHED:
        own = [r for r in rows if (r["address"], r["precision"]) == (other.address, other.precision)]
        here = ", ".join("–" if row["here_ms"] is None else f"{row['here_ms']:.2f}" for row in own)
        sizes = ", ".join(str(row["batch"]) for row in own)
        theirs = ", ".join(f"{row['ms']:.2f}" for row in own)
        measured = any(row["here_ms"] is not None for row in own)
        lines.append(
            f"| [{other.by}]({other.address}) | {other.model} | {other.precision} | {other.hardware} | "
            f"{sizes} | {theirs} | {here if measured else 'not measured'} |"
        )
    return lines
