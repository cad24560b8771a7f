"""Bad input to the real command line: status 2, one line that says what to do, and nothing left behind."""

from __future__ import annotations

import json
import pickle
import re
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from engines.gpus import find_gpus
from sit_deploy.manifest import digest
from tests.helpers.command_line import CommandLine, snapshot
from tests.sit_deploy.conftest import GraphMade, Trained

NANO = ("build", "--model", "sit_nano", "--engine", "onnxruntime", "-o", "new/out")


# --------------------------------------------------------------------------------------------------------- options


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--model", "sit_nanu"], "unknown model 'sit_nanu'; did you mean 'sit_nano'? `sit-deploy models` lists ours"),
        (["--model", "swin_tiny_patch4_window7_224"], "for it has another architecture (swin_transformer.SwinTransformer)"),
        (["--model", "beit_base_patch16_224", "--stages", "6,6"], "it has another architecture (beit.Beit); take it as it is, without --stages"),
        (["--stages", "6,2,2,2"], "they must add up to its depth of 8; pass for example --stages 5,1,1,1"),
        (["--keeping-ratio", "0"], "keeping ratio must be above 0 and at most 1, got 0.0; pass for example --keeping-ratio 0.5"),
        (["--keeping-ratio", "0.1"], "token schedule (49, 4, 0, 0) does not fit"),
        (["--model", "sit_lvvit_smal"], "unknown model 'sit_lvvit_smal'; did you mean 'sit_lvvit_small'?"),
        (["--precision", "fp17"], "precision 'fp17' is not offered; choose from fp32, fp16, bf16"),
        (["--batch-size", "0"], "batch size must be at least 1, got 0; pass --batch-size 1 or more"),
        (["--batch-size", "-1"], "batch size must be at least 1, got -1"),
        (["--batch-size", "2", "--dynamic-batch", "1:2:4"], "--batch-size 2 and --dynamic-batch exclude each other"),
        (["--image-size", "100"], "image size 100 is not a positive multiple of 16; take 96 or 112"),
        (["--image-size", "0"], "image size 0 is not a positive multiple of 16; take 16 or 32"),
        (["--image-size", "32"], "token schedule (4, 2, 1, 0) does not fit"),
        (["--num-classes", "0"], "class count must be at least 2, got 0; pass --num-classes 2 or more"),
        (["--num-classes", "1"], "class count must be at least 2, got 1 (softmax of one output is 100 % whatever the image); pass"),
        (["--calib-images", "0"], "number of images must be at least 1, got 0"),
        (["--max-accuracy-drop", "1"], "--max-accuracy-drop needs images with labels; pass --val-data DIR"),
        (["--engine", "tensorflow"], "unknown engine 'tensorflow'; did you mean tensorrt"),
        (["--engine", "ncnn"], "unknown engine 'ncnn' (engines: tensorrt, tensorrt-rtx, onnxruntime, openvino)"),
        (["--precision", "bf16"], "ONNX Runtime has no bf16 kernels for a CPU; pass --engine "),
        (["--optimization-level", "6"], "optimization level must be 0 to 5, got 6"),
        (["--optimization-level", "3"], "leave it out, or build with a TensorRT engine"),
        (["--target", "sm89"], "leave it out, or build with a TensorRT engine"),
        (["--engine", "tensorrt-rtx", "--target", "sm999"], "unknown compute capability 'sm999' for TensorRT-RTX"),
        (["--opset", "16"], "opset must be 17 to 20, or 23, got 16; leave --opset out"),
        (["--opset", "21"], "opset must be 17 to 20, or 23, got 21; leave --opset out"),
        (["--threads", "0"], "threads must be at least 1, got 0"),
        (["--labels", "nowhere.txt"], "nowhere.txt: cannot read the class names"),
        (["--calib-data", "nowhere"], "nowhere: no such file or folder; check the path"),
        (["--val-data", "nowhere"], "nowhere: no such folder; check the path"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)  # fmt: skip
def test_options(words: list[str], message: str, cli: CommandLine) -> None:
    assert message in cli.refuses(*NANO, *words)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--dynamic-batch", "8"], "Invalid value for '--dynamic-batch': '8' is not MIN:OPT:MAX; write for example 1:8:32"),
        (["--dynamic-batch", "4:2:8"], "'4:2:8' must have 1 <= MIN <= OPT <= MAX"),
        (["--dynamic-batch", "0:1:2"], "'0:1:2' must have 1 <= MIN <= OPT <= MAX"),
        (["--stages", "2,2,x"], "Invalid value for '--stages': '2,2,x' is not a list of block counts; write for example 6,2,2,2"),
        (["--stages", "8,0"], "'8,0' is not a list of block counts"),
        (["--batch-size", "two"], "Invalid value for '--batch-size': 'two' is not a valid integer."),
        (["--max-accuracy-drop", "-1"], "Invalid value for '--max-accuracy-drop'"),
        (["extra"], "Got unexpected extra argument (extra)"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)  # fmt: skip
