from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from sit_deploy.bundle import load_bundle
from tests.helpers.bundles import load_manifest, seal_again
from tests.helpers.command_line import CommandLine
from tests.helpers.train import start_world
from tests.sit_deploy.conftest import Trained


def test_golden_outputs(nano_fp32: Path, cli: CommandLine) -> None:
    found = cli("validate", nano_fp32, "--json").json()
    assert (found["bundle"], found["engine"], found["accuracy"]) == (str(nano_fp32), "onnxruntime", None)
    assert found["golden"]["passed"] and found["golden"]["error"] <= found["golden"]["tolerance"] == 1e-4
    out = cli("validate", nano_fp32, "--threads", "1").out
    assert f"{nano_fp32} on onnxruntime" in " ".join(out.split())
    assert out.split()[-1] == "ok"


def test_accuracy_with_limits_that_are_kept(trained: Trained, cli: CommandLine) -> None:
    words = (
        "validate",
        trained.bundle,
        "--data",
        trained.images,
        "--max-accuracy-drop",
        0,
        "--min-agreement",
        100,
    )
    found = cli(*words, "--json").json()["accuracy"]
    assert (found["images"], found["drop"], found["agreement"]) == (11, 0, 100)
    assert (found["measured_on"], found["data"]) == ("onnxruntime", str(trained.images))
    out = cli(*words).out
    assert f"{found['engine_top1']:.2f}" in out and "Accuracy on 11 images" in out


def worse(bundle: Path, change: Callable[[np.ndarray], np.ndarray]) -> None:
    """Give a bundle's engine another head, its hashes in order: it is whole, and wrong."""
    import onnx
    from onnx import numpy_helper

    engine = onnx.load(bundle / "engine.onnx")
    (head,) = [
        t
        for t in engine.graph.initializer
        if "head/weight" in t.name or tuple(t.dims) in ((7, 128), (128, 7))
    ]
    values = change(numpy_helper.to_array(head).copy()).astype(np.float32)
    head.CopyFrom(numpy_helper.from_array(values, head.name))
    onnx.save(engine, bundle / "engine.onnx")
    seal_again(bundle)


def test_an_engine_that_is_off(trained: Trained, copy_of: Callable[[Path], Path], cli: CommandLine) -> None:
    bundle = copy_of(trained.bundle)
    worse(bundle, lambda values: values * 1.01)
    load_bundle(bundle)
    result = cli("validate", bundle, status=1)
    assert "failed" in result.out
    (line,) = result.complaints
    assert line.startswith("Error: golden output is ") and "; do not use this engine here: " in line
    assert not cli("validate", bundle, "--json", status=1).json()["golden"]["passed"]


def test_an_engine_that_gives_nan(
    trained: Trained, copy_of: Callable[[Path], Path], cli: CommandLine
) -> None:
    """JSON knows no NaN: the report must still be JSON, and say that it failed."""
    bundle = copy_of(trained.bundle)
    worse(bundle, lambda values: values * np.nan)
    found = cli("validate", bundle, "--json", status=1).json()["golden"]
    assert (found["error"], found["compared"], found["passed"], found["agreement"]) == (None, True, False, 0)
    result = cli("validate", bundle, status=1)
    assert "golden output: NaN or infinite logits for 4 of 4 images" in result.out
    assert result.complaints[0].startswith(
        "Error: golden output gives NaN or infinite logits for 4 of 4 images; do not"
    )
    assert (
        "NaN or infinite logits for "
        in cli("validate", bundle, "--data", trained.images, status=1).the_error()
    )
    assert (
        "NaN or infinite logits for 11 of 11" in cli("predict", bundle, trained.images, status=1).the_error()
    )


@pytest.mark.slow
def test_limits_that_are_not_kept(
    trained: Trained, copy_of: Callable[[Path], Path], cli: CommandLine
) -> None:
    """The golden outputs would say it first; the limits are what is tried here, so they are let through."""
    from sit_deploy import precisions

    bundle = copy_of(trained.bundle)
    worse(bundle, lambda values: -values)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(precisions.TOLERANCE, "fp32", 1e9)
        words = ("validate", bundle, "--data", trained.images, "--json")
        result = cli(*words, "--max-accuracy-drop", "5", status=1)
        assert result.json()["accuracy"]["drop"] > 5
        assert result.complaints[0].startswith("Error: top-1 falls by ")
        assert "agree on " in cli(*words, "--min-agreement", "99", status=1).complaints[0]
        cli(*words)  # no limit, no failure


