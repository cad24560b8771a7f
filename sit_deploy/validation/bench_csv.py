"""The rows of `sit-deploy bench --csv`, and the plot that is drawn of them."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sit_deploy.validation.bench import BenchResult

CSV_COLUMNS = (
    *("model", "precision", "engine", "batch_size", "side", "clock", "p50_ms", "p90_ms", "p99_ms", "mean_ms"),
    *(
        "images_per_second",
        "calls",
        "speedup_over_pytorch",
        "speedup_low",
        "speedup_high",
        "speedup_doubt",
        "threads",
        "cpus",
        "date",
        "cpu_model",
    ),
)


def csv_rows(results: Sequence[BenchResult]) -> list[dict[str, Any]]:
    """Return a row of `CSV_COLUMNS` for each side, batch size and clock of what `bench` returned."""
    date = datetime.datetime.now(datetime.timezone.utc).date().isoformat()
    rows = []
    for result in results:
        for side, timed in result.results.items():
            over = result.speedup if side == result.side else None
            for clock, stats in (("wall", timed.stats), ("gpu", timed.gpu)):
                if stats is None:
                    continue
                rows.append(
                    {
                        **{name: value for name, value in asdict(stats).items() if name in CSV_COLUMNS},
                        **{
                            name: getattr(result, name)
                            for name in ("model", "precision", "batch_size", "threads")
                        },
                        **{"engine": result.engine, "side": side, "clock": clock, "calls": stats.iterations},
                        # a figure that the rounds do not bear out is left out: whoever reads a table takes it for one
                        "speedup_over_pytorch": over and (None if over.doubt else over.median),
                        "speedup_low": over and over.low,
                        "speedup_high": over and over.high,
                        "speedup_doubt": over and over.doubt,
                        "cpus": " ".join(map(str, result.cpus or ())),
                        **{"date": date, "cpu_model": result.machine.cpu_model},
                    }
                )
    return rows


def plot_csv(path: Path, picture: Path) -> None:
    """Draw a CSV of `csv_rows`: images a second and median latency over the batch size, one line a side, as PNG."""
    import csv

    from matplotlib.figure import Figure

    with path.open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["clock"] == "wall"]
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    speed, latency = figure.subplots(1, 2)
    for side in dict.fromkeys(row["side"] for row in rows):
        mine = [row for row in rows if row["side"] == side]
        batches = [int(row["batch_size"]) for row in mine]
        speed.plot(batches, [float(row["images_per_second"]) for row in mine], "o-", label=side)
        low, high = ([float(row[key]) for row in mine] for key in ("p50_ms", "p99_ms"))
        (line,) = latency.plot(batches, low, "o-", label=side)
        latency.fill_between(batches, low, high, color=line.get_color(), alpha=0.15, linewidth=0)
    speed.set_ylabel("images a second")
    latency.set_ylabel("milliseconds a batch, p50 to p99")
    for axes in (speed, latency):
        axes.set_xlabel("batch size")
        axes.set_ylim(bottom=0)
        axes.legend(frameon=False)
        axes.spines[["top", "right"]].set_visible(False)
    first = rows[0]
    title = f"{first['model']} {first['precision']} on {first['cpu_model']}, {first['date']}"
    if doubts := [row for row in rows if row["speedup_doubt"]]:
        batches = ", ".join(row["batch_size"] for row in doubts)
        title += f"\nspeed-up not measurable then at batch {batches}: {doubts[0]['speedup_doubt']}"
    figure.suptitle(title, fontsize=10)
    figure.savefig(picture, dpi=150, format="png")
