"""Bundles in 8 bits, made and used by the real command line, and what it refuses."""

from __future__ import annotations

import html
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto

from calibration.cache import Calibration
from sit_deploy import load
from sit_deploy.bundle import load_bundle
from sit_deploy.data.batches import batches
from sit_deploy.data.image_files import list_images
from sit_deploy.precisions import TOLERANCE
from tests.helpers.bundles import report_of
from tests.helpers.command_line import CommandLine
from tests.helpers.digits import Digits
from tests.helpers.idle_call import IdleCall
from tests.sit_deploy.conftest import Trained

LAYERS = 4 * 4 + 1 + 3 * 2  # four a block and one more in the last, two a slimming module
HIGH_GROUPS = {"stem", "head", "attention", "aggregation", "residual"}


@pytest.mark.slow
def test_manifest_and_report(nano_int8: Path, digits: Digits) -> None:
    manifest, report = load_bundle(nano_int8).manifest, report_of(nano_int8)
    calibration = Calibration.load(nano_int8 / "calibration.json")
    assert manifest.precision == "int8"
    assert "calibration.json" in manifest.files
    assert manifest.calibration == report["calibration"]
    assert manifest.calibration == {
        "method": calibration.method, "file": "calibration.json", "images": 20,
        "source": f"20 of 20 images in {digits.images}", "images_key": calibration.images.key, "graph": calibration.graph,
    }  # fmt: skip
    assert f"--precision int8 --checkpoint {digits.checkpoint}" in manifest.command
    assert "--calib-method auto" in manifest.command and "--rest fp32" in manifest.command
    hops = {hop["name"]: hop for hop in report["hops"]}
    assert list(hops) == ["deploy form", "ONNX fp32", "ONNX int8", "onnxruntime engine"]
    assert 1e-3 < hops["ONNX int8"]["error"] < 0.8 and hops["ONNX int8"]["tolerance"] == 1
    assert report["accuracy"]["images"] == 20
    assert {"Calibrating", "Rounding and measuring layers", "Writing int8 into the graph"} <= report[
        "seconds"
    ].keys()


@pytest.mark.slow
def test_every_layer_is_reported(nano_int8: Path) -> None:
    found = report_of(nano_int8)["quantization"]
    calibration = Calibration.load(nano_int8 / "calibration.json")
    assert (found["method"], found["rest"]) == (calibration.method, "fp32")
    low = [row for row in found["layers"] if row["precision"] == "int8"]
    high = [row for row in found["layers"] if row["precision"] == "high"]
    assert len(low) == LAYERS and {row["group"] for row in low} == {"qkv", "proj", "fc1", "fc2", "tsm"}
    assert {row["group"] for row in high} == HIGH_GROUPS
    assert all(row["reason"] and row["sqnr_db"] is row["scale"] is row["shift"] is None for row in high)
    assert all(20 < row["sqnr_db"] < 70 and row["scale"] > 0 and row["reason"] for row in low)
    assert all(row["shift"] > 0 for row in low if row["group"] == "fc2")  # GELU's output is lopsided
    work = sum(row["macs"] for row in found["layers"])
    assert found["share_of_macs"] == pytest.approx(sum(row["macs"] for row in low) / work)
    assert not any("alone_db" in row for row in found["layers"])  # that takes --sensitivity


@pytest.mark.slow
def test_speed_is_measured(nano_int8: Path) -> None:
    speed = report_of(nano_int8)["quantization"]["speed"]
    # rounds that a busy machine spoiled are told apart, without a figure
    rounds = speed["per_round"] or speed["doubted_rounds"]
    assert (speed["over"], speed["batch_size"], len(rounds)) == ("fp32", 1, 2)
    measured = speed["ratio"] is not None
    assert measured == bool(speed["per_round"])
    assert not measured or speed["ratio"] == pytest.approx(np.median(rounds))
    assert set(speed["p50_ms"]) == {"fp32", "int8"} and min(speed["p50_ms"].values()) > 0