def test_usage(words: list[str], message: str, cli: CommandLine) -> None:
    before = snapshot(cli.folder)
    assert message in cli(*NANO, *words, status=2).usage_error()
    assert snapshot(cli.folder) == before


def test_no_model(cli: CommandLine) -> None:
    wanted = "no model was named; pass --model NAME: `sit-deploy models` lists them"
    assert cli.refuses("build") == cli.refuses("export") == wanted
    assert cli.refuses("build", "--checkpoint", "gone.pth") == (
        "checkpoint gone.pth does not exist or is not a file; pass --model NAME with one that fits it"
    )
    torch.save({}, cli.folder / "sit.pth")
    assert "sit.pth has no model card; pass --model NAME" in cli.refuses("build", "--checkpoint", "sit.pth")


@pytest.mark.slow
def test_in_a_process_of_its_own(cli: CommandLine) -> None:
    """The same as in this process, to the last byte of standard error."""
    (cli.folder / "file").write_text("x")
    before = snapshot(cli.folder)
    for words, line in (
        (["--checkpoint", "gone.pth"], "checkpoint gone.pth does not exist or is not a file; pass --model NAME with one that fits it"),
        (["--model", "sit_nano", "-o", "file"], "output file is not a folder; choose another with -o"),
    ):  # fmt: skip
        result = cli.process("build", *words)
        assert (result.status, result.out, result.err) == (2, "", f"Error: {line}\n")
        assert snapshot(cli.folder) == before


def test_an_engine_that_is_not_installed(cli: CommandLine, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "tensorrt", None)  # importing it fails, installed or not
    message = cli.refuses("build", "--model", "sit_nano", "--engine", "tensorrt")
    assert message.startswith("TensorRT is ") and ("pip install" in message or "reinstall" in message)


def test_an_unknown_target(cli: CommandLine, quick_graph: GraphMade) -> None:
    pytest.importorskip("tensorrt_rtx", reason="needs TensorRT-RTX: pip install tensorrt-rtx")
    words = ("build", "--model", "sit_nano", "--engine", "tensorrt-rtx", "--target", "sm12345")
    assert "unknown compute capability 'sm12345' for TensorRT-RTX; valid: " in cli.refuses(*words)


# ------------------------------------------------------------------------------------------------------ checkpoints


class Evil:
    """Unpickled, it would make a file."""

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path("executed"),)


def spoil(weights: dict[str, torch.Tensor], path: Path, how: str) -> None:
    if how == "corrupt":
        torch.save(weights, path)
        path.write_bytes(path.read_bytes()[:100_000])
    elif how == "text":
        path.write_text("this is no checkpoint\n")
    elif how == "empty":
        path.write_bytes(b"")
    elif how == "pickled code":
        torch.save({"model": weights, "hook": Evil()}, path)
    elif how == "plain pickle":
        path.write_bytes(pickle.dumps(Evil()))
    elif how == "architecture":
        from tests.helpers.models import named_model

        torch.save(named_model("lvvit_nano", num_classes=7).state_dict(), path)
    elif how == "nan":
        weights["blocks.2.attn.proj.bias"][5] = float("nan")
        torch.save(weights, path)
    elif how == "a weight less":
        del weights["norm.weight"]
        torch.save(weights, path)
    elif how == "no weights":
        torch.save({"epoch": 3, "optimizer": {}}, path)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("missing", "does not exist or is not a file; give the path of a .pth or .safetensors"),
        ("corrupt", "copy"),
        ("text", "copy"),
        ("empty", "copy"),
        ("pickled code", r"could run code and (is|are) never loaded; save its weights alone"),
        ("plain pickle", "is not a PyTorch checkpoint; give|could run code and"),
        ("architecture", "does not fit sit_nano: .*it looks like lvvit_nano.* pass --model lvvit_nano"),
        (
            "nan",
            r"has 1 NaN or infinite values in 'blocks\.2\.attn\.proj\.bias', which no model runs with; take another",
        ),
        ("a weight less", r"does not fit sit_nano: 1 missing \(norm\.weight\)"),
        ("no weights", "has no weights under model, state_dict, module"),
    ],
)
def test_checkpoints(how: str, message: str, trained: Trained, cli: CommandLine) -> None:
    weights = torch.load(trained.checkpoint)["model"]
    spoil(weights, cli.folder / "bad.pth", how)
    line = cli.refuses(*NANO, "--checkpoint", "bad.pth")
    assert line.startswith("checkpoint bad.pth ")
    assert re.search(message, line)


