from __future__ import annotations

import json
import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from sit_deploy.errors import InputError
from sit_deploy.preprocessing import (
    CROP_MODES,
    OF_OLD,
    Preprocessing,
    decode_image,
    load_image,
    turn_of,
)
from sit_deploy.resampling import resized_box
from tests.helpers.noise_pictures import picture

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


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: f"{shape[0]}x{shape[1]}")
@pytest.mark.parametrize("crop_pct", [0.875, 1.0])
def test_a_squeezed_picture_equals_timms(shape: tuple[int, int], crop_pct: float) -> None:
    from timm.data import create_transform

    ours = replace(Preprocessing.for_model(96, crop_pct), crop_mode="squash")
    assert ours.at(48).crop_mode == ours.raw.crop_mode == "squash"
    image = picture(*shape)
    for one in (ours, ours.at(48)):
        reference = create_transform(
            one.size[0],
            is_training=False,
            normalize=False,
            crop_pct=crop_pct,
            crop_mode="squash",
            interpolation="bicubic",
        )
        np.testing.assert_array_equal(one.pixels(image).transpose(2, 0, 1), reference(image).numpy())


@pytest.mark.parametrize(
    ("size", "crop"), [({"height": 96, "width": 96}, None), ({"height": 110, "width": 110}, 96)]
)
def test_a_squeezed_picture_equals_transformers(size: dict[str, int], crop: int | None) -> None:
    transformers = pytest.importorskip("transformers")
    kind = transformers.DeiTImageProcessorPil if crop else transformers.ViTImageProcessorPil
    cropped = {"do_center_crop": True, "crop_size": {"height": crop, "width": crop}} if crop else {}
    theirs = kind(size=size, resample=3, do_rescale=False, do_normalize=False, **cropped)
    ours = Preprocessing((96, 96), size["height"], crop_mode="squash")
    for shape in SHAPES:
        image = picture(*shape)
        made = np.asarray(theirs(image, return_tensors="np")["pixel_values"])[0]
        np.testing.assert_array_equal(ours.pixels(image).transpose(2, 0, 1), made)


def test_a_crop_between_two_pixels_equals_transformers() -> None:
    transformers = pytest.importorskip("transformers")
    theirs = transformers.CLIPImageProcessorPil(
        size={"shortest_edge": 32},
        crop_size={"height": 32, "width": 32},
        do_rescale=False,
        do_normalize=False,
    )
    ours = Preprocessing((32, 32), 32, crop_offset="floor")
    differ = []
    for beyond in range(9):
        image = picture(32, 32 + beyond)
        made = np.asarray(theirs(image, return_tensors="np")["pixel_values"])[0]
        np.testing.assert_array_equal(ours.pixels(image).transpose(2, 0, 1), made)
        differ.append(
            not np.array_equal(replace(ours, crop_offset="round").pixels(image).transpose(2, 0, 1), made)
        )
    assert differ == [False, False, False, True, False, False, False, True, False]


