"""The C++ library with bundles, images and arguments that nobody means well: each is refused in one line, before memory is
taken or a byte read that is not there. Sanitizers watch."""

from __future__ import annotations

import io
import json
import os
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sit_deploy.bundle import load_bundle
from sit_deploy.errors import InputError
from sit_deploy.inference import load
from sit_deploy.preprocessing import load_image
from tests.engines.cpp.conftest import Programs
from tests.engines.cpp.manifests import npy, rewrite


def test_every_public_function_refuses_what_cannot_be_right(checked: Programs, nano_fp32: Path) -> None:
    lines = checked.output("sit_misuse", nano_fp32).decode().splitlines()
    said = [line.split("\t") for line in lines]
    assert len(said) > 80 and all(len(line) == 2 for line in said)
    assert not [line for line in said if line[1].startswith(("NOT REFUSED", "ANOTHER TYPE"))]
    assert ["prepare", "an image of 100 x 100 pixels must have 30000 bytes, and has 10"] in said
    assert not any(character < " " for _, message in said for character in message)


def test_threads_get_errors_of_their_own(checked: Programs, nano_fp32: Path) -> None:
    assert checked.output("sit_probe", "refuse", nano_fp32, 4) == b"40 refused, 2 found\n"


def at(path: str, value: object) -> Callable[[dict[str, Any]], None]:
    """A change of one field of a manifest."""

    def change(manifest: dict[str, Any]) -> None:
        *groups, name = path.split(".")
        for group in groups:
            manifest = manifest[group]
        manifest[name] = value

    return change


FIELDS = [
    ("model.num_classes", (0, -1, 10**9, 2**63, 2**64, 1000.0, "1000", None, [1000], True)),
    ("classes", ("names", [1] * 1000, ["one"], {"a": 1})),
    ("preprocessing.size", (112, [112], [112, 112, 3], [0, 112], [2**63, 112], [-1, 1], [112, 1e308])),
    ("model.image_size", ([96, 96], 112, None)),
    ("preprocessing.resize", (0, 100_000, 2**63, 111, 128.5)),
    ("preprocessing.mean", ([0.5, 0.5, 1e308], [0.5, 0.5, "0"], [0.5] * 4)),
    ("preprocessing.std", ([0, 1, 1], [1, 1, 1e-60], [-1, 1, 1])),
    ("preprocessing.interpolation", ("nearest", 3, "x" * 100_000)),
    ("preprocessing", ([], "x", None)),
    ("batch", ({}, {"size": 0}, {"size": 2**63}, {"min": 3, "opt": 2, "max": 4}, {"min": 1, "opt": 1}, [1])),
    ("engine", ({}, "model.onnx")),
    ("engine.file", ("../engine.onnx", "/etc/passwd", "", "..", "manifest.json", 7)),
    ("files", ([], {}, {"model.onnx": None})),
    ("schema", (0, -1, "1", 10**30)),
]  # fmt: skip


def test_numbers_that_cannot_be_right(checked: Programs, light: Path, copy_of: Callable[..., Path]) -> None:
    folder = copy_of(light)
    good = (folder / "manifest.json").read_bytes()
    for path, values in FIELDS:
        for value in values:
            (folder / "manifest.json").write_bytes(good)
            rewrite(folder, at(path, value))
            line = checked.refusal("sit_probe", "open", folder)
            assert line.startswith(str(folder)) and len(line) < 1000, (path, value)
    for name in ("../x", "/etc/passwd", "a\0b", "sub/model.onnx", "."):
        (folder / "manifest.json").write_bytes(good)
        rewrite(folder, lambda m, name=name: m["files"].update({name: m["files"]["model.onnx"]}))
        assert "lacks its file" in checked.refusal("sit_probe", "open", folder), name


def of_outputs(change: Callable[[list[dict[str, Any]]], object]) -> Callable[[dict[str, Any]], object]:
    """A change of the outputs of a manifest."""
    return lambda manifest: change(manifest["outputs"])


