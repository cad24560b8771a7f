"""Data sets of every kind, made small on disk: what is opened, and what is refused in one line."""

from __future__ import annotations

import builtins
import importlib.util
import inspect
import re
import shutil
import struct
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from engines.install import pip_install
from sit_deploy.data.datasets import open_data
from sit_deploy.data.source import DataSource
from sit_deploy.data.timm_datasets import TORCHVISION
from sit_deploy.errors import InputError
from tests.sit_deploy.data.conftest import refusal

MakeFolder = Callable[..., Path]


@pytest.fixture
def make_tree(tmp_path: Path, make_image_folder: MakeFolder) -> Callable[..., Path]:
    """A function that writes <root>/<part>/<class>/…: make_tree(train=("cat", "dog"), val=("cat", "dog"))."""

    def make(name: str = "data", per_class: int = 2, **parts: tuple[str, ...]) -> Path:
        root = tmp_path / name
        root.mkdir()
        for part, classes in parts.items():
            shutil.move(make_image_folder(classes, per_class=per_class), root / part)
        return root

    return make


# ---------------------------------------------------------------------------------------------------------- folders


def test_a_folder_is_numbered_by_its_sorted_class_names(make_tree: Callable[..., Path]) -> None:
    data = open_data(str(make_tree(train=("hen", "cat", "dog"), val=("dog", "hen", "cat"))))
    assert (data.classes, data.num_classes, data.streamed) == (["cat", "dog", "hen"], 3, False)
    assert [len(data.train), len(data.val)] == [6, 6]
    for samples in (data.train, data.val):
        for i, (path, label) in enumerate(samples.samples):
            image, same = samples[i]
            assert label == same == ["cat", "dog", "hen"].index(path.parent.name)
            assert image.mode == "RGB"
            np.testing.assert_array_equal(np.asarray(image), np.asarray(Image.open(path).convert("RGB")))
            assert samples.describe(i) == str(path)


@pytest.mark.parametrize("held_out", ["val", "valid", "validation", "test"])
def test_the_usual_names_of_the_held_out_part(held_out: str, make_tree: Callable[..., Path]) -> None:
    root = make_tree(train=("a", "b"), **{held_out: ("a", "b")})
    assert {path.parent.parent.name for path, _ in open_data(str(root)).val.samples} == {held_out}


def test_val_comes_before_test(make_tree: Callable[..., Path]) -> None:
    """Who has all three parts picks epochs on val and keeps test for the end."""
    data = open_data(str(make_tree(train=("a", "b"), test=("a", "b"), val=("a", "b"))))
    assert {path.parent.parent.name for path, _ in data.val.samples} == {"val"}


def test_parts_of_any_name(make_tree: Callable[..., Path]) -> None:
    root = make_tree(train=("a", "b"), val=("a", "b"), fold1=("x", "y"), fold2=("x", "y"))
    data = open_data(DataSource(str(root), train_split="fold1", val_split="fold2"))
    assert data.classes == ["x", "y"]
    assert data.train.samples[0][0].is_relative_to(root / "fold1")
    assert data.val.samples[0][0].is_relative_to(root / "fold2")


def test_class_folders_that_differ_are_named(make_tree: Callable[..., Path]) -> None:
    root = make_tree(train=("cat", "dog", "hen"), val=("cat", "dog", "cow", "pig"))
    message = refusal(root)
    assert f"hen only in {root / 'train'}" in message and f"cow, pig only in {root / 'val'}" in message
    root = make_tree("more", train=("a", "b", "c", "d", "e", "f"), val=("a", "b"))
    assert f"c, d, e, ... only in {root / 'train'}; make them the same" in refusal(root)


