"""A precision that the engine's kernels do not have; the builder's log is what a test makes it."""

from __future__ import annotations

import html
import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from engines.tensorrt.engine import TensorRTRTX
from sit_deploy.errors import GateError, InputError
from sit_deploy.pipeline.build import build
from sit_deploy.pipeline.kernel_gate import require_kernels
from sit_deploy.pipeline.request import BuildRequest
from sit_deploy.pipeline.work import Work
from sit_deploy.report.build_types import BuildReport
from tests.helpers.digits import Digits, stand_in_for_the_float_graph

LAYERS = [("a/qkv", "qkv"), ("b/qkv", "qkv"), ("a/fc1", "fc1"), ("a/fc2", "fc2")]


def details(widened: list[str], unknown: tuple[str, ...] = (), raised: tuple[str, ...] = ()) -> dict:
    kept = [name for name, _ in LAYERS if name not in (*widened, *unknown)]
    return {"eight_bits": {"kept": kept, "widened": widened, "unknown": list(unknown)}, "raised": raised}


def lowered(named: list[tuple[str, str]] = LAYERS) -> Any:
    layers = [SimpleNamespace(name=name, group=group, is_high=False) for name, group in named]
    plan = SimpleNamespace(layers=layers)
    return SimpleNamespace(quantization=SimpleNamespace(quantizer=SimpleNamespace(plan=plan)))


def work(precision: str = "int8", **more: Any) -> Work:
    request = BuildRequest("sit_nano", Path("b"), precision=precision, rest="fp16", **more)
    return Work(request, lambda *_: None)


@pytest.mark.parametrize(
    ("widened", "remedy"),
    [
        (["a/qkv"], "--precision fp16, --quantize fc1,fc2 for the layers that have kernels, or"),
        ([name for name, _ in LAYERS], "--precision fp16, or"),
    ],
)
def test_products_that_are_not_in_8_bits_fail_the_build(widened: list[str], remedy: str) -> None:
    with pytest.raises(GateError) as caught:
        require_kernels(work(), details(widened), lowered())
    kept = len(LAYERS) - len(widened)
    message = str(caught.value)
    assert message.startswith(
        f"not all in 8 bits: by its builder's log the engine multiplies {kept} of 4 products in int8 so; for {len(widened)} it widens"
    )
    assert f"({', '.join(widened[:3])}" in message
    assert message.endswith(
        f"; nothing was written: pass {remedy} --allow-wider-kernels to have this engine nevertheless"
    )


def test_products_that_are_not_in_16_bits() -> None:
    plain = {"eight_bits": None, "raised": ["a/fc1", "a/fc2"]}
    with pytest.raises(GateError) as caught:
        require_kernels(work("fp16"), plain, SimpleNamespace(quantization=None))
    assert str(caught.value) == (
        "not all in 16 bits: by its builder's log the engine multiplies 2 products of the graph in 32 bits (a/fc1, a/fc2); "
        "nothing was written: pass --precision fp32, or --allow-wider-kernels to have this engine nevertheless"
    )


def test_who_allows_it_is_warned() -> None:
    allowed = work(allow_wider_kernels=True)
    require_kernels(allowed, details(["a/qkv"], raised=("head",)), lowered())
    (warning,) = allowed.notes
    assert "for 1 it widens" in warning and "1 products of the graph in 32 bits (head)" in warning


@pytest.mark.parametrize(
    "found",
    [details([]), {"eight_bits": None, "raised": None}, {"eight_bits": None, "raised": []}, {}],
)
def test_what_has_its_kernels_passes(found: dict) -> None:
    passed = work()
    require_kernels(passed, found, lowered())
    assert passed.notes == []


def test_what_the_builder_does_not_tell_is_a_warning() -> None:
    told_nothing = work()
    require_kernels(told_nothing, details([], unknown=("a/qkv",)), lowered())
    (warning,) = told_nothing.notes
    assert warning.endswith("3 of 4 products in int8 so; of 1 the log does not tell")


@pytest.mark.parametrize(
    ("precision", "quantize", "end"),
    [
        (
            "int8",
            ("attention",),
            "slower there; pass --quantize default,attention, or leave attention out of it",
        ),
        ("int8", None, "slower there"),
        ("fp16", None, "slower there"),
        ("fp32", None, None),
    ],
)
@pytest.mark.parametrize("whole", [1, 8])
def test_attention_that_is_several_kernels_is_a_warning(
    precision: str, quantize: tuple[str, ...] | None, end: str | None, whole: int
) -> None:
    census = {
        "kernels": 144,
        "products": {},
        "attention_kernels": whole,
        "attention": whole,
        "attentions": 8,
        "widened": [],
    }
    warned = work(precision, quantize=quantize)
    require_kernels(warned, {"kernels": census}, lowered())
    told = (
        []
        if whole == 8 or end is None
        else [f"attention is several kernels in 7 of 8 places, by its builder's log, and {end}"]
    )
    assert warned.notes == told


def test_engines_that_do_not_tell_their_kernels(tmp_path: Path) -> None:
    request = BuildRequest("sit_nano", tmp_path / "b", engine="onnxruntime", allow_wider_kernels=True)
    with pytest.raises(
        InputError, match=r"^--allow-wider-kernels is for TensorRT and OpenVINO: ONNX Runtime does not"
    ):
        build(request)
    assert not (tmp_path / "b").exists()


@pytest.mark.slow
def test_a_graph_that_the_real_builder_widens(
    digits: Digits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a scale for each channel, TensorRT-RTX multiplies `qkv` in 16 bits: the bundle is there because that was allowed, and says so."""
    pytest.importorskip("tensorrt_rtx")
    stand_in_for_the_float_graph(digits, monkeypatch)
    monkeypatch.setattr(TensorRTRTX, "one_scale_where_split", False)
    options = {"engine": "tensorrt-rtx", "targets": ("sm89",), "quantize": ("qkv", "fc1")}
    bundle = build(digits.request(tmp_path / "b", **options, allow_wider_kernels=True))
    report = BuildReport.from_dict(json.loads((bundle.path / "report.json").read_text()))
    details = report.engine.details
    assert details["kernels"]["widened"] and "--allow-wider-kernels" in report.command
    assert any(report.warns(note) and note.startswith("not all in 8 bits: ") for note in report.notes)
    assert "not all in 8 bits: " in html.unescape((bundle.path / "report.html").read_text(encoding="utf-8"))
    low = [row.layer for row in report.quantization.layers if row.precision == "int8"]
    layers = [(layer, "qkv" if "/attn/" in layer else "fc1") for layer in low]
    with pytest.raises(GateError) as caught:
        require_kernels(work(), details, lowered(layers))
    told = r"multiplies (\d+) of (\d+) products in int8 so; for (\d+) it widens the weights while it runs, to multiply in 16 bits \(blocks\.\d/attn/qkv, "
    found = re.search(told, str(caught.value))
    assert found and int(found[1]) + int(found[3]) == int(found[2]) and int(found[1]) >= 4  # fc1's at least
    assert "pass --precision fp16, --quantize fc1 for the layers that have kernels, or" in str(caught.value)
