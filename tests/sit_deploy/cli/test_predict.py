from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from sit_deploy.data.image_files import list_images
from sit_deploy.inference import load
from tests.helpers.command_line import CommandLine
from tests.sit_deploy.conftest import CLASSES, Trained


def test_folders_and_files_with_class_names(trained: Trained, cli: CommandLine) -> None:
    files = list_images(trained.images)
    single = Path(shutil.copy(files[3], cli.folder / "single.png"))
    found = cli("predict", trained.bundle, trained.images, single, "--top", 3, "--json").json()
    assert [row["image"] for row in found] == [*map(str, files), str(single)]
    with load(trained.bundle) as classify:
        logits = classify([*files, single])
    for row, scores in zip(found, logits, strict=True):
        assert [best["index"] for best in row["classes"]] == np.argsort(-scores)[:3].tolist()
        assert all(best["name"] == CLASSES[best["index"]] for best in row["classes"])
        assert 0 < sum(best["probability"] for best in row["classes"]) <= 1
    assert found[3]["classes"] == found[-1]["classes"]


def test_names_are_shown_as_they_are(trained: Trained, cli: CommandLine) -> None:
    """Labels and paths may hold what the screen would take for markup, a closing tag of nothing among it."""
    image = Path(shutil.copy(list_images(trained.images)[0], cli.folder / "[bold]a[b]:cow:.png"))
    out = cli("predict", trained.bundle, image.name, "--top", 99).out
    for name in (*CLASSES, image.name):
        assert name in out
    assert out.count("%") == len(CLASSES)


def test_numbers_where_there_are_no_names(nano_fp32: Path, trained: Trained, cli: CommandLine) -> None:
    image = list_images(trained.images)[0]
    (row,) = cli("predict", nano_fp32, image, "--top", "1", "--threads", "1", "--json").json()
    (best,) = row["classes"]
    assert best["name"] == str(best["index"])


def test_a_tensorrt_bundle_on_this_cpu(nano_rtx: Path, trained: Trained, cli: CommandLine) -> None:
    image = list_images(trained.images)[0]
    assert len(cli("predict", nano_rtx, image, "--engine", "onnxruntime", "--json").json()[0]["classes"]) == 5


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("text.txt", b"hello", r"text.txt: not an image that can be read"),
        ("text.jpg", b"hello", r"text.jpg: not an image that can be read"),
    ],
)
def test_no_images(name: str, content: bytes, message: str, nano_fp32: Path, cli: CommandLine) -> None:
    (cli.folder / "photos").mkdir()
    assert "photos: no images in this folder" in cli.refuses("predict", nano_fp32, "photos")
    (cli.folder / "photos" / name).write_bytes(content)
    told = cli.refuses("predict", nano_fp32, "photos")
    assert message in told or f"photos: no images in this folder (1 other file, {name[-4:]} 1)" in told
    assert message in cli.refuses("predict", nano_fp32, f"photos/{name}")
    assert "nowhere.jpg: no such file or folder" in cli.refuses("predict", nano_fp32, "nowhere.jpg")


def test_usage(nano_fp32: Path, cli: CommandLine) -> None:
    assert cli("predict", nano_fp32, status=2).usage_error() == "Missing argument 'IMAGES...'."
    assert "'0' is not in the range 1<=x<=1000000" in cli(
        "predict", nano_fp32, "a.jpg", "--top", "0", status=2
    ).err.replace(" 0 ", " '0' ")
