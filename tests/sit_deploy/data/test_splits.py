"""Data sets as people and sites lay them out: the held-out part is found, or asked for, and parts are never classes."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from sit_deploy.data.datasets import open_data
from sit_deploy.data.image_folder import ImageFolder
from sit_deploy.data.labelled import open_labelled
from sit_deploy.data.splits import find_training_images, role_of
from sit_deploy.errors import InputError


def lay_out(root: Path, *places: str) -> Path:
    """Write a picture at every place; `a/{cat,dog}` is two."""
    for place in places:
        before, brace, after = place.partition("{")
        for one in after.rstrip("}").split(",") if brace else [""]:
            path = root / f"{before}{one}"
            path.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (8, 8), (len(place), 9, 9)).save(path / f"{len(list(path.iterdir()))}.png")
    return root


def taken(root: Path, split: str | None = None, **options: object) -> str:
    """Return the part that images to measure on are taken from, below `root`."""
    found = open_labelled(root, options.get("classes"), options.get("num_classes", 2), split=split)
    parts = {path.relative_to(root).parts[:-2] for path, _ in found}
    assert len(parts) == 1 and {label for _, label in found} == {0, 1}
    part = "/".join(parts.pop())
    assert (f"taken from {root / part}" in found.notes) == bool(part)
    assert found.name == str(root / part)
    return part


@pytest.mark.parametrize(
    ("train", "held_out"),
    [
        ("Training", "Testing"), ("training_set", "test_set"), ("Train", "Val"), ("TRAIN", "VALID"), ("train", "dev"),
        ("trainset", "testset"), ("Training Set", "Validation Set"), ("trainval", "test"), ("train2017", "val2017"),
        ("TrainingImages", "EvaluationImages"), ("train", "holdout"), ("train_data", "hold-out"), ("seg_train", "seg_test"),
        ("asl_alphabet_train", "asl_alphabet_test"), ("flowers-train", "flowers-val"),
    ],
)  # fmt: skip
def test_parts_by_any_name(train: str, held_out: str, tmp_path: Path) -> None:
    root = lay_out(tmp_path, f"{train}/{{cat,dog}}", f"{held_out}/{{cat,dog}}")
    assert taken(root) == taken(root, split=held_out) == taken(root, split=held_out.upper()) == held_out
    assert taken(root, split=train) == train
    assert find_training_images(root)[0] == root / train
    if role_of(train):
        data = open_data(str(root))
        assert f"training on {root / train}, held out: {root / held_out}" in data.notes


def test_of_three_parts_the_one_to_validate_on(tmp_path: Path) -> None:
    root = lay_out(tmp_path, "Train/{cat,dog}", "Validation/{cat,dog}", "Test/{cat,dog}")
    assert taken(root) == "Validation" and taken(root, split="test") == "Test"


@pytest.mark.parametrize(
    ("places", "part"),
    [
        (("archive/chest_xray/train/{cat,dog}", "archive/chest_xray/val/{cat,dog}", "archive/__MACOSX/train"), "archive/chest_xray/val"),
        (("seg_train/seg_train/{cat,dog}", "seg_test/seg_test/{cat,dog}", "seg_pred/seg_pred"), "seg_test/seg_test"),
        (("dataset/training_set/{cat,dog}", "dataset/test_set/{cat,dog}", "dataset/single_prediction"), "dataset/test_set"),
        (("Images/{cat,dog}", "Annotation/{cat,dog}"), "Images"),
        (("data/{cat,dog}",), "data"),
        (("train/{cat,dog}", "test/{cat,dog}", "masks"), "test"),
    ],
)  # fmt: skip
def test_layouts_of_the_usual_sites(places: tuple[str, ...], part: str, tmp_path: Path) -> None:
    assert taken(lay_out(tmp_path, *places)) == part


def test_parts_below_the_classes_are_not_put_together(tmp_path: Path) -> None:
    root = lay_out(tmp_path, "cat/{train,test}", "dog/{train,test}")
    for options in ({}, {"split": "."}):
        with pytest.raises(InputError, match="holds parts below its classes"):
            open_labelled(root, ["cat", "dog"], 2, **options)


@pytest.mark.parametrize(
    ("places", "said"),
    [
        (("train", "test"), "holds the parts test, train, whose images are in no class folders"),
        (("train/{cat,dog}", "test"), "test: no class folders"),
        (("train/{cat,dog}",), "has training images only"),
        (("val/{cat,dog}", "valid/{cat,dog}", "train/{cat,dog}"), "has val, valid, which may each be meant; name one with --split"),
        (("test1/{cat,dog}", "test2/{cat,dog}"), "may each be meant"),
        (("fold_1/{cat,dog}", "fold_2/{cat,dog}", "fold_3/{cat,dog}"), "with the same folders in each (cat, dog)"),
        (("prueba/{cat,dog}", "entrenamiento/{cat,dog}", "x/{cat,dog}"), "if these are parts of a data set, name one with --split"),
        (("train/{cat,dog}", "test/{cat,dog}", "cow"), "holds parts of a data set (test, train) beside other folders (cow)"),
        (("cat/{train,test}", "dog/{train,test}"), "holds parts below its classes (cat/test, train)"),
        (("yes", "no", "brain_tumor_dataset/{yes,no}"), "as a copy has: move one of the two away"),
        (("Cat", "dog", "fox", "resized/{cat,dog,fox}"), "as a copy has: move one of the two away"),
        (("images", "annotations"), "images that are in no class folders"),
        (("JPEGImages", "Annotations", "SegmentationClass"), "images that are in no class folders"),
    ],
)  # fmt: skip
def test_what_cannot_be_told_is_asked(places: tuple[str, ...], said: str, tmp_path: Path) -> None:
    with pytest.raises(InputError) as error:
        open_labelled(lay_out(tmp_path, *places), None, 2)
    assert said in str(error.value) and "\n" not in str(error.value)


def test_classes_that_are_called_as_parts(tmp_path: Path) -> None:
    assert taken(lay_out(tmp_path / "a", "{bus,train}")) == ""
    both = lay_out(tmp_path / "b", "{test,train}")
    assert taken(both, split=".") == taken(both, classes=["train", "test"]) == ""
    views = lay_out(tmp_path / "c", "cat/{front,back}", "dog/{front,back}")
    assert len(open_labelled(views, ["Cat", "Dog"], 2)) == 4
    assert len(open_labelled(lay_out(tmp_path / "d", "cat/{a,b,c}", "dog/{a,b,c}"), None, 2)) == 6


def test_a_part_that_is_not_there_is_asked_for(tmp_path: Path) -> None:
    root = lay_out(tmp_path, "train/{cat,dog}", "val/{cat,dog}")
    with pytest.raises(InputError, match=r"no subfolder fold7; check --split \(it has train, val\)"):
        open_labelled(root, None, 2, split="fold7")


def test_calibration_takes_no_images_that_are_measured_on(tmp_path: Path) -> None:
    root = lay_out(tmp_path / "a", "Train", "Val")  # no class folders are needed here
    where, found = find_training_images(root)
    assert where == root / "Train" and len(found.images) == 1
    for name, places in (
        ("b", ("val/{cat,dog}", "test/{cat,dog}")),
        ("c", ("train1/{cat,dog}", "train2/{cat,dog}", "val/{cat,dog}")),
    ):
        with pytest.raises(
            InputError, match="must not be those that accuracy is measured on; pass the folder of one part"
        ):
            find_training_images(lay_out(tmp_path / name, *places))
    for name, places in (("d", ("{cat,train}",)), ("e", ("val/{cat,dog}",)), ("f", ("cat", "cat"))):
        root = lay_out(tmp_path / name, *places)
        assert len(find_training_images(root)[1].images) == 2


def test_the_class_folders_themselves_are_taken_as_ever(tmp_path: Path) -> None:
    root = lay_out(tmp_path, "{cat,dog}")
    assert taken(root) == "" and len(ImageFolder(root)) == 2
