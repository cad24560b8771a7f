from __future__ import annotations

import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import engines
from sit_deploy.errors import Error, InputError
from sit_deploy.pipeline.command import rebuild_command
from sit_deploy.pipeline.request import BuildRequest
from sit_deploy.pipeline.request_check import check_request

BAD_REQUESTS: list[tuple[dict[str, Any], str]] = [
    ({"model": "sit_nanu"}, r"unknown model 'sit_nanu'; did you mean 'sit_nano'\?"),
    ({"model": "resnet50"}, r"resnet50 is not supported, for it has another architecture \(resnet\.ResNet\)"),
    ({"model": "qwertyuiop"}, r"unknown model 'qwertyuiop'; `sit-deploy models` lists ours"),
    ({"model": None}, "no model was named; pass --model NAME: `sit-deploy models` lists them"),
    ({"stages": (1, 2)}, "stages 1,2 do not fit sit_nano.*depth of 8; pass for example --stages 5,1,1,1"),
    ({"keeping_ratio": 1.5}, "keeping ratio must be above 0 and at most 1, got 1.5"),
    ({"model": "vit_small_patch14_dinov2", "image_size": 224 + 16}, "240 is not a positive multiple of 14; take 238 or 252"),
    ({"kept": (49, 30, 18, 9), "image_size": 128}, "begin with 49, and images of 128 pixels have 64 patches of 16; begin with 64, or take images of 112"),
    ({"kept": (49, 30, 18, 9), "keeping_ratio": 0.5}, "pass --kept or --keeping-ratio"),
    ({"precision": "int4"}, "precision 'int4' is not offered; choose from fp32, fp16, bf16"),
    ({"batch_size": 0}, "batch size must be at least 1, got 0; pass --batch-size 1 or more"),
    ({"batch_size": -3}, "batch size must be at least 1, got -3"),
    ({"batch_size": 2, "dynamic_batch": (1, 2, 4)}, "--batch-size 2 and --dynamic-batch exclude each other"),
    ({"dynamic_batch": (0, 2, 4)}, "dynamic batch must be MIN:OPT:MAX with 1 <= MIN <= OPT <= MAX, got 0:2:4"),
    ({"dynamic_batch": (4, 2, 8)}, "got 4:2:8"),
    ({"image_size": 100}, "image size 100 is not a positive multiple of 16; take 96 or 112"),
    ({"image_size": 7}, "image size 7 is not a positive multiple of 16; take 16 or 32"),
    ({"image_size": 0}, "image size 0 is not a positive multiple of 16; take 16 or 32"),
    ({"image_size": -16}, "image size -16 is not a positive multiple of 16; take 16 or 32"),
    ({"calib_images": 0}, "number of images must be at least 1, got 0; pass --calib-images 1 or more"),
    ({"max_accuracy_drop": 0.5}, "--max-accuracy-drop needs images with labels; pass --val-data DIR"),
    ({"optimization_level": 6}, "optimization level must be 0 to 5, got 6"),
    ({"optimization_level": -1}, "optimization level must be 0 to 5, got -1"),
    ({"threads": 0}, "threads must be at least 1, got 0"),
]  # fmt: skip


@pytest.mark.parametrize(("fields", "message"), BAD_REQUESTS, ids=lambda value: str(value)[:40])
def test_bad_requests(fields: dict[str, Any], message: str) -> None:
    request = BuildRequest(**{"model": "sit_nano", "output": Path("out"), **fields})
    with pytest.raises(Error, match=message) as caught:
        check_request(request)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_status == 2


