"""A build: its bundle, its report, its places, and what there is when a disk is full."""

from __future__ import annotations

import errno
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

import engines
from engines import EngineError
from sit_deploy.bundle import load_bundle, sha256
from sit_deploy.data.image_files import list_images
from sit_deploy.doctor import versions
from sit_deploy.errors import GateError, InputError
from sit_deploy.pipeline import build as module
from sit_deploy.pipeline import float_graph
from sit_deploy.pipeline.build import build, export
from sit_deploy.pipeline.request import BuildRequest
from sit_deploy.precisions import TOLERANCE
from tests.helpers.command_line import snapshot
from tests.sit_deploy.conftest import CLASSES, GraphMade, Trained
from tests.sit_deploy.pipeline.conftest import refused


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"precision": "bf16"}, "ONNX Runtime has no bf16 kernels for a CPU; pass --engine "),
        ({"targets": ("sm80",)}, "leave it out, or build with a TensorRT engine"),
        ({"optimization_level": 3}, "leave it out, or build with a TensorRT engine"),
        ({"timing_cache": Path("cache")}, "leave it out, or build with a TensorRT engine"),
    ],
)
def test_what_onnxruntime_has_no_use_for(
    fields: dict[str, Any], message: str, request_here: BuildRequest
) -> None:
    refused(replace(request_here, **fields), (InputError, EngineError), message)


# ------------------------------------------------------------------------------------------------------- a bundle


def test_manifest(trained: Trained) -> None:
    manifest = json.loads((trained.bundle / "manifest.json").read_text(encoding="utf-8"))
    weights = torch.load(trained.checkpoint)["model"]
    statistics = ("running_mean", "running_var", "num_batches_tracked")
    parameters = sum(value.numel() for key, value in weights.items() if not key.endswith(statistics))
    assert manifest["model"] | {"macs": None} == {
        "name": "sit_nano", "stages": [2, 2, 2, 2], "keeping_ratio": 0.5, "method": None, "image_size": [112, 112], "num_classes": 7, "dist_token": False, "tokens": [49, 24, 12, 6],
        "parameters": parameters,
        "macs": None, "published_top1": None,
        "config": {
            "embed_dim": 128, "num_heads": 4, "stage_blocks": [2, 2, 2, 2], "image_size": 112, "stem": "4c",
            "skip_lam": 2.0, "mlp_ratio": 3.0, "keeping_ratio": 0.5, "num_classes": 1000, "teacher": "lvvit_nano",
            "base": None, "patch_size": 16,
        },
    }  # fmt: skip
    assert 30e6 < manifest["model"]["macs"] < 50e6  # of one image, not of the batch
    assert manifest["classes"] == list(CLASSES)
    assert manifest["preprocessing"] == {
        "size": [112, 112], "resize": 128, "interpolation": "bicubic", "mean": [0.485, 0.456, 0.406],
        "std": [0.229, 0.224, 0.225], "layout": "NCHW", "dtype": "float32", "orientation": "stored", "crop_mode": "center", "crop_offset": "round",
    }  # fmt: skip
    assert (manifest["precision"], manifest["opset"], manifest["calibration"]) == ("fp32", 20, None)
    assert manifest["batch"] == {"min": 2, "opt": 3, "max": 4}
    engine = manifest["engine"]
    assert (engine["kind"], engine["file"], engine["target"]) == ("onnxruntime", "engine.onnx", "cpu")
    assert engine["version"] == versions()["onnxruntime"]
    assert engine["why"].startswith("onnxruntime was asked for: ")
    assert manifest["weights"] == {
        "source": str(trained.checkpoint), "sha256": sha256(trained.checkpoint), "entry": "model", "ema": True,
        "top1": None,
    }  # fmt: skip
    assert manifest["compared_on"] == f"8 of 11 images in {trained.images}"
    assert manifest["versions"] == versions()
    for name, facts in manifest["files"].items():
        assert facts["sha256"] == sha256(trained.bundle / name)


def test_macs_do_not_depend_on_the_batch(nano_fp32: Path, trained: Trained) -> None:
    """1000 classes against 7 is all that may differ: the head's products."""
    one, many = (load_bundle(path).manifest.model for path in (nano_fp32, trained.bundle))
    assert one.macs - many.macs == 128 * (1000 - 7)


