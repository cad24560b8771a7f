"""The accuracy budget and the comparison of speed, end to end; with a model that has one layer which 8 bits ruin."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

import engines
from calibration.read_qdq import read_layers
from engines import BuildOptions, EngineInfo, EngineOrigin
from engines.gpus import Gpu, GpuStatus
from engines.latency import LatencyStats
from engines.timing import WorkerResult
from sit_deploy.bundle import load_bundle
from sit_deploy.errors import GateError, InputError
from sit_deploy.outputs import Output
from sit_deploy.pipeline.build import build
from sit_deploy.pipeline.engine import BuiltEngine
from sit_deploy.pipeline.fallback import NoGain, NoGainError
from sit_deploy.pipeline.logits import graph_logits, torch_logits
from sit_deploy.pipeline.speed_gate import compare_speed
from sit_deploy.pipeline.work import Work
from sit_deploy.precisions import TOLERANCE
from tests.helpers import held_up
from tests.helpers.command_line import CommandLine
from tests.sit_deploy.conftest import Digits, stand_in_for_the_float_graph, trained_checkpoint

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("calibrated_once")]

HARMFUL = "blocks.2/mlp/fc2"


def edit_constant(graph: onnx.ModelProto, name: str, change: Callable[[np.ndarray], np.ndarray]) -> None:
    (tensor,) = [t for t in graph.graph.initializer if t.name == name]
    tensor.CopyFrom(numpy_helper.from_array(change(numpy_helper.to_array(tensor).copy()), name))


@pytest.fixture(scope="module")
def harmful(digits: Digits, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The same model, but that a channel of a block's MLP is 10 000 throughout, which its second Linear does not read:
    nothing to the float model. In INT8 with a threshold of the largest |x| the others have nothing left but zeros."""
    import torch

    def outlier(bias: np.ndarray) -> np.ndarray:
        bias[5] = 1e4
        return bias

    def unread(weight: np.ndarray) -> np.ndarray:  # (inputs, outputs)
        weight *= 6
        weight[5] = 0
        return weight

    float_graph = digits.float_graph
    graph = onnx.ModelProto()
    graph.CopyFrom(float_graph.graph)
    (add,) = [
        n
        for n in graph.graph.node
        if "blocks.2/mlp/fc1/matmul" in n.input or n.name == "blocks.2/mlp/fc1/bias"
    ]
    (bias,) = [name for name in add.input if name in {t.name for t in graph.graph.initializer}]
    edit_constant(graph, bias, outlier)
    edit_constant(graph, f"{HARMFUL}/weight", unread)
    model = copy.deepcopy(float_graph.loaded.model)
    with torch.no_grad():
        mlp = model.blocks[2].mlp
        mlp.fc1.bias[5] = 1e4
        mlp.fc2.weight *= 6
        mlp.fc2.weight[:, 5] = 0
    path = tmp_path_factory.mktemp("harmful") / "model.onnx"
    path.write_bytes(graph.SerializeToString())
    images = float_graph.compared.normalised
    reference, logits = torch_logits(model, images), graph_logits(path, images, (1, 1))
    np.testing.assert_allclose(logits, reference, atol=1e-3)  # the two edits are one
    compared = replace(float_graph.compared, reference={"logits": reference})
    loaded = replace(float_graph.loaded, model=model)
    return replace(float_graph, loaded=loaded, compared=compared, graph=graph, values={"logits": logits})