@pytest.mark.slow
def test_the_graph_holds_int8_and_the_rest_fp32(nano_int8: Path, rtx_int8: Path) -> None:
    for bundle, rest in ((nano_int8, TensorProto.FLOAT), (rtx_int8, TensorProto.FLOAT16)):
        graph = onnx.load(bundle / "model.onnx").graph
        types = {t.name: t.data_type for t in graph.initializer}
        assert types["blocks.2/mlp/fc1/weight/codes"] == TensorProto.INT8
        assert types["head/weight"] == rest
        assert {t for name, t in types.items() if "/codes" in name} == {TensorProto.INT8}
        kinds = {node.op_type for node in graph.node}
        assert {"QuantizeLinear", "DequantizeLinear"} <= kinds
        assert not any(node.domain for node in graph.node)  # no runtime's own operators


@pytest.mark.slow
def test_golden_outputs_and_loading(nano_int8: Path, digits: Digits, cli: CommandLine) -> None:
    golden = cli("validate", nano_int8, "--json").json()["golden"]
    assert golden["passed"] and 1e-3 < golden["error"] < golden["tolerance"] == 1
    bundle = load_bundle(nano_int8)
    ((images, _),) = batches(list_images(digits.images)[:3], bundle.preprocessing(), 3)
    with load(nano_int8) as classifier:
        logits = classifier.logits(images)
    assert logits.shape == (3, 10) and np.isfinite(logits).all()
    assert list(logits.argmax(1)) == [int(path.parent.name) for path in list_images(digits.images)[:3]]


@pytest.mark.slow
@pytest.mark.usefixtures("digits")
@pytest.mark.parametrize("precision", ["int8", "fp8"])
def test_for_tensorrt(precision: str, request: pytest.FixtureRequest, cli: CommandLine) -> None:
    path = request.getfixturevalue(f"rtx_{precision}")
    manifest, report = load_bundle(path).manifest, report_of(path)
    names = [hop["name"] for hop in report["hops"]]
    assert names == [
        "deploy form",
        "ONNX fp32",
        f"ONNX {precision}",
        f"ONNX {precision}, rest fp16",
        "tensorrt-rtx engine",
    ]
    assert report["hops"][3]["note"] == "rounding simulated"
    assert report["quantization"]["rest"] == "fp16" and report["quantization"]["method"] == "minmax"
    assert {row["precision"] for row in report["quantization"]["layers"]} == {precision, "high"}
    assert manifest.calibration["images"] == 8
    if precision == "fp8":
        assert re.findall(r"--target (\w+)", manifest.command) == ["sm89", "sm120", "sm121"]
        assert "sm86" not in manifest.engine.target and "sm89" in manifest.engine.target
        assert not any(row["shift"] for row in report["quantization"]["layers"])
    # what the builder says of its own kernels, and nothing that it does not say
    kernels = manifest.engine.details["eight_bits"]
    low = {row["layer"] for row in report["quantization"]["layers"] if row["precision"] == precision}
    assert {node for nodes in kernels.values() for node in nodes} == low
    assert kernels["widened"] == kernels["unknown"] == []
    assert not any("not all in 8 bits" in text for text in report["notes"])
    told = f"by its builder's log the engine multiplies all {LAYERS} products in {precision} in 8 bits"
    assert told in cli("inspect", path).out and cli("inspect", path, "--json").json()["kernels"] == told
    listed = cli("inspect", path, "--kernels", "--json").json()
    census, rows = listed["census"], listed["kernel_list"]
    assert census == manifest.engine.details["kernels"] and census["kernels"] == len(rows)
    assert (census["attention"], census["attentions"]) == (4, 4)
    assert census["widened"] == kernels["widened"]
    assert sum(row["role"] == "attention" for row in rows) == 4
    assert census["products"][{"int8": "int8", "fp8": "float8_e4m3fn"}[precision]] == len(kernels["kept"])
    # attention reads what the product of its queries, keys and values wrote; in FP8 the scales come between, for sm120
    order = {node: place for place, row in enumerate(rows) if row["role"] != "other" for node in row["nodes"]}
    for block in range(3):
        path_of = f"blocks.{block}/attn"
        assert order[f"{path_of}/softmax"] - order[f"{path_of}/qkv"] == (1 if precision == "int8" else 2)
    said = f"{len(rows)} kernels by its builder's log; attention in one kernel in 4 of 4 places; kernels of products: "
    assert said in cli("inspect", path, "--kernels").out
    assert said in html.unescape((path / "report.html").read_text(encoding="utf-8"))
    golden = cli("validate", path, "--engine", "onnxruntime", "--json").json()["golden"]
    assert golden["passed"] and golden["error"] > 1e-3