def test_moved_weights(trained: Trained, cli: CommandLine) -> None:
    moved = shutil.copy(trained.checkpoint, cli.folder / "moved.pth")
    words = ("validate", trained.bundle, "--data", trained.images, "--json", "--checkpoint")
    assert cli(*words, moved).json()["accuracy"]["images"] == 11
    assert "gone.pth is not there; pass --checkpoint FILE" in cli.refuses(*words, "gone.pth")


@pytest.mark.slow
def test_a_tensorrt_bundle_on_this_cpu(nano_rtx: Path, cli: CommandLine) -> None:
    found = cli("validate", nano_rtx, "--engine", "onnxruntime", "--json").json()
    assert found["engine"] == "onnxruntime"
    assert found["golden"]["passed"] and found["golden"]["tolerance"] == 0.05


def test_limits_need_data(nano_fp32: Path, cli: CommandLine) -> None:
    for option in ("--max-accuracy-drop", "--min-agreement"):
        message = cli.refuses("validate", nano_fp32, option, "1")
        assert message.endswith("need images with labels; pass --data DIR")


def test_data_that_does_not_fit(
    trained: Trained, cli: CommandLine, make_image_folder: Callable[..., Path]
) -> None:
    other = make_image_folder(("kiwi", "plum"))
    assert "2 classes, the model 7 classes" in cli.refuses("validate", trained.bundle, "--data", other)
    (cli.folder / "empty").mkdir()
    assert "no class folders" in cli.refuses("validate", trained.bundle, "--data", "empty")
    assert "no such folder" in cli.refuses("validate", trained.bundle, "--data", "nowhere")


# --------------------------------------------------------------------------------------------------------- evidence


@pytest.mark.slow
def test_differences_are_shown(trained: Trained, copy_of: Callable[[Path], Path], cli: CommandLine) -> None:
    """Class names are hostile on purpose: they must come through as they are."""
    from sit_deploy import precisions

    bundle = copy_of(trained.bundle)
    worse(bundle, lambda values: values[::-1] if values.shape[0] == 7 else values[:, ::-1])
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(precisions.TOLERANCE, "fp32", 1e9)
        found = cli("validate", bundle, "--data", trained.images, "--json").json()["accuracy"]
        out = cli("validate", bundle, "--data", trained.images).out
    assert (
        found["agreement"] < 100 and found["sqnr_db"] < 20 and found["lowest_cosine"] <= found["cosine"] < 1
    )
    assert (
        sum(row["engine"] - row["reference"] for row in found["by_class"]) == found["gained"] - found["lost"]
    )
    flip = found["flips"][0]
    assert Path(flip["image"]).is_file() and Path(flip["image"]).parent.name == flip["label_name"]
    assert "Classes that lost most" in out and "Surest of the images whose class changed" in out
    assert f"SQNR {found['sqnr_db']:.1f} dB; cosine {found['cosine']:.6f}" in out
    assert flip["engine_name"] in "".join(out.split())


def test_some_of_the_images(trained: Trained, cli: CommandLine) -> None:
    found = cli("validate", trained.bundle, "--data", trained.images, "--images", 4, "--json").json()
    assert found["accuracy"]["images"] == 4
    found = cli("validate", trained.bundle, "--data", trained.images, "--images", 400, "--json").json()
    assert found["accuracy"]["images"] == 11


def test_resumed(trained: Trained, cli: CommandLine, copy_of: Callable[[Path], Path]) -> None:
    words = ("validate", trained.bundle, "--data", trained.images, "--resume", "progress.json", "--json")
    first = cli(*words).json()
    note = (cli.folder / "progress.json").read_bytes()
    assert cli(*words).json() == first and (cli.folder / "progress.json").read_bytes() == note
    other = ("validate", trained.bundle, "--data", trained.images, "--images", 3, "--resume", "progress.json")
    assert "progress.json is of another run" in cli.refuses(*other)
    assert (cli.folder / "progress.json").read_bytes() == note