def test_folders_that_lack_something(make_tree: Callable[..., Path], tmp_path: Path) -> None:
    assert "no such folder" in refusal(tmp_path / "nowhere")
    assert "no such folder" in refusal("hfds")  # and no data set
    (tmp_path / "flowers.tar.gz").write_bytes(b"x")
    assert "flowers.tar.gz: an archive; unpack it" in refusal(tmp_path / "flowers.tar.gz")
    root = make_tree("one", train=("a",), val=("a",))
    assert "has one class only" in refusal(root)
    root = make_tree("half", train=("a", "b"))
    assert f"{root} has no subfolder val or valid" in refusal(root)
    assert f"{root} has no subfolder held" in refusal(root, val_split="held")
    root = make_tree("other", val=("a", "b"))
    assert f"{root} has no subfolder train" in refusal(root)
    assert f"{root} has no subfolder fold1" in refusal(root, train_split="fold1")
    root = make_tree("empty", train=("a", "b"), val=("a", "b"))
    for path in (root / "val" / "b").iterdir():
        path.unlink()
    assert "no images for 1 of 2 classes (b)" in refusal(root)
    root = make_tree("flat", train=("a", "b"))
    (root / "val").mkdir()
    assert "no class folders" in refusal(root)


def test_a_class_count_that_is_not_the_data_s(make_tree: Callable[..., Path]) -> None:
    root = make_tree(train=("a", "b"), val=("a", "b"))
    assert "has 2 classes, not 1000" in refusal(root, num_classes=1000)
    assert open_data(DataSource(str(root), num_classes=2)).num_classes == 2


# ----------------------------------------------------------------------------------------------------------- digits


def test_digits_are_split_by_class_and_share_no_picture() -> None:
    from sklearn.datasets import load_digits

    whole = load_digits()
    data = open_data("digits")
    assert data.classes == list("0123456789") and data.num_classes == 10
    assert (len(data.train), len(data.val)) == (1437, 360)
    counts = np.bincount(whole.target)
    for samples, share in ((data.train, 1437 / 1797), (data.val, 360 / 1797)):
        assert np.abs(np.bincount(samples.labels) - counts * share).max() <= 1
    # all of them, each once: 16 grey levels become 0 to 255
    everything = Counter(
        (p.tobytes(), label)
        for s in (data.train, data.val)
        for p, label in zip(s.pixels, s.labels, strict=True)
    )
    levels = [round(i * 255 / 16) for i in range(17)]
    expected = Counter(
        (bytes(levels[int(v)] for v in picture.ravel()), label)
        for picture, label in zip(whole.images, whole.target, strict=True)
    )
    assert everything == expected


def test_digits_are_the_same_every_time_and_pictures() -> None:
    np.random.seed(1)
    first = open_data("digits")
    np.random.seed(2)
    second = open_data("digits")
    for a, b in ((first.train, second.train), (first.val, second.val)):
        np.testing.assert_array_equal(a.pixels, b.pixels)
        np.testing.assert_array_equal(a.labels, b.labels)
    image, label = first.val[5]
    assert (image.mode, image.size, type(label)) == ("RGB", (8, 8), int)
    np.testing.assert_array_equal(np.asarray(image)[..., 1], first.val.pixels[5])


