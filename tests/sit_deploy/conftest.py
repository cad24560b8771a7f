"""Bundles of the smallest model, built once, and the command line to use them with."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sit_deploy.pipeline.build import build
from sit_deploy.pipeline.request import BuildRequest
from tests.helpers.digits import (
    Digits,
    half_nano,
    make_digits,
    stand_in_for_the_float_graph,
)
from tests.helpers.idle_call import IdleCall
from tests.helpers.shared import shared, shared_value

# Hostile on purpose: HTML, Rich markup that closes what was never opened, an emoji code, brackets.
CLASSES = ("cat", "dog", "<b>hen", "[red]fox", ":cow:", "</p><script>alert(1)</script>", "[/red]")


@pytest.fixture(scope="session")
def nano_fp32(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """sit_nano with random weights, FP32, ONNX Runtime, batch 1. Do not write into it."""
    return shared(
        tmp_path_factory,
        "nano-fp32",
        lambda path: build(BuildRequest("sit_nano", path, engine="onnxruntime")),
    )


@pytest.fixture(scope="session")
def nano_embeddings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """sit_nano with random weights that gives features and patches, FP32, ONNX Runtime, batch 2 to 4. Do not write into it."""
    request = BuildRequest(
        "sit_nano", Path(), engine="onnxruntime", outputs=("features", "patches"), dynamic_batch=(2, 2, 4)
    )
    return shared(tmp_path_factory, "nano-embeddings", lambda path: build(replace(request, output=path)))


@pytest.fixture(scope="session")
def nano_rtx(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """sit_nano with random weights, FP16, TensorRT-RTX, batch 1. Do not write into it."""
    pytest.importorskip("tensorrt_rtx", reason="needs TensorRT-RTX to build: pip install tensorrt-rtx")

    def make(path: Path) -> None:
        build(BuildRequest("sit_nano", path, engine="tensorrt-rtx", precision="fp16"))

    return shared(tmp_path_factory, "nano-rtx", make)


@dataclass(frozen=True)
class Trained:
    """A checkpoint with what belongs to it, and the bundle made of all: FP32, ONNX Runtime, batch 2 to 4.

    images: labelled ones, below a folder a class; about half of them lie where the model would put them.
    """

    checkpoint: Path
    labels: Path
    images: Path
    bundle: Path

    def request(self, output: Path, **fields: Any) -> BuildRequest:
        """Return a request for the same without the measured accuracy."""
        common = {"engine": "onnxruntime", "dynamic_batch": (2, 3, 4), "calib_data": self.images}
        common |= {"checkpoint": self.checkpoint, "labels": self.labels}
        return BuildRequest("sit_nano", output, **(common | fields))

    def options(self) -> list[Any]:
        """Return the options of `sit-deploy build` that made the bundle."""
        return [
            *("--model", "sit_nano", "--engine", "onnxruntime", "--dynamic-batch", "2:3:4"),
            *("--checkpoint", self.checkpoint, "--labels", self.labels),
            *("--calib-data", self.images, "--val-data", self.images),
        ]


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """sit_nano of seven classes, with weights that matter; see `Trained`. Do not write into it."""
    folder = shared(tmp_path_factory, "trained", _make_trained)
    return Trained(folder / "nano.pth", folder / "labels.txt", folder / "images", folder / "bundle")


def _make_trained(folder: Path) -> None:
    import torch

    from sit_deploy.data.synthetic import synthetic_images
    from sit_deploy.preprocessing import Preprocessing
    from tests.helpers.models import named_model

    folder.mkdir()
    model = named_model("sit_nano", num_classes=len(CLASSES))
    (folder / "labels.txt").write_text("\n".join(CLASSES) + "\n", encoding="utf-8")
    images, prepare = synthetic_images(11, size=(160, 128)), Preprocessing.for_model(112)
    batch = torch.from_numpy(np.stack([prepare(image) for image in images]))
    with torch.no_grad():
        # the likely classes first: the last two, whose names no folder can have, are never the best
        order = model(batch).amax(0).argsort(descending=True)
        model.head.weight.copy_(model.head.weight[order])
        model.head.bias.copy_(model.head.bias[order])
        likeliest = model(batch).argmax(1).tolist()
    torch.save({"model": model.state_dict(), "epoch": 3}, folder / "nano.pth")
    for index, (image, best) in enumerate(zip(images, likeliest, strict=True)):
        place = folder / "images" / CLASSES[best if index % 2 else (best + 1) % 5]
        place.mkdir(parents=True, exist_ok=True)
        image.save(place / f"{index:02}.png")
    made = Trained(folder / "nano.pth", folder / "labels.txt", folder / "images", folder / "bundle")
    build(made.request(made.bundle, val_data=made.images))


@pytest.fixture(scope="session")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An unslimmed model of the classes of `trained`, in a checkpoint without a card."""
    import torch

    from tests.helpers.models import named_model

    def make(path: Path) -> None:
        torch.save(named_model("lvvit_nano", num_classes=len(CLASSES)).state_dict(), path)

    return shared(tmp_path_factory, "lvvit.pth", make)


