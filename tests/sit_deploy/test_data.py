from __future__ import annotations

import json
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sit_deploy import data
from sit_deploy.data import (
    ImageFolder,
    Preprocessing,
    batches,
    list_images,
    load_image,
    load_labels,
)
from sit_deploy.errors import InputError

SMALL = Preprocessing.for_model(32)


def noise(width: int, height: int, channels: int = 3) -> np.ndarray:
    shape = (height, width, channels) if channels > 1 else (height, width)
    return np.random.default_rng(width * 1009 + height).integers(0, 256, shape, np.uint8)


def picture(width: int, height: int) -> Image.Image:
    return Image.fromarray(noise(width, height))


# ---------------------------------------------------------------------------------------------------- preprocessing

SHAPES = [
    (500, 375),  # landscape
    (375, 500),  # portrait
    (256, 256),  # nothing to resize
    (257, 256),
    (255, 257),
    (224, 224),  # smaller than the resized length
    (61, 37),  # smaller than the crop
    (37, 61),
    (1, 1),
    (1, 50),
    (901, 33),  # a strip
    (333, 1001),
]


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: f"{shape[0]}x{shape[1]}")
@pytest.mark.parametrize("size", [224, 288, 65])
def test_pixels_and_values_equal_timm(shape: tuple[int, int], size: int) -> None:
    from timm.data import create_transform

    options = {"input_size": size, "crop_pct": 0.875, "interpolation": "bicubic"}
    image = picture(*shape)
    ours = Preprocessing.for_model(size)

    stage = create_transform(**options, is_training=False, normalize=False)(image)
    np.testing.assert_array_equal(ours.pixels(image).transpose(2, 0, 1), stage.numpy())
    values = create_transform(**options, is_training=False)(image)
    got = ours(image)
    assert got.dtype == np.float32 and got.flags.c_contiguous
    np.testing.assert_allclose(got, values.numpy(), rtol=0, atol=1e-6)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "lanczos"])
@pytest.mark.parametrize("crop_pct", [0.9, 1.0])
def test_other_models_settings_equal_timm(interpolation: str, crop_pct: float) -> None:
    from timm.data import create_transform

    moments = {"mean": (0.5, 0.4, 0.3), "std": (0.1, 0.2, 0.3)}
    reference = create_transform(
        96, is_training=False, crop_pct=crop_pct, interpolation=interpolation, **moments
    )
    ours = Preprocessing.for_model(96, crop_pct, interpolation, **moments)
    image = picture(131, 97)
    np.testing.assert_allclose(ours(image), reference(image).numpy(), rtol=0, atol=2e-6)


def test_a_crop_that_is_not_square_equals_torchvision() -> None:
    from torchvision import transforms
    from torchvision.transforms import InterpolationMode

    ours = Preprocessing(size=(40, 63), resize=71)
    reference = transforms.Compose(
        [transforms.Resize(71, InterpolationMode.BICUBIC), transforms.CenterCrop((40, 63))]
    )
    image = picture(120, 90)
    np.testing.assert_array_equal(ours.pixels(image), np.asarray(reference(image)))


def test_resize_length_is_the_official_one_for_every_size() -> None:
    for size in range(16, 1025):
        assert Preprocessing.for_model(size).resize == int(size * 256 / 224)


def test_dictionary_round_trip_through_json() -> None:
    ours = Preprocessing.for_model(288, 0.95, "bilinear", (0.5, 0.5, 0.5), (0.2, 0.3, 0.4))
    fields = json.loads(json.dumps(ours.to_dict()))
    assert Preprocessing.from_dict(fields) == ours
    assert fields["size"] == [288, 288] and fields["layout"] == "NCHW"


@pytest.mark.parametrize(
    ("change", "names"),
    [
        ({"size": [224]}, "size"),
        ({"size": [224, 0]}, "size"),
        ({"size": [224.0, 224]}, "size"),
        ({"resize": 223}, "resize"),
        ({"resize": "256"}, "resize"),
        ({"interpolation": "cubic"}, "interpolation"),
        ({"mean": [0.5, 0.5]}, "mean"),
        ({"mean": [0.5, 0.5, float("nan")]}, "mean"),
        ({"std": [0.5, 0.5, 0]}, "std"),
        ({"std": [0.5, 0.5, True]}, "std"),
        ({"layout": "NHWC"}, "layout"),
        ({"dtype": "float16"}, "dtype"),
        ({"gamma": 2}, "unknown field gamma"),
    ],
)
def test_a_wrong_field_is_refused_by_name(change: dict, names: str) -> None:
    with pytest.raises(InputError, match=names):
        Preprocessing.from_dict(Preprocessing.for_model(224).to_dict() | change)