@pytest.fixture(scope="module")
def images_of_harmful(digits: Digits, harmful: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The pictures of `digits`, where this model puts them."""
    from sit_deploy.data.batches import batches
    from sit_deploy.data.image_files import list_images

    root, paths = tmp_path_factory.mktemp("labelled"), list_images(digits.images)
    ((pixels, _),) = batches(paths, harmful.preprocessing, len(paths))
    for path, best in zip(paths, torch_logits(harmful.loaded.model, pixels).argmax(1), strict=True):
        (root / str(best)).mkdir(exist_ok=True)
        (root / str(best) / path.name).write_bytes(path.read_bytes())
    return root


@pytest.fixture
def broken(
    digits: Digits, harmful: Any, images_of_harmful: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Any]:
    """A function that returns a request to build the harmful model on ONNX Runtime; its speed is not measured.

    The layer is left to the budget, which is what is tested: as it reads an outlier, it would stay high without one.
    """
    monkeypatch.setattr("sit_deploy.quantize.quantizer.LEAST_DB", float("-inf"))
    stand_in_for_the_float_graph(digits, monkeypatch, harmful)
    monkeypatch.setattr("sit_deploy.pipeline.build.compare_speed", lambda *_: None)
    monkeypatch.setattr("sit_deploy.pipeline.sensitivity.IMAGES", 4)

    def request(output: Path, **fields: Any) -> Any:
        common = {"val_data": images_of_harmful, "quantize": ("fc1", "fc2"), "calib_images": 8}
        return digits.request(output, **(common | fields))

    return request


def report_of(bundle: Any) -> dict[str, Any]:
    return json.loads((bundle.path / "report.json").read_text(encoding="utf-8"))


# ---------------------------------------------------------------------------------------------------------- budget


def test_a_harmful_layer_is_kept_high_and_the_rest_is_not(broken: Callable[..., Any], tmp_path: Path) -> None:
    bundle = build(broken(tmp_path / "b", max_accuracy_drop=10.0))
    report = report_of(bundle)
    found = report["quantization"]
    rows = {row["layer"]: row for row in found["layers"]}
    asked = {name for name, row in rows.items() if row["group"] in ("fc1", "fc2")}
    assert {name for name in asked if rows[name]["precision"] == "high"} == {HARMFUL}
    assert rows[HARMFUL]["reason"] == "kept high for accuracy: number 1 by harm for its work"
    assert rows[HARMFUL]["noise"] > 10 * max(rows[name]["noise"] for name in asked - {HARMFUL})
    assert all(rows[name]["precision"] == "int8" for name in asked - {HARMFUL})
    (note,) = [note for note in report["notes"] if "kept" in note]
    assert note.startswith("kept in fp32 to lose at most 10 points (")
    assert note.endswith(f": {HARMFUL}")

    assert found["tries"][0]["drop"] > 10 >= found["tries"][-1]["drop"]
    assert found["tries"][-1]["share_of_macs"] == pytest.approx(found["share_of_macs"])
    assert report["accuracy"]["drop"] <= 10
    # the hops are the final plan's, each once, and so is the graph; those on the way were out of tolerance
    names = ["deploy form", "ONNX fp32", "ONNX int8", "onnxruntime engine"]
    assert [hop["name"] for hop in report["hops"]] == names
    assert all(hop["passed"] for hop in report["hops"])
    low = {row["layer"] for row in read_layers(onnx.load(bundle.model_path)) if row["precision"] == "int8"}
    assert low == asked - {HARMFUL}
    assert bundle.manifest.precision == "int8"


def test_without_a_budget_it_is_ruined(broken: Callable[..., Any], tmp_path: Path) -> None:
    """What the budget is there for; here the tolerance of the hop stops it."""
    with pytest.raises(
        GateError, match=r"^ONNX int8 is \d\S* standard deviations .*\(tolerance 1\); nothing was written"
    ):
        build(broken(tmp_path / "b"))
    assert list(tmp_path.iterdir()) == []


def test_the_graph_on_disk_is_the_one_chosen_and_not_the_last_tried(
    broken: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The bisection often ends with a plan that does not keep the budget."""
    from sit_deploy.pipeline import accuracy_budget

    def one_more(plan: Any, whole: Any, limit: float, noise: Any, attempt: Any) -> Any:
        chosen = plan.keep_high((HARMFUL,))
        accuracy = attempt(chosen)
        attempt(plan.keep_high(plan.quantized[1:]))
        return accuracy_budget.Fit(chosen, accuracy, ((chosen.share, accuracy.drop),))

    monkeypatch.setattr(accuracy_budget, "fit", one_more)
    bundle = build(broken(tmp_path / "b", max_accuracy_drop=10.0))
    rows = report_of(bundle)["quantization"]["layers"]
    told = {row["layer"] for row in rows if row["precision"] == "int8"}
    low = {row["layer"] for row in read_layers(onnx.load(bundle.model_path)) if row["precision"] == "int8"}
    assert low == told and len(told) > 1
    assert [hop["name"] for hop in report_of(bundle)["hops"]].count("ONNX int8") == 1


def test_a_budget_that_all_layers_keep_costs_no_search(
    quick_float: Digits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "sit_deploy.quantize.sensitivity.measure_sensitivity",
        lambda *_: pytest.fail("layers were measured alone"),
    )
    request = quick_float.request(
        tmp_path / "b",
        val_data=quick_float.images,
        max_accuracy_drop=100.0,
        calib_images=4,
        quantize=("fc1",),
    )
    report = report_of(build(request))
    assert [t["share_of_macs"] for t in report["quantization"]["tries"]] == [
        report["quantization"]["share_of_macs"]
    ]
    assert not any("kept" in note for note in report["notes"])


@pytest.mark.usefixtures("broken")
def test_an_impossible_budget(digits: Digits, cli: CommandLine, images_of_harmful: Path) -> None:
    """FP32 is built instead, which is a success, and a sentence says why."""
    words = (
        "--quantize",
        "fc2",
        "--calib-data",
        digits.images,
        "--calib-method",
        "minmax",
        "--calib-images",
        8,
    )
    words += ("--val-data", images_of_harmful, "--max-accuracy-drop", 0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("calibration.plan.WORTH_IT", 0.99)  # no layer can be spared
        result = cli(*digits.words(*words), "-o", "nano-int8")
    assert result.status == 0
    bundle = load_bundle(cli.folder / "nano-int8")
    report = report_of(bundle)
    assert bundle.manifest.precision == "fp32"
    assert bundle.manifest.calibration is report["quantization"] is None
    assert sorted(p.name for p in bundle.path.iterdir()) == [
        "engine.onnx", "golden.npz", "manifest.json", "model.onnx", "report.html", "report.json",
    ]  # fmt: skip
    (note,) = [note for note in report["notes"] if "fp32 was built instead" in note]
    assert note.startswith("int8 cannot keep top-1 within 0 points (lost by share of the work ")
    assert "; fp32 was built instead" in note and note.endswith("nano-int8 holds fp32)")
    assert f"Note: {note}\n" in result.out
    assert [hop["name"] for hop in report["hops"]] == ["deploy form", "ONNX fp32", "onnxruntime engine"]
    assert {hop["tolerance"] for hop in report["hops"]} == {1e-4}
    assert "--precision fp32" in bundle.manifest.command and "--quantize" not in bundle.manifest.command
    assert report["seconds"]["Calibrating"] > 0  # the time spent is told


def test_a_model_trained_in_int8_has_its_layers_taken_back_too(
    quick_float: Digits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Here one layer whose threshold clips nearly everything; layers are measured on the labelled images, for want of others."""
    thresholds = {f"blocks.{i}/mlp/fc1": 8.0 for i in range(3)} | {"blocks.1/mlp/fc1": 1e-3}
    monkeypatch.setattr("calibration.plan.WORTH_IT", 0.01)
    checkpoint = trained_checkpoint(quick_float, tmp_path, thresholds)
    more = {
        "calib_data": None,
        "calib_method": "auto",
        "val_data": quick_float.images,
        "max_accuracy_drop": 10.0,
        "quantize": None,
    }
    report = report_of(build(quick_float.request(tmp_path / "b", checkpoint=checkpoint, **more)))
    rows = {row["layer"]: row for row in report["quantization"]["layers"]}
    assert rows["blocks.1/mlp/fc1"]["reason"] == "kept high for accuracy: number 1 by harm for its work"
    assert {name for name, row in rows.items() if row["precision"] == "int8"} == thresholds.keys() - {
        "blocks.1/mlp/fc1"
    }
    assert report["calibration"] == {"method": "trained", "file": None}


def test_notes_of_the_attempt_are_kept(
    quick_float: Digits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That the images were of no use may well be why."""
    from PIL import Image

    def give_up(*_: Any) -> Any:
        raise NoGainError(NoGain.ACCURACY, "no gain; fp32 was built instead")

    monkeypatch.setattr("sit_deploy.pipeline.build.keep_budget", give_up)
    monkeypatch.setitem(TOLERANCE, "int8", 9.0)
    (tmp_path / "grey").mkdir()
    for i in range(2):
        Image.new("RGB", (50, 50), (9 * i, 0, 0)).save(tmp_path / "grey" / f"{i}.png")
    report = report_of(
        build(quick_float.request(tmp_path / "low", calib_data=tmp_path / "grey", calib_images=2))
    )
    odd = "every calibration image is of a single colour; give pictures as the model will see them"
    assert report["notes"] == [*quick_float.notes, odd, "no gain; fp32 was built instead"]


def test_the_final_plan_has_to_keep_the_tolerance_too(
    broken: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(TOLERANCE, "int8", 1e-6)
    report = report_of(build(broken(tmp_path / "b", max_accuracy_drop=100.0)))
    assert report["precision"] == "fp32"
    (note,) = [note for note in report["notes"] if "fp32 was built instead" in note]
    assert note.startswith("ONNX int8 is ") and "; fp32 was built instead: " in note


# ----------------------------------------------------------------------------------------------------------- speed


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


# --------------------------------------------------------------------------------------------------- targets of FP8


def has_gpus(monkeypatch: pytest.MonkeyPatch, *capabilities: str) -> None:
    found = GpuStatus(tuple(Gpu("a GPU", c) for c in capabilities), "")
    monkeypatch.setattr("engines.tensorrt.engine.find_gpus", lambda: found)


def test_a_fallback_from_fp8_is_for_the_gpus_asked_for(
    quick_float: Digits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """None asked for means all that the engine is built for by default; only FP8 is for fewer."""
    pytest.importorskip("tensorrt_rtx", reason="needs TensorRT-RTX to build: pip install tensorrt-rtx")

    def give_up(*_: Any) -> Any:
        raise NoGainError(NoGain.ACCURACY, "no gain; fp16 was built instead")

    monkeypatch.setattr("sit_deploy.pipeline.build.keep_budget", give_up)
    bundle = build(
        quick_float.request(
            tmp_path / "b", precision="fp8", engine="tensorrt-rtx", calib_images=1, quantize=("proj",)
        )
    )
    assert bundle.manifest.precision == "fp16"
    assert "--target" not in bundle.manifest.command


def test_fp8_on_onnxruntime_is_refused_for_that_and_not_for_the_gpu(
    digits: Digits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    has_gpus(monkeypatch, "sm86")
    with pytest.raises(InputError, match="ONNX Runtime has no fp8 kernels for a CPU"):
        build(digits.request(tmp_path / "b", precision="fp8"))


def test_steps_taken_twice_add_up() -> None:
    work = Work(SimpleNamespace(max_damaged=0), lambda *_: None)
    work.seconds["again"] = 5.0
    with work.step("again"):
        pass
    assert 5.0 <= work.seconds["again"] < 6.0