# features (n, 128) and patches (n, 6, 128), changed so that no engine gives them
WRONG_OUTPUTS: list[Callable[[dict[str, Any]], object]] = [
    *(at("outputs", value) for value in ([], {}, 7, "features", None)),
    lambda manifest: manifest.pop("outputs"),
    lambda manifest: manifest.update(outputs=manifest["outputs"][:1] * 100_000),
    of_outputs(lambda outputs: outputs.append(dict(outputs[0]))),
    of_outputs(lambda outputs: outputs.append({"name": "logits", "dtype": "float32", "shape": [1000]})),
    *(
        of_outputs(lambda outputs, shape=shape: outputs[0].update(shape=shape))
        for shape in (None, [], 128, [128, 1], [0], [-5], [128.5], ["128"], [10**9], [2**64], [64], [[128]])
    ),
    of_outputs(lambda outputs: outputs[1].update(shape=[10**9, 10**9])),
    of_outputs(lambda outputs: outputs[1].update(shape=[8192**2, 8192**2])),
    of_outputs(lambda outputs: outputs[1].update(shape=[128, 6])),
    *(
        of_outputs(lambda outputs, name=name: outputs[0].update(name=name))
        for name in ("tokens", "", ["features"], None, "fea\x1b[31mtures", "patches")
    ),
    of_outputs(lambda outputs: outputs[0].update(dtype="float64")),
    of_outputs(lambda outputs: outputs[0].pop("shape")),
]


def test_outputs_that_cannot_be_right(
    checked: Programs, nano_embeddings: Path, copy_of: Callable[..., Path]
) -> None:
    """Refused by the C++ library and by the Python side alike, before anything is made of their sizes."""
    folder = copy_of(nano_embeddings)
    good = (folder / "manifest.json").read_bytes()
    for number, change in enumerate(WRONG_OUTPUTS):
        (folder / "manifest.json").write_bytes(good)
        rewrite(folder, change)
        line = checked.refusal("sit_probe", "open", folder)
        assert line.startswith(str(folder)) and len(line) < 1000, number
        with pytest.raises(InputError) as caught:
            load_bundle(folder)
        assert "\n" not in str(caught.value), number


def test_an_engine_that_gives_more_than_its_manifest_says(
    checked: Programs, nano_embeddings: Path, copy_of: Callable[..., Path]
) -> None:
    folder = copy_of(nano_embeddings)
    images = load_bundle(folder).golden()[0]
    rewrite(folder, of_outputs(lambda outputs: outputs.pop()))
    assert "must have one input and one output" in checked.refusal("sit_check", folder)
    with (
        load(folder) as classifier,
        pytest.raises(
            InputError, match=r"the engine gives features .*, patches .*, and the manifest says features"
        ),
    ):
        classifier.outputs(images)


def test_text_that_is_no_manifest(checked: Programs, light: Path, copy_of: Callable[..., Path]) -> None:
    folder = copy_of(light)
    path = folder / "manifest.json"
    good = path.read_text()
    for text, said in (
        (good.replace('"schema": 1', '"schema": 1, "schema": 1'), "has the name schema twice in one object"),
        (good.replace("128", "NaN"), "not JSON"),
        (good.replace("128", "Infinity"), "not JSON"),
        (good.replace("128", "-inf"), "not JSON"),
        (good.replace("128", "0128"), "not JSON"),
        (good.replace("sit_nano", "\\ud83d"), "not JSON"),
        (good.replace("sit_nano", "\\udc00\\ud83d"), "not JSON"),
        ("\ufeff" + good, "not JSON"),
        ('{"a":' * 101, "not JSON at byte 505 (nested more than 100 levels deep)"),
        ("[" + "0," * 2_200_000 + "0]", "has more than 2097152 values"),
        ('"' + "x" * 17_000_000 + '"', "bytes are more than the 16777216 taken"),
        ("{" + ",".join(f'"{i}":0' for i in range(200_000)) + "}", "lacks schema"),  # in seconds, not hours
        ("[]", "lacks schema"),
        ("null", "lacks schema"),
    ):
        path.write_text(text)
        assert said in checked.refusal("sit_probe", "open", folder), text[:50]
    for data in (
        good.encode("utf-16"),
        good.replace("sit_nano", "@").encode().replace(b"@", b"\xed\xa0\x80"),
        b"\xff",
    ):
        path.write_bytes(data)
        assert "is not UTF-8" in checked.refusal("sit_probe", "open", folder)


def archive(*files: tuple[str, bytes], method: int = zipfile.ZIP_STORED) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", method) as made:
        for name, data in files:
            made.writestr(name, data)
    return out.getvalue()


