from __future__ import annotations

import json
import os
import socket
from pathlib import Path

import pytest

from sit_deploy.data.image_files import find_images, has_images, list_images
from sit_deploy.data.image_folder import ImageFolder
from sit_deploy.errors import InputError
from sit_deploy.preprocessing import load_image


def test_image_folder_equals_torchvisions(make_image_folder) -> None:
    from torchvision.datasets import ImageFolder as Reference

    root = make_image_folder(classes=("dog", "Zebra", "ant", "10", "9"), per_class=3)
    (root / "dog" / "more").mkdir()
    (root / "dog" / "000.jpg").rename(root / "dog" / "more" / "x.jpg")
    (root / "labels.txt").write_text("beside the classes")

    ours, reference = ImageFolder(root), Reference(str(root))
    assert ours.classes == reference.classes == ["10", "9", "Zebra", "ant", "dog"]
    assert [(str(path), label) for path, label in ours.samples] == reference.samples
    assert len(ours) == 15


def test_litter_and_hidden_files_are_skipped(make_image_folder) -> None:
    root = make_image_folder(classes=("a", "b"), per_class=1)
    (root / "a" / ".DS_Store").write_bytes(b"x")
    (root / "a" / "Thumbs.db").write_bytes(b"x")
    (root / "a" / "._0.jpg").write_bytes(b"x")
    (root / ".ipynb_checkpoints").mkdir()
    (root / "b" / ".cache").mkdir()
    (root / "b" / ".cache" / "old.jpg").write_bytes(b"x")
    assert ImageFolder(root).classes == ["a", "b"]
    assert [path.name for path in list_images(root)] == ["000.jpg", "000.jpg"]


def test_files_that_are_no_images_are_counted(make_image_folder) -> None:
    root = make_image_folder(classes=("cat", "dog"), per_class=2)
    for name in ("notes.txt", "boxes.xml", "0.json", "digits.mat", "LICENSE", "more.TXT"):
        (root / "dog" / name).write_text("P2 1 1 255 0")  # which Pillow would take for a picture
    (root / "dog" / "LICENSE").write_text("as is")
    (root / "labels.csv").write_text("beside the classes")
    (root / "__MACOSX" / "dog").mkdir(parents=True)
    (root / "__MACOSX" / "dog" / "000.jpg").write_bytes(b"x")
    (root / "dog" / "@eaDir").mkdir()
    (root / "dog" / "@eaDir" / "SYNO@.jpg").write_bytes(b"x")
    folder, found = ImageFolder(root), find_images(root)
    assert folder.classes == ["cat", "dog"] and len(folder) == len(found.images) == 4
    assert (
        folder.skipped
        == found.skipped
        == {".txt": 2, ".xml": 1, ".json": 1, ".mat": 1, "without an ending": 1, ".csv": 1}
    )
    assert found.note.startswith("beside the images are 7 other files, .txt 2, ")
    with pytest.raises(InputError, match=r"dog/notes\.txt: not an image"):
        list_images([root / "cat", root / "dog" / "notes.txt"])


def test_a_damaged_image_is_not_passed_over(make_image_folder) -> None:
    root = make_image_folder(classes=("cat",), per_class=1)
    for name in ("cut.jpg", "page.PNG", "phone.heic"):
        (root / "cat" / name).write_bytes(b"<html>")
    assert len(find_images(root).images) == 4 and not find_images(root).skipped


@pytest.mark.parametrize("kind", ["FIFO", "socket", "device"])
def test_what_would_block_is_no_image(kind: str, make_image_folder, monkeypatch: pytest.MonkeyPatch) -> None:
    root = make_image_folder(classes=("cat",), per_class=1)
    path = root / "cat" / "pipe.jpg"
    if kind == "FIFO":
        os.mkfifo(path)
    elif kind == "socket":
        monkeypatch.chdir(root / "cat")  # a socket's path must be short
        socket.socket(socket.AF_UNIX).bind("pipe.jpg")
    else:
        path.symlink_to("/dev/zero")
    assert len(list_images(root)) == len(ImageFolder(root)) == 1
    assert find_images(root).skipped == {kind: 1}
    with pytest.raises(InputError, match=f"pipe.jpg is a {kind}, no image file"):
        list_images([path])


def test_links_in_a_circle_end(make_image_folder) -> None:
    root = make_image_folder(classes=("cat",), per_class=2)
    (root / "cat" / "again").symlink_to(root, target_is_directory=True)
    (root / "cat" / "system").symlink_to("/proc", target_is_directory=True)
    assert len(list_images(root)) == 2
    (root / "none").mkdir()
    for name in "abc":  # without an end, 3 ** 40 folders
        (root / "none" / name).symlink_to(root / "none", target_is_directory=True)
    assert has_images(root) and not has_images(root / "none")


@pytest.mark.parametrize("place", ["/", "/proc", "/sys", "/dev", "/proc/self"])
@pytest.mark.parametrize("reader", [list_images, ImageFolder])
def test_the_system_is_no_data_set(reader, place: str) -> None:
    with pytest.raises(InputError, match="belongs to the system and is no data set"):
        reader(place)


def test_names_of_any_bytes(make_image_folder) -> None:
    root = make_image_folder(classes=("cat", "dog"), per_class=1)
    (root / "dog" / "000.jpg").rename(root / "dog" / os.fsdecode(b"\xff\x1b[31m.jpg"))
    (root / "dog").rename(root / os.fsdecode(b"h\xfcnd"))
    folder = ImageFolder(root)
    assert folder.classes == ["cat", "h\\xfcnd"]
    assert load_image(folder.samples[1][0]).mode == "RGB"
    json.dumps(folder.classes, ensure_ascii=False).encode()


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("a.zip", "an archive; unpack it"),
        ("a.csv", "a list, and no folder"),
        ("a.jpg", "a file, and no folder"),
        ("no", "no such"),
    ],
)
def test_what_is_given_in_place_of_a_folder(name: str, said: str, tmp_path: Path) -> None:
    if name != "no":
        (tmp_path / name).write_bytes(b"x")
    with pytest.raises(InputError, match=f"{name}: {said}"):
        ImageFolder(tmp_path / name)


def test_an_image_without_an_ending_is_an_image(make_image_folder) -> None:
    root = make_image_folder(classes=("a",), per_class=1)
    (root / "a" / "000.jpg").rename(root / "a" / "n01440764_18")
    assert [path.name for path in list_images(root)] == ["n01440764_18"]


def test_a_missing_or_empty_image_folder(tmp_path: Path, make_image_folder) -> None:
    for reader in (ImageFolder, list_images):
        with pytest.raises(InputError, match=r"nowhere: no such"):
            reader(tmp_path / "nowhere")
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(InputError, match="no class folders"):
        ImageFolder(empty)
    with pytest.raises(InputError, match="no images in this folder"):
        list_images(empty)
    with pytest.raises(InputError, match="no images given"):
        list_images([])

    root = make_image_folder()
    (root / "cow").mkdir()
    with pytest.raises(InputError, match=r"no images for 1 of 3 classes \(cow\)"):
        ImageFolder(root)


def test_list_images_takes_files_and_folders(make_image_folder) -> None:
    root = make_image_folder(classes=("b", "a"), per_class=2)
    one = root / "b" / "001.png"
    assert list_images(one) == list_images(str(one)) == [one]
    assert list_images([one, root / "a"]) == [one, root / "a" / "000.jpg", root / "a" / "001.png"]
    assert [path.relative_to(root).parts[0] for path in list_images(root)] == ["a", "a", "b", "b"]
