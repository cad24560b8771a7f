from __future__ import annotations

import io
import json
import pickle
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from PIL import Image

import engines
import sit_deploy
from engines import EngineError, EngineInputError, Runner, TensorSpec
from sit_deploy.bundle import load_bundle
from sit_deploy.data.image_files import list_images
from sit_deploy.errors import GateError, InputError
from sit_deploy.inference import Classifier, load, top_classes
from sit_deploy.predictions import Prediction
from sit_deploy.preprocessing import load_image
from tests.helpers.command_line import CommandLine
from tests.sit_deploy.conftest import CLASSES, Trained


class Adder(Runner):
    """An engine whose logits say which images it was given: the sum of each, and how many came with it."""

    def __init__(self, batch: int | None) -> None:
        super().__init__(
            (TensorSpec("images", (batch, 3, 2, 2), "float32"),),
            (TensorSpec("logits", (batch, 2), "float32"),),
        )
        self.runs: list[int] = []

    def _infer(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        images = feeds["images"]
        self.runs.append(len(images))
        sums = images.sum(axis=(1, 2, 3))
        return {"logits": np.stack([sums, -sums], axis=1)}

    def _close(self) -> None:
        pass


def numbered(count: int) -> np.ndarray:
    return np.repeat(np.arange(count, dtype=np.float32), 12).reshape(count, 3, 2, 2)


@pytest.mark.parametrize(
    ("batch", "count", "runs"),
    [
        ((1, 1), 3, [1, 1, 1]),
        ((4, 4), 3, [4]),  # padded
        ((4, 4), 4, [4]),
        ((4, 4), 9, [4, 4, 4]),  # cut, and the rest padded
        ((1, 4), 9, [4, 4, 1]),  # the rest as it is
        ((2, 4), 9, [4, 4, 2]),  # the rest padded to the smallest
        ((2, 4), 6, [4, 2]),
        ((2, 4), 1, [2]),
    ],
)
def test_any_number_of_images(batch: tuple[int, int], count: int, runs: list[int]) -> None:
    runner = Adder(batch[0] if batch[0] == batch[1] else None)
    with Classifier(runner, batch) as classifier:
        logits = classifier.logits(numbered(count))
    assert logits[:, 0].tolist() == [12.0 * i for i in range(count)]
    assert runner.runs == runs


def test_no_images_and_wrong_images() -> None:
    classifier = Classifier(Adder(None), (1, 4))
    with pytest.raises(InputError, match="no images to classify; pass at least one"):
        classifier.logits(numbered(0))
    with pytest.raises(engines.EngineInputError, match="expected dtype float32, got float64"):
        classifier.logits(numbered(2).astype(np.float64))
    with pytest.raises(engines.EngineInputError, match=r"expected shape \(N, 3, 2, 2\)"):
        classifier.logits(numbered(2)[:, :2])
    with pytest.raises(InputError, match=r"no bundle to say how images are prepared; call logits\(\)"):
        classifier([Image.new("RGB", (8, 8))])


def test_closing_closes_the_engine() -> None:
    runner = Adder(None)
    with Classifier(runner, (1, 4)) as classifier:
        pass
    with pytest.raises(engines.EngineInputError, match="closed"):
        classifier.logits(numbered(1))


def test_batches_of_a_real_engine_equal_one_image_at_a_time(trained: Trained) -> None:
    """Batch 2 to 4, so eleven images are runs of 4, 4 and 3, and one image is padded to 2."""
    files = list_images(trained.images)
    assert len(files) == 11
    with load(trained.bundle, threads=1) as classify:
        together = classify(files)
        single = np.concatenate([classify(file) for file in files])
        opened = classify([load_image(file) for file in files])
    np.testing.assert_allclose(single, together, rtol=0, atol=1e-5 * together.std())
    np.testing.assert_array_equal(opened, together)
    assert together.shape == (11, len(CLASSES))
    assert together.dtype == np.float32


def test_golden_outputs_are_what_pytorch_gives(trained: Trained) -> None:
    from sit_deploy.pipeline.logits import torch_logits
    from sit_deploy.validation.reference import reference_model

    bundle = load_bundle(trained.bundle)
    images, logits = bundle.golden()
    assert (images.shape, images.dtype) == ((4, 3, 112, 112), np.float32)
    assert (logits.shape, logits.dtype) == ((4, len(CLASSES)), np.float32)
    np.testing.assert_allclose(
        torch_logits(reference_model(bundle), images), logits, rtol=0, atol=1e-5 * logits.std()
    )
    # the images are those of --calib-data, spread over it, preprocessed as the manifest says
    files = list_images(trained.images)
    prepare = bundle.preprocessing()
    np.testing.assert_array_equal(images[0], prepare(load_image(files[0])))


def test_load_needs_no_torch(nano_fp32: Path, trained: Trained) -> None:
    """Importing torch takes seconds and gigabytes, and a server that runs an engine has no use for it."""
    code = f"""
import json, sys
import sit_deploy
assert "numpy" not in sys.modules
with sit_deploy.load({str(nano_fp32)!r}) as classify:
    logits = classify({str(next(trained.images.rglob("*.png")))!r})
print(json.dumps({{"shape": logits.shape, "heavy": sorted({{"torch", "timm", "onnx", "onnxscript"}} & set(sys.modules))}}))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {"shape": [1, 1000], "heavy": []}


def test_public_names() -> None:
    assert sit_deploy.load is load
    assert sit_deploy.load_bundle is load_bundle
    assert sit_deploy.Classifier is Classifier
    for name in sit_deploy.__all__:
        assert getattr(sit_deploy, name) is not None
    with pytest.raises(AttributeError, match="has no attribute 'lode'"):
        sit_deploy.lode  # noqa: B018


def test_engines_of_a_bundle(nano_fp32: Path) -> None:
    with load(nano_fp32, "onnxruntime") as classify:
        assert classify.runner.outputs[0].shape == (1, 1000)
    with pytest.raises(
        InputError, match=r"holds a onnxruntime engine, not tensorrt; build one with --engine tensorrt"
    ):
        load(nano_fp32, "tensorrt")
    with pytest.raises(engines.EngineError, match=r"unknown engine 'onnxruntim'; did you mean onnxruntime\?"):
        load(nano_fp32, "onnxruntim")


@pytest.mark.slow
def test_a_tensorrt_bundle_on_a_cpu(nano_rtx: Path, tmp_path: Path) -> None:
    """Its graph is FP16, which ONNX Runtime would compute in FP32: the rounding is simulated, and so is there."""
    from sit_deploy.graph.simulate import simulate

    images, reference = load_bundle(nano_rtx).golden()
    onnx.save(simulate(onnx.load(nano_rtx / "model.onnx")), tmp_path / "simulated.onnx")
    runtime = engines.get("onnxruntime")
    with Classifier(runtime.load(tmp_path / "simulated.onnx"), (1, 1)) as rounded:
        expected = rounded.logits(images)
    with Classifier(runtime.load(nano_rtx / "model.onnx"), (1, 1)) as unrounded:
        other = unrounded.logits(images)
    with load(nano_rtx, "onnxruntime") as classify:
        logits = classify.logits(images)
    assert 0 < np.abs(logits - reference).max() < 0.05 * reference.std()
    # a rounding may fall to the other side where kernels sum in another order, so equal is not asked
    assert np.abs(logits - expected).mean() < 0.1 * np.abs(other - expected).mean()


# --------------------------------------------------------------------------------------------------- top classes


def test_top_classes_in_order_with_softmax() -> None:
    logits = np.array([[1.0, 3.0, 2.0], [0.0, 0.0, -1.0]], np.float32)
    found = top_classes(logits, ["a", "b", "c"], 2)
    assert [[best["name"] for best in row] for row in found] == [
        ["b", "c"],
        ["a", "b"],
    ]  # ties: lower index first
    assert [[best["index"] for best in row] for row in found] == [[1, 2], [0, 1]]
    total = sum(np.exp([1.0, 3.0, 2.0]))
    assert found[0][0]["probability"] == pytest.approx(np.exp(3) / total)


def test_huge_logits_and_more_than_there_are() -> None:
    found = top_classes(np.array([[1e5, 0.0]], np.float32), ["a", "b"], 5)
    assert [best["probability"] for best in found[0]] == [1.0, 0.0]
    json.dumps(found, allow_nan=False)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_logits_that_are_no_numbers(bad: float) -> None:
    logits: Any = np.zeros((3, 2), np.float32)
    logits[1, 1] = bad
    with pytest.raises(
        GateError, match="NaN or infinite logits for 1 of 3 images; check it with sit-deploy validate"
    ):
        top_classes(logits, ["a", "b"])


# --------------------------------------------------------------------------------------------------- predictions


@pytest.fixture
def photographs() -> list[Path]:
    """Those that scikit-learn brings: 427 x 640, JPEG."""
    from sklearn.datasets import load_sample_images

    folder = Path(sys.modules[load_sample_images.__module__].__file__ or "").parent / "images"
    found = sorted(folder.glob("*.jpg"))
    assert len(found) == 2
    return found


def test_predictions_are_those_of_the_command(
    trained: Trained, photographs: list[Path], tmp_path: Path, cli: CommandLine
) -> None:
    """To the last bit, in whichever form the same picture comes."""
    turned = tmp_path / "turned.jpg"
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.open(photographs[0]).save(turned, exif=exif, quality=95)
    grey, clear = tmp_path / "grey.png", tmp_path / "clear.png"
    Image.open(photographs[1]).convert("L").save(grey)
    Image.open(photographs[1]).convert("RGBA").rotate(20, expand=True).save(clear)
    with load(trained.bundle, threads=1) as classify:
        for path in (*photographs, turned, grey, clear):
            (expected,) = cli("predict", trained.bundle, path, "--json", "--threads", 1, "--top", 3).json()
            assert len(expected["classes"]) == 3
            with path.open("rb") as stream, Image.open(path) as picture:
                pixels = [] if path == turned else [np.asarray(picture)]  # which have no EXIF to turn by
                for source in (path, str(path), path.read_bytes(), stream, picture, *pixels):
                    found = classify.predict(source, top=3)
                    assert {"image": expected["image"], **found.to_dict()} == expected
                    assert classify.predict([source] if source is not stream else [path], top=3) == [found]
        several = cli("predict", trained.bundle, *photographs, "--json", "--threads", 1).json()
        assert [found.to_dict()["classes"] for found in classify.predict(photographs)] == [
            row["classes"] for row in several
        ]


def test_one_image_gives_one_prediction_and_several_a_list(trained: Trained, photographs: list[Path]) -> None:
    pixels = np.asarray(Image.open(photographs[0]))
    with load(trained.bundle, threads=1) as classify:
        one = classify.predict(photographs[0])
        assert isinstance(one, Prediction) and len(one) == 5
        best = one.classes[0]
        assert (one.name, one.index, one.probability) == (best.name, best.index, best.probability)
        assert one[0] == best and list(one) == list(one.classes) and one[1:] == one.classes[1:]
        assert CLASSES[one.index] == one.name and 0 < one.probability < 1
        assert str(one).startswith(f"{best.name} {best.probability:.1%}, ")
        assert sum(place.probability for place in classify.predict(pixels, top=1000)) == pytest.approx(1)
        assert len(classify.predict(pixels, top=1000)) == len(CLASSES)
        assert len(classify.predict(pixels, top=1)) == 1
        for several in (photographs, tuple(photographs), iter(photographs), np.stack([pixels, pixels])):
            found = classify.predict(several)
            assert isinstance(found, list) and len(found) == 2
            assert found[0] == one
        assert classify.predict(pixels[None]) == classify.predict(photographs[:1]) == [one]
        assert pickle.loads(pickle.dumps(one)) == one


@pytest.mark.parametrize("top", [0, -1, 2.0, "5", None, True])
def test_top_that_is_no_number_of_classes(top: Any, opened: Classifier) -> None:
    with pytest.raises(InputError, match=r"^top must be a whole number of classes, at least 1, got "):
        opened.predict(np.zeros((4, 4), np.uint8), top)


def test_predictions_need_a_bundle_with_classes(nano_embeddings: Path) -> None:
    with pytest.raises(InputError, match=r"no bundle to name classes; call logits\(\)"):
        Classifier(Adder(None), (1, 4)).predict(np.zeros((4, 4), np.uint8))
    with (
        load(nano_embeddings) as embeds,
        pytest.raises(InputError, match=r"gives features and patches and no logits; call all_outputs\(\)"),
    ):
        embeds.predict(np.zeros((4, 4), np.uint8))


# ------------------------------------------------------------------------------------- what a program has at hand


@pytest.fixture(scope="module")
def opened(nano_fp32: Path) -> Iterator[Classifier]:
    with load(str(nano_fp32), threads=1) as classifier:
        yield classifier


def test_every_natural_way_to_give_an_image(opened: Classifier, tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (120, 130, 3), dtype=np.uint8)
    picture, file = Image.fromarray(pixels), tmp_path / "a.png"
    picture.save(file)
    data = file.read_bytes()
    expected = opened([picture])
    one = (
        picture,
        file,
        str(file),
        data,
        bytearray(data),
        memoryview(data),
        pixels,
        pixels[:, ::-1][:, ::-1],
    )
    for source in one:
        for images in (source, [source], (x for x in [source])):
            assert np.array_equal(opened(images), expected), type(source)
    with file.open("rb") as stream:
        assert np.array_equal(opened(stream), expected)
        stream.seek(0)
        assert np.array_equal(opened([io.BytesIO(data), stream]), opened([file, file]))
    assert np.array_equal(opened(np.array([str(file)])), expected)
    assert np.array_equal(opened(pixels[None]), expected)
    assert len(opened(np.stack([pixels, pixels]))) == len(opened([file, pixels])) == 2
    bundle = opened.bundle
    assert bundle is not None
    for place in (bundle.path, str(bundle.path), bundle):
        load(place, threads=1).close()


@pytest.mark.parametrize(
    "images",
    [
        None, 3, 2.5, [], (), {}, [None], [3], object, [["a.png"]], "nowhere.png", Path(), b"", b"no picture", "", "\0",
        np.zeros(()), np.zeros(3), np.zeros((4, 4, 5), np.uint8), np.zeros((4, 4, 3)), np.zeros((4, 4), np.float32),
        np.zeros((0, 4, 3), np.uint8), np.zeros((0, 4, 4, 3), np.uint8), np.zeros((1, 3, 112, 112), np.float32),
        [np.zeros((2, 4, 4, 3), np.uint8)], np.array(["a"]), [(Path("a.png"), 0)],
    ],
    ids=repr,
)  # fmt: skip
def test_what_is_no_image_is_refused_in_one_line(images: Any, opened: Classifier) -> None:
    with pytest.raises(InputError, match=r"^[^\n]+$"):
        opened(images)


@pytest.mark.parametrize(
    "images",
    [None, [], [[1.0]], 3, np.zeros((), "f4"), np.zeros((0, 3, 112, 112), "f4"), np.zeros((1, 3, 112, 112)),
     np.zeros((3, 112, 112), "f4"), np.zeros((1, 112, 112, 3), "f4"), np.zeros((1, 3, 112, 112), object), np.array(["a"])],
    ids=repr,
)  # fmt: skip
def test_arrays_that_are_not_preprocessed_images(images: Any, opened: Classifier) -> None:
    with pytest.raises((InputError, EngineInputError), match=r"^[^\n]+$"):
        opened.logits(images)


@pytest.mark.parametrize("bundle", [None, 3, b"b", [], {}, "", "nowhere", "\0", Path("nowhere")], ids=repr)
def test_what_is_no_bundle(bundle: Any) -> None:
    for open_it in (load, load_bundle):
        with pytest.raises(InputError, match=r"^[^\n]+$"):
            open_it(bundle)


@pytest.mark.parametrize("threads", [0, -1, 5000, 10**6, 2**63])
def test_threads_that_no_machine_has(threads: int, nano_fp32: Path) -> None:
    with pytest.raises(EngineError, match="threads must be at "):
        load(nano_fp32, threads=threads)


@pytest.mark.parametrize(
    "argument", [{"engine": 5}, {"device": 0}, {"device": b"cpu"}, {"threads": "2"}, {"threads": 2.0}]
)
def test_an_argument_of_another_type_is_named(argument: dict[str, Any], tmp_path: Path) -> None:
    """Before the bundle is read, and before an engine takes it for what it is not."""
    ((name, value),) = argument.items()
    with pytest.raises(InputError, match=f"^{name} must be .* got {value!r}$"):
        load(tmp_path, **argument)