def without(monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    """Make a package look as if it were not installed."""
    real = builtins.__import__

    def refuse(name: str, *args: Any, **options: Any) -> Any:
        if name == package or name.startswith(f"{package}."):
            raise ModuleNotFoundError(f"No module named '{package}'", name=package)
        return real(name, *args, **options)

    monkeypatch.setattr(builtins, "__import__", refuse)


def test_digits_without_their_package(monkeypatch: pytest.MonkeyPatch) -> None:
    without(monkeypatch, "sklearn")
    assert refusal("digits") == f"--data digits needs scikit-learn; run {pip_install('scikit-learn')}"


# ------------------------------------------------------------------------------------------------- torchvision's sets


def write_mnist(root: Path, **counts: int) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Write MNIST's files as its authors define them: magic number, sizes, then bytes, all big-endian."""
    random = np.random.default_rng(0)
    raw = root / "MNIST" / "raw"
    raw.mkdir(parents=True)
    written = {}
    for part, count in counts.items():
        pixels = random.integers(0, 256, (count, 28, 28), np.uint8)
        labels = (np.arange(count) * 3 % 10).astype(np.uint8)
        written[part] = pixels, labels
        (raw / f"{part}-images-idx3-ubyte").write_bytes(
            struct.pack(">4i", 2051, count, 28, 28) + pixels.tobytes()
        )
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(struct.pack(">2i", 2049, count) + labels.tobytes())
    return written


def test_mnist_from_its_files(tmp_path: Path) -> None:
    written = write_mnist(tmp_path, train=12, t10k=5)
    data = open_data(DataSource("torch/mnist", tmp_path))
    assert data.num_classes == 10 and data.classes[3].startswith("3") and not data.streamed
    for samples, part in ((data.train, "train"), (data.val, "t10k")):
        pixels, labels = written[part]
        assert [label for _, label in samples] == labels.tolist()
        image, label = samples[2]
        assert (image.mode, type(label)) == ("RGB", int)
        np.testing.assert_array_equal(np.asarray(image), np.repeat(pixels[2][..., None], 3, axis=2))
    assert data.val.describe(2) == "image 2 of torch/mnist"


def test_nothing_is_downloaded(tmp_path: Path) -> None:
    message = refusal("torch/mnist", root=tmp_path)
    assert "torch/mnist, split 'train', cannot be opened" in message and "--data-dir" in message
    assert list(tmp_path.iterdir()) == []
    assert "cannot be opened" in refusal("torch/mnist")
    assert "torch/no_such_set is no data set of torchvision that timm opens" in refusal("torch/no_such_set")


def test_the_names_of_torchvision_are_those_that_timm_opens(tmp_path: Path) -> None:
    from timm.data import create_dataset, dataset_factory

    written = set(re.findall(r"name == '(\w+)'", inspect.getsource(create_dataset)))
    assert {*dataset_factory._TORCH_BASIC_DS, *written} == set(TORCHVISION)


def test_torchvision_s_folder(make_tree: Callable[..., Path]) -> None:
    root = make_tree(train=("dog", "cat"), val=("cat", "dog"))
    data = open_data(DataSource("torch/image_folder", root))
    assert (data.classes, data.num_classes, len(data.train), len(data.val)) == (["cat", "dog"], 2, 4, 4)
    assert [label for _, label in data.val] == [0, 0, 1, 1]


def test_torchvision_s_folder_without_a_held_out_part(make_tree: Callable[..., Path]) -> None:
    """timm would take the whole root for it, whose "classes" are the names of the parts."""
    root = make_tree(train=("cat", "dog"))
    message = refusal("torch/image_folder", root=root)
    assert "no subfolder val or valid" in message and "--val-split" in message


# ----------------------------------------------------------------------------------------------------- Hugging Face


def test_a_data_set_of_the_hugging_face_library(
    make_tree: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("datasets", reason="needs datasets: pip install datasets")
    monkeypatch.setattr("datasets.config.HF_DATASETS_OFFLINE", True)
    root = make_tree(per_class=3, train=("dog", "cat"), validation=("cat", "dog"))
    damaged = root / "train" / "cat" / "001.png"
    damaged.write_bytes(damaged.read_bytes()[:200])
    data = open_data(DataSource(f"hfds/{root}", root.parent / "cache"))
    assert (data.classes, data.num_classes, len(data.train), len(data.val)) == (["cat", "dog"], 2, 6, 6)
    images = [data.val[i] for i in range(6)]
    assert [label for _, label in images] == [0, 0, 0, 1, 1, 1]
    assert {image.mode for image, _ in images} == {"RGB"}
    expected = [
        np.asarray(Image.open(p).convert("RGB")) for p in sorted((root / "validation" / "cat").iterdir())
    ]
    np.testing.assert_array_equal([np.asarray(image) for image, _ in images[:3]], expected)
    # timm would hand out the next image instead, uncounted
    with pytest.raises(InputError, match="cannot decode"):
        data.train[1]
    assert data.train[2][0].size == (48, 40)


@pytest.mark.parametrize(
    ("name", "package"),
    [
        ("hfds/somebody/flowers", "datasets"),
        ("hfids/somebody/flowers", "datasets"),
        ("wds/flowers", "webdataset"),
        ("tfds/mnist", "tensorflow_datasets"),
    ],
)
def test_a_package_that_is_missing_is_named(
    name: str, package: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(
        "sit_deploy.data.timm_datasets.find_spec", lambda n: None if n == package else real(n)
    )
    assert refusal(name, num_classes=5) == f"{name} needs the package {package}; run {pip_install(package)}"
    assert capsys.readouterr().out == ""  # where timm would print