def altered(data: bytes, signature: bytes, offset: int, value: bytes) -> bytes:
    """An archive with a field of its first header of a kind changed."""
    place = data.index(signature) + offset
    return data[:place] + value + data[place + len(value) :]


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_golden_outputs_that_are_not_what_they_say(
    checked: Programs, light: Path, nano_fp32: Path, copy_of: Callable[..., Path]
) -> None:
    folder = copy_of(light)
    with np.load(light / "golden.npz") as arrays:
        images, logits = arrays["images"], arrays["logits"]
    pixels, outputs = images.tobytes(), logits.tobytes()
    whole, row = "(4, 3, 112, 112)", "(4, 1000)"

    def arrays_of(one: bytes, other: bytes, method: int = zipfile.ZIP_STORED) -> bytes:
        return archive(("images.npy", one), ("logits.npy", other), method=method)

    fits, good = "does not fit the manifest", arrays_of(npy(whole, pixels), npy(row, outputs))
    nan = logits.copy()
    nan[2, 7] = np.nan
    central, local = b"PK\1\2", b"PK\3\4"
    for data, said in (
        (arrays_of(npy((2**61 + 4, 3, 112, 112), pixels), npy(row, outputs)), fits),
        (arrays_of(npy((2**62 + 4, 3, 112, 112), pixels), npy((2**62 + 4, 1000), outputs)), fits),
        (arrays_of(npy((4, 3, 112, 2**63), pixels), npy(row, outputs)), fits),
        (arrays_of(npy(whole, pixels), npy((2**62, 4000), outputs)), fits),
        (arrays_of(npy((0, 3, 112, 112), b""), npy((0, 1000), b"")), fits),
        (arrays_of(npy("()", b""), npy("()", b"")), fits),
        (arrays_of(npy((4, 112, 112, 3), pixels), npy(row, outputs)), fits),
        (arrays_of(npy(whole, pixels, ">f4"), npy(row, outputs)), fits),
        (arrays_of(npy(whole, pixels), npy(row, outputs, "|O")), fits),
        (arrays_of(npy(whole, pixels), npy(row, outputs[:-1])), fits),
        (arrays_of(npy(whole, pixels), npy(row, outputs + b"\0")), fits),
        (arrays_of(npy((2**64, 3, 112, 112), pixels), npy(row, outputs)), "not an archive"),
        (arrays_of(npy("(-4, 3, 112, 112)", pixels), npy(row, outputs)), "not an archive"),
        (arrays_of(npy("(4", pixels), npy(row, outputs)), "not an archive"),
        (arrays_of(npy(whole, pixels)[:9], npy(row, outputs)), "not an archive"),
        (arrays_of(npy(whole, pixels, order="True"), npy(row, outputs)), "Fortran's order"),
        (arrays_of(npy(whole, pixels), npy(row, nan.tobytes())), "its logits hold NaN or infinity"),
        (arrays_of(npy(whole, bytes(10**6)), b"", zipfile.ZIP_DEFLATED), "images.npy is compressed"),
        (archive(("images.npy", b""), ("images.npy", b""), ("logits.npy", b"")), "has images.npy twice"),
        (archive(("other.npy", b"")), "lacks the array images.npy"),
        (altered(good, central, 20, b"\xff\xff\xff\xff"), "is of 4 GB or more"),
        (altered(good, central, 20, b"\xff\xff\xff\x7f"), "not an archive"),
        (altered(good, central, 42, b"\xf0\xff\xff\xff"), "not an archive"),
        (altered(good, central, 42, struct.pack("<L", good.rindex(local))), "not an archive"),  # overlapping
        (altered(good, central, 8, b"\1"), "is encrypted"),
        (altered(good, central, 28, b"\xff\xff"), "not an archive"),
        (altered(good, local, 26, b"\xff\xff"), "not an archive"),
        (altered(good, b"PK\5\6", 16, b"\xff\xff\xff\xff"), "not an archive"),
        (altered(good, b"PK\5\6", 10, b"\xff\xff"), "not an archive"),
        (b"PK\5\6" + bytes(18), "lacks the array images.npy"),
    ):  # fmt: skip
        (folder / "golden.npz").write_bytes(data)
        rewrite(folder)
        line = checked.refusal("sit_probe", "open", folder)
        assert line.startswith(f"{folder / 'golden.npz'}: ") and said in line, (said, line)
    (folder / "golden.npz").write_bytes(good)
    assert checked.output("sit_probe", "open", rewrite(folder))  # what they were made from is right
    folder = copy_of(nano_fp32, "whole")
    (folder / "golden.npz").write_bytes(arrays_of(npy(whole, pixels), npy(row, bytes(16_000))))
    assert "any engine would pass" in checked.refusal("sit_check", rewrite(folder))


