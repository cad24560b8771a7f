"""The comparison of speed: what is timed, what is told of it, and when it takes 8 bits back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import onnx
import pytest

import engines
from engines import BuildOptions, EngineInfo, EngineOrigin
from engines.latency import LatencyStats
from engines.timing import WorkerResult
from sit_deploy.errors import GateError
from sit_deploy.outputs import Output
from sit_deploy.pipeline.build import build
from sit_deploy.pipeline.engine import BuiltEngine
from sit_deploy.pipeline.fallback import NoGainError
from sit_deploy.pipeline.speed_gate import compare_speed
from sit_deploy.pipeline.work import Work
from tests.helpers import held_up
from tests.helpers.bundles import report_of
from tests.helpers.digits import Digits, stand_in_for_the_float_graph

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("calibrated_once")]


@pytest.fixture
def timed(digits: Digits, monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, Any]]:
    """A function that says how much faster 8 bits are to be, in every round or in each; it returns what will be timed, by name, once it was."""
    stand_in_for_the_float_graph(digits, monkeypatch)

    def prepare(*gains: float) -> dict[str, Any]:
        seen: dict[str, Any] = {}

        def alternate(workers: Any, timing: Any, *_: Any, **__: Any) -> dict[str, WorkerResult]:
            results = {}
            prepare.rounds.append(timing.rounds)
            for name, spec in workers.items():
                kind, path, batch, threads, device, origin = spec.args
                assert device is None  # what the engine is for
                seen[name] = SimpleNamespace(
                    graph=onnx.load(path), batch=batch, threads=threads, kind=kind, origin=origin
                )
                rounds = gains * 3 if len(gains) == 1 else gains
                own = {"int8": None, "bf16": 1.5}.get(name, 1.0)
                milliseconds = tuple(4.0 / (own or gain) for gain in rounds)
                stats = LatencyStats.from_rounds([[ms / 1e3] for ms in milliseconds])
                results[name] = WorkerResult(stats, milliseconds, None, None, True)
            return results

        monkeypatch.setattr("engines.timing.alternate", alternate)
        return seen

    prepare.rounds = []  # of each timing
    return prepare


def small(digits: Digits, output: Path, **fields: Any) -> Any:
    return digits.request(output, **({"calib_images": 2, "quantize": ("fc1",)} | fields))


def test_faster(timed: Callable[..., dict[str, Any]], digits: Digits, tmp_path: Path) -> None:
    seen = timed(2.0)
    report = report_of(build(small(digits, tmp_path / "b", threads=1)))
    speed = report["quantization"]["speed"]
    assert speed == {
        "over": "fp32", "batch_size": 1, "ratio": 2.0, "low": 2.0, "high": 2.0, "per_round": [2.0] * 3,
        "p50_ms": {"fp32": 4.0, "int8": 2.0}, "doubt": None, "doubted_rounds": [],
    }  # fmt: skip
    assert report["notes"] == digits.notes
    types = {name: {t.data_type for t in one.graph.graph.initializer} for name, one in seen.items()}
    assert onnx.TensorProto.INT8 in types["int8"] and onnx.TensorProto.INT8 not in types["fp32"]
    assert {(one.kind, one.batch, one.threads) for one in seen.values()} == {("onnxruntime", 1, 1)}


def test_not_faster(timed: Callable[..., dict[str, Any]], digits: Digits, tmp_path: Path) -> None:
    """Without a budget it is built as asked for, with a warning."""
    timed(1.0)
    bundle = build(small(digits, tmp_path / "b"))
    assert bundle.manifest.precision == "int8"
    assert report_of(bundle)["notes"][-1] == NOT_FASTER.format("1.00")


def test_not_faster_with_a_budget(
    timed: Callable[..., dict[str, Any]], digits: Digits, tmp_path: Path
) -> None:
    timed(0.5)
    bundle = build(small(digits, tmp_path / "b", val_data=digits.images, max_accuracy_drop=100.0))
    assert bundle.manifest.precision == "fp32"
    report = report_of(bundle)
    wanted = "int8 is not faster than fp32 on onnxruntime here (0.50× at batch 1); fp32 was built instead"
    assert report["notes"][-1] == wanted
    assert (report["quantization"], report["accuracy"]["drop"]) == (None, 0)


NOT_FASTER = (
    "do not ship int8: int8 is not faster than fp32 on onnxruntime here ({}× at batch 1); "
    "build with --precision fp32"
)


@pytest.fixture
def compared(digits: Digits, tmp_path: Path) -> Callable[..., tuple[dict[str, Any], Work]]:
    """A function that compares an engine for ONNX Runtime with one without 8 bits, as a build does at its end."""

    def run(**fields: Any) -> tuple[dict[str, Any], Work]:
        source, path = tmp_path / "int8.onnx", tmp_path / "engine.onnx"
        source.write_bytes(digits.float_graph.graph.SerializeToString())
        request = small(digits, tmp_path / "b", val_data=digits.images, **fields)
        runtime, work = engines.get("onnxruntime"), Work(request, lambda *_: None)
        built = BuiltEngine(runtime, path, runtime.build(source, path, request.engine_options()))
        return compare_speed(work, built, digits.float_graph), work

    return run


def test_half_as_fast(timed: Callable[..., Any], compared: Callable[..., tuple[Any, Work]]) -> None:
    timed(0.5)
    speed, work = compared()
    assert (speed["ratio"], work.notes) == (0.5, [NOT_FASTER.format("0.50")])
    with pytest.raises(NoGainError, match=r"fp32 was built instead"):
        compared(max_accuracy_drop=100.0)


@pytest.mark.parametrize(
    "noise", [(0.5, 2.0, 0.4, 2.5, 0.6), (0.9, 1.1, 0.95, 0.99, 1.02), (0.5,) * 2, (2622.0,) * 3]
)
def test_noise_takes_no_bits_away(
    noise: tuple[float, ...], timed: Callable[..., Any], compared: Callable[..., tuple[Any, Work]]
) -> None:
    """What the rounds do not bear out does not decide: what was asked for is built, and the note says so."""
    timed(*noise)
    speed, work = compared()
    (note,) = work.notes
    assert speed["doubt"]
    assert note.startswith(
        f"whether int8 is faster than fp32 is not measurable here now: {speed['doubt']}; close other"
    )
    assert not any(figure in note for figure in held_up.FIGURES)
    tie = noise[0] == 0.9
    assert (speed["ratio"] is None, speed["low"] is None, speed["per_round"] == []) == (not tie,) * 3
    assert len(speed["doubted_rounds"]) == (0 if tie else len(noise))


@pytest.mark.parametrize(
    ("output", "again"),
    [
        ("logits", "run `sit-deploy report`"),
        ("cls", "run `sit-deploy report`"),
        ("patches", "build it again"),
    ],
)
def test_report_is_advised_where_it_takes_the_bundle(
    output: str, again: str, timed: Callable[..., Any], digits: Digits, tmp_path: Path
) -> None:
    timed(0.5, 2.0, 0.4, 2.5, 0.6)
    source, path = tmp_path / "int8.onnx", tmp_path / "engine.onnx"
    source.write_bytes(digits.float_graph.graph.SerializeToString())
    request, runtime = small(digits, tmp_path / "b"), engines.get("onnxruntime")
    work = Work(request, lambda *_: None)
    built = BuiltEngine(runtime, path, runtime.build(source, path, request.engine_options()))
    compare_speed(work, built, replace(digits.float_graph, outputs=(Output(output, (10,)),)))
    (note,) = work.notes
    assert f"close other programs, and {again}" in note


@pytest.mark.parametrize("noise", [(0.5, 2.0, 0.4, 2.5, 0.6), (2622.0,) * 3])
def test_a_budget_needs_a_speed_that_can_be_measured(
    noise: tuple[float, ...], timed: Callable[..., Any], compared: Callable[..., tuple[Any, Work]]
) -> None:
    """It gives accuracy up for speed alone; a second attempt has twice the rounds."""
    timed(*noise)
    with pytest.raises(GateError, match=r"not measurable here now: .*build again; or leave") as caught:
        compared(max_accuracy_drop=100.0)
    assert (
        caught.value.exit_status == 1 and "taskset" in str(caught.value) and "--threads" in str(caught.value)
    )
    assert not any(figure in str(caught.value) for figure in held_up.FIGURES)
    assert timed.rounds == [7, 14]


def test_a_tie_is_measured(timed: Callable[..., Any], compared: Callable[..., tuple[Any, Work]]) -> None:
    timed(0.9, 1.1, 0.95, 0.99, 1.02)
    speed, work = compared(max_accuracy_drop=100.0)
    assert speed["ratio"] == pytest.approx(0.99) and len(work.notes) == 1 and timed.rounds == [7]


class Spy:
    """An engine that can run, and remembers what it was to build, and with which options."""

    kind, filename, norms_cost_a_scaling = "tensorrt-rtx", "engine.plan", False
    on_cpu, precisions = False, ("fp32", "fp16", "bf16")

    def lacks(self, precision: str) -> str | None:
        return None

    def __init__(self) -> None:
        self.built: list[tuple[onnx.ModelProto, BuildOptions]] = []

    def probe(self) -> Any:
        return SimpleNamespace(can_run=True)

    def build(self, source: Path, target: Path, options: BuildOptions) -> EngineInfo:
        self.built.append((onnx.load(source), options))
        target.write_bytes(source.read_bytes())
        return EngineInfo(self.kind, "1", target.name, 1, 0.0, "sm80", {"strip_weights": True})


def engine_of(path: Path) -> BuiltEngine:
    """An engine in 8 bits, built by a spy."""
    return BuiltEngine(Spy(), path, EngineInfo("tensorrt-rtx", "1", path.name, 1, 0.0, "sm80"))


def test_the_other_engine_is_of_the_precision_of_the_rest_and_built_alike(
    timed: Callable[..., dict[str, Any]], digits: Digits, tmp_path: Path
) -> None:
    """INT8 with FP16 is measured against FP16, at the same batch and effort, and not against FP32."""
    asked = timed(3.0)
    fields = {"dynamic_batch": (1, 4, 8), "optimization_level": 2}
    request = digits.request(tmp_path, engine="tensorrt-rtx", rest="fp16", **fields)
    built = engine_of(tmp_path / "int8.plan")
    built.path.write_bytes(digits.float_graph.graph.SerializeToString())
    speed = compare_speed(Work(request, lambda *_: None), built, digits.float_graph)
    ((graph, given),) = built.runtime.built
    assert given == BuildOptions(**fields)
    types = {t.name: t.data_type for t in graph.graph.initializer}
    assert types["blocks.0/mlp/fc1/weight"] == onnx.TensorProto.FLOAT16
    assert (speed["over"], speed["batch_size"], speed["ratio"]) == ("fp16", 4, 3.0)
    # how each was made goes with it: one without weights is given them only by that
    assert [worker.origin for worker in asked.values()] == [
        EngineOrigin("1", "sm80", {"strip_weights": True}),
        EngineOrigin("1", "sm80"),
    ]


def test_on_a_cpu_8_bits_are_compared_with_the_fastest_float(
    timed: Callable[..., dict[str, Any]], digits: Digits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where nobody measured before which that is: BF16, of which INT8 is slower here than of float32."""
    monkeypatch.setattr(Spy, "on_cpu", True)
    seen = timed(1.2)
    work, built = Work(digits.request(tmp_path), lambda *_: None), engine_of(tmp_path / "int8.plan")
    built.path.write_bytes(digits.float_graph.graph.SerializeToString())
    speed = compare_speed(work, built, digits.float_graph)
    assert list(seen) == ["fp32", "bf16", "int8"]
    assert (speed["over"], speed["ratio"]) == ("bf16", pytest.approx(0.8)) and list(speed["p50_ms"]) == [
        "bf16",
        "int8",
    ]
    assert (
        "int8 is not faster than bf16" in work.notes[-1] and "build with --precision bf16" in work.notes[-1]
    )
    timed(1.65)  # 1.1 times BF16
    compare_speed(work, built, digits.float_graph)
    assert work.notes[-1].startswith("ship bf16, perhaps: int8 is 1.10× as fast as it on tensorrt-rtx here")
    told = len(work.notes)
    timed(1.8)
    compare_speed(work, built, digits.float_graph)
    assert len(work.notes) == told
    seen = timed(1.2)
    compare_speed(work, built, digits.float_graph)
    work.seconds.clear()
    compare_speed(work, built, digits.float_graph, "fp32")
    assert list(seen) == ["fp32", "bf16", "int8"] and "fp32" in work.seconds.popitem()[0]


def test_an_engine_that_does_not_run_here(
    digits: Digits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    built = engine_of(tmp_path / "int8.plan")
    monkeypatch.setattr(built.runtime, "probe", lambda: SimpleNamespace(can_run=False))
    work = Work(digits.request(tmp_path, engine="tensorrt-rtx", rest="fp16"), lambda *_: None)
    assert compare_speed(work, built, digits.float_graph) is None
    (note,) = work.notes
    assert note == "whether int8 is faster than fp16 was not measured: the engine does not run here"
    assert built.runtime.built == []
