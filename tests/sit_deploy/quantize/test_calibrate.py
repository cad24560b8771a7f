from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from calibration import CalibrationError
from calibration.collect import Observations
from sit_deploy.data.damaged import DamagedImages
from sit_deploy.data.image_files import list_images
from sit_deploy.errors import InputError
from sit_deploy.pipeline.request import BuildRequest
from sit_deploy.pipeline.work import Work
from sit_deploy.preprocessing import Preprocessing
from sit_deploy.processes import Shard
from sit_deploy.quantize import calibrate as module
from sit_deploy.quantize.calibrate import CalibrationMethod, calibrate, graph_key
from sit_deploy.quantize.image_stream import ImageStream, calibration_images
from tests.helpers.damaged import NAMES, add_damaged
from tests.helpers.digits import Digits

PREPARE = Preprocessing.for_model(112)
MINMAX = CalibrationMethod(name="minmax")


def stream_of(images: list[Any]) -> ImageStream:
    return ImageStream(images, PREPARE, f"{len(images)} images")


def noise(count: int) -> list[Image.Image]:
    pixels = np.random.default_rng(0).integers(0, 256, (count, 40, 50, 3), np.uint8)
    return [Image.fromarray(one) for one in pixels]


def test_the_key_of_a_graph(digits: Digits) -> None:
    """The same for a graph of another batch size, another for other weights."""
    import onnx

    graph = onnx.ModelProto()
    graph.CopyFrom(digits.float_graph.graph)
    key = graph_key(graph)
    for value in (*graph.graph.input, *graph.graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = "batch"
    assert graph_key(graph) == key
    (bias,) = [t for t in graph.graph.initializer if t.name == "head/bias"]
    values = onnx.numpy_helper.to_array(bias) + np.float32(1e-6)
    bias.CopyFrom(onnx.numpy_helper.from_array(values, bias.name))
    assert graph_key(graph) != key


def run(digits: Digits, images: Any, method: CalibrationMethod = MINMAX, **options: Any) -> Any:
    return calibrate(digits.float_graph.graph, stream_of(images), method, **options)


@pytest.mark.slow
@pytest.mark.parametrize(("method", "passes"), [("minmax", 2), ("auto", 3)])
def test_progress_says_which_pass_it_is_in(method: str, passes: int, digits: Digits) -> None:
    """Through all of `build`'s step, which would show one bar that comes back to its beginning."""
    told: list[tuple[str, int, int]] = []
    work = Work(BuildRequest("sit_nano"), lambda *step: told.append(step))
    with work.step("Calibrating", passes=True) as report:
        run(digits, noise(9), CalibrationMethod(name=method), progress=report)
    first, *between, last = told
    assert (first, last) == (("Calibrating", 0, 0), ("Calibrating", 1, 1))
    names = [
        f"Calibrating: pass {i} of {passes}, {what}"
        for i, what in enumerate(("channels", "ranges", "methods")[:passes], 1)
    ]
    assert list(dict.fromkeys(text for text, _, _ in between)) == names
    for name in names:
        steps = [(done, total) for text, done, total in between if text == name]
        assert steps == sorted(steps) and steps[-1][0] == steps[-1][1] > 1
    assert list(work.seconds) == ["Calibrating"]


@pytest.mark.slow
def test_shards_give_the_same_to_the_last_digit(digits: Digits, tmp_path: Path) -> None:
    """Three threads stand for three processes: each sees its share, and all get everything that was seen."""
    images = list_images(digits.images)[:4]
    stream, barrier, method = stream_of(images), threading.Barrier(3), CalibrationMethod(name="mse")
    shown: dict[int, Observations] = {}
    counts: list[int] = []

    def work(rank: int) -> None:
        def gather(ours: Observations) -> Observations:
            counts.append(ours.images)
            shown[rank] = ours
            barrier.wait(60)
            merged = shown[2].merge(shown[0]).merge(shown[1])
            barrier.wait(60)
            return merged

        graph = digits.float_graph.graph
        found, _ = calibrate(graph, stream, method, gather=gather, shard=Shard(rank, 3))
        found.save(tmp_path / f"{rank}.json")

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    whole, _ = run(digits, images, method)
    whole.save(tmp_path / "whole.json")
    assert sorted(counts) == [1, 1, 1, 1, 2, 2]  # two passes
    assert len({(tmp_path / f"{name}.json").read_bytes() for name in (0, 1, 2, "whole")}) == 1


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["int8", "fp8"])
def test_auto_takes_the_method_that_hurts_least(
    precision: str, digits: Digits, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All but one are made to clip nearly everything; each in turn is the good one."""
    right = module.thresholds_by_method
    for best in ("average", "mse"):

        def spoilt(observer: Any, *options: Any, best: str = best) -> dict[str, float]:
            found = right(observer, *options)
            return {name: value if name == best else value / 50 for name, value in found.items()}

        monkeypatch.setattr(module, "thresholds_by_method", spoilt)
        found, _ = run(digits, list_images(digits.images)[:1], CalibrationMethod(precision))
        assert found.method == best


@pytest.mark.slow
def test_auto_compares_on_the_layers_that_are_to_be_quantized(
    digits: Digits, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[list[str]] = []
    insert = module.insert_qdq
    monkeypatch.setattr(
        module,
        "insert_qdq",
        lambda graph, names, *rest: asked.append(list(names)) or insert(graph, names, *rest),
    )
    run(
        digits,
        list_images(digits.images)[:1],
        CalibrationMethod(),
        layers=["blocks.0/mlp/fc1", "blocks.0/add"],
    )
    assert asked == [["blocks.0/mlp/fc1", "blocks.0/add"]] * 5


@pytest.mark.parametrize(("precision", "method"), [("int8", "best"), ("fp8", "entropy")])
def test_unknown_methods_are_refused_before_any_image_is_read(
    precision: str, method: str, digits: Digits
) -> None:
    with pytest.raises(
        InputError, match=f"{precision} has no calibration method '{method}'; choose from auto, minmax"
    ):
        run(digits, [Path("nowhere.png")], CalibrationMethod(precision, method))


# ------------------------------------------------------------------------------------------------- what is odd, and bad


@pytest.mark.slow
def test_nothing_is_odd_about_good_images(digits: Digits) -> None:
    assert run(digits, list_images(digits.images)[:4])[1] == []


@pytest.mark.slow
def test_identical_images(digits: Digits) -> None:
    _, notes = run(digits, noise(1) * 3)
    assert notes == [
        "all 3 calibration images are the same picture; give pictures as the model will see them"
    ]


@pytest.mark.slow
@pytest.mark.parametrize("colours", [[(0, 0, 0), (90, 14, 200)], [(128, 128, 128)]])
def test_images_of_one_colour(colours: list[tuple[int, int, int]], digits: Digits) -> None:
    _, notes = run(digits, [Image.new("RGB", (60, 50), colour) for colour in colours])
    assert notes == [
        "every calibration image is of a single colour; give pictures as the model will see them"
    ]
    _, notes = run(digits, [*(Image.new("RGB", (60, 50), c) for c in colours), *noise(1)])
    assert notes == []


@pytest.mark.slow
def test_dead_activations(digits: Digits) -> None:
    """A LayerNorm whose scale and shift are 0, and so what reads it."""
    import onnx

    graph = onnx.ModelProto()
    graph.CopyFrom(digits.float_graph.graph)
    (norm,) = [node for node in graph.graph.node if node.name == "blocks.2/norm2"]
    for name in norm.input[1:]:
        old = next(t for t in graph.graph.initializer if t.name == name)
        new = onnx.numpy_helper.from_array(np.zeros(old.dims, np.float32), f"zero/{name}")
        graph.graph.initializer.append(new)
    norm.input[1], norm.input[2] = (f"zero/{name}" for name in norm.input[1:])
    found, notes = calibrate(graph, stream_of(noise(1)), MINMAX)
    assert notes == [f"{norm.output[0]} was 0 on every calibration image: its range is unknown"]
    assert found.tensors[norm.output[0]].absmax == 0


def test_nan_activations_are_named(digits: Digits) -> None:
    import onnx

    graph = onnx.ModelProto()
    graph.CopyFrom(digits.float_graph.graph)
    (bias,) = [t for t in graph.graph.initializer if t.name == "blocks.1/mlp/fc1/weight"]
    bias.CopyFrom(onnx.numpy_helper.from_array(np.full(bias.dims, np.nan, np.float32), bias.name))
    with pytest.raises(
        CalibrationError,
        match=r"tensor 'blocks\.1/mlp/fc1\S*' holds a NaN or infinity on calibration image 1",
    ):
        calibrate(graph, stream_of(noise(1)), MINMAX)


@pytest.mark.slow
def test_images_of_every_kind(digits: Digits, tmp_path: Path) -> None:
    """Grey, CMYK, 16 bits, with alpha, turned by EXIF, a palette, and tiny ones."""
    (rgb,) = noise(1)
    turned = Image.Exif()
    turned[0x0112] = 6
    rgb.convert("L").save(tmp_path / "grey.png")
    rgb.convert("CMYK").save(tmp_path / "cmyk.jpg")
    Image.fromarray(np.asarray(rgb.convert("L")).astype(np.uint16) * 257).save(tmp_path / "deep.png")
    rgb.convert("RGBA").save(tmp_path / "alpha.png")
    rgb.convert("P").save(tmp_path / "palette.png")
    rgb.save(tmp_path / "turned.jpg", exif=turned)
    rgb.resize((3, 90)).save(tmp_path / "narrow.png")
    stream = calibration_images(tmp_path, 7, 256, PREPARE)
    found, notes = calibrate(digits.float_graph.graph, stream, MINMAX)
    assert (found.images.count, notes) == (7, [])
    assert all(np.isfinite([seen.min, seen.max]).all() for seen in found.tensors.values())


def test_images_that_cannot_be_read_give_way_to_others(
    digits: Digits, make_image_folder: Callable[..., Path]
) -> None:
    """As many as were asked for, where there are so many; the ranges are those of the whole ones alone."""
    folder = make_image_folder(per_class=4, suffixes=(".png",))
    whole = list_images(folder)
    add_damaged(folder / "dog")
    damaged = DamagedImages()
    stream = calibration_images(folder, 8, 256, PREPARE, damaged)
    assert stream.sources == whole and len(whole) == 8
    assert {"empty.jpg", "text.jpg"} <= {Path(one.image).name for one in damaged.found} <= set(NAMES)
    few = calibration_images(folder, 5, 256, PREPARE)
    assert len(few.sources) == 5 and set(few.sources) < set(whole)
    graph = digits.float_graph.graph
    found, _ = calibrate(graph, stream, MINMAX)
    wanted, _ = calibrate(graph, ImageStream(whole, PREPARE, "whole"), MINMAX)
    assert found.tensors == wanted.tensors and found.images.count == 8
    with pytest.raises(InputError, match="has 8 images that can be read and --calib-images asks for 9"):
        calibration_images(folder, 9, 256, PREPARE)
    with pytest.raises(
        InputError, match=r"1 image cannot be read, more than --max-damaged 0; the last: .*/dog/"
    ):
        calibration_images(folder, 8, 256, PREPARE, DamagedImages(0))
