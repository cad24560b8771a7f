"""What is said to be done next runs here, as it is printed."""

from __future__ import annotations

import json
import shlex
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import engines
from engines.base import Support
from sit_deploy.advice import NewWeights, next_builds
from sit_deploy.cli.common import say_next
from sit_deploy.models import ModelCard, create_model, save_weights
from sit_deploy.preprocessing import Preprocessing
from sit_deploy.terminal import console
from sit_deploy.tune.measured import Candidate, Timing
from tests.helpers.command_line import CommandLine
from tests.helpers.train import CLASSES, smaller_nano, write_pictures

ONNXRUNTIME, OPENVINO, RTX, TENSORRT = "onnxruntime", "openvino", "tensorrt-rtx", "tensorrt"


def machine(monkeypatch: pytest.MonkeyPatch, builds: set[str], runs: set[str], lacking: set[str]) -> None:
    """Have engines that build and run here, and a CPU that lacks precisions."""
    answers = [Support(kind, True, "1", kind in builds, kind in runs, "") for kind in engines.KINDS]
    monkeypatch.setattr(engines, "support", lambda: answers)
    for kind in engines.KINDS:
        name = type(engines.get(kind))
        monkeypatch.setattr(name, "lacks", lambda _, precision: "no" if precision in lacking else None)


def lines(weights: NewWeights) -> list[str]:
    return [
        command.line.removeprefix("sit-deploy build --checkpoint w.safetensors ")
        for command in next_builds(weights)
    ]


WEIGHTS = NewWeights(Path("w.safetensors"), False, Path("train images"), Path("val"))
INT8 = "--precision int8 --calib-data 'train images' --val-data val --max-accuracy-drop 0.5"


def test_a_cpu_with_bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch, {ONNXRUNTIME, OPENVINO, RTX}, {ONNXRUNTIME, OPENVINO}, set())
    assert lines(WEIGHTS) == [
        "--engine openvino --precision bf16", f"--engine openvino {INT8}", "--engine tensorrt-rtx --precision fp16"
    ]  # fmt: skip
    assert (
        lines(replace(WEIGHTS, labelled=None))[1]
        == "--engine openvino --precision int8 --calib-data 'train images'"
    )
    assert len(lines(replace(WEIGHTS, calibration=None))) == 2
    assert lines(replace(WEIGHTS, rounded=True)) == [
        "--engine onnxruntime --precision int8", "--engine tensorrt-rtx --precision int8"
    ]  # fmt: skip


def test_a_cpu_with_neither(monkeypatch: pytest.MonkeyPatch) -> None:
    """No INT8 where it saturates, no BF16 where it is emulated, and nothing for GPUs that cannot be built."""
    machine(monkeypatch, {ONNXRUNTIME, OPENVINO}, {ONNXRUNTIME, OPENVINO}, {"bf16", "int8"})
    assert lines(WEIGHTS) == ["--engine openvino --precision fp32"]
    machine(monkeypatch, {ONNXRUNTIME}, {ONNXRUNTIME}, {"bf16"})
    assert lines(WEIGHTS) == ["--engine onnxruntime --precision fp32", f"--engine onnxruntime {INT8}"]


def test_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    everything = {ONNXRUNTIME, OPENVINO, RTX, TENSORRT}
    machine(monkeypatch, everything, everything, set())
    assert lines(WEIGHTS) == ["--engine tensorrt --precision fp16"]
    machine(monkeypatch, everything - {TENSORRT}, everything - {TENSORRT}, set())
    assert lines(WEIGHTS) == ["--engine tensorrt-rtx --precision fp16"]


def test_commands_are_whole_lines(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A terminal may wrap them, and they are still pasted as one."""
    machine(monkeypatch, {ONNXRUNTIME}, {ONNXRUNTIME}, {"bf16"})
    screen = console()
    screen.width = 40
    screen._force_terminal = True  # type: ignore[attr-defined]
    say_next(screen, next_builds(replace(WEIGHTS, path=Path("my [red] weights.safetensors"))))
    said = [text.strip() for text in capsys.readouterr().out.splitlines()]
    assert [shlex.split(text)[3] for text in said if text.startswith("sit-deploy build")] == [
        "my [red] weights.safetensors"
    ] * 2
    assert said[0].startswith("Next, on this CPU, in FP32:") and said[2].startswith(
        "And, on this CPU, in as much INT8"
    )


@pytest.mark.slow
def test_what_is_printed_works(cli: CommandLine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every command for a sit_nano, as it is, on this machine; how fast INT8 is, no clock says."""

    def times(_: object, candidate: Candidate) -> Timing:
        return Timing(1.0, 0.99, 1.01, 5.0) if candidate.is_float else Timing(1.5, 1.49, 1.51, 3.3)

    monkeypatch.setattr("sit_deploy.pipeline.tuning.CandidateBench.time", times)
    monkeypatch.setattr("sit_deploy.pipeline.build.compare_speed", lambda *_: None)
    with smaller_nano():
        write_pictures(Path("my data"), train=8, val=4, size=48)
        torch.manual_seed(0)
        model = create_model("sit_nano", img_size=48, num_classes=len(CLASSES)).eval()
        card = ModelCard(
            "sit_nano", (1, 1, 1, 1), 0.5, tuple(model.kept), 48, len(CLASSES), Preprocessing.for_model(48)
        )
        save_weights(Path("my student.safetensors"), model.state_dict(), card)
        commands = next_builds(NewWeights(Path("my student.safetensors"), False, Path("my data/train")))
        assert len(commands) >= 2
        for command in commands:
            words = shlex.split(command.line)
            assert words[0] == "sit-deploy"
            built = cli(*words[1:], "--json").json()
            on_gpu = words[words.index("--engine") + 1].startswith("tensorrt")
            assert all(hop["passed"] for hop in built["hops"] if hop["compared"])
            assert on_gpu or all(hop["compared"] for hop in built["hops"])
            manifest = json.loads((Path(built["bundle"]) / "manifest.json").read_text(encoding="utf-8"))
            assert manifest["engine"]["kind"] == words[words.index("--engine") + 1]
