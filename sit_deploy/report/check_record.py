"""What check.py of a folder of `package python` wrote, as a typed value: nothing in it is believed that does not fit the rest.

Unlike a report it has no fields beside those named here: it is read by the version that wrote it, or refused.
"""

from __future__ import annotations

import datetime
import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from msgspec import Meta, Struct

import engines
from engines.latency import Histogram, LatencyStats
from engines.speedup import speedup
from engines.timing import WorkerResult
from sit_deploy import limits
from sit_deploy.errors import InputError
from sit_deploy.hashes import digest
from sit_deploy.manifest import BatchSize, Count, Sha256, Text
from sit_deploy.portable.form import KIND, SCHEMA, baseline
from sit_deploy.precisions import TOLERANCE
from sit_deploy.report.build_types import HopRecord, LayerRecord, Positive, Share
from sit_deploy.report.kernels_text import engine_text
from sit_deploy.report.timing_types import HistogramRecord, SpeedupRecord
from sit_deploy.schema import check, read_json

_CLOSE = 1e-6  # relative: what the writer's floats and ours may differ by


class _Strict(Struct, forbid_unknown_fields=True, kw_only=True):
    """Fields that are there, and no others."""


class CheckedMachine(_Strict):
    """The machine; no host name."""

    cpu_model: Text
    logical_cpus: Annotated[int, Meta(ge=1, le=limits.CPUS)]
    usable_cpus: Annotated[int, Meta(ge=1, le=limits.CPUS)]
    load_average: Positive | None
    system: Text
    architecture: str


class CheckedGpu(_Strict):
    """Its GPU that the bundles ran on."""

    name: Text
    compute_capability: Annotated[str, Meta(pattern="^sm[0-9]{2,3}$")]
    number: Annotated[int, Meta(ge=0, le=limits.GPUS)]
    driver: str | None


class CheckedTiming(_Strict):
    """How it was timed; `note`: why not."""

    rounds: Annotated[int, Meta(ge=0, le=limits.ROUNDS)]
    seconds: Annotated[float, Meta(gt=0, le=limits.SECONDS)]
    threads: Annotated[int, Meta(ge=1, le=limits.THREADS)] | None
    device: str | None
    note: str


class CheckedEngine(_Strict):
    """The engine that ran: the bundle's own, or one that was built there from its graph."""

    kind: Literal[engines.KINDS]
    version: Text
    target: Text
    built_here: bool
    build_seconds: Positive


class CheckedStats(_Strict):
    """Statistics of all calls, as `engines.latency.LatencyStats`."""

    p50_ms: Annotated[float, Meta(gt=0, le=limits.REAL)]
    p90_ms: Positive
    p99_ms: Positive
    mean_ms: Positive
    min_ms: Positive
    iterations: Annotated[int, Meta(ge=1, le=limits.INTEGER)]
    images_per_second: Positive

    def __post_init__(self) -> None:
        if not self.min_ms <= self.p50_ms <= self.p90_ms <= self.p99_ms:
            raise ValueError("min_ms, p50_ms, p90_ms and p99_ms do not rise")
        if self.mean_ms < self.min_ms * (1 - _CLOSE):
            raise ValueError("mean_ms is below min_ms")


class CheckedLatency(_Strict):
    """A batch size, timed turn about with all others (`engines.timing.WorkerResult`)."""

    batch_size: BatchSize
    stats: CheckedStats
    round_medians_ms: list[Annotated[float, Meta(gt=0, le=limits.REAL)]]
    threads: Count | None
    cpus: list[Count] | None
    quiet: bool
    gpu: CheckedStats | None
    gpu_round_medians_ms: list[Annotated[float, Meta(gt=0, le=limits.REAL)]]
    histogram: HistogramRecord
    others: list[Share]
    pace: list[Share] = []  # that of check.py before it looked has none
    in_flight: Literal[1] = 1

    def __post_init__(self) -> None:
        _require_medians(self.stats, self.round_medians_ms, self.batch_size, "stats")
        if self.gpu is not None:
            _require_medians(self.gpu, self.gpu_round_medians_ms, self.batch_size, "gpu")
        elif self.gpu_round_medians_ms:
            raise ValueError("it has rounds of a GPU, and no gpu")
        if sum(self.histogram.counts) != self.stats.iterations:
            raise ValueError("histogram does not have as many calls as stats")

    def is_of(self, rounds: int) -> bool:
        """Whether it has as many values as there were rounds, of all that it has one of for each."""
        told = (self.gpu_round_medians_ms, self.pace) if self.gpu else (self.pace,)
        return len(self.round_medians_ms) == rounds >= len(self.others) and all(
            len(one) in (0, rounds) for one in told
        )

    def result(self) -> WorkerResult:
        """Return what was measured as it was before it was written."""
        stats = LatencyStats(**{name: getattr(self.stats, name) for name in CheckedStats.__struct_fields__})
        histogram = Histogram(tuple(self.histogram.edges_ms), tuple(self.histogram.counts))
        return WorkerResult(
            stats=stats,
            round_medians_ms=tuple(self.round_medians_ms),
            threads=self.threads,
            cpus=None if self.cpus is None else tuple(self.cpus),
            quiet=self.quiet,
            histogram=histogram,
            others=tuple(self.others),
            pace=tuple(self.pace),
        )