def test_class_counts(trained: Trained, cli: CommandLine) -> None:
    words = (*NANO, "--checkpoint", trained.checkpoint)
    assert "has 7 classes, not 10; pass --num-classes 7 or leave it out" in cli.refuses(
        *words, "--num-classes", "10"
    )
    (cli.folder / "three.txt").write_text("a\nb\nc\n")
    message = cli.refuses(*words, "--labels", "three.txt")
    assert message == "three.txt: 3 class names for a model of 7 classes; write one a line"


# -------------------------------------------------------------------------------------------------------- data sets


def test_data_sets(trained: Trained, cli: CommandLine, make_image_folder: Callable[..., Path]) -> None:
    words = (*NANO, "--checkpoint", trained.checkpoint, "--labels", trained.labels)
    empty = cli.folder / "empty"
    empty.mkdir()
    assert "no images in this folder" in cli.refuses(*words, "--calib-data", empty)
    assert "no class folders" in cli.refuses(*words, "--val-data", empty)
    other = make_image_folder(("kiwi", "plum"))
    assert "2 classes, the model 7 classes" in cli.refuses(*words, "--val-data", other)
    misspelt = make_image_folder(("cat", "dgo"))
    assert "has no name for (dgo) beside some that it has" in cli.refuses(*words, "--val-data", misspelt)
    (other / "hole").mkdir()
    assert "no images for 1 of 3 classes (hole)" in cli.refuses(*words, "--val-data", other)
    (other / "kiwi" / "notes.jpg").write_text("not an image")
    refused = cli.refuses(*words, "--calib-data", other / "kiwi", "--max-damaged", "0")
    assert "notes.jpg: not an image that can be read" in refused
    (other / "file").write_text("x")
    assert "file: a file, and no folder" in cli.refuses(*words, "--val-data", other / "file")


@pytest.mark.usefixtures("trained_graph")
def test_an_image_that_breaks_off_in_the_validation_set(
    trained: Trained, cli: CommandLine, make_image_folder: Callable[..., Path]
) -> None:
    """It is found only when accuracy is measured, at the end: nothing may be left of the work before it."""
    images = make_image_folder(("cat", "dog"), per_class=1, suffixes=(".png",))
    (broken,) = (images / "dog").iterdir()
    broken.write_bytes(broken.read_bytes()[:2000])
    words = (*NANO, "--checkpoint", trained.checkpoint, "--labels", trained.labels, "--val-data", images)
    words += ("--dynamic-batch", "2:3:4", "--max-damaged", "0")
    assert f"{broken}: cannot decode the image" in cli.refuses(*words)


# ----------------------------------------------------------------------------------------------------- where it goes


def test_places(cli: CommandLine, nano_fp32: Path) -> None:
    words = ("build", "--model", "sit_nano", "--engine", "onnxruntime")
    (cli.folder / "file").write_text("precious")
    (cli.folder / "site").mkdir()
    (cli.folder / "site" / "manifest.json").write_text('{"name": "a web app"}')
    for place, message in {
        "file": "output file is not a folder",
        "file/below": "file is not a folder); choose another with -o",
        "site": "has other files in it; choose an empty or new one",
        ".": "is the folder you are in; choose one inside it, as -o bundle",
        "/proc/x": "cannot write to /proc",
        "/proc": "is a mount point",
        str(nano_fp32): "is already a bundle; pass --force to replace it",
    }.items():
        assert message in cli.refuses(*words, "-o", place)
    for place in ("file", "file/below", "site", "."):
        cli.refuses(*words, "-o", place, "--force")


def test_disk_full(cli: CommandLine, quick_graph: GraphMade, monkeypatch: pytest.MonkeyPatch) -> None:
    import errno

    write_text = Path.write_text

    def full(self: Path, text: str, **options: Any) -> int:
        if self.name == "report.html":
            raise OSError(errno.ENOSPC, "No space left on device")
        return write_text(self, text, **options)

    monkeypatch.setattr(Path, "write_text", full)
    message = cli.refuses(*NANO)
    assert re.fullmatch(
        r"No space left on device: .* left for \S+.*; free some space there or choose another output folder",
        message,
    )


# ---------------------------------------------------------------------------------------------------------- bundles

COMMANDS: list[list[str]] = [
    ["validate", "BUNDLE"],
    ["bench", "BUNDLE"],
    ["inspect", "BUNDLE"],
    ["predict", "BUNDLE", "IMAGES"],
]


def words_for(command: list[str], bundle: Path, images: Path) -> list[Path | str]:
    return [{"BUNDLE": bundle, "IMAGES": images}.get(word, word) for word in command]