def test_missing_fields_and_no_fields_are_refused() -> None:
    fields = Preprocessing.for_model(224).to_dict()
    del fields["std"], fields["mean"]
    with pytest.raises(InputError, match="missing fields mean, std"):
        Preprocessing.from_dict(fields)
    with pytest.raises(InputError, match="named fields"):
        Preprocessing.from_dict([1])  # type: ignore[arg-type]


@pytest.mark.parametrize("crop_pct", [0, -1, 1.01, float("nan"), "0.9"])
def test_crop_fraction_out_of_range(crop_pct: object) -> None:
    with pytest.raises(InputError, match="crop_pct"):
        Preprocessing.for_model(224, crop_pct)  # type: ignore[arg-type]


@pytest.mark.parametrize("size", [0, -5, 2.5, True])
def test_image_size_out_of_range(size: object) -> None:
    with pytest.raises(InputError, match="image size"):
        Preprocessing.for_model(size)  # type: ignore[arg-type]


# ------------------------------------------------------------------------------------------------------------ modes


@pytest.mark.parametrize(
    ("mode", "suffix"),
    [
        ("RGB", ".png"),
        ("L", ".png"),
        ("1", ".png"),
        ("P", ".png"),
        ("LA", ".png"),
        ("RGBA", ".png"),
        ("RGB", ".jpg"),
        ("CMYK", ".jpg"),
        ("L", ".jpg"),
        ("RGB", ".webp"),
        ("CMYK", ".tif"),
    ],
)
def test_every_mode_decodes_as_torchvisions_loader_does(mode: str, suffix: str, tmp_path: Path) -> None:
    from torchvision.datasets.folder import pil_loader

    path = tmp_path / f"image{suffix}"
    picture(40, 31).convert(mode).save(path)
    with Image.open(path) as stored:
        assert stored.mode == mode  # else the file is no test of this mode
    np.testing.assert_array_equal(np.asarray(load_image(path)), np.asarray(pil_loader(path)))


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_16_bit_grey_keeps_its_range(suffix: str, tmp_path: Path) -> None:
    values = np.array([[0, 255, 256, 0x7FFF, 0x8000, 0xFFFF]], np.uint16)
    path = tmp_path / f"deep{suffix}"
    Image.fromarray(values).save(path)
    got = np.asarray(load_image(path))
    assert got.shape == (1, 6, 3)
    assert got[0, :, 1].tolist() == [0, 0, 1, 127, 128, 255]


def test_32_bit_samples_are_refused_by_file_name(tmp_path: Path) -> None:
    path = tmp_path / "float.tif"
    Image.fromarray(np.ones((4, 4), np.float32)).save(path)
    with pytest.raises(InputError, match=r"float\.tif.*32-bit"):
        load_image(path)


def test_exif_orientation_is_left_alone_as_in_training(tmp_path: Path) -> None:
    from torchvision.datasets.folder import pil_loader

    path = tmp_path / "turned.jpg"
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees to view
    picture(40, 20).save(path, exif=exif)
    got = load_image(path)
    assert got.size == (40, 20)
    np.testing.assert_array_equal(np.asarray(got), np.asarray(pil_loader(path)))


# ------------------------------------------------------------------------------------------------------------ files


@pytest.mark.parametrize("cut", [10, 300, 1000])
@pytest.mark.parametrize("suffix", [".jpg", ".png"])
def test_a_truncated_image_names_its_file(cut: int, suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"half{suffix}"
    picture(60, 50).save(path)
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(InputError, match=rf"half\{suffix}: .*(remove|replace)"):
        load_image(path)


def test_a_damaged_png_names_its_file(tmp_path: Path) -> None:
    path = tmp_path / "bad.png"
    picture(60, 50).save(path)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"bad\.png: cannot decode"):
        load_image(path)