class CheckedLayers(_Strict):
    """What the engine told of its layers (`measure.layers.layer_table`)."""

    kept: list[str] | None
    raised: list[str] | None
    untold: list[str] | None
    layers: list[LayerRecord]
    census: dict[str, Any] | None


class CheckedBundle(_Strict):
    """A bundle of the folder.

    Attributes:
        digest: of its manifest: what it is known by.
        refused: why it did not run; then there are no figures.
        untimed: batch sizes that it ran and that were to be timed, and were not; that of check.py before it told them has none.
    """

    name: Text
    digest: Sha256
    model: Text
    macs: Count
    precision: Literal[tuple(TOLERANCE)]
    engine: CheckedEngine
    refused: Text | None
    golden: HopRecord | None
    layers: CheckedLayers | None
    notes: list[str]
    latencies: list[CheckedLatency]
    untimed: list[BatchSize] | None = None

    def __post_init__(self) -> None:
        if (self.refused is None) == (self.golden is None):
            raise ValueError("it must have golden, or refused for why it did not run")
        if self.refused is not None and (self.layers or self.latencies):
            raise ValueError("it did not run, and has figures")
        if self.golden is not None:
            _require_hop(self.golden, self.precision)
        sizes = [latency.batch_size for latency in self.latencies]
        if len(set(sizes)) != len(sizes):
            raise ValueError("latencies has a batch size twice")
        if both := set(sizes) & set(self.untimed or ()):
            raise ValueError(f"batch size {min(both)} is in latencies and in untimed")


class CheckRecord(_Strict):
    """The whole file."""

    schema: int
    kind: str
    date: Annotated[str, Meta(pattern=r"^[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9:]{8}\+00:00$")]
    machine: CheckedMachine
    gpu: CheckedGpu | None
    clocks: list[dict[str, str | float | None]]
    versions: dict[str, str | None]
    timing: CheckedTiming
    bundles: Annotated[list[CheckedBundle], Meta(min_length=1)]
    digest: Sha256

    def __post_init__(self) -> None:
        datetime.datetime.fromisoformat(self.date)  # raises for a 31st of February
        for bundle in self.bundles:
            if not all(latency.is_of(self.timing.rounds) for latency in bundle.latencies):
                raise ValueError(f"{bundle.name} was not timed in {self.timing.rounds} rounds")
            if bundle.golden and self.gpu is None and not engines.get(bundle.engine.kind).on_cpu:
                raise ValueError(f"{bundle.name} ran on a GPU, and gpu is null")


class OverRecord(_Strict):
    """How many times as fast the bundle was as another one of the same folder, batch by batch."""

    name: Text
    precision: Text
    batch_size: BatchSize
    speedup: SpeedupRecord


class ElsewhereRecord(_Strict):
    """What a check.py measured of one bundle, and where."""

    date: str
    machine: CheckedMachine
    gpu: CheckedGpu | None
    clocks: list[dict[str, str | float | None]]
    versions: dict[str, str | None]
    bundle: CheckedBundle
    over: list[OverRecord]