def test_bad_requests_are_refused_before_torch_is_imported(tmp_path: Path) -> None:
    code = """
import sys
from pathlib import Path
from sit_deploy.pipeline.build import build
from sit_deploy.errors import InputError
from sit_deploy.pipeline.request import BuildRequest
try:
    build(BuildRequest("sit_nano", Path("out"), image_size=100))
except InputError:
    print("torch" in sys.modules, "onnx" in sys.modules, "numpy" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert done.stdout == "False False False\n", done.stderr


def test_command_says_it_all_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every option that is not its default, with absolute paths, quoted for a shell."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "val").mkdir()  # a folder, and no name of a data set
    request = BuildRequest(
        "sit_lvvit_small", Path("out"), "fp16", Path("my weights.pth"), False, "auto", dynamic_batch=(1, 8, 32),
        image_size=256, num_classes=10, labels=Path("l.txt"), calib_data=Path("calib"), calib_images=5,
        val_data=Path("val"), max_accuracy_drop=0.5, opset=17, targets=("sm80", "sm89"), optimization_level=2,
        stages=(4, 4, 4, 4), keeping_ratio=0.7, threads=3,
    )  # fmt: skip
    words = shlex.split(rebuild_command(request, "tensorrt-rtx"))
    assert words[:2] == ["sit-deploy", "build"] and words[-1] == "--no-ema"
    pairs = list(zip(words[2:-1:2], words[3:-1:2], strict=True))
    assert dict(pairs) == {
        "--model": "sit_s", "--stages": "4,4,4,4", "--keeping-ratio": "0.7", "--precision": "fp16", "--checkpoint": str(tmp_path / "my weights.pth"),
        "--engine": "tensorrt-rtx", "--image-size": "256", "--num-classes": "10", "--labels": str(tmp_path / "l.txt"),
        "--calib-data": str(tmp_path / "calib"), "--calib-images": "5", "--val-data": str(tmp_path / "val"),
        "--max-accuracy-drop": "0.5", "--opset": "17", "--optimization-level": "2", "--dynamic-batch": "1:8:32",
        "--threads": "3", "--target": "sm89",
    }  # fmt: skip
    assert [value for key, value in pairs if key == "--target"] == ["sm80", "sm89"]
    assert "--batch-size 3" in rebuild_command(
        BuildRequest("sit_s", Path("out"), batch_size=3), "onnxruntime"
    )
    assert (
        rebuild_command(BuildRequest("sit_s", Path("out"), max_accuracy_drop=0.0), "x").count(
            "--max-accuracy-drop 0.0"
        )
        == 1
    )


def test_command_says_where_in_the_checkpoint_the_weights_are() -> None:
    request = BuildRequest("sit_nano", Path("out"), checkpoint=Path("dino.pth"), checkpoint_key="teacher.net")
    assert "--checkpoint-key teacher.net" in rebuild_command(request, "onnxruntime")


def test_command_of_8_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    request = BuildRequest(
        "sit_nano", Path("out"), "int8", calib_cache=Path("c.json"), calib_method="percentile", calib_percentile=99.5,
        quantize=("fc1", "head"), rest="fp16", sensitivity=True, ema=False,
    )  # fmt: skip
    words = shlex.split(rebuild_command(request, "tensorrt-rtx"))
    assert words[-2:] == ["--sensitivity", "--no-ema"]
    pairs = dict(zip(words[2:-2:2], words[3:-2:2], strict=True))
    assert {name: pairs[name] for name in pairs if name.startswith(("--calib", "--quantize", "--rest"))} == {
        "--calib-method": "percentile", "--calib-percentile": "99.5", "--calib-cache": str(tmp_path / "c.json"),
        "--quantize": "fc1,head", "--rest": "fp16",
    }  # fmt: skip
    assert "--calib-percentile" not in rebuild_command(
        BuildRequest("sit_nano", Path("out"), "int8"), "onnxruntime"
    )


def test_without_8_bits() -> None:
    """What is built in their place has no options of theirs left, which would be refused."""
    request = BuildRequest(
        "sit_nano", Path("out"), "int8", calib_images=99, calib_method="percentile", calib_percentile=99.0,
        calib_cache=Path("c.json"), quantize=("fc1",), rest="fp16", sensitivity=True, batch_size=3,
    )  # fmt: skip
    higher = request.in_high_precision()
    check_request(higher)
    assert higher == BuildRequest("sit_nano", Path("out"), "fp16", batch_size=3)
    assert BuildRequest("sit_nano", Path("out"), "int8").in_high_precision().precision == "fp32"


def test_eight_bits_need_a_newer_onnxruntime(monkeypatch: pytest.MonkeyPatch) -> None:
    asked, seen = BuildRequest("sit_nano", Path("out"), "int8"), engines.get("onnxruntime").probe()
    runtime = engines.get("onnxruntime")
    monkeypatch.setattr(type(runtime), "probe", lambda _: replace(seen, version="1.26.0"))
    check_request(asked)
    monkeypatch.setattr(type(runtime), "probe", lambda _: replace(seen, version="1.25.1"))
    with pytest.raises(Error, match=r"need ONNX Runtime 1\.26 or newer .* 1\.25\.1 is installed"):
        check_request(asked)
    check_request(BuildRequest("sit_nano", Path("out"), "fp16"))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (None, "no model was named"),
        (5, "model of BuildRequest: expected str"),
        ({}, "model of BuildRequest: expected str"),
    ],
)
def test_a_build_of_what_is_no_request(given: object, message: str) -> None:
    from sit_deploy.pipeline.build import build, export

    for make in (build, export):
        with pytest.raises(InputError, match=message):
            make(given)  # type: ignore[arg-type]
