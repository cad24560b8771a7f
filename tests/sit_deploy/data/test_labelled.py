from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sit_deploy.data.image_folder import ImageFolder
from sit_deploy.data.labelled import match_labels, open_labelled
from sit_deploy.data.samples import describe
from sit_deploy.errors import InputError

Samples = list[tuple[Path, int]]


def labels_of(samples: Samples) -> dict[str, int]:
    return {path.parent.name: label for path, label in samples}


def test_matched_by_name_in_any_order(make_image_folder: Callable[..., Path]) -> None:
    folder = ImageFolder(make_image_folder(("cat", "dog", "hen"), per_class=2))
    names = ["hen", "cat", "cow", "dog"]
    assert labels_of(match_labels(folder, names, 4)) == {
        "hen": 0,
        "cat": 1,
        "dog": 3,
    }  # one class may be missing
    assert len(match_labels(folder, names, 4)) == 6


def test_matched_by_order_where_no_name_is_a_folder(make_image_folder: Callable[..., Path]) -> None:
    """ImageNet: folders are WordNet numbers, labels are words."""
    folder = ImageFolder(make_image_folder(("n02", "n01", "n03"), per_class=1))
    expected = {"n01": 0, "n02": 1, "n03": 2}
    assert labels_of(match_labels(folder, ["tench", "goldfish", "shark"], 3)) == expected
    assert labels_of(match_labels(folder, None, 3)) == expected


def test_another_number_of_classes(make_image_folder: Callable[..., Path]) -> None:
    folder = ImageFolder(make_image_folder(("n01", "n02"), per_class=1))
    for names in (None, ["tench", "goldfish", "shark"]):
        with pytest.raises(InputError, match=r"has 2 classes, the model 3 classes; give a validation set"):
            match_labels(folder, names, 3)


def test_a_misspelt_folder_is_not_matched_by_order(make_image_folder: Callable[..., Path]) -> None:
    """By order, `brid` would be the first class and every label after it off by one, in silence."""
    folder = ImageFolder(make_image_folder(("brid", "cat", "dog"), per_class=1))
    with pytest.raises(
        InputError, match=r"has no name for \(brid\) beside some that it has; rename or remove them"
    ):
        match_labels(folder, ["cat", "dog", "bird"], 3)


def test_names_that_are_not_unique(make_image_folder: Callable[..., Path]) -> None:
    """ImageNet has two cranes. Folders by name cannot tell them apart; folders by number can."""
    names = ["crane", "cat", "crane"]
    with pytest.raises(InputError, match=r"class names are the same.*name the folders by number"):
        match_labels(ImageFolder(make_image_folder(("cat", "crane"), per_class=1)), names, 3)
    by_number = ImageFolder(make_image_folder(("0000", "0001", "0002"), per_class=1))
    assert labels_of(match_labels(by_number, names, 3)) == {"0000": 0, "0001": 1, "0002": 2}


# --------------------------------------------------------------------------------------------------------- opened


def parts(folder: Path, make: Callable[..., Path], *names: str) -> Path:
    root = folder / "data"
    root.mkdir(exist_ok=True)
    for name in names:
        shutil.move(make(("cat", "dog"), per_class=2), root / name)
    return root


def test_the_held_out_part_is_found(tmp_path: Path, make_image_folder: Callable[..., Path]) -> None:
    root = parts(tmp_path, make_image_folder, "train", "validation", "test")
    found = open_labelled(root, ["dog", "cat"], 2)
    assert {(path.parts[-3], path.parts[-2], label) for path, label in found} == {
        ("validation", "cat", 1),
        ("validation", "dog", 0),
    }
    assert open_labelled(root, None, 2, split="train")[0][0].parts[-3] == "train"
    assert open_labelled(root / "test", None, 2)[0][0].parts[-3] == "test"
    with pytest.raises(InputError, match="no subfolder dev; check --split"):
        open_labelled(root, None, 2, split="dev")


def test_training_images_only(tmp_path: Path, make_image_folder: Callable[..., Path]) -> None:
    root = parts(tmp_path, make_image_folder, "train")
    with pytest.raises(InputError, match="has training images only; give the folder of held-out ones"):
        open_labelled(root, None, 2)


def test_classes_called_as_parts_are_classes(make_image_folder: Callable[..., Path]) -> None:
    folder = make_image_folder(("test", "cat"), per_class=1)
    assert labels_of(open_labelled(folder, None, 2)) == {"cat": 0, "test": 1}


def test_digits() -> None:
    found = open_labelled("digits", list(map(str, reversed(range(10)))), 10)
    picture, label = found[0]
    assert len(found) == 360 and picture.mode == "RGB" and describe(found, 0) == "picture 0"
    assert label == 9 - open_labelled("digits", None, 10)[0][1]
    with pytest.raises(InputError, match="digits has 10 classes, the model 4 classes"):
        open_labelled("digits", None, 4)


def test_a_folder_that_is_called_as_a_data_set(
    tmp_path: Path, make_image_folder: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The folder is taken, and that is said."""
    made = make_image_folder(["a", "b"])
    made.rename(tmp_path / "digits")
    monkeypatch.chdir(tmp_path)
    (note,) = open_labelled("digits", ["a", "b"], 2).notes
    assert note.startswith("digits is the folder of that name here, not the data set")
    assert open_labelled(Path.cwd() / "digits", ["a", "b"], 2).notes == ()


def test_a_data_set_of_timm(tmp_path: Path, make_image_folder: Callable[..., Path]) -> None:
    root = parts(tmp_path, make_image_folder, "train", "val")
    found = open_labelled("torch/image_folder", ["dog", "cat"], 2, root=root, split="val")
    assert [found[i][1] for i in range(4)] == [1, 1, 0, 0]
    expected = sorted((root / "val" / "cat").iterdir())[1]
    np.testing.assert_array_equal(np.asarray(found[1][0]), np.asarray(Image.open(expected)))
    (root / "val" / "cat" / "000.jpg").write_bytes(b"\xff\xd8\xff\xe0 cut")
    with pytest.raises(InputError, match=r"image 0 of torch/image_folder cannot be decoded"):
        found[0]
    with pytest.raises(InputError, match="can only be streamed"):
        open_labelled("wds/shards", None, 2, root=root)


def test_a_folder_that_is_not_there() -> None:
    with pytest.raises(InputError, match="nowhere: no such folder"):
        open_labelled("nowhere", None, 2)


def test_files_beside_the_images_are_said(make_image_folder: Callable[..., Path]) -> None:
    root = make_image_folder(("cat", "dog"), per_class=2)
    (root / "cat" / "boxes.xml").write_text("<a/>")
    assert open_labelled(root, None, 2).notes == ("beside the images are 1 other file, .xml 1: passed over",)