def test_random_weights_are_not_passed_off_as_real(nano_fp32: Path) -> None:
    report = json.loads((nano_fp32 / "report.json").read_text(encoding="utf-8"))
    assert report["weights"] == {"source": "random", "seed": 0}
    assert report["notes"] == [
        "random weights (seed 0): every accuracy is chance; give --checkpoint for a real model"
    ]
    assert report["compared_on"].startswith("8 synthetic images")


def test_report_holds_the_manifest_and_the_proof(trained: Trained) -> None:
    report = json.loads((trained.bundle / "report.json").read_text(encoding="utf-8"))
    manifest = json.loads((trained.bundle / "manifest.json").read_text(encoding="utf-8"))
    for field in manifest.keys() - {"schema", "files", "digest"}:
        assert report[field] == manifest[field]
    hops = ["deploy form", "ONNX fp32", "ONNX fp32, batch 2", "onnxruntime engine"]
    assert [hop["name"] for hop in report["hops"]] == hops
    assert all(
        0 < hop["error"] <= hop["tolerance"] == 1e-4 and hop["agreement"] == 1 for hop in report["hops"]
    )
    assert report["accuracy"]["images"] == 11
    assert report["accuracy"]["measured_on"] == "onnxruntime engine"
    assert report["accuracy"]["drop"] == 0
    assert report["graph"]["operators"]["Conv"] == 4
    assert set(report["seconds"]) >= {"Loading sit_nano", "Exporting to ONNX", "Measuring accuracy"}


def test_tensorrt_bundle(nano_rtx: Path) -> None:
    bundle = load_bundle(nano_rtx)
    report = json.loads((nano_rtx / "report.json").read_text(encoding="utf-8"))
    assert bundle.engine_path.name == "engine.plan"
    assert [hop["name"] for hop in report["hops"]][:3] == ["deploy form", "ONNX fp32", "ONNX fp16"]
    simulated, engine = report["hops"][2:]
    assert (simulated["note"], simulated["tolerance"]) == ("rounding simulated", 0.05)
    assert 5e-4 < simulated["error"] < 0.05
    assert engine["name"] == "tensorrt-rtx engine"
    assert report["plan"]["counts"]["float16"] > report["plan"]["counts"]["float32"]
    assert report["plan"]["held_back"] == []
    types = {tensor.data_type for tensor in onnx.load(nano_rtx / "model.onnx").graph.initializer}
    assert onnx.TensorProto.FLOAT16 in types


@pytest.mark.slow
def test_auto_says_why(request_here: BuildRequest, quick_graph: GraphMade) -> None:
    chosen, why = engines.select("auto")
    made = build(replace(request_here, engine="auto"))
    assert made.manifest.engine.kind == chosen.kind
    assert made.manifest.engine.why == why
    for kind in engines.KINDS[: engines.KINDS.index(chosen.kind)]:
        assert f"{kind} was passed over: " in why
    assert f"--engine {chosen.kind}" in made.manifest.command  # the same again where another would be chosen


def test_progress_tells_every_step(request_here: BuildRequest, quick_graph: GraphMade) -> None:
    seen: list[tuple[str, int, int]] = []
    build(request_here, lambda *step: seen.append(step))
    steps = list(dict.fromkeys(text for text, _, _ in seen))
    assert steps == ["Building the onnxruntime engine", "Running the onnxruntime engine"]
    for text in steps:
        counts = [(done, total) for name, done, total in seen if name == text]
        assert counts[0] == (0, 0) and counts[-1] == (1, 1)
        assert all(done < total for done, total in counts[1:-1])  # done only when the step is


def test_force_replaces_and_without_it_nothing_is(request_here: BuildRequest, quick_graph: GraphMade) -> None:
    build(request_here)
    refused(request_here, InputError, "already a bundle; pass --force to replace it")
    before = snapshot(request_here.output)
    build(replace(request_here, force=True))
    after = snapshot(request_here.output)
    assert set(after) == set(before) and all(after[name] != before[name] for name in after)
    assert list(request_here.output.parent.iterdir()) == [request_here.output]


# ------------------------------------------------------------------------------------------------------ disk full


