from __future__ import annotations

import json
import os
import re
import shlex
from functools import partial
from pathlib import Path

import pytest

from sit_deploy.bundle import load_bundle, sha256
from tests.helpers.bundles import report_of
from tests.helpers.command_line import CommandLine
from tests.helpers.train import start
from tests.sit_deploy.conftest import GraphMade, Trained


@pytest.mark.slow
def test_json_is_the_report_and_nothing_else(nano_rtx: Path, cli: CommandLine) -> None:
    """In a process of its own, because exporters and engines may print past Python's own standard output.

    Its graph is that of another process to the byte, whatever the order of either's sets.
    """
    words = ("--model", "sit_nano", "--precision", "fp16", "--engine", "tensorrt-rtx", "--json")
    result = start(cli.folder / "streams", "build", *words, prepare=partial(os.chdir, cli.folder)).wait()
    assert (result.status, result.complaints) == (0, [])
    found = result.json()
    assert found.pop("bundle") == str(cli.folder / "sit_nano-fp16")  # the default place
    assert found == json.loads((cli.folder / "sit_nano-fp16" / "report.json").read_text(encoding="utf-8"))
    assert (found["opset"], found["graph"]["opset"]) == (20, 20)
    steps = [line.rpartition(" (")[0] for line in result.err.splitlines()]
    assert steps == [name for name in found["seconds"]]
    assert {path.name for path in cli.folder.iterdir()} == {"tmp", "streams", "sit_nano-fp16"}
    made = load_bundle(cli.folder / "sit_nano-fp16")
    assert made.model_path.read_bytes() == (nano_rtx / "model.onnx").read_bytes()


@pytest.mark.slow
def test_the_manifests_own_command_builds_the_same_graph(trained: Trained, cli: CommandLine) -> None:
    manifest = load_bundle(trained.bundle).manifest
    program, *words = shlex.split(manifest.command)
    assert program == "sit-deploy"
    result = cli(*words, "-o", "again")
    again = load_bundle(cli.folder / "again").manifest
    assert again.files["model.onnx"] == manifest.files["model.onnx"]
    assert again.files["model.onnx"].sha256 == sha256(trained.bundle / "model.onnx")
    for field in ("model", "classes", "preprocessing", "precision", "batch", "weights", "command"):
        assert getattr(again, field) == getattr(manifest, field)
    # and what people see of it
    assert "Note: model weights of nano.pth\n" in result.out
    # of eleven images, and of nothing else
    warnings = re.findall(r"^Warning: (.{27})", result.out, re.MULTILINE)
    assert set(warnings) == {"the accuracy proves nothing"}
    assert f"Against PyTorch, on 8 of 11 images in {trained.images}" in " ".join(result.out.split())
    assert re.search(r"^ ONNX fp32, batch 2 .* 100% +ok", result.out, re.MULTILINE)
    assert re.search(
        r"^ onnxruntime engine +\d\d\.\d\d +\d+\.\d to \d+\.\d +\d+\.\d\d +100\.00", result.out, re.MULTILINE
    )
    assert "\nEngine: onnxruntime was asked for: " in result.out
    assert re.search(
        r"✓ again: engine\.onnx \d\.\d MB, golden\.npz \d\.\d MB, .*report\.json \d+\.\d kB\n", result.out
    )
    assert result.out.endswith(" s. Next: sit-deploy bench again\n")


def test_random_weights_warn(cli: CommandLine, quick_graph: GraphMade) -> None:
    out = cli("build", "--model", "sit_nano", "--engine", "onnxruntime").out
    assert (
        "Warning: random weights (seed 0): every accuracy is chance; give --checkpoint for a real model\n"
        in out
    )
    assert (cli.folder / "sit_nano-fp32" / "manifest.json").is_file()


@pytest.mark.slow
def test_an_engine_that_cannot_run_here(cli: CommandLine, quick_graph: GraphMade) -> None:
    """Neither is it shown as compared, nor is the next command one that fails here."""
    pytest.importorskip("tensorrt_rtx", reason="needs TensorRT-RTX to build: pip install tensorrt-rtx")
    words = (
        "--model",
        "sit_nano",
        "--engine",
        "tensorrt-rtx",
        "--target",
        "sm89",
        "--optimization-level",
        "0",
    )
    out = cli("build", *words, "-o", "my bundle").out
    manifest = load_bundle(cli.folder / "my bundle").manifest
    assert manifest.engine.target == "sm89"
    assert manifest.command.endswith("--optimization-level 0 --batch-size 1 --target sm89")
    if any(
        hop["name"] == "tensorrt-rtx engine" and hop["compared"]
        for hop in report_of(cli.folder / "my bundle")["hops"]
    ):
        pytest.skip("there is a GPU here and the engine was run")
    assert re.search(r"^ tensorrt-rtx engine +not run +$", out, re.MULTILINE)
    assert "\ntensorrt-rtx engine: built; to run, it needs a GPU\n" in out
    assert out.endswith(
        "Next: sit-deploy validate 'my bundle' on a machine with a GPU, "
        "or sit-deploy bench 'my bundle' --engine onnxruntime here\n"
    )
    assert cli(
        "bench", "my bundle", "--batch-size", "9", status=2
    ).err  # nothing was timed: it says what is wrong


def test_paths_with_brackets(cli: CommandLine, quick_graph: GraphMade) -> None:
    result = cli("build", "--model", "sit_nano", "--engine", "onnxruntime", "-o", "[red]a[b] :cow:")
    assert "✓ [red]a[b] :cow:: engine.onnx" in result.out
    assert result.out.endswith("Next: sit-deploy bench '[red]a[b] :cow:'\n")


def test_alias(cli: CommandLine) -> None:
    """The official names are taken, and the folder is called as the user called the model."""
    message = cli.refuses("build", "--model", "sit_lvvit_small", "--image-size", "100")
    assert message.startswith("image size 100")


def test_force(cli: CommandLine, quick_graph: GraphMade) -> None:
    words = ("build", "--model", "sit_nano", "--engine", "onnxruntime", "-o", "b")
    cli(*words)
    (cli.folder / "b" / "golden.npz").write_bytes(b"damaged")
    assert "already a bundle; pass --force to replace it" in cli.refuses(*words)
    cli(*words, "--force")
    load_bundle(cli.folder / "b")
    (cli.folder / "b" / "notes.txt").write_text("precious")
    assert "files in it that are no bundle's (notes.txt)" in cli.refuses(*words, "--force")