@pytest.mark.parametrize("command", COMMANDS, ids=lambda words: words[0])
def test_bundles(
    command: list[str], trained: Trained, copy_of: Callable[[Path], Path], cli: CommandLine
) -> None:
    """Every command that opens a bundle refuses one that is not whole, before it reads anything else of it."""

    def refuses(bundle: Path) -> str:
        return cli.refuses(*words_for(command, bundle, trained.images))

    assert "no such folder" in refuses(Path("nowhere")) or command[0] == "inspect"
    (cli.folder / "empty").mkdir()
    assert "it has no manifest.json" in refuses(Path("empty"))

    bundle = copy_of(trained.bundle)
    manifest = json.loads((bundle / "manifest.json").read_text(encoding="utf-8"))

    def rewrite(**changes: Any) -> None:
        changed = manifest | changes
        if "digest" not in changes:
            changed["digest"] = digest(changed)
        (bundle / "manifest.json").write_text(json.dumps(changed), encoding="utf-8")

    rewrite(precision="fp16", digest=manifest["digest"])
    assert "manifest.json was changed: it does not match its digest" in refuses(bundle)
    rewrite(schema=3)
    assert "of schema 3, newer than the 2 known here; upgrade sit-deploy" in refuses(bundle)
    (bundle / "manifest.json").write_text("{")
    assert "manifest.json cannot be read" in refuses(bundle)
    rewrite()
    for name in manifest["files"]:
        content = (bundle / name).read_bytes()
        (bundle / name).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        assert f"was changed: {name} does not match its hash" in refuses(bundle)
        (bundle / name).unlink()
        assert f"lacks its file {name}" in refuses(bundle)
        (bundle / name).write_bytes(content)


@pytest.mark.parametrize("command", ["validate", "bench", "predict"])
def test_a_tensorrt_engine_without_a_gpu(
    command: str, nano_rtx: Path, trained: Trained, cli: CommandLine
) -> None:
    if find_gpus():
        pytest.skip("there is a GPU here")
    words: list[Any] = [command, nano_rtx, *([trained.images] if command == "predict" else [])]
    message = cli.refuses(*words)
    assert message.startswith("running a TensorRT-RTX engine needs an NVIDIA GPU and driver; none found here")
    assert "--engine onnxruntime" in message
    assert "unknown engine 'cuda'" in cli.refuses(*words, "--engine", "cuda") or command == "bench"


# ----------------------------------------------------------------------------------------------------- interruption

# Sends itself a signal a moment after FUNCTION was entered, and stays in it until the signal was sent.
INTERRUPTED = """
import os, signal, threading
import {module} as module
work = module.{function}

def interrupted(*args, **options):
    timer = threading.Timer({seconds}, os.kill, (os.getpid(), signal.{signal}))
    timer.start()
    try:
        return work(*args, **options)
    finally:
        timer.join()

module.{function} = interrupted
from sit_deploy.cli import main
main()
"""
# Only the engine's build is waited for: the graph is there already, and what else there is of it is asked for later.
GRAPH_MADE = """
import shutil, types
import sit_deploy.pipeline.build
lowered = types.SimpleNamespace(quantization=None)
sit_deploy.pipeline.build.make_lowered_graph = lambda work, folder: shutil.copy({graph!r}, folder / "model.onnx") and lowered
"""


def interrupt(cli: CommandLine, program: str, engine: str) -> None:
    words = ("--model", "sit_nano", "--engine", engine, "-o", "new/out")
    result = cli.process("build", *words, program=program)
    assert result.status == 2
    assert result.the_error() == "interrupted; nothing was left half-written"
    assert {path.name for path in cli.folder.iterdir()} == {"tmp"}


@pytest.mark.slow
def test_ctrl_c_while_exporting(cli: CommandLine) -> None:
    program = INTERRUPTED.format(module="torch.onnx", function="export", seconds=0.5, signal="SIGINT")
    interrupt(cli, program, "onnxruntime")


@pytest.mark.parametrize("name", ["SIGINT", pytest.param("SIGTERM", marks=pytest.mark.slow)])
def test_interrupted_while_the_engine_builds(name: str, cli: CommandLine, nano_fp32: Path) -> None:
    pytest.importorskip("tensorrt_rtx", reason="needs TensorRT-RTX to build: pip install tensorrt-rtx")
    graph = GRAPH_MADE.format(graph=str(nano_fp32 / "model.onnx"))
    program = INTERRUPTED.format(module="engines.tensorrt.build", function="_build", seconds=0.1, signal=name)
    interrupt(cli, graph + program, "tensorrt-rtx")


def test_interrupted_while_exporting_to_a_file(cli: CommandLine, monkeypatch: pytest.MonkeyPatch) -> None:
    (cli.folder / "m.onnx").write_text("precious")
    monkeypatch.setattr(
        "sit_deploy.pipeline.float_graph._export", lambda *_: signal.raise_signal(signal.SIGTERM)
    )
    message = cli.refuses("export", "--model", "sit_nano", "-o", "m.onnx", "--force")
    assert message == "interrupted; nothing was left half-written"