@pytest.mark.parametrize("name", ["golden.npz", "report.json", "report.html", "manifest.json", "engine.onnx"])
def test_disk_full(
    name: str, request_here: BuildRequest, quick_graph: GraphMade, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each file in turn is the one for which there is no room: half of it is written, then the system refuses."""
    full = OSError(errno.ENOSPC, "No space left on device")

    def fail(path: Path) -> None:
        path.write_bytes(b"half of ")
        raise full

    write_text, replace_file = Path.write_text, Path.replace
    if name == "golden.npz":
        monkeypatch.setattr(np, "savez", lambda path, **_: fail(path))
    elif name == "engine.onnx":

        def refuse_engine(self: Path, target: Path) -> Path:
            if Path(target).name == name:
                raise full
            return replace_file(self, target)

        monkeypatch.setattr(Path, "replace", refuse_engine)
    else:

        def refuse_text(self: Path, text: str, **options: Any) -> int:
            if self.name == name:
                with self.open("w") as file:
                    file.write("half of ")
                raise full
            return write_text(self, text, **options)

        monkeypatch.setattr(Path, "write_text", refuse_text)
    refused(request_here, (OSError, EngineError), "No space left on device")  # type: ignore[arg-type]


def test_file_too_large(
    request_here: BuildRequest, graph_made: GraphMade, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The system's own refusal, in the middle of the largest file, by the limit on file sizes."""
    import resource

    graph = onnx.load(graph_made.file)
    monkeypatch.setattr(float_graph, "_export", lambda *_: graph)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, before[1]))
    try:
        refused(request_here, OSError, "File too large")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


# --------------------------------------------------------------------------------------------------------- export


def test_export_places(tmp_path: Path) -> None:
    (tmp_path / "there.onnx").write_text("precious")
    (tmp_path / "folder.onnx").mkdir()
    for name, message in {
        "there.onnx": "exists; pass --force to replace it",
        "folder.onnx": r"must be a file that ends in \.onnx; pass for example -o model\.onnx",
        "model.pb": r"must be a file that ends in \.onnx",
        "nowhere/m.onnx": "nowhere does not exist or cannot be written",
        "there.onnx/m.onnx": "does not exist or cannot be written",
    }.items():
        before = snapshot(tmp_path)
        with pytest.raises(InputError, match=message):
            export(BuildRequest("sit_nano", tmp_path / name))
        assert snapshot(tmp_path) == before


def test_a_failed_export_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "there.onnx").write_text("precious")
    monkeypatch.setitem(TOLERANCE, "fp32", 1e-12)
    with pytest.raises(GateError):
        export(BuildRequest("sit_nano", tmp_path / "there.onnx", force=True))
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"there.onnx": "precious"}


def test_images_are_spread_over_the_folder(trained: Trained) -> None:
    """A sorted data set must not give one class only."""
    from sit_deploy.pipeline.work import Work
    from sit_deploy.preprocessing import Preprocessing

    request = BuildRequest("sit_nano", Path("out"), calib_data=trained.images, calib_images=3)
    prepare = Preprocessing.for_model(112)
    images, source = float_graph._images(Work(request, print), prepare)
    assert source == f"3 of 11 images in {trained.images}"
    from sit_deploy.preprocessing import load_image

    chosen = [list_images(trained.images)[i] for i in (0, 3, 7)]
    np.testing.assert_array_equal(images, np.stack([prepare(load_image(path)) for path in chosen]))
    images, source = float_graph._images(Work(replace(request, calib_images=99), print), prepare)
    assert (len(images), source) == (11, f"11 of 11 images in {trained.images}")


def test_golden_images_are_spread_over_those_of_the_comparisons(trained: Trained) -> None:
    """The first four of a folder with many images a class would be of one class, whose agreement proves nothing."""
    from sit_deploy.bundle import load_bundle
    from sit_deploy.pipeline.work import Work
    from sit_deploy.preprocessing import Preprocessing

    work = Work(BuildRequest("sit_nano", Path("out"), calib_data=trained.images), print)
    compared, _ = float_graph._images(work, Preprocessing.for_model(112))
    images, _ = load_bundle(trained.bundle).golden()
    assert len(compared) == 8
    np.testing.assert_array_equal(images, compared[[0, 2, 5, 7]])


def test_public_names() -> None:
    assert set(module.__all__) == {"BuildRequest", "build", "export"}
