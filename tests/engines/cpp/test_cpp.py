"""The C++ library against the Python side: pixels, golden outputs, classes; and in projects of others."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import pytest
from PIL import Image

from sit_deploy.bundle import Bundle, load_bundle
from sit_deploy.cpp_project import write_project
from sit_deploy.data.image_files import list_images
from sit_deploy.data.synthetic import synthetic_images
from sit_deploy.inference import load
from sit_deploy.preprocessing import load_image
from tests.engines.cpp.conftest import SOURCES, Programs, cmake_arguments
from tests.engines.cpp.manifests import rewrite
from tests.sit_deploy.conftest import CLASSES, Trained

if int(PIL.__version__.split(".")[0]) < 13:
    pytest.skip("older Pillow resizes tall images in another order", allow_module_level=True)

RESAMPLING = {name: getattr(Image.Resampling, name.upper()) for name in ("bilinear", "bicubic", "lanczos")}


def picture(width: int, height: int, mode: str = "RGB") -> Image.Image:
    """Noise over a gradient: every value, and every kind of edge."""
    made = np.random.default_rng(width * 1009 + height).integers(0, 256, (height, width, 3))
    ramp = np.linspace(0, 255, width)[None, :, None]
    return Image.fromarray(((made + 2 * ramp) / 3).astype(np.uint8)).convert(mode)


@pytest.fixture(scope="session")
def pixels(trained_pixels: Path) -> Bundle:
    """The trained model, taking pixels."""
    return load_bundle(trained_pixels)


# ------------------------------------------------------------------------------------------------------------ pixels


@pytest.mark.parametrize("name", RESAMPLING)
@pytest.mark.parametrize(
    ("source", "target"),
    [
        ((500, 375), (341, 256)),
        ((375, 500), (256, 341)),
        ((61, 37), (422, 256)),  # larger
        ((256, 256), (256, 256)),  # nothing to do
        ((256, 300), (256, 256)),  # one direction
        ((300, 256), (256, 256)),
        ((1, 1), (16, 16)),
        ((1, 50), (128, 6400)),
        ((901, 33), (17, 5)),
        ((64, 64), (63, 65)),
        ((333, 1001), (128, 384)),  # tall: down first
        ((100, 150), (50, 50)),  # on either side of where Pillow changes the order
        ((100, 151), (50, 50)),
        ((100, 60), (150, 59)),
    ],
)
def test_resizing_is_pillows_to_the_bit(
    name: str, source: tuple[int, int], target: tuple[int, int], checked: Programs, tmp_path: Path
) -> None:
    image = picture(*source)
    image.save(tmp_path / "image.png")
    ours = checked.image("resize", name, *target, tmp_path / "image.png")
    assert np.array_equal(ours, np.asarray(image.resize(target, RESAMPLING[name])))


@pytest.mark.parametrize(
    "shape",
    [(500, 375), (375, 500), (128, 128), (129, 128), (255, 257), (61, 37), (1, 1), (1, 50), (333, 1001)],
)
def test_preparing_is_pythons_to_the_bit(
    shape: tuple[int, int], checked: Programs, trained: Trained, pixels: Bundle, tmp_path: Path
) -> None:
    picture(*shape).save(tmp_path / "image.png")
    for bundle in (load_bundle(trained.bundle), pixels):
        expected = bundle.preprocessing()(load_image(tmp_path / "image.png"))
        ours = checked.output("sit_probe", "prepare", bundle.path, tmp_path / "image.png")
        assert np.array_equal(np.frombuffer(ours, expected.dtype).reshape(expected.shape), expected)


JPEGS = [
    ("RGB", {"quality": 95, "subsampling": 0}),
    ("RGB", {"quality": 75, "subsampling": 1}),
    ("RGB", {"quality": 75, "subsampling": 2}),
    ("RGB", {"quality": 30, "progressive": True}),
    ("L", {"quality": 80}),
]


@pytest.mark.parametrize(("mode", "options"), JPEGS, ids=str)
@pytest.mark.parametrize("shape", [(160, 120), (61, 37), (17, 8)])
def test_jpegs_decode_as_pillow_decodes_them(
    mode: str, options: dict[str, Any], shape: tuple[int, int], checked: Programs, tmp_path: Path
) -> None:
    picture(*shape, mode).save(tmp_path / "image.jpg", **options)
    assert np.array_equal(
        checked.image("decode", tmp_path / "image.jpg"), np.asarray(load_image(tmp_path / "image.jpg"))
    )


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P", "P+", "L", "LA", "1", "I;16"])
def test_pngs_decode_as_pillow_decodes_them(mode: str, checked: Programs, tmp_path: Path) -> None:
    if mode == "I;16":
        Image.fromarray(np.arange(60 * 50, dtype=np.uint16).reshape(50, 60) * 21).save(tmp_path / "image.png")
    elif mode == "P+":
        picture(60, 50, "P").save(tmp_path / "image.png", transparency=3)
    else:
        picture(60, 50, mode).save(tmp_path / "image.png")
    assert np.array_equal(
        checked.image("decode", tmp_path / "image.png"), np.asarray(load_image(tmp_path / "image.png"))
    )


def encoded(form: str, mode: str = "RGB", **options: Any) -> bytes:
    out = io.BytesIO()
    picture(60, 50, mode).save(out, form, **options)
    return out.getvalue()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "no JPEG, PNG or WebP; convert it to PNG"),
        (b"no image", "no JPEG, PNG or WebP; convert it to PNG"),
        (b"P and no picture", "no JPEG, PNG or WebP; convert it to PNG"),
        (b"RIFF\0\0\0\0WEBP", ""),
        (b"\xff\xd8\xff\xe0" + b"\0" * 50, "cannot decode the image ("),
        (encoded("png").replace(b"IHDR\0\0\0", b"IHDR\x7f\xff\0", 1), "cannot decode the image ("),
    ],
)
def test_what_is_no_image_is_named(data: bytes, message: str, checked: Programs, tmp_path: Path) -> None:
    (tmp_path / "bad.img").write_bytes(data)
    line = checked.refusal("sit_probe", "decode", tmp_path / "bad.img")
    assert line.startswith(f"{tmp_path / 'bad.img'}: {message}")


@pytest.mark.parametrize("form", ["jpeg", "png"])
def test_truncated_and_damaged_images_never_crash(form: str, checked: Programs, tmp_path: Path) -> None:
    whole, path = encoded(form), tmp_path / "cut"
    for cut in range(1, len(whole) - 20, len(whole) // 12):
        path.write_bytes(whole[:cut])
        checked.refusal("sit_probe", "decode", path)
    for place in range(20, len(whole), len(whole) // 12):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x5A]) + whole[place + 1 :])
        done = checked.run("sit_probe", "decode", path)
        assert done.returncode in (0, 2), done.stderr.decode()[-2000:]


# ----------------------------------------------------------------------------------------------------------- running


def test_golden_outputs(
    checked: Programs, release: Programs, trained: Trained, nano_rtx: Path, pixels: Bundle
) -> None:
    """Of a float bundle, of an FP16 one built for TensorRT, and of one that takes pixels."""
    for path in (trained.bundle, nano_rtx, pixels.path):
        for out in (checked.output("sit_check", path), release.output("check", path)):
            assert out.startswith(b"sit_nano on OpenVINO") and out.endswith(b": good\n")


def test_an_openvino_bundle_runs_as_it_was_built(
    checked: Programs, trained_openvino: Path, copy_of: Callable[..., Path]
) -> None:
    bundle = copy_of(trained_openvino)
    assert checked.output("sit_check", bundle).endswith(b": good\n")
    (bundle / "model.onnx").unlink()  # not what is run; and what is, is checked
    assert "lacks its file model.onnx" in checked.refusal("sit_check", bundle)


def test_a_bf16_bundle_runs_in_bf16(checked: Programs, trained_bf16: Path, trained: Trained) -> None:
    """Near the float32 engine's logits, as bfloat16 is, and not the same: the file says by itself what it computes in."""
    assert checked.output("sit_check", trained_bf16).endswith(b": good\n")
    images = np.random.default_rng(0).standard_normal((2, 3, 112, 112), np.float32)
    raw = trained_bf16.parent / "images-for-bf16"
    images.tofile(raw)
    low, high = (
        np.frombuffer(checked.output("sit_probe", "infer", path, raw, 2), np.float32)
        for path in (trained_bf16, trained.bundle)
    )
    with load(trained_bf16) as ours:
        assert np.abs(ours.logits(images).reshape(-1) - low).max() < 1e-3 * low.std()
    assert 1e-3 < np.abs(low - high).max() / high.std() < 0.4


