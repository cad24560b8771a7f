"""Which class of the model is each class of a data set: by name, by number, and last by order."""

from __future__ import annotations

import os
import unicodedata
from pathlib import Path

import pytest

from sit_deploy.data.class_names import match_names, natural_key, plain, read_class_names
from sit_deploy.errors import InputError


def as_sorted(*names: object) -> list[str]:
    """Return names as folders are listed: by code point."""
    return sorted(map(str, names))


@pytest.mark.parametrize("form", ["{}", "{:02}", "{:03}"])
def test_numbers_are_taken_by_value(form: str) -> None:
    found = as_sorted(*(form.format(i) for i in range(12)))
    matched = match_names("data", found, None, 12)
    assert dict(zip(found, matched.labels, strict=True)) == {form.format(i): i for i in range(12)}
    assert matched.doubt is None and bool(matched.notes) == (form == "{}")
    words = [f"word{i}" for i in range(12)]
    assert match_names("data", found, words, 12).labels == matched.labels  # also of a model that has names


def test_numbers_that_count_from_1() -> None:
    found = as_sorted(*range(1, 13))
    matched = match_names("data", found, None, 12)
    assert [int(name) - 1 for name in found] == matched.labels
    assert "count from 1" in matched.notes[0] and matched.doubt is None


def test_numbers_with_gaps() -> None:
    matched = match_names("data", ["0", "11", "5"], None, 12)
    assert matched.labels == [0, 11, 5] and matched.doubt is None
    assert "9 of the model's 12 classes have no images here" in matched.notes[-1]
    matched = match_names("data", ["12", "3"], None, 12)
    assert matched.labels == [11, 2]  # 12 can only be the last of them
    matched = match_names("data", ["11", "3"], None, 12)
    assert matched.labels == [11, 3] and "may count from 1" in matched.doubt


def test_numbers_that_are_no_labels() -> None:
    assert match_names("data", ["1998", "2004"], None, 2).labels == [0, 1]  # names like any other
    with pytest.raises(InputError, match="13 classes, the model 12 classes"):
        match_names("data", as_sorted(*range(13)), None, 12)
    with pytest.raises(InputError, match="2 classes, the model 12 classes"):
        match_names("data", ["0", "12"], None, 12)


def test_fewer_folders_than_classes_say_how_they_are_to_be_called() -> None:
    with pytest.raises(
        InputError, match=r"; of some of them alone: name the folders by their numbers \(0 to 11\)$"
    ):
        match_names("data", ["cat", "dog"], None, 12)
    with pytest.raises(
        InputError, match=r"the model's classes \(a, b, c, \.\.\.\) or by their numbers \(0 to 3\)$"
    ):
        match_names("data", ["cat", "dog"], ["a", "b", "c", "d"], 4)
    for names, count, ordered in ((["cat", "dog", "cow"], 2, False), (["cat", "dog"], 12, True)):
        with pytest.raises(InputError, match=r"a validation set of the same classes$"):
            match_names("data", names, None, count, ordered=ordered)


def test_the_same_number_twice() -> None:
    with pytest.raises(InputError, match="01 and 1, which are the same number"):
        match_names("data", ["01", "1"], None, 2)


@pytest.mark.parametrize(
    ("folder", "name"),
    [
        ("Cat", "cat"), ("golden_retriever", "Golden Retriever"), ("great-white shark", "great white shark"), ("07", "7"),
        (unicodedata.normalize("NFD", "café"), unicodedata.normalize("NFC", "Café")), (" cat ", "cat"), ("STRASSE", "straße"),
    ],
)  # fmt: skip
def test_spelling_is_no_other_class(folder: str, name: str) -> None:
    assert plain(folder) == plain(name)
    matched = match_names("data", as_sorted(folder, "zebra"), ["zebra", name], 2)
    assert dict(zip(as_sorted(folder, "zebra"), matched.labels, strict=True)) == {folder: 1, "zebra": 0}
    assert f"1 of 2 class names but for their spelling ({folder} is {name})" in matched.notes[0]


def test_spellings_that_collide() -> None:
    with pytest.raises(InputError, match="Cat and cat, which are one name but for case"):
        match_names("data", ["Cat", "cat"], ["Cat", "dog"], 2)
    with pytest.raises(InputError, match="class folder CAT of data may be the model's Cat and cat"):
        match_names("data", ["CAT", "dog"], ["Cat", "cat", "dog"], 3)
    assert match_names("data", ["Cat", "cat"], ["cat", "Cat"], 2).labels == [
        1,
        0,
    ]  # exact names are what they are


def test_a_name_the_model_lacks_is_refused_beside_others() -> None:
    with pytest.raises(InputError, match=r"no name for \(cow\) beside some that it has"):
        match_names("data", ["Cat", "cow"], ["cat", "dog"], 2)