def read_check(path: Path) -> dict[str, Any]:
    """Return what a file of check.py holds, its fields checked and held against each other.

    Raises:
        InputError: not such a file, of another version, changed since it was written, or with a field that cannot be right.
    """
    again = "pass what check.py of a folder of `sit-deploy package python` wrote"
    fields = read_json(path, again)
    if not isinstance(fields, dict) or fields.get("kind") != KIND:
        raise InputError(f"{path} is no result of check.py; {again}")
    if isinstance(fields.get("schema"), bool) or fields.get("schema") != SCHEMA:
        raise InputError(
            f"{path} is of schema {str(fields.get('schema'))[:20]}, and {SCHEMA} is known here; write the folder again with this version"
        )
    if fields.get("digest") != digest(fields):
        raise InputError(
            f"{path} was changed since check.py wrote it: it does not match its digest; run check.py again"
        )
    record = check(fields, CheckRecord, path, "run check.py again")
    for bundle in record.bundles:
        if bundle.layers and bundle.layers.census:
            engine_text(bundle.layers.census, bundle.precision)  # refuses what is nothing that a kernel says
    return fields


def find_elsewhere(
    paths: Sequence[Path], bundles: Sequence[tuple[str, str, str]]
) -> dict[str, list[dict[str, Any]]]:
    """Return what files of check.py say of bundles, by the digest of each, as `ElsewhereRecord` in JSON.

    Args:
        paths: the files.
        bundles: digest, name and path of each.

    Raises:
        InputError: a file that cannot be believed, one of none of these bundles, or of another bundle of the same name.
    """
    known = {digest_: [] for digest_, _, _ in bundles}
    seen = set()
    for path in paths:
        fields = read_check(path)
        if fields["digest"] in seen:  # a copy would be measured twice
            continue
        seen.add(fields["digest"])
        rows = fields["bundles"]
        measured = {row["digest"] for row in rows}
        for digest_, name, place in bundles:
            other = next((row for row in rows if row["name"] == name), None)
            if other and digest_ not in measured:
                raise InputError(
                    f"{path} measured another bundle called {name}, of hash {other['digest'][:12]}, and {place} has "
                    f"{digest_[:12]}; package and measure this one"
                )
        if not measured & known.keys():
            held = ", ".join(f"{row['name']} ({row['digest'][:12]})" for row in rows[:3])
            raise InputError(
                f"{path} has nothing of these bundles: it measured {held}; name one of those, or measure again"
            )
        for row in rows:
            if row["digest"] in known:
                common = {key: fields[key] for key in ("date", "machine", "gpu", "clocks", "versions")}
                told = {**row, "notes": [*row["notes"], *_untimed_note(row, fields["timing"]["note"])]}
                known[row["digest"]].append({**common, "bundle": told, "over": _over(row, rows)})
    return known


def _untimed_note(row: dict[str, Any], note: str) -> list[str]:
    """Return why some of a bundle's times are missing; nothing where none are, whatever happened to others beside it."""
    missing = row.get("untimed", True)  # an earlier check.py did not tell of which bundle
    return [note] if row["golden"] and note and missing else []


def _over(row: dict[str, Any], rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Compare a bundle with the float one beside it, by the rounds that both were timed in."""
    found = []
    for latency in row["latencies"]:
        size = latency["batch_size"]
        other = baseline(row, rows, size)
        if other is None:
            continue
        theirs = next(timed for timed in other["latencies"] if timed["batch_size"] == size)
        sides = [check(timed, CheckedLatency, "latencies", "").result() for timed in (theirs, latency)]
        gain = speedup(sides[0], sides[1], (other["name"], row["name"])).to_dict()
        for rounds in ("per_round", "doubted_rounds"):
            gain.pop(rounds)
        found.append(
            {"name": other["name"], "precision": other["precision"], "batch_size": size, "speedup": gain}
        )
    return found


def _require_medians(stats: CheckedStats, rounds: Sequence[float], batch: int, what: str) -> None:
    if not rounds or not math.isclose(stats.p50_ms, statistics.median(rounds), rel_tol=_CLOSE):
        raise ValueError(f"{what}.p50_ms is not the median of its rounds")
    if not math.isclose(stats.images_per_second, 1e3 * batch / stats.p50_ms, rel_tol=_CLOSE):
        raise ValueError(f"{what}.images_per_second does not fit its p50_ms")


def _require_hop(hop: HopRecord, precision: str) -> None:
    if hop.tolerance != TOLERANCE[precision]:
        raise ValueError(f"golden was held to {hop.tolerance}, and {precision} to {TOLERANCE[precision]}")
    turned = any(
        output.least_cosine is not None and output.lowest_cosine < output.least_cosine
        for output in hop.outputs
    )
    if hop.passed != (hop.error is not None and hop.error <= TOLERANCE[precision] and not turned):
        raise ValueError("golden.passed does not fit its error and tolerance")