def test_bf16_that_would_be_emulated_is_refused(
    release: Programs, trained_bf16: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """OpenVINO lists BF16 of this CPU all the same, and would take many times as long as in float32."""
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX512_CORE")
    line = release.refusal("check", trained_bf16)
    assert (
        "computes in bf16, which this CPU has no kernels for (with ONEDNN_MAX_CPU_ISA=AVX512_CORE set)"
        in line
    )


def test_golden_outputs_that_are_not_met(
    release: Programs, trained: Trained, copy_of: Callable[..., Path]
) -> None:
    folder = copy_of(trained.bundle)
    with np.load(folder / "golden.npz") as arrays:
        np.savez(folder / "golden.npz", images=arrays["images"], logits=arrays["logits"] * np.float32(1.01))
    rewrite(folder)
    done = release.run("check", folder)
    assert done.returncode == 1 and done.stdout.endswith(b": out of tolerance\n")


def test_any_number_of_images(checked: Programs, trained: Trained, tmp_path: Path) -> None:
    """The engine takes 2 to 4: fewer are filled up, more are cut."""
    counts = (1, 2, 4, 5, 9)
    images = np.random.default_rng(0).standard_normal((max(counts), 3, 112, 112), np.float32)
    images.tofile(tmp_path / "raw")
    out = np.frombuffer(
        checked.output("sit_probe", "infer", trained.bundle, tmp_path / "raw", *counts), np.float32
    )
    with load(trained.bundle) as classify:
        expected = classify.logits(images)
    found = np.split(out.reshape(sum(counts), -1), np.cumsum(counts)[:-1])
    for count, logits in zip(counts, found, strict=True):
        assert np.allclose(logits, expected[:count], atol=1e-4), count


def test_the_best_class_of_many_images(
    release: Programs, trained: Trained, pixels: Bundle, tmp_path: Path
) -> None:
    files = []
    for index, image in enumerate(synthetic_images(30, size=(160, 128))):
        files.append(tmp_path / f"{index:03}.{'jpg' if index % 2 else 'png'}")
        image.save(files[-1])
    for path, given in ((trained.bundle, files), (pixels.path, files[:10])):
        with load(path) as classify:
            best = classify(given).argmax(1).tolist()
        lines = release.output("classify", path, *given).decode().splitlines()
        top = len(CLASSES[:5])
        rows = [line.split("\t") for line in lines[::top]]
        assert [row[0] for row in rows] == [str(f) for f in given]
        assert [int(row[1]) for row in rows] == best
        assert [row[3] for row in rows] == [CLASSES[i] for i in best]


@pytest.mark.parametrize("contexts", [1, 2])
def test_four_threads(contexts: int, checked: Programs, trained: Trained) -> None:
    assert checked.output("sit_probe", "hammer", trained.bundle, 4, contexts) == b"0 wrong\n"


def test_latency_program(checked: Programs, trained: Trained) -> None:
    told = json.loads(checked.output("sit_latency", trained.bundle, 0.05, 1))
    assert (
        told["batch"] == 3 and 0 < told["p50_ms"] <= told["p90_ms"] <= told["p99_ms"] and told["first_ms"] > 0
    )


def test_usage(checked: Programs) -> None:
    for program in ("sit_classify", "sit_check", "sit_latency"):
        done = checked.run(program)
        assert done.returncode == 2 and done.stderr.startswith(f"Usage: {program} BUNDLE".encode())


# ---------------------------------------------------------------------------------------------------------- embedding

MAIN = """
#include <cstdio>
#include <sit_deploy/classifier.hpp>

int main(int, char** argv) {
    const sit_deploy::Classifier classifier(argv[1]);
    std::printf("%zu\\n", classifier.bundle().classes.size());
}
"""
FETCHED = (
    f"include(FetchContent)\nFetchContent_Declare(sit SOURCE_DIR {SOURCES})\nFetchContent_MakeAvailable(sit)"
)


@pytest.mark.slow
def test_a_project_that_fetches_the_sources_configures(tmp_path: Path) -> None:
    (tmp_path / "main.cpp").write_text(MAIN)
    (tmp_path / "CMakeLists.txt").write_text(
        f"cmake_minimum_required(VERSION 3.18)\nproject(user CXX)\n{FETCHED}\nadd_executable(user main.cpp)\n"
        "target_link_libraries(user sit_deploy::sit_deploy)\n"
    )
    configure = ["cmake", "-S", str(tmp_path), "-B", str(tmp_path / "build"), *cmake_arguments()]
    done = subprocess.run(configure, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    helped = subprocess.run(
        ["cmake", "--build", str(tmp_path / "build"), "--target", "help"], capture_output=True, text=True
    )
    assert "user" in helped.stdout and "sit_classify" not in helped.stdout


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    """Configuring on a machine without libjpeg's headers."""
    arguments = [*cmake_arguments(), "-DCMAKE_DISABLE_FIND_PACKAGE_JPEG=ON"]
    done = subprocess.run(
        ["cmake", "-S", str(SOURCES), "-B", str(tmp_path / "build"), *arguments],
        capture_output=True,
        text=True,
    )
    assert done.returncode and "apt-get install libjpeg-dev" in " ".join(done.stderr.split())
    shutil.rmtree(tmp_path / "build", ignore_errors=True)


def test_a_packaged_project_builds_with_one_command(project: Path, trained: Trained) -> None:
    image = list_images(trained.images)[0]
    with load(trained.bundle) as classify:
        best = int(classify(image).argmax())
    out = subprocess.run(
        ["build/classify", "bundle", str(image)], cwd=project, capture_output=True, text=True, check=True
    )
    assert out.stdout.splitlines()[0].split("\t")[1::2] == [str(best), CLASSES[best]]
    assert subprocess.run(["build/check", "bundle"], cwd=project, capture_output=True).returncode == 0


def test_a_packaged_project_without_openvino_says_what_to_do(trained: Trained, tmp_path: Path) -> None:
    write_project(load_bundle(trained.bundle), tmp_path / "project")
    done = subprocess.run(
        [str(tmp_path / "project/build.sh")],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHON": "false"},
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "no OpenVINO for false: run pip install openvino, or pass -DTENSORRT_ROOT=...\n"