def test_what_is_squeezed_to_a_crop_that_is_not_square_equals_torchvision() -> None:
    from torchvision import transforms
    from torchvision.transforms import InterpolationMode

    ours = Preprocessing(size=(40, 63), resize=71, crop_mode="squash")
    reference = transforms.Compose(
        [transforms.Resize((45, 71), InterpolationMode.BICUBIC), transforms.CenterCrop((40, 63))]
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
        ({"orientation": "upright"}, "orientation"),
        ({"crop_mode": "border"}, "crop_mode must be one of center, squash"),
        ({"crop_offset": 0}, "crop_offset must be one of round, floor"),
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


def turned(image: Image.Image, orientation: object, path: Path, **options: object) -> Path:
    """Save an image with an EXIF orientation."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    image.save(path, exif=exif, **options)
    return path


@pytest.mark.parametrize("orientation", range(10))
@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".tif", ".avif", ".mpo"])
def test_a_turn_is_applied_where_it_is_asked_for_alone(orientation: int, suffix: str, tmp_path: Path) -> None:
    from torchvision.datasets.folder import pil_loader

    path = turned(picture(40, 20), orientation, tmp_path / f"turned{suffix}")
    stored = Preprocessing((20, 24), 30)
    seen = replace(stored, orientation="exif")
    with Image.open(path) as image:
        expected = ImageOps.exif_transpose(image)
    as_stored = pil_loader(path)  # Pillow itself turns a TIFF as it loads it
    for got in (load_image(path), decode_image(path.read_bytes())):
        assert np.array_equal(got, as_stored)
        assert np.array_equal(stored.pixels(got), stored.pixels(as_stored))
        assert np.array_equal(seen.upright(got), expected.convert("RGB"))
        assert np.array_equal(seen.pixels(got), stored.pixels(expected))


def test_a_turn_outlives_the_conversion_to_rgb(tmp_path: Path) -> None:
    deep = Image.fromarray(np.arange(6, dtype=np.uint16).reshape(2, 3) * 9000)
    for image in (deep, picture(3, 2).convert("P"), picture(3, 2).convert("LA")):
        got = load_image(turned(image, 8, tmp_path / "turned.png"))
        assert Preprocessing((1, 1), 2, orientation="exif").upright(got).size == (2, 3)


@pytest.mark.parametrize(
    "exif", [b"", b"Exif\0\0", b"Exif\0\0MM\0*\0\0", b"Exif\0\0no such thing", b"\xff" * 60]
)
def test_damaged_exif_asks_for_nothing(exif: bytes, tmp_path: Path) -> None:
    for name in ("a.jpg", "a.png", "a.webp"):
        picture(40, 20).save(tmp_path / name, exif=exif)
        assert turn_of(load_image(tmp_path / name)) is None


def test_before_there_was_an_orientation_pixels_were_as_stored_and_pictures_cropped() -> None:
    usual = Preprocessing.for_model(224)
    ours = replace(usual, orientation="exif", crop_mode="squash", crop_offset="floor")
    fields = ours.to_dict()
    assert [fields.pop(name) for name in OF_OLD] == ["exif", "squash", "floor"]
    assert Preprocessing.from_dict(fields) == usual
    assert ours.at(112).orientation == ours.raw.orientation == "exif"


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "lanczos"])
def test_a_box_of_a_resized_image_is_that_of_the_whole(interpolation: str) -> None:
    rng = np.random.default_rng(0)
    for _ in range(150):
        width, height = (int(rng.integers(1, rng.choice([4, 60, 500]))) for _ in range(2))
        image = Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8))
        target = tuple(int(rng.integers(1, 200)) for _ in range(2))
        left, top = (int(rng.integers(0, length)) for length in target)
        right, bottom = int(rng.integers(left, target[0])) + 1, int(rng.integers(top, target[1])) + 1
        box = (left, top, right, bottom)
        whole = image.resize(target, getattr(Image.Resampling, interpolation.upper())).crop(box)
        assert np.array_equal(resized_box(image, target, box, interpolation), whole), (
            image.size,
            target,
            box,
        )


@pytest.mark.parametrize("size", [(7, 300), (300, 7), (40, 1201), (1, 33)])
def test_strips_are_cropped_first_and_none_can_tell(
    size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    image, ours = picture(*size), Preprocessing((24, 20), 30)
    cropped = ours.pixels(image)
    monkeypatch.setattr("sit_deploy.preprocessing._STRIP", 10**9)
    monkeypatch.setattr("sit_deploy.preprocessing.resized_box", None)
    assert np.array_equal(ours.pixels(image), cropped)


@pytest.mark.parametrize("crop_mode", CROP_MODES)
@pytest.mark.parametrize("size", [(1, 60000), (60000, 1), (1, 2_000_000), (3, 65000)])
def test_an_image_out_of_proportion_asks_for_no_memory(
    size: tuple[int, int], crop_mode: str, tmp_path: Path
) -> None:
    Image.new("1", size, 1).save(tmp_path / "strip.png")
    ours = replace(Preprocessing.for_model(224), crop_mode=crop_mode)
    tracemalloc.start()
    image = load_image(tmp_path / "strip.png")
    pixels, seen = ours.pixels(image), np.asarray(ours.seen(image))
    taken = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert pixels.shape == (224, 224, 3) and (pixels == 255).all() and (seen == 255).all()
    assert taken < 50e6


def test_a_small_crop_of_a_large_resize_asks_for_no_memory() -> None:
    pixels = Preprocessing((16, 16), 32768).pixels(Image.new("RGB", (50, 60), (1, 2, 3)))
    assert (pixels == (1, 2, 3)).all()


@pytest.mark.parametrize("shape", [(427, 640), (640, 427), (1000, 1000), (57, 91)])
def test_what_is_seen_is_the_crop_at_the_images_own_resolution(shape: tuple[int, int]) -> None:
    y, x = np.mgrid[: shape[0], : shape[1]]
    smooth = np.stack([x * 255 / shape[1], y * 255 / shape[0], (x + y) * 255 / sum(shape)], -1).astype(
        np.uint8
    )
    for turn, crop_mode in ((None, "center"), (6, "center"), (None, "squash"), (6, "squash")):
        preprocessing = Preprocessing.for_model(112, orientation="exif" if turn else "stored")
        preprocessing = replace(preprocessing, crop_mode=crop_mode)
        image = Image.fromarray(smooth)
        if turn:
            image.getexif()[0x0112] = turn
        seen = preprocessing.seen(image)
        times = -(-preprocessing.resize // min(shape))  # of a picture that is enlarged
        stands = image.size[::-1] if turn else image.size
        sides = stands if crop_mode == "squash" else [min(shape)] * 2
        shares = [112 / preprocessing.resize * side * times for side in sides]
        # each edge to a whole pixel
        assert max(abs(a - b) for a, b in zip(seen.size, shares, strict=True)) < 2
        again = np.asarray(seen.resize((112, 112)), np.int16)
        assert np.abs(again - preprocessing.pixels(image)).max() <= 6  # half a pixel to any side


@pytest.mark.parametrize("crop_mode", CROP_MODES)
@pytest.mark.parametrize(
    "size",
    [(1, 1), (7, 5), (10, 10), (28, 28), (32, 37), (100, 61), (30, 400), (3, 500), (127, 128), (427, 640)],
)
def test_what_is_seen_is_in_its_place_to_half_a_pixel_of_the_models(
    size: tuple[int, int], crop_mode: str
) -> None:
    """Of a picture that is enlarged, an edge to a whole pixel of its own would be patches away."""
    numbers = np.mgrid[: size[1], : size[0]][::-1]
    preprocessing = replace(Preprocessing.for_model(112), crop_mode=crop_mode)
    if crop_mode == "squash" and max(size) > 16 * min(size):
        return  # then it is what the model sees
    target, box = preprocessing._placed(*size)
    for axis, number in enumerate(numbers):
        picture = Image.fromarray(np.stack([number // 256, number % 256, 0 * number], -1).astype(np.uint8))
        seen = np.asarray(preprocessing.seen(picture), int)
        line = seen[0] if axis == 0 else seen[:, 0]
        own = size[axis] / target[axis]  # pixels of the picture in one of the model's
        for pixel in range(112):
            place = (box[axis] + pixel + 0.5) * own
            high, low, _ = line[int((pixel + 0.5) / 112 * len(line))]
            column = 256 * high + low
            assert column - own / 2 - 1e-6 <= place <= column + 1 + own / 2 + 1e-6, (axis, pixel)


@pytest.mark.parametrize("size", [(1, 1), (3, 5000), (5000, 3)])
def test_something_is_seen_of_every_image(size: tuple[int, int]) -> None:
    assert min(Preprocessing.for_model(112).seen(Image.new("RGB", size)).size) >= 1


def test_an_image_without_pixels() -> None:
    with pytest.raises(InputError, match="0 x 5 pixels"):
        Preprocessing.for_model(224).pixels(Image.new("RGB", (0, 5)))


def test_a_network_that_normalises_by_itself_gets_the_pixels() -> None:
    ours = Preprocessing.for_model(32)
    image = picture(61, 37)
    assert (ours.raw.shape, ours.shape) == ((32, 32, 3), (3, 32, 32))
    pixels = ours.raw(image)
    assert pixels.dtype == np.uint8 and np.array_equal(pixels, ours.pixels(image))
    assert np.array_equal(ours.normalise(pixels), ours(image))
    stacked = np.stack([pixels, pixels[::-1]])
    assert np.array_equal(ours.normalise(stacked)[1], ours.normalise(stacked[1]))
    assert Preprocessing.from_dict(json.loads(json.dumps(ours.raw.to_dict()))) == ours.raw
