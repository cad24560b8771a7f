from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from calibration.cache import Calibration
from sit_deploy.preprocessing import Preprocessing
from tests.helpers.command_line import CommandLine
from tests.helpers.digits import Digits, half_nano
from tests.helpers.train import start_world

_TO_THE_END = contextlib.ExitStack()  # of a process


def words(digits: Digits, *more: Any) -> list[Any]:
    given = ("--checkpoint", digits.checkpoint, "--calib-data", digits.images, "--calib-images", 6)
    return ["calibrate", *given, *more]


@pytest.mark.slow
def test_it_writes_what_a_build_takes(quick_float: Digits, cli: CommandLine) -> None:
    result = cli(*words(quick_float, "--calib-method", "mse", "-o", "c.json"))
    found = Calibration.load(cli.folder / "c.json")
    assert (found.method, found.grid, found.images.count) == ("mse", "int8", 6)
    assert {path.name for path in cli.folder.iterdir()} == {"c.json", "tmp"}
    for name, seen in found.tensors.items():
        (line,) = [line for line in result.out.splitlines() if line.strip().startswith(f"{name} ")]
        assert line.split()[1:3] == [f"{seen.min:.3g}", f"{seen.max:.3g}"]
    assert (
        f"✓ c.json: {len(found.tensors)} tensors on 6 of 20 images in {quick_float.images}, method mse"
        in result.out
    )
    build = quick_float.words(
        "--calib-data",
        quick_float.images,
        "--calib-images",
        6,
        "--calib-cache",
        "c.json",
        "--quantize",
        "default",
    )
    report = cli(*build, "-o", "b", "--json").json()
    assert f"calibrated by c.json, made from 6 of 20 images in {quick_float.images}" in report["notes"]
    assert report["calibration"]["method"] == "mse"


@pytest.mark.slow
def test_json(quick_float: Digits, cli: CommandLine) -> None:
    found = cli(*words(quick_float, "--precision", "fp8", "-o", "c.json", "--json")).json()
    made = Calibration.load(cli.folder / "c.json")
    prepared, *notes = found.pop("notes")
    assert (
        prepared.startswith("the images' preprocessing: mean 0.485 0.456 0.406, std")
        and notes == quick_float.notes
    )
    assert found == {
        "calibration": str(cli.folder / "c.json"), "method": made.method, "grid": "fp8", "images": 6,
        "tensors": len(made.tensors),
    }  # fmt: skip
    assert "entropy" not in next(iter(made.tensors.values())).thresholds


@pytest.mark.slow
def test_what_is_there_is_replaced_only_by_force(quick_float: Digits, cli: CommandLine) -> None:
    (cli.folder / "c.json").write_text("precious")
    (cli.folder / "folder").mkdir()
    command = words(quick_float, "--calib-method", "minmax")
    assert cli.refuses(*command, "-o", "c.json") == (
        "output c.json exists; pass --force to replace it, or choose another -o"
    )
    assert cli.refuses(*command, "-o", "folder", "--force") == "output folder is a folder; choose another -o"
    cli(*command, "-o", "c.json", "--force")
    Calibration.load(cli.folder / "c.json")


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--precision", "fp32"], "precision 'fp32' needs no calibration; choose int8 or fp8"),
        (["--precision", "int4"], "precision 'int4' needs no calibration; choose int8 or fp8"),
        (["--precision", "fp8", "--calib-method", "entropy"], "fp8 has no calibration method 'entropy'"),
        (["--calib-percentile", "0"], "--calib-percentile must be above 0 and at most 100, got 0"),
        (["--calib-images", "0"], "number of images must be at least 1, got 0"),
        (["-o", "nowhere/c.json"], "nowhere does not exist or cannot be written; choose another with -o"),
        (["-o", "file/c.json"], "file does not exist or cannot be written; choose another with -o"),
        (["--image-size", "100"], "image size 100 is not a positive multiple of 16"),
    ],
)
def test_refused_before_any_work(
    more: list[str], message: str, digits: Digits, cli: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "sit_deploy.pipeline.calibration.make_float_graph", lambda *_: pytest.fail("the work was begun")
    )
    (cli.folder / "file").write_text("x")
    assert message in cli.refuses(*words(digits, "-o", "c.json"), *more)