@pytest.mark.parametrize(
    "names", [[f"class{i}" for i in range(12)], ["img_10", "img_2"], ["Zebra", "ant"], ["a1b10", "a1b9"]]
)
def test_an_order_that_libraries_differ_in(names: list[str]) -> None:
    found = as_sorted(*names)
    assert sorted(found, key=natural_key) != found
    matched = match_names("data", found, None, len(found))
    assert matched.labels == list(range(len(found)))  # torchvision's
    assert "as torchvision sorts them, which is taken" in matched.doubt and "--labels" in matched.doubt
    assert match_names("data", found, found[::-1], len(found)).doubt is None  # names leave no doubt


@pytest.mark.parametrize(
    "found", [["ant", "bee", "cow"], ["n01440764", "n01443537", "n02102040"], ["c01", "c02", "c10"]]
)
def test_an_order_that_all_agree_on(found: list[str]) -> None:
    assert match_names("data", found, None, 3).doubt is None


def test_words_beside_other_words() -> None:
    matched = match_names("data", ["auto", "haus", "hund"], ["car", "dog", "house"], 3)
    assert "no class bears a name of the model's (auto, haus, hund and car, dog, house)" in matched.doubt


@pytest.mark.parametrize(
    ("found", "classes", "expected"),
    [
        (["001.Cat", "002.Dog", "003.Red_fox"], ["red fox", "dog", "cat"], [2, 1, 0]),
        (["0_cat", "10_dog", "2_fox"], ["dog", "cat", "fox"], [1, 0, 2]),
        (["1 - cat", "2 - dog"], ["dog", "cat", "fox"], [1, 0]),
        (["n01440764_tench", "n01443537-goldfish"], ["goldfish", "tench"], [1, 0]),
        (["n01440764_tench", "n01443537_goldfish"], ["n01443537", "n01440764"], [1, 0]),
        (["n01440764", "n01443537"], ["n01443537 goldfish", "n01440764 tench"], [1, 0]),
        (["cat", "dog"], ["1_dog", "2_cat"], [1, 0]),
    ],
)
def test_a_number_before_a_name_does_not_hide_it(
    found: list[str], classes: list[str], expected: list[int]
) -> None:
    """The order of the folders is not the model's, and the names say so."""
    matched = match_names("data", found, classes, len(classes))
    assert matched.labels == expected and matched.doubt is None
    assert "but for the number before them" in matched.notes[0] and matched.names == tuple(classes)


@pytest.mark.parametrize(
    ("found", "classes"),
    [
        (["001.auto", "002.hund"], ["car", "dog"]),
        (["001.cat", "002.hund"], ["dog", "cat"]),  # half of them is no name for all
        (["1_cat", "2_cat"], ["dog", "cat"]),
        (["101", "102"], ["dog", "cat"]),
        (["n01440764", "n01443537"], ["goldfish", "tench"]),
        (["18-24", "25-34"], ["20-34", "10-24"]),  # nor is the half of a range, of a fraction, of a date
        (["1.5", "2.6"], ["0.6", "3.5"]),
        (["2020-01", "2021-02"], ["2019-02", "2018-01"]),
        (["1_3", "2_5"], ["5", "3"]),
    ],
)
def test_numbers_say_nothing_of_a_models_names(found: list[str], classes: list[str]) -> None:
    matched = match_names("data", found, classes, 2)
    assert matched.labels == [0, 1] and "no class bears a name of the model's" in (matched.doubt or "")


def test_imagenets_synsets_are_in_the_order_of_its_classes() -> None:
    found = [f"n{i:08}" for i in range(1000)]
    assert match_names("data", found, [f"word {i} of it" for i in range(1000)], 1000).doubt is None


def test_a_data_set_s_own_labels() -> None:
    """Their order is not a matter of sorting, unless it is just what sorting gives."""
    assert match_names("data", ["7 - seven", "10 - ten"], None, 2, ordered=True).doubt is None
    assert match_names("data", ["0", "1", "10", "2"], None, 4, ordered=True).labels == [0, 1, 2, 3]
    assert match_names("data", ["0", "1", "10", "2"], None, 4, ordered=True).doubt is not None


def test_labels_file(tmp_path: Path) -> None:
    path = tmp_path / "labels.txt"
    path.write_text("\ufefftench\ncrane\n caf\u00e9 \ncrane\n\n", encoding="utf-8")
    assert read_class_names(path, 4) == ["tench", "crane", "caf\u00e9", "crane"]
    with pytest.raises(InputError, match="4 class names for a model of 5 classes"):
        read_class_names(path, 5)
    path.write_text("tench\n\ncrane\n")
    with pytest.raises(InputError, match="line 2 is empty"):
        read_class_names(path)
    path.write_bytes(b"\xff\xfe\x00x")
    with pytest.raises(InputError, match=r"labels\.txt: cannot read"):
        read_class_names(path)
    path.write_text("\n")
    with pytest.raises(InputError, match="no class names"):
        read_class_names(path)
    with pytest.raises(InputError, match="cannot read"):
        read_class_names(tmp_path / "none.txt")
    os.mkfifo(tmp_path / "pipe.txt")
    with pytest.raises(InputError, match="is a FIFO, no file of class names"):
        read_class_names(tmp_path / "pipe.txt")