@pytest.fixture(scope="session")
def teacher_bundle(teacher: Path, trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same as a bundle, built as `trained` was. Do not write into it."""
    fields = {"checkpoint": teacher, "calib_data": None}

    def make(path: Path) -> None:
        build(replace(trained.request(path, **fields), model="lvvit_nano"))

    return shared(tmp_path_factory, "teacher-bundle", make)


@pytest.fixture(scope="session")
def trained_pixels(trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`trained` as a bundle that takes pixels. Do not write into it."""

    def make(path: Path) -> None:
        build(trained.request(path, val_data=trained.images, input="uint8"))

    return shared(tmp_path_factory, "trained-pixels", make)


@pytest.fixture(scope="session")
def trained_openvino(trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`trained` as a bundle for OpenVINO. Do not write into it."""

    def make(path: Path) -> None:
        build(trained.request(path, val_data=trained.images, engine="openvino"))

    return shared(tmp_path_factory, "trained-openvino", make)


@pytest.fixture(scope="session")
def trained_bf16(trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`trained` as a bundle in BF16 for OpenVINO; skips on a CPU that has none. Do not write into it."""
    openvino = pytest.importorskip("openvino", reason="needs OpenVINO: pip install '.[openvino]'")
    from engines.openvino.bfloat16 import has_bfloat16

    if not has_bfloat16(openvino):
        pytest.skip("needs a CPU with AVX512-BF16 or AMX, as OpenVINO lists them")

    def make(path: Path) -> None:
        build(trained.request(path, engine="openvino", precision="bf16"))

    return shared(tmp_path_factory, "trained-bf16", make)


@pytest.fixture
def copy_of(tmp_path: Path) -> Callable[[Path], Path]:
    """A function that copies a bundle into the test's own folder, for writing into it."""

    def copy(bundle: Path, name: str = "copy") -> Path:
        return Path(shutil.copytree(bundle, tmp_path / name))

    return copy


@dataclass(frozen=True)
class GraphMade:
    """What the first half of a build gives, the graph's file included."""

    graph: Any
    hops: list[Any]
    notes: list[str]
    file: Path


@pytest.fixture(scope="session")
def graph_made(tmp_path_factory: pytest.TempPathFactory) -> GraphMade:
    """The first half of building sit_nano in FP32 at batch 1, with random weights."""
    from sit_deploy.pipeline.lower import make_lowered_graph
    from sit_deploy.pipeline.work import Work

    folder = tmp_path_factory.mktemp("graph")
    work = Work(BuildRequest("sit_nano", folder), lambda *_: None)
    return GraphMade(make_lowered_graph(work, folder), work.hops, work.notes, folder / "model.onnx")


@pytest.fixture
def quick_graph(graph_made: GraphMade, monkeypatch: pytest.MonkeyPatch) -> GraphMade:
    """Let every build of this test take the graph made once, so that it takes half a second and not five."""

    def stand_in(work: Any, folder: Path) -> Any:
        shutil.copy(graph_made.file, folder / "model.onnx")
        work.hops += graph_made.hops
        work.notes += graph_made.notes
        return graph_made.graph

    monkeypatch.setattr("sit_deploy.pipeline.build.make_lowered_graph", stand_in)
    return graph_made


@pytest.fixture
def trained_graph(trained: Trained, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every build of this test that is as `trained` was take the graph exported then: exporting takes seconds."""
    import onnx

    model = onnx.load(trained.bundle / "model.onnx")
    monkeypatch.setattr("sit_deploy.pipeline.float_graph._export", lambda *_: model)


_OF_HALF = {"digits", "measured", "nano_int8", "rtx_int8", "rtx_fp8"}


@pytest.fixture(autouse=True)
def knows_half_nano(request: pytest.FixtureRequest) -> Iterator[None]:
    """Where a test uses what is made of it."""
    with half_nano() if _OF_HALF & set(request.fixturenames) else nullcontext():
        yield


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Digits:
    """Do not write into it."""
    from sit_deploy.pipeline.float_graph import make_float_graph
    from sit_deploy.pipeline.work import Work

    with half_nano():
        folder = shared(tmp_path_factory, "digits", make_digits)
        request = BuildRequest(
            None, folder, "int8", folder / "nano.safetensors", calib_data=folder / "images"
        ).completed()
        work = Work(request, lambda *_: None)
        float_graph = make_float_graph(work, tmp_path_factory.mktemp("digits"))
    return Digits(request.checkpoint, request.calib_data, float_graph, work.hops, work.notes)


@pytest.fixture
def quick_float(digits: Digits, monkeypatch: pytest.MonkeyPatch) -> Digits:
    """Let every build of this test take the float graph of `digits`, and time nothing."""
    stand_in_for_the_float_graph(digits, monkeypatch)
    monkeypatch.setattr("sit_deploy.pipeline.build.compare_speed", lambda *_: None)
    return digits


@pytest.fixture(scope="session")
def nano_int8(digits: Digits, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`digits` in INT8 for ONNX Runtime, with all that belongs to it, the timing and the accuracy included."""

    def make(path: Path) -> None:
        with half_nano(), pytest.MonkeyPatch.context() as patch:
            stand_in_for_the_float_graph(digits, patch)
            patch.setattr("sit_deploy.pipeline.speed_gate.ROUNDS", 2)
            patch.setattr("sit_deploy.pipeline.speed_gate.SECONDS", 0.1)
            whole = {"calib_images": 20, "quantize": ("default",)}
            build(digits.request(path, calib_method="auto", val_data=digits.images, **whole))

    return shared(tmp_path_factory, "nano-int8", make)


def _for_tensorrt(digits: Digits, factory: pytest.TempPathFactory, precision: str) -> Path:
    pytest.importorskip("tensorrt_rtx", reason="needs TensorRT-RTX to build: pip install tensorrt-rtx")

    def make(path: Path) -> None:
        with half_nano(), pytest.MonkeyPatch.context() as patch:
            stand_in_for_the_float_graph(digits, patch)
            patch.setattr("sit_deploy.pipeline.build.compare_speed", lambda *_: None)
            options = {"engine": "tensorrt-rtx", "calib_images": 8, "quantize": None}
            build(digits.request(path, precision=precision, **options))

    return shared(factory, f"rtx-{precision}", make)


@pytest.fixture(scope="session")
def rtx_int8(digits: Digits, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`digits` in INT8 for TensorRT-RTX, the rest FP16. Do not write into it."""
    return _for_tensorrt(digits, tmp_path_factory, "int8")


@pytest.fixture(scope="session")
def rtx_fp8(digits: Digits, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`digits` in FP8 for TensorRT-RTX, the rest FP16. Do not write into it."""
    return _for_tensorrt(digits, tmp_path_factory, "fp8")


@pytest.fixture
def logits() -> np.ndarray:
    """Logits of 6 images and 9 classes, float32."""
    return np.random.default_rng(0).normal(size=(6, 9)).astype(np.float32)


@pytest.fixture(scope="session")
def measured(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Evidence of the digits in INT8 with its verdict as JSON values, half of the images in the folder of another class, so that not all is right.

    Measured once for all processes of a run; timed in processes of their own, but for PyTorch's stages, which only look like it.
    """
    from engines.timing import TimingOptions
    from sit_deploy.bundle import load_bundle
    from sit_deploy.data.labelled import open_labelled
    from sit_deploy.report.verdict import JudgedBundle, judge
    from sit_deploy.validation.evidence import gather

    bundle = load_bundle(request.getfixturevalue("nano_int8"))
    images = request.getfixturevalue("digits").images

    def measure() -> dict[str, Any]:
        samples = open_labelled(images, bundle.manifest.classes, 10)
        moved = [(image, (label + i % 2) % 10) for i, (image, label) in enumerate(samples)]
        samples = replace(samples, samples=moved, name="digits/val")
        with half_nano(), pytest.MonkeyPatch.context() as patch:
            for call in ("TorchCall", "DeployCall"):
                patch.setattr(f"sit_deploy.validation.stage_setup.{call}", IdleCall)
            found = gather(bundle, samples, timing=TimingOptions(1, 0.02, threads=1))
        return json.loads(json.dumps(JudgedBundle(found, judge(found)).to_dict()))

    return shared_value(tmp_path_factory, "evidence", measure)


@pytest.fixture
def evidence(measured: dict[str, Any]) -> dict[str, Any]:
    """The same, to be changed."""
    return json.loads(json.dumps(measured))
