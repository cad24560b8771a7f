"""`build --input uint8`: the bundle takes pixels, and is to the bit what it was with normalised images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from sit_deploy.bundle import Bundle, load_bundle
from sit_deploy.data.batches import batches
from sit_deploy.data.image_files import list_images
from sit_deploy.errors import InputError
from sit_deploy.inference import load
from sit_deploy.pipeline.build import build, export
from sit_deploy.pipeline.logits import torch_logits
from sit_deploy.pipeline.request import BuildRequest
from sit_deploy.validation.checks import check_accuracy, check_golden, open_labelled_for
from sit_deploy.validation.reference import reference_model
from tests.sit_deploy.conftest import Trained

pytestmark = pytest.mark.slow


@pytest.fixture
def pixels(trained_pixels: Path) -> Bundle:
    return load_bundle(trained_pixels)


def test_the_manifest_says_what_the_engine_takes(pixels: Bundle, trained: Trained) -> None:
    theirs = load_bundle(trained.bundle).manifest.preprocessing
    assert pixels.manifest.preprocessing == {**theirs, "layout": "NHWC", "dtype": "uint8"}
    assert "--input uint8" in pixels.manifest.command
    images, _ = pixels.golden()
    assert (images.dtype, images.shape[1:]) == (np.uint8, (112, 112, 3))


def test_logits_equal_those_of_the_float_bundle_to_the_bit(pixels: Bundle, trained: Trained) -> None:
    files = list_images(trained.images)
    with load(pixels) as ours, load(trained.bundle) as theirs:
        assert [spec.dtype for spec in ours.runner.inputs] == ["uint8"]
        assert np.array_equal(ours(files), theirs(files))
        assert check_golden(pixels, ours).passed


def test_accuracy_is_measured_on_the_same_pixels(pixels: Bundle, trained: Trained) -> None:
    with load(pixels) as ours, load(trained.bundle) as theirs:
        measured = check_accuracy(pixels, ours, open_labelled_for(pixels, trained.images)).accuracy
        assert (
            measured
            == check_accuracy(
                load_bundle(trained.bundle),
                theirs,
                open_labelled_for(load_bundle(trained.bundle), trained.images),
            ).accuracy
        )
    assert measured.agreement == 100


def test_the_golden_pixels_are_those_the_reference_saw(pixels: Bundle, trained: Trained) -> None:
    images, logits = pixels.golden()
    normalised = load_bundle(trained.bundle).preprocessing().normalise(images)
    ours = torch_logits(reference_model(pixels), normalised)
    assert np.abs(ours - logits).max() < 1e-5 * logits.std()
    ((prepared, _),) = batches(list_images(trained.images)[:4], pixels.preprocessing(), 4)
    assert prepared.dtype == np.uint8


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_the_normalisation_changes_nothing_in_low_precision(
    precision: str, trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import json

    monkeypatch.setattr("sit_deploy.pipeline.build.compare_speed", lambda *_: None)
    quick = {"calib_method": "minmax", "calib_images": 2, "quantize": ("fc1",)} if precision == "int8" else {}
    bundle = build(trained.request(tmp_path / "low", input="uint8", precision=precision, **quick))
    hops = json.loads((bundle.path / "report.json").read_text())["hops"]
    (hop,) = (hop for hop in hops if hop["name"] == "uint8 input")
    assert hop["step_error"] == 0 and hop["passed"]


def test_the_real_tensorrt_builder_takes_pixels(trained: Trained, tmp_path: Path) -> None:
    gpu = {"engine": "tensorrt-rtx", "precision": "fp16", "targets": ("sm89",)}
    bundle = build(trained.request(tmp_path / "rtx", input="uint8", **gpu))
    assert bundle.engine_path.stat().st_size > 1 << 20
    with load(bundle, "onnxruntime") as classify:
        assert check_golden(bundle, classify).passed


def test_export_writes_the_same_graph(pixels: Bundle, trained: Trained, tmp_path: Path) -> None:
    report = export(trained.request(tmp_path / "model.onnx", input="uint8"))
    assert (tmp_path / "model.onnx").read_bytes() == pixels.model_path.read_bytes()
    assert report.hops[-1].name == "uint8 input"


def test_another_input_is_not_offered(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--input float16 is not offered; choose float32 or uint8"):
        build(BuildRequest("sit_nano", tmp_path / "out", input="float16"))