def test_options_of_data_need_data(nano_fp32: Path, cli: CommandLine) -> None:
    for words in (("--images", 3), ("--resume", "x.json"), ("--split", "val"), ("--data-dir", "x")):
        message = cli.refuses("validate", nano_fp32, *words)
        assert message == f"{words[0]} is for images with labels; pass --data DIR"


def test_a_truncated_image(trained: Trained, cli: CommandLine) -> None:
    images = Path(shutil.copytree(trained.images, cli.folder / "images"))
    damaged = next(images.rglob("*.png"))
    damaged.write_bytes(damaged.read_bytes()[:300])
    told = cli.refuses("validate", trained.bundle, "--data", images)
    assert damaged.name in told and "more than --max-damaged 0" in told
    count = len(list(images.rglob("*.png")))
    said = cli("validate", trained.bundle, "--data", images, "--max-damaged", 1, "--json").json()["accuracy"]
    assert said["images"] == count - 1
    (left_out,) = said["damaged"]
    assert left_out["image"].endswith(damaged.name) and left_out["reason"]
    assert any(
        "1 image cannot be read and was left out" in note and damaged.name in note for note in said["notes"]
    )
    out = " ".join(cli("validate", trained.bundle, "--data", images, "--max-damaged", 1).out.split())
    assert "Note: 1 image cannot be read and was left out" in out


@pytest.mark.slow
def test_two_processes_count_what_one_does(trained: Trained, cli: CommandLine) -> None:
    words = ("validate", trained.bundle, "--data", trained.images, "--threads", 1, "--json")
    world = start_world(cli.folder / "streams", 2, *words, "--resume", cli.folder / "progress.json")
    first, second = (process.wait() for process in world)
    assert (first.status, second.status) == (0, 0), (first, second)
    assert second.out == "" and "Traceback" not in first.err + second.err
    shared, alone = first.json()["accuracy"], cli(*words).json()["accuracy"]
    for figure in ("sqnr_db", "cosine", "lowest_cosine"):
        # batches are cut otherwise, and so may the last digits be
        assert shared.pop(figure) == pytest.approx(alone.pop(figure), rel=1e-2)
    assert shared == alone
    assert {path.name for path in cli.folder.glob("progress*")} == {"progress.json", "progress.json.1"}


@pytest.mark.slow
def test_a_reference_that_is_not_what_it_was(
    trained: Trained, copy_of: Callable[[Path], Path], cli: CommandLine
) -> None:
    """The bundle says that training measured 99 %; here about half of the images lie in the folder of another class."""
    bundle = copy_of(trained.bundle)
    manifest = load_manifest(bundle)
    manifest["weights"]["top1"] = 99.0
    seal_again(bundle, manifest)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sit_deploy.measure.baseline.FEWEST", 5)
        found = cli("validate", bundle, "--data", trained.images, "--json").json()["accuracy"]
        out = " ".join(cli("validate", bundle, "--data", trained.images).out.split())
    assert found["warning"].startswith("the PyTorch reference itself has ")
    assert "by its training 99.0 %" in found["warning"]
    assert f"Warning: {found['warning']}" in out
    assert (
        cli("validate", trained.bundle, "--data", trained.images, "--json").json()["accuracy"]["warning"]
        is None
    )


@pytest.mark.slow
def test_layers_of_an_engine_for_a_cpu(nano_fp32: Path, cli: CommandLine) -> None:
    found = cli("validate", nano_fp32, "--layers", "--json").json()["layers"]["layers"]
    assert sum(row["share"] for row in found) == pytest.approx(1)
    assert {"Conv", "Attention", "Gemm"} <= {row["types"][0] for row in found}
    out = cli("validate", nano_fp32, "--layers").out
    assert f"{len(found)} layers, the profiler attached" in out
    message = cli.refuses("validate", nano_fp32, "--layers", "--engine", "tensorrt")
    assert message.startswith("--layers is of the bundle's own engine")