def test_an_engine_that_is_not_what_the_manifest_says(
    checked: Programs, nano_fp32: Path, copy_of: Callable[..., Path]
) -> None:
    with np.load(nano_fp32 / "golden.npz") as arrays:
        images, logits = arrays["images"], arrays["logits"]
    pixels = {"layout": "NHWC", "dtype": "uint8"}
    for name, made, change in (
        ("classes", (images, logits[:, :999]), at("model.num_classes", 999)),
        ("size", (images[:, :, :96, :96], logits), lambda m: (at("preprocessing.size", [96, 96])(m), at("model.image_size", [96, 96])(m))),
        ("pixels", (np.zeros((4, 112, 112, 3), np.uint8), logits), lambda m: m["preprocessing"].update(pixels)),
        ("batch", (images, logits), at("batch", {"min": 1, "opt": 2, "max": 8})),
    ):  # fmt: skip
        folder = copy_of(nano_fp32, name)
        np.savez(
            folder / "golden.npz", images=np.ascontiguousarray(made[0]), logits=np.ascontiguousarray(made[1])
        )
        line = checked.refusal("sit_check", rewrite(folder, change))
        assert line.startswith(
            f"{folder / 'model.onnx'} takes f32 [1,3,112,112] and gives f32 [1,1000], where its manifest says "
        ), line


@pytest.mark.parametrize("shape", [(1, 60_000), (60_000, 1), (3, 20_000), (65_500, 1), (900, 7)], ids=str)
def test_long_thin_images_are_cropped_before_they_are_resized(
    shape: tuple[int, int], checked: Programs, light: Path, tmp_path: Path
) -> None:
    """Resized whole, the first would be 128 × 7680000 pixels."""
    noise = np.random.default_rng(7).integers(0, 256, (shape[1], shape[0], 3)).astype(np.uint8)
    Image.fromarray(noise).save(tmp_path / "thin.png")
    expected = load_bundle(light).preprocessing()(load_image(tmp_path / "thin.png"))
    assert checked.output("sit_probe", "prepare", light, tmp_path / "thin.png") == expected.tobytes()


def test_images_that_promise_more_than_they_have(checked: Programs, tmp_path: Path) -> None:
    corpus = Path(__file__).parent / "corpus/picture"
    for name in ("promises.jpg", "promises.png", "found-chunk-of-2-gb.png"):
        assert "truncated" in checked.refusal("sit_probe", "decode", corpus / name)
    assert "too large to trust" in checked.refusal("sit_probe", "decode", corpus / "long.png")
    out = io.BytesIO()
    Image.new("RGB", (16, 16)).save(out, "jpeg", progressive=True)
    scan = out.getvalue().rindex(b"\xff\xda")
    many = out.getvalue()[:scan] + out.getvalue()[scan:-2] * 200 + out.getvalue()[-2:]
    (tmp_path / "scans.jpg").write_bytes(many)
    assert "more than 100 scans" in checked.refusal("sit_probe", "decode", tmp_path / "scans.jpg")


def test_what_is_no_ordinary_file(checked: Programs, nano_fp32: Path, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with (tmp_path / "sparse.jpg").open("wb") as file:
        file.truncate(2**40)
    (tmp_path / "bundle").mkdir()
    os.mkfifo(tmp_path / "bundle/manifest.json")
    for path in (tmp_path / "pipe", Path("/dev/zero"), tmp_path, tmp_path / ("x" * 300), tmp_path / "a/b"):
        assert "no such file, or not an ordinary one" in checked.refusal("sit_probe", "decode", path)
    line = checked.refusal("sit_probe", "decode", tmp_path / "sparse.jpg")
    assert line == checked.refusal("sit_classify", nano_fp32, tmp_path / "sparse.jpg")
    assert line == f"{tmp_path / 'sparse.jpg'}: 1099511627776 bytes are more than the 1073741824 taken"
    for folder in (tmp_path / "bundle", tmp_path / ("y" * 300), Path("/dev/null"), Path("\033[31m")):
        line = checked.refusal("sit_probe", "open", folder)
        assert "is not a bundle: it has no manifest.json" in line and "\033" not in line


def test_words_of_the_programs(checked: Programs, nano_fp32: Path) -> None:
    for words in (("x",), ("nan",), ("-1",), ("1e9",), ("1", "many"), ("1", "1e6"), ("1", "-2"), ("",)):
        assert "must be a number from 0 to" in checked.refusal("sit_latency", nano_fp32, *words), words


def test_names_do_not_drive_a_terminal(
    checked: Programs, nano_fp32: Path, copy_of: Callable[..., Path], tmp_path: Path
) -> None:
    names = [f"{i}\033[31m\t\n\x07" for i in range(1000)]
    folder = rewrite(copy_of(nano_fp32), at("classes", names))
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    lines = checked.output("sit_classify", folder, tmp_path / "a.png").decode().splitlines()
    assert len(lines) == 5 and all(line.count("\t") == 3 and line.endswith(" [31m   ") for line in lines)
    rewrite(folder, at("model.name", "a\033]0;x\x07b"))
    assert b"\033" not in checked.run("sit_check", folder).stdout
    assert json.loads((folder / "manifest.json").read_text())["model"]["name"].startswith("a\033")
