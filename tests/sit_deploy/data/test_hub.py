"""Data sets of the Hub, whatever their columns and splits are called; no error of another library reaches a user."""

from __future__ import annotations

import io
from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from sit_deploy.data.datasets import open_data
from sit_deploy.data.labelled import open_labelled
from sit_deploy.data.source import DataSource
from sit_deploy.errors import InputError

pytestmark = pytest.mark.skipif(find_spec("datasets") is None, reason="needs datasets: pip install datasets")

PICTURE = Image.new("RGB", (8, 6), (200, 10, 10))
NAMES = ["cat", "dog"]
Make = Callable[..., str]


def hub() -> Any:
    """The package `datasets`, which takes a second to import."""
    return import_module("datasets")


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Make:
    """A function that writes a data set and returns its name: make(["val"], img=(pictures, type), label=(labels, type))."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    hub().disable_progress_bars()

    def write(splits: list[str], **columns: tuple[list[Any], Any]) -> str:
        features = hub().Features({name: kind for name, (_, kind) in columns.items()})
        rows = hub().Dataset.from_dict(
            {name: values for name, (values, _) in columns.items()}, features=features
        )
        root = tmp_path / "set"
        root.mkdir()
        for split in splits:
            rows.to_parquet(root / f"{split}-00000-of-00001.parquet")
        return f"hfds/{root}"

    return write


def images(count: int = 2) -> tuple[list[Any], Any]:
    return [PICTURE] * count, hub().Image()


def classes(*labels: int, names: list[str] = NAMES) -> tuple[list[int], Any]:
    return list(labels), hub().ClassLabel(names=names)


def refusal(name: str, **options: Any) -> str:
    with pytest.raises(InputError) as error:
        open_labelled(name, None, 2, **options)
    assert "\n" not in str(error.value) and "Traceback" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(
    ("image", "label"), [("img", "label"), ("image", "labels"), ("picture_of_it", "what")]
)
def test_columns_are_found_by_their_types(image: str, label: str, make: Make) -> None:
    name = make(
        ["train", "validation"],
        **{"id": ([7, 8], hub().Value("int64")), image: images(), label: classes(0, 1)},
    )
    found = open_labelled(name, ["dog", "cat"], 2)
    assert [row for _, row in found] == [1, 0] and found[0][0].size == (8, 6)
    assert f"taken from split 'validation', columns {image} and {label}" in found.notes
    data = open_data(name)
    assert (data.classes, len(data.train), data.val[1][1]) == (NAMES, 2, 1)


def test_several_columns_are_asked_for(make: Make) -> None:
    columns = {"img": images(), "mask": images(), "coarse": classes(0, 0), "fine": classes(0, 1)}
    name = make(["train", "test"], **columns)
    said = refusal(name)
    assert (
        "--image-key" in said and "img (images), mask (images), coarse (2 classes), fine (2 classes)" in said
    )
    assert "--label-key" in refusal(name, image_key="img")
    assert "has no column imge; pass --image-key" in refusal(name, image_key="imge")
    found = open_labelled(name, None, 2, image_key="img", label_key="fine")
    assert [label for _, label in found] == [0, 1] and found.name.endswith(", test")
    assert open_data(DataSource(name, image_key="img", label_key="fine")).num_classes == 2
    assert "holds images, and no one class an image" in refusal(name, image_key="img", label_key="mask")


@pytest.mark.parametrize(
    ("values", "kind", "names", "expected"),
    [
        (["dog", "cat"], "string", NAMES, [1, 0]), ([1, 0], "int32", ["0", "1"], [1, 0]), ([True, False], "bool", ["0", "1"], [1, 0]),
    ],
)  # fmt: skip
def test_labels_of_bare_values(
    values: list[Any], kind: str, names: list[str], expected: list[int], make: Make
) -> None:
    name = make(["train", "valid"], image=images(), category=(values, hub().Value(kind)))
    assert [label for _, label in open_labelled(name, None, 2)] == expected
    assert [label for _, label in open_labelled(name, names[::-1], 2)] == expected[::-1]
    data = open_data(name)
    assert data.num_classes == 2 and [label for _, label in data.train] == expected


@pytest.mark.parametrize(
    ("values", "kind", "classes_of_model", "expected", "doubtful"),
    [
        ([str(i) for i in range(12)], "string", None, list(range(12)), False),
        ([str(i) for i in range(1, 13)], "string", None, list(range(12)), False),
        (list(range(1, 13)), "int64", None, list(range(12)), False),
        ([0, 3, 7], "int64", None, [0, 3, 7], False),
        ([1, 3, 7], "int64", None, [1, 3, 7], True),
        ([f"kind {i:02d}" for i in range(12)], "string", [f"art {i:02d}" for i in range(12)], list(range(12)), True),
        ([f"kind {i}" for i in range(12)], "string", None, [0, 1, 4, 5, 6, 7, 8, 9, 10, 11, 2, 3], True),
    ],
)  # fmt: skip
def test_values_without_an_order_are_matched_as_folders_are(
    values: list[Any],
    kind: str,
    classes_of_model: list[str] | None,
    expected: list[int],
    doubtful: bool,
    make: Make,
) -> None:
    """Texts are sorted, and numbers count from 0 or from 1: no data set has said an order."""
    name = make(["test"], image=images(len(values)), label=(values, hub().Value(kind)))
    found = open_labelled(name, classes_of_model, 12)
    assert [label for _, label in found] == expected
    assert bool(found.matched.doubt) == doubtful


@pytest.mark.parametrize("as_what", ["bytes", "path", "struct"])
def test_images_without_their_type(as_what: str, make: Make, tmp_path: Path) -> None:
    PICTURE.save(tmp_path / "a.png")
    data = (tmp_path / "a.png").read_bytes()
    value, kind = {
        "bytes": (data, hub().Value("binary")),
        "path": (str(tmp_path / "a.png"), hub().Value("string")),
        "struct": (
            {"bytes": data, "path": None},
            {"bytes": hub().Value("binary"), "path": hub().Value("string")},
        ),
    }[as_what]
    found = open_labelled(make(["test"], image=([value] * 2, kind), label=classes(0, 1)), None, 2)
    assert found[1][0].getpixel((0, 0)) == (200, 10, 10)


def test_images_that_are_none_or_damaged(make: Make) -> None:
    cut = io.BytesIO()
    PICTURE.save(cut, "jpeg")
    rows = [PICTURE, None, {"bytes": cut.getvalue()[:80], "path": None}]
    found = open_labelled(make(["test"], image=(rows, hub().Image()), label=classes(0, 1, 1)), None, 2)
    assert found[0][1] == 0
    for index in (1, 2):
        with pytest.raises(InputError):
            found[index]


@pytest.mark.parametrize(
    ("values", "kind", "said"),
    [
        ([0.5, 1.5], "float32", "label (float32)"), ([[0], [0, 1]], "list", "no column of classes"),
        ([-1, -1], "int64", "has images without a class (label is -1), as test images of a contest have"),
        ([None, 1], "int64", "has images without a class"),
    ],
)  # fmt: skip
def test_labels_that_are_no_classes(values: list[Any], kind: str, said: str, make: Make) -> None:
    of = hub().List(hub().Value("int64")) if kind == "list" else hub().Value(kind)
    name = make(["test"], image=images(), label=(values, of))
    assert said in refusal(name)
    if kind != "int64":
        assert "no one class an image" in refusal(name, label_key="label")


def test_splits_of_other_names(make: Make) -> None:
    name = make(["a", "b"], image=images(), label=classes(0, 1))
    parts = "".join(
        f"  - split: {split}\n    path: {file}-*\n" for split, file in (("training", "a"), ("heldout", "b"))
    )
    readme = Path(name.removeprefix("hfds/"), "README.md")
    readme.write_text(f"---\nconfigs:\n- config_name: default\n  data_files:\n{parts}---\n")
    assert open_labelled(name, None, 2).name.endswith(", heldout")
    assert "training on split 'training', held out: 'heldout'" in open_data(name).notes[0]
    assert "taken from split 'training'" in open_labelled(name, None, 2, split="training").notes[0]
    assert "split 'final', cannot be opened" in refusal(name, split="final")


def test_splits_that_cannot_be_told(make: Make) -> None:
    name = make(["train"], image=images(), label=classes(0, 1))
    assert (
        "no split of held-out images that can be told by its name; pass --split (or --val-split) with one of: train"
        in refusal(name)
    )
    with pytest.raises(InputError, match="no split of held-out images"):
        open_data(name)


def test_files_that_are_damaged(make: Make) -> None:
    name = make(["train", "test"], image=images(), label=classes(0, 1))
    for file in Path(name.removeprefix("hfds/")).glob("*.parquet"):
        file.write_bytes(file.read_bytes()[:100])
    assert "cannot be opened (" in refusal(name)
    assert "cannot be opened (" in refusal("hfds/nobody/nothing")


def test_keys_are_for_the_hub_alone(make_image_folder: Callable[..., Path]) -> None:
    for data in (str(make_image_folder()), "digits"):
        with pytest.raises(InputError, match="--image-key and --label-key"):
            open_labelled(data, None, 2, image_key="img")


@pytest.mark.parametrize(
    "name", ["torch/cifar10", "torch/oxford_iiit_pet", "torch/imagenet", "torch/image_folder", "tfds/mnist"]
)
def test_other_readers_say_what_they_lack(name: str, tmp_path: Path) -> None:
    for open_it in (
        lambda: open_labelled(name, None, 2, root=tmp_path),
        lambda: open_data(DataSource(name, tmp_path, num_classes=2)),
    ):
        with pytest.raises(InputError) as error:
            open_it()
        assert "\n" not in str(error.value)
