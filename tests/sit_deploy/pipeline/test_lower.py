"""Where the ranges of a graph in 8 bits come from: images, a cache of them, or the model's own training."""

from __future__ import annotations

import errno
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from calibration import CalibrationError
from calibration.cache import Calibration, digest
from calibration.formats import float16_scale
from sit_deploy.data.image_files import list_images
from sit_deploy.errors import InputError
from sit_deploy.pipeline.build import build, export
from sit_deploy.pipeline.calibration import _calibrate, calibration_stream
from sit_deploy.pipeline.float_graph import _deploy
from sit_deploy.pipeline.logits import torch_logits
from sit_deploy.pipeline.request import BuildRequest
from sit_deploy.pipeline.request_check import check_request
from sit_deploy.pipeline.work import Work
from tests.helpers.command_line import snapshot
from tests.helpers.digits import Digits, half_nano, stand_in_for_the_float_graph, trained_checkpoint
from tests.helpers.models import images, tiny_vit

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def cache(digits: Digits, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache that a build made of 6 images, of all layers that are low by default. Do not write to it."""
    folder = tmp_path_factory.mktemp("cache")
    with half_nano(), pytest.MonkeyPatch.context() as patch:
        stand_in_for_the_float_graph(digits, patch)
        options = {"calib_images": 6, "calib_cache": folder / "c.json", "quantize": None}
        export(digits.request(folder / "m.onnx", **options))
    return folder / "c.json"


@pytest.fixture
def no_observing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "sit_deploy.quantize.calibrate.collect_observations", lambda *_: pytest.fail("images were observed")
    )


def refused(request: BuildRequest, match: str, *errors: type[Exception]) -> None:
    before = snapshot(request.output.parent)
    with pytest.raises(errors or (CalibrationError, InputError), match=match) as caught:
        export(request)
    assert "\n" not in str(caught.value)
    assert snapshot(request.output.parent) == before


def with_cache(digits: Digits, tmp_path: Path, cache: Path, **fields: Any) -> BuildRequest:
    options = {"calib_images": 6, "calib_cache": cache, "calib_method": "auto", "quantize": None}
    return digits.request(tmp_path / "m.onnx", **(options | fields))


# ----------------------------------------------------------------------------------------------------------- cache


def test_a_build_makes_the_cache(cache: Path, digits: Digits) -> None:
    found = Calibration.load(cache)
    assert (found.grid, found.method, found.images.count) == ("int8", "minmax", 6)
    assert found.images.description == f"6 of 20 images in {digits.images}"
    assert found.preprocessing == digits.float_graph.preprocessing.to_dict()


@pytest.mark.usefixtures("no_observing")
def test_a_cache_that_matches_is_used_again(cache: Path, quick_float: Digits, tmp_path: Path) -> None:
    """With nothing observed, and with the very graph that the build which made it wrote."""
    result = export(with_cache(quick_float, tmp_path, cache))
    assert f"calibrated by {cache}, made from 6 of 20 images in {quick_float.images}" in result.notes
    assert (tmp_path / "m.onnx").read_bytes() == (cache.parent / "m.onnx").read_bytes()


def test_a_cache_from_before_pictures_were_turned_is_of_pictures_as_stored(
    cache: Path, quick_float: Digits, tmp_path: Path
) -> None:
    old = edited(cache, tmp_path, lambda fields: fields["preprocessing"].pop("orientation"))
    export(with_cache(quick_float, tmp_path, old, quantize=("tsm",)))
    request = with_cache(quick_float, tmp_path, old, force=True, orientation="exif")
    work = Work(request, lambda *_: None)
    turning = replace(quick_float.float_graph.preprocessing, orientation="exif")
    with pytest.raises(CalibrationError, match=r"other preprocessing \(orientation"):
        _calibrate(work, quick_float.float_graph.graph, calibration_stream(request, turning), turning, None)


@pytest.mark.usefixtures("no_observing")
def test_the_method_may_be_another(cache: Path, quick_float: Digits, tmp_path: Path) -> None:
    export(with_cache(quick_float, tmp_path, cache, calib_method="mse", quantize=("proj",)))
    low = onnx.load(tmp_path / "m.onnx")
    scales = {
        t.name: float(numpy_helper.to_array(t))
        for t in low.graph.initializer
        if not t.dims and t.name.endswith("/scale")
    }
    proj = next(n for n in scales if n.startswith("blocks.0/attn/reshape"))
    assert scales[proj] <= float(
        float16_scale(Calibration.load(cache).threshold(proj.removesuffix("/scale"), "mse") / 127)
    )


@pytest.mark.usefixtures("no_observing")
def test_a_cache_without_images(cache: Path, quick_float: Digits, tmp_path: Path) -> None:
    request = with_cache(quick_float, tmp_path, cache, calib_data=None, calib_images=None)
    result = export(request)
    assert result.notes[-2:] == [
        f"calibrated by {cache}, made from 6 of 20 images in {quick_float.images}",
        "no images were given beside the calibration: weights are rounded to nearest and layers are not measured",
    ]
    nearest = onnx.load(tmp_path / "m.onnx").SerializeToString(deterministic=True)
    assert nearest != onnx.load(cache.parent / "m.onnx").SerializeToString(deterministic=True)
    bundle = build(replace(request, output=tmp_path / "bundle"))
    rows = json.loads((bundle.path / "report.json").read_text())["quantization"]["layers"]
    assert sum(row["precision"] == "int8" for row in rows) == 23
    assert all(row["sqnr_db"] is None for row in rows)
    assert bundle.manifest.calibration["images"] == 6
    assert Calibration.load(bundle.path / "calibration.json") == Calibration.load(cache)


def edited(cache: Path, folder: Path, change: Callable[[dict[str, Any]], Any], sign: bool = True) -> Path:
    fields = json.loads(cache.read_text())
    change(fields)
    if sign:
        fields["digest"] = digest({k: v for k, v in fields.items() if k != "digest"})
    (folder / "edited.json").write_text(json.dumps(fields))
    return folder / "edited.json"


def test_a_cache_of_other_images(cache: Path, quick_float: Digits, tmp_path: Path) -> None:
    message = (
        r"made from other images \(6 from 6 of 20 images in .*\); calibrate again, or leave --calib-cache out"
    )
    refused(with_cache(quick_float, tmp_path, cache, calib_images=5), message)


def test_a_cache_of_other_preprocessing(
    cache: Path, digits: Digits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = replace(
        digits.float_graph, preprocessing=replace(digits.float_graph.preprocessing, interpolation="bilinear")
    )
    stand_in_for_the_float_graph(digits, monkeypatch, other)
    refused(
        with_cache(digits, tmp_path, cache), r"other preprocessing \(interpolation was bicubic, is bilinear\)"
    )


def test_a_cache_of_another_graph(
    cache: Path, digits: Digits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph = onnx.ModelProto()
    graph.CopyFrom(digits.float_graph.graph)
    (head,) = [t for t in graph.graph.initializer if t.name == "head/weight"]
    head.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(head) * np.float32(1.001), head.name))
    other = replace(digits.float_graph, graph=graph)
    stand_in_for_the_float_graph(digits, monkeypatch, other)
    refused(with_cache(digits, tmp_path, cache), r"made for another graph \(\w{12}…, this one is \w{12}…\)")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"precision": "fp8", "engine": "tensorrt-rtx"}, "the calibration was made for int8, not for fp8"),
        ({"calib_method": "percentile", "calib_percentile": 99.0}, r"with percentile 99\.99, not 99"),
        ({"quantize": ("residual",)}, "the calibration has no tensor '.*'; calibrate again"),
    ],
)
def test_a_cache_for_something_else(
    fields: dict[str, Any], message: str, cache: Path, quick_float: Digits, tmp_path: Path
) -> None:
    refused(with_cache(quick_float, tmp_path, cache, **fields), message)


def test_a_cache_changed_by_hand(cache: Path, quick_float: Digits, tmp_path: Path) -> None:
    bad = edited(cache, tmp_path, lambda fields: fields.update(method="mse"), sign=False)
    refused(
        with_cache(quick_float, tmp_path, bad),
        "edited.json was changed by hand: it does not match its digest",
    )


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"\xff\xfe\x00", b'{"kind": "something else"}'])
def test_a_cache_that_is_none(content: bytes, quick_float: Digits, tmp_path: Path) -> None:
    (tmp_path / "c.json").write_bytes(content)
    refused(with_cache(quick_float, tmp_path, tmp_path / "c.json"), r"c\.json is not a calibration cache")


def test_a_cache_that_lacks_a_layer_is_refused_and_not_filled_in(
    cache: Path, quick_float: Digits, tmp_path: Path
) -> None:
    bad = edited(cache, tmp_path, lambda fields: fields["tensors"].pop("blocks.0/norm1"))
    refused(with_cache(quick_float, tmp_path, bad), "the calibration has no tensor 'blocks.0/norm1'")


def test_no_room_for_the_cache(quick_float: Digits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_bytes = Path.write_bytes

    def full(self: Path, data: bytes) -> int:
        if "c.json" in self.name:
            write_bytes(self, data[:10])
            raise OSError(errno.ENOSPC, "No space left on device")
        return write_bytes(self, data)

    monkeypatch.setattr(Path, "write_bytes", full)
    options = {"calib_method": "minmax", "calib_images": 1}
    request = with_cache(quick_float, tmp_path, tmp_path / "c.json", **options)
    refused(
        request,
        r"cannot write \S*c\.json: No space left on device; choose another place for the calibration cache",
    )


# -------------------------------------------------------------------------------------------------- random weights


def test_random_weights_need_no_images(
    digits: Digits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sit_deploy.pipeline.calibration import calibration_stream

    request = BuildRequest("sit_nano", tmp_path / "m.onnx", "int8")
    check_request(request)
    monkeypatch.setattr("sit_deploy.data.synthetic.synthetic_images", lambda count: list(range(count)))
    stream = calibration_stream(request, digits.float_graph.preprocessing)
    assert (len(stream.sources), stream.description) == (32, "32 synthetic images")
    assert (
        len(calibration_stream(replace(request, calib_images=5), digits.float_graph.preprocessing).sources)
        == 5
    )


# ------------------------------------------------------------------------------------------- trained to be rounded


THRESHOLDS = {f"blocks.{i}/mlp/fc1": 6.0 + i for i in range(4)}


@pytest.mark.usefixtures("no_observing")
def test_a_model_trained_in_int8_needs_no_images(quick_float: Digits, tmp_path: Path) -> None:
    checkpoint = trained_checkpoint(quick_float, tmp_path, THRESHOLDS)
    request = BuildRequest(None, tmp_path / "b", "int8", checkpoint, engine="onnxruntime").completed()
    bundle = build(request)
    assert bundle.manifest.calibration == {"method": "trained", "file": None}
    assert not (bundle.path / "calibration.json").exists()
    report = json.loads((bundle.path / "report.json").read_text())
    assert "the model was trained in int8 (--qat): its own thresholds are used" in report["notes"]
    low = {row["layer"]: row for row in report["quantization"]["layers"] if row["precision"] == "int8"}
    assert {name: row["scale"] for name, row in low.items()} == {
        name: float(float16_scale(limit / 127)) for name, limit in THRESHOLDS.items()
    }


def test_thresholds_of_a_layer_that_is_not_there(quick_float: Digits, tmp_path: Path) -> None:
    checkpoint = trained_checkpoint(quick_float, tmp_path, {"blocks.8/mlp/fc1": 1.0})
    request = BuildRequest(None, tmp_path / "m.onnx", "int8", checkpoint).completed()
    refused(
        request,
        r"has a threshold for 'blocks\.8/mlp/fc1', which the deployed graph does not have; train it again",
    )


@pytest.mark.parametrize("fields", [{"precision": "fp8"}, {"quantize": ("fc1",)}])
def test_thresholds_do_for_nothing_else(fields: dict[str, Any], digits: Digits, tmp_path: Path) -> None:
    """FP8, or other layers, have to be calibrated: without images that is refused, with them it is done."""
    checkpoint = trained_checkpoint(digits, tmp_path, THRESHOLDS)
    request = replace(BuildRequest(None, tmp_path / "m.onnx", "int8", checkpoint), **fields).completed()
    refused(request, "needs images to calibrate on; pass --calib-data DIR", InputError)
    assert request.trained_thresholds is None
    check_request(replace(request, calib_data=digits.images))


def test_images_do_not_replace_what_was_trained(quick_float: Digits, tmp_path: Path) -> None:
    checkpoint = trained_checkpoint(quick_float, tmp_path, THRESHOLDS)
    options = {"checkpoint": checkpoint, "calib_method": "auto", "quantize": None}
    request = quick_float.request(tmp_path / "m.onnx", **options)
    assert "the model was trained in int8 (--qat): its own thresholds are used" in export(request).notes


def test_export_gives_the_graph_of_the_bundle(quick_float: Digits, tmp_path: Path) -> None:
    """Float 32 where nothing says what it is for."""
    result = export(quick_float.request(tmp_path / "m.onnx", calib_images=2))
    assert result.hops[-1].name == "ONNX int8"
    assert len(list_images(quick_float.images)) == 20
    assert {node.domain for node in onnx.load(tmp_path / "m.onnx").graph.node} == {""}


@pytest.mark.parametrize("thresholds", [None, {"blocks.0/attn/proj": 1.0}])
def test_thresholds_that_were_trained_keep_what_they_were_trained_on(
    thresholds: dict[str, float] | None,
) -> None:
    model = tiny_vit("plain")
    pixels = images(model).numpy()
    reference = {"logits": torch_logits(model, pixels)}
    work = Work(SimpleNamespace(trained_thresholds=thresholds, max_damaged=0), lambda *_: None)
    loaded, compared = SimpleNamespace(model=model), SimpleNamespace(normalised=pixels, reference=reference)
    deploy, _ = _deploy(work, loaded, compared)
    assert (deploy.blocks[0].attn.value_bias is None) == (thresholds is None)