def test_an_image_too_large_to_trust_names_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "bomb.png"
    picture(60, 50).save(path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(InputError, match=r"bomb\.png"):
        load_image(path)


def test_a_missing_image_names_its_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"gone\.jpg: no such image file"):
        load_image(tmp_path / "gone.jpg")


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


@pytest.mark.parametrize("reader", [list_images, ImageFolder])
def test_a_file_that_is_no_image_is_named(reader, make_image_folder) -> None:
    root = make_image_folder()
    (root / "dog" / "notes.txt").write_text("good dogs")
    with pytest.raises(InputError, match=r"dog/notes\.txt: not an image"):
        reader(root)


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


def test_labels_file(tmp_path: Path) -> None:
    path = tmp_path / "labels.txt"
    path.write_text("\ufefftench\ncrane\n caf\u00e9 \ncrane\n\n", encoding="utf-8")
    assert load_labels(path, 4) == ["tench", "crane", "caf\u00e9", "crane"]
    with pytest.raises(InputError, match="4 class names for a model of 5 classes"):
        load_labels(path, 5)
    path.write_text("tench\n\ncrane\n")
    with pytest.raises(InputError, match="line 2 is empty"):
        load_labels(path)
    path.write_bytes(b"\xff\xfe\x00x")
    with pytest.raises(InputError, match=r"labels\.txt: cannot read"):
        load_labels(path)
    path.write_text("\n")
    with pytest.raises(InputError, match="no class names"):
        load_labels(path)
    with pytest.raises(InputError, match="cannot read"):
        load_labels(tmp_path / "none.txt")


# ---------------------------------------------------------------------------------------------------------- batches


@pytest.mark.parametrize("batch_size", [1, 3, 4, 7, 100])
def test_batches_keep_order_and_lose_nothing(batch_size: int, make_image_folder) -> None:
    samples = ImageFolder(make_image_folder(classes=("a", "b", "c"), per_class=3)).samples
    calls: list[tuple[int, int]] = []
    got = list(batches(samples, SMALL, batch_size, lambda _, done, of: calls.append((done, of))))

    assert [len(images) for images, _ in got[:-1]] == [batch_size] * (len(got) - 1)
    images = np.concatenate([images for images, _ in got])
    labels = np.concatenate([labels for _, labels in got])
    assert images.dtype == np.float32 and labels.dtype == np.int64
    np.testing.assert_array_equal(images, [SMALL(load_image(path)) for path, _ in samples])
    assert labels.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert calls[-1] == (9, 9) and [done for done, _ in calls] == sorted(done for done, _ in calls)


def test_batches_of_paths_and_of_pictures_yield_their_sources(make_image_folder) -> None:
    paths = list_images(make_image_folder())
    assert [source for _, part in batches(paths, SMALL, 4) for source in part] == paths
    pictures = [picture(40, 50), picture(70, 60)]
    ((images, sources),) = batches(pictures, SMALL, 2)
    assert sources == pictures
    np.testing.assert_array_equal(images[1], SMALL(pictures[1]))


def test_batches_read_ahead_a_bounded_number_of_images(
    make_image_folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = list_images(make_image_folder(per_class=30))
    loaded, lock = [], threading.Lock()

    def counting_load(path: Path) -> Image.Image:
        with lock:
            loaded.append(path)
        return load_image(path)

    monkeypatch.setattr(data, "load_image", counting_load)
    stream = batches(paths, SMALL, 4, workers=2)
    for taken in (4, 8):
        next(stream)
        time.sleep(0.2)  # what was queued gets loaded; more than that never may be
        assert taken <= len(loaded) <= taken + 4 + 2
    before = threading.active_count()
    stream.close()
    assert threading.active_count() < before  # an abandoned stream leaves no threads


def test_a_bad_image_in_a_batch_is_named(make_image_folder) -> None:
    root = make_image_folder()
    (root / "dog" / "001.png").write_bytes(b"\x89PNG broken")
    stream = batches(list_images(root), SMALL, 2)
    with pytest.raises(InputError, match=r"dog/001\.png"):
        list(stream)


def test_batches_refuse_bad_arguments_at_once() -> None:
    with pytest.raises(InputError, match="batch size must be at least 1, got 0"):
        batches([picture(8, 8)], SMALL, 0)
    with pytest.raises(InputError, match="no images"):
        batches([], SMALL, 1)