@pytest.mark.slow
def test_images(quick_float: Digits, cli: CommandLine, make_image_folder: Callable[..., Path]) -> None:
    command = (
        "calibrate",
        "--checkpoint",
        quick_float.checkpoint,
        "-o",
        "c.json",
        "--calib-method",
        "minmax",
    )
    assert "Missing option '--calib-data'" in cli(*command, status=2).usage_error()
    some = make_image_folder(per_class=1)
    message = cli.refuses(*command, "--calib-data", some, "--calib-images", 3)
    assert message == f"{some} has 2 images and --calib-images asks for 3; add images or ask for fewer"
    broken = some / "dog" / "000.jpg"
    broken.write_bytes(broken.read_bytes()[:200])
    assert f"{broken}: cannot decode the image" in cli.refuses(
        *command, "--calib-data", some, "--max-damaged", 0
    )
    (some / "cat" / "000.jpg").rename(broken)
    same = broken.with_name("001.jpg")
    same.write_bytes(broken.read_bytes())
    note = "Note: all 2 calibration images are the same picture; give pictures as the model will see them\n"
    assert note in cli(*command, "--calib-data", some).out


@pytest.mark.usefixtures("ctrl_c")
def test_ctrl_c(quick_float: Digits, cli: CommandLine, monkeypatch: pytest.MonkeyPatch) -> None:
    from calibration.observers import TensorObserver

    (cli.folder / "c.json").write_text("precious")
    monkeypatch.setattr(TensorObserver, "update", lambda *_: signal.raise_signal(signal.SIGINT))
    message = cli.refuses(*words(quick_float, "-o", "c.json", "--force"))
    assert message == "interrupted; nothing was left half-written"


def test_more_processes_than_images(
    quick_float: Digits, cli: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sit_deploy.errors import InputError
    from sit_deploy.pipeline.calibration import calibrate
    from sit_deploy.processes import World

    first_of_three = contextlib.nullcontext(World(0, 3, torch.device("cpu")))
    monkeypatch.setattr("sit_deploy.processes.join_world", lambda _: first_of_three)
    request = quick_float.request(cli.folder / "c.json", calib_images=2)
    with pytest.raises(InputError, match=r"^2 calibration images for 3 processes; start fewer$"):
        calibrate(request)


def use_graph(path: Path) -> None:
    """Let this process take a float graph of `digits` that is there already: exporting takes seconds."""
    import onnx

    import sit_deploy.pipeline.calibration as module

    _TO_THE_END.enter_context(half_nano())
    prepare = Preprocessing.for_model(112)
    float_graph = SimpleNamespace(preprocessing=prepare, sources={}, graph=onnx.load(path))
    module.make_float_graph = lambda *_: float_graph


@pytest.mark.slow
def test_two_processes_write_the_file_of_one(digits: Digits, cli: CommandLine) -> None:
    """Real ones, as torchrun starts them, that talk over gloo; 3 images, so that the shares are not equal."""
    command = [*words(digits), "--calib-images", 3, "-o"]
    graph = cli.folder / "graph.onnx"
    graph.write_bytes(digits.float_graph.graph.SerializeToString())
    two = (*command, cli.folder / "two.json", "--json")
    world = start_world(cli.folder / "streams", 2, *two, prepare=partial(use_graph, graph))
    first, second = (process.wait() for process in world)
    assert (first.status, second.status) == (0, 0), (first, second)
    assert first.json()["images"] == 3
    assert second.out == ""  # the first one speaks for all
    assert "Traceback" not in first.err + second.err
    with pytest.MonkeyPatch.context() as patch:
        from tests.helpers.digits import stand_in_for_the_float_graph

        stand_in_for_the_float_graph(digits, patch)
        cli(*command, "one.json")
    assert (cli.folder / "one.json").read_bytes() == (cli.folder / "two.json").read_bytes()