@pytest.mark.slow
def test_bench_on_onnxruntime(rtx_int8: Path, cli: CommandLine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sit_deploy.validation.bench.TorchCall", IdleCall)
    words = ("--engine", "onnxruntime", "--rounds", 1, "--seconds", 0.01, "--json")
    found = cli("bench", rtx_int8, *words).json()
    assert (found["precision"], found["speedup"]["engine"]) == ("int8", "onnxruntime")
    assert set(found["results"]) == {"PyTorch", "onnxruntime"}


# --------------------------------------------------------------------------------------------------------- inspect


@pytest.mark.slow
def test_inspect(nano_int8: Path, rtx_fp8: Path, cli: CommandLine) -> None:
    for path, precision in ((nano_int8, "int8"), (rtx_fp8, "fp8")):
        told = {row["layer"]: row for row in report_of(path)["quantization"]["layers"]}
        rows = {row["layer"]: row for row in cli("inspect", path, "--json").json()["layers"]}
        for name, row in rows.items():
            assert row["precision"] == told[name]["precision"] and row["reason"] == told[name]["reason"]
            assert row["sqnr_db"] == told[name]["sqnr_db"]
            assert row["scale"] == told[name]["scale"] and row["shift"] == told[name]["shift"]
        assert sum(row["precision"] == precision for row in rows.values()) == LAYERS
        lines = cli("inspect", path).out.splitlines()
        (line,) = [line for line in lines if line.strip().startswith("blocks.2/mlp/fc2 ")]
        row = rows["blocks.2/mlp/fc2"]
        words = ["blocks.2/mlp/fc2", precision, f"{row['scale']:.3g}"]
        words += [str(row["shift"])] if row["shift"] else []
        assert line.split()[: len(words) + 1] == [*words, f"{row['sqnr_db']:.1f}"]
        (line,) = [line for line in lines if line.strip().startswith("head ")]
        assert line.split() == ["head", "high", "writes", "the", "logits,", "for", "little", "work"]


@pytest.mark.slow
def test_inspect_a_graph_alone(nano_int8: Path, nano_fp32: Path, cli: CommandLine) -> None:
    """It says what the graph says; why and with what error is the report's alone."""
    rows = {row["layer"]: row for row in cli("inspect", nano_int8 / "model.onnx", "--json").json()["layers"]}
    full = {row["layer"]: row for row in cli("inspect", nano_int8, "--json").json()["layers"]}
    assert set(rows["head"]) == {"layer", "precision", "scale", "shift"}
    assert {name: row["scale"] for name, row in rows.items()} == {
        name: row["scale"] for name, row in full.items()
    }
    out = cli("inspect", nano_int8 / "model.onnx").out
    assert re.search(r"blocks\.0/attn/qkv +int8 +\d", out)
    assert "runs in" not in cli("inspect", nano_fp32).out
    assert {row["precision"] for row in cli("inspect", nano_fp32, "--json").json()["layers"]} == {"high"}


# ----------------------------------------------------------------------------------------------------- what is said


@pytest.mark.slow
def test_for_people(quick_float: Digits, cli: CommandLine) -> None:
    images = ("--calib-data", quick_float.images, "--calib-images", 4)
    words = quick_float.words(*images, "--calib-method", "minmax", "--quantize", "default", "-o", "b")
    result = cli(*words)
    report = report_of(cli.folder / "b")
    low = [row for row in report["quantization"]["layers"] if row["precision"] == "int8"]
    worst = min(low, key=lambda row: row["sqnr_db"])
    line = f"worst by itself {worst['layer']}, {worst['sqnr_db']:.1f} dB of its own outputs"
    assert f"calibrated by minmax; {line}\n" in result.out
    assert f"int8: {LAYERS} of " in result.out
    assert "calibration.json" in result.out
    page = (cli.folder / "b" / "report.html").read_text(encoding="utf-8")
    assert "<h2>8 bits</h2>" in page and worst["layer"] in page
    again = cli(*words, "--force", "--json").json()
    assert (
        again["quantization"]["layers"] == report["quantization"]["layers"]
    )  # the same from the same images


@pytest.mark.slow
def test_sensitivity(quick_float: Digits, cli: CommandLine) -> None:
    words = (
        "--calib-data",
        quick_float.images,
        "--calib-images",
        4,
        "--val-data",
        quick_float.images,
        "--quantize",
        "tsm",
    )
    cli(*quick_float.words(*words, "--calib-method", "mse", "--sensitivity", "-o", "b"))
    rows = report_of(cli.folder / "b")["quantization"]["layers"]
    low = [row for row in rows if row["precision"] == "int8"]
    assert len(low) == 6
    for row in low:
        assert row["alone_db"] > 10 and row["noise"] > 0 and row["alone_drop"] in range(0, 101, 5)
    assert not any("alone_db" in row for row in rows if row["precision"] == "high")
    out = cli("inspect", "b").out
    assert re.search(r"SQNR dB +alone dB +why", out)
    (line,) = [line for line in out.splitlines() if line.strip().startswith("tsm.1/fc1 ")]
    told = next(row for row in low if row["layer"] == "tsm.1/fc1")
    assert line.split()[-4:-2] == [f"{told['sqnr_db']:.1f}", f"{told['alone_db']:.1f}"]
    assert "alone dB" in (cli.folder / "b" / "report.html").read_text(encoding="utf-8")
    assert load_bundle(cli.folder / "b").manifest.command.endswith(" --sensitivity")


@pytest.mark.slow
@pytest.mark.usefixtures("calibrated_once")
def test_groups(quick_float: Digits, cli: CommandLine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those asked for and no others; a product and a sum of two activations among them."""
    monkeypatch.setitem(TOLERANCE, "int8", 3.0)  # this model cannot bear its sums in 8 bits
    words = ("--calib-data", quick_float.images, "--calib-images", 2, "-o", "b", "--json")
    words += ("--calib-method", "minmax")
    found = cli(*quick_float.words(*words, "--quantize", "fc1,attention,stem,residual")).json()[
        "quantization"
    ]
    low = {row["group"] for row in found["layers"] if row["precision"] == "int8"}
    assert low == {"fc1", "attention", "residual", "stem"}
    reasons = {row["group"]: row["reason"] for row in found["layers"] if row["precision"] == "int8"}
    assert reasons["attention"] == reasons["residual"] == "asked for"
    assert cli("validate", "b", "--json").json()["golden"]["passed"]


# -------------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--precision", "fp8"], "ONNX Runtime has no fp8 kernels for a CPU; pass --engine tensorrt-rtx, or --precision int8"),
        (["--precision", "fp8", "--engine", "tensorrt-rtx", "--target", "sm86"], "sm86 has no FP8: it came with sm89; pass --precision int8 or a newer --target"),
        (["--precision", "fp8", "--calib-method", "entropy"], "fp8 has no calibration method 'entropy'; choose from auto, minmax, average, percentile, mse"),
        (["--opset", "23"], "int8 does not go with opset 23: ONNX Runtime, which every build is measured with, does not load"),
        (["--precision", "fp8", "--engine", "tensorrt-rtx", "--opset", "17"], "fp8 needs opset 19, got 17; leave --opset out"),
        (["--calib-method", "best"], "int8 has no calibration method 'best'; choose from auto, minmax, average, percentile, entropy, mse"),
        (["--calib-percentile", "0"], "--calib-percentile must be above 0 and at most 100, got 0"),
        (["--rest", "bf16"], "ONNX Runtime does not compute bf16 beside int8; pass --rest fp32 or fp16"),
        (["--calib-cache", "nowhere/c.json"], "nowhere of the calibration cache does not exist or cannot be written"),
        (["--precision", "fp16", "--calib-method", "mse"], "--calib-method is for 8 bits; pass --precision int8 or fp8 with it"),
        (["--precision", "fp32", "--calib-percentile", "99"], "--calib-percentile is for 8 bits"),
        (["--precision", "fp32", "--calib-cache", "c.json"], "--calib-cache is for 8 bits"),
        (["--precision", "fp32", "--quantize", "fc1"], "--quantize is for 8 bits"),
        (["--precision", "fp32", "--rest", "fp16"], "--rest is for 8 bits"),
        (["--precision", "fp32", "--sensitivity"], "--sensitivity is for 8 bits"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)  # fmt: skip
def test_refused_before_any_work(
    words: list[str], message: str, digits: Digits, cli: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "sit_deploy.pipeline.build.make_lowered_graph", lambda *_: pytest.fail("the work was begun")
    )
    if "tensorrt-rtx" in words:
        pytest.importorskip("tensorrt_rtx", reason="needs TensorRT-RTX: pip install tensorrt-rtx")
    line = cli.refuses(*digits.words("--calib-data", digits.images, "-o", "new/out"), *words)
    assert message in line


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "int8 needs images to calibrate on; pass --calib-data DIR with some hundred pictures"),
        (["--calib-cache", "gone.json"], "calibration cache gone.json does not exist; make one with sit-deploy calibrate, or pass --calib-data DIR too"),
        (["--calib-cache", "there.json", "--sensitivity"], "--sensitivity needs images; pass --calib-data DIR or --val-data DIR"),
    ],
)  # fmt: skip
def test_without_images(
    words: list[str], message: str, digits: Digits, cli: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "sit_deploy.pipeline.build.make_lowered_graph", lambda *_: pytest.fail("the work was begun")
    )
    (cli.folder / "there.json").write_text("{}")
    assert message in cli.refuses(*digits.words("-o", "new/out"), *words)


def test_empty_group(digits: Digits, cli: CommandLine) -> None:
    message = cli(*digits.words("--quantize", "fc1,,fc2"), status=2).usage_error()
    assert "'fc1,,fc2' is not a list of groups; write for example qkv,fc1,fc2" in message


def test_unknown_group(quick_float: Digits, cli: CommandLine) -> None:
    words = quick_float.words("--calib-data", quick_float.images, "-o", "new/out", "--quantize", "fc1,mlp")
    assert cli.refuses(*words).startswith(
        "no layers are called 'mlp'; choose from stem, qkv, proj, fc1, fc2, "
    )


def test_images(quick_float: Digits, cli: CommandLine, make_image_folder: Callable[..., Path]) -> None:
    words = quick_float.words("-o", "new/out", "--calib-method", "minmax")
    (cli.folder / "empty").mkdir()
    assert "no images in this folder" in cli.refuses(*words, "--calib-data", "empty")
    some = make_image_folder(per_class=2)
    message = cli.refuses(*words, "--calib-data", some, "--calib-images", 99)
    assert message == f"{some} has 4 images and --calib-images asks for 99; add images or ask for fewer"
    broken = some / "dog" / "001.png"
    broken.write_bytes(broken.read_bytes()[:200])
    assert f"{broken}: cannot decode the image" in cli.refuses(
        *words, "--calib-data", some, "--max-damaged", 0
    )


def test_nan_weights(trained: Trained, cli: CommandLine) -> None:
    import torch

    weights = torch.load(trained.checkpoint)["model"]
    weights["blocks.2.attn.proj.bias"][5] = float("nan")
    torch.save(weights, cli.folder / "nan.pth")
    words = ("build", "--model", "sit_nano", "--checkpoint", "nan.pth", "--precision", "int8")
    message = cli.refuses(*words, "--calib-data", trained.images, "--engine", "onnxruntime", "-o", "new/out")
    assert "has 1 NaN or infinite values in 'blocks.2.attn.proj.bias'" in message


@pytest.mark.slow
@pytest.mark.usefixtures("calibrated_once")
def test_disk_full(quick_float: Digits, cli: CommandLine, monkeypatch: pytest.MonkeyPatch) -> None:
    """While the cache is written, and while the bundle's copy of it is."""
    import errno

    write_bytes = Path.write_bytes

    def full(self: Path, data: bytes) -> int:
        if self.name == name and ".partial" in self.parent.name:
            write_bytes(self, data[:100])
            raise OSError(errno.ENOSPC, "No space left on device")
        return write_bytes(self, data)

    monkeypatch.setattr(Path, "write_bytes", full)
    images = ("--calib-data", quick_float.images, "--calib-images", 2, "--quantize", "fc1")
    words = quick_float.words(*images, "--calib-method", "minmax", "-o", "new/out")
    for more, name in (([], "calibration.json"), (["--calib-cache", "c.json"], "c.json")):
        message = cli.refuses(*words, *more)
        assert re.search(rf"cannot write \S*{name}: No space left on device; choose another place", message)


@pytest.mark.usefixtures("ctrl_c")
def test_ctrl_c_while_calibrating(
    quick_float: Digits, cli: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    import signal

    from calibration.observers import TensorObserver

    monkeypatch.setattr(TensorObserver, "update", lambda *_: signal.raise_signal(signal.SIGINT))
    words = quick_float.words("--calib-data", quick_float.images, "-o", "new/out", "--calib-cache", "c.json")
    assert cli.refuses(*words) == "interrupted; nothing was left half-written"
