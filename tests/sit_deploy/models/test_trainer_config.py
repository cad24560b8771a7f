"""What a checkpoint's own trainer says of the preprocessing is taken, and said."""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from sit_deploy.models.catalog import get_config
from sit_deploy.models.data_config import Choice, DataConfig, Source, choose, from_name
from sit_deploy.models.trainer_config import from_checkpoint
from sit_deploy.preprocessing import IMAGENET_MEAN, IMAGENET_STD, Preprocessing

VIT, DEIT = "vit_tiny_patch16_224", "deit_tiny_patch16_224"
HALF = (0.5, 0.5, 0.5)
OURS = {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6]}
WEIGHTS = {"head.weight": torch.zeros(2, 2)}


def saved(folder: Path, **beside: Any) -> Path:
    torch.save({"state_dict": WEIGHTS, **beside}, folder / "m.pth")
    return folder / "m.pth"


def about_the_crop(found: Choice) -> list[str]:
    return [note for note in found.notes if "crop-mode" in note or "padded" in note]


def chosen(path: Path, name: str = VIT, **options: Any) -> Any:
    said = [DataConfig(Source.OPTIONS, **options), *from_checkpoint(path)]
    return choose(224, said, from_name(get_config(name)), "stored")


@pytest.mark.parametrize("entry", ["args", "hyper_parameters", "data_config"])
@pytest.mark.parametrize("kind", [dict, lambda fields: argparse.Namespace(**fields)])
def test_what_a_trainer_wrote_beside_the_weights_is_taken_and_said(
    entry: str, kind: Any, tmp_path: Path
) -> None:
    fields = {**OURS, "crop_pct": 0.95, "interpolation": "bilinear", "lr": 0.1}
    found = chosen(saved(tmp_path, **{entry: kind(fields)}))
    expected = Preprocessing.for_model(224, 0.95, "bilinear", OURS["mean"], OURS["std"])
    assert found.preprocessing == expected
    assert found.sources["mean"] == f"{entry} in m.pth"
    assert any(
        f"of {entry} in m.pth is taken, not 0.5 0.5 0.5 of timm's configuration of {VIT}" in n
        for n in found.notes
    )
    over = chosen(saved(tmp_path, **{entry: kind(fields)}), mean=HALF)
    assert over.preprocessing.mean == HALF and over.preprocessing.std == (0.4, 0.5, 0.6)
    assert any("mean 0.5 0.5 0.5 of the options is taken, not 0.1 0.2 0.3" in n for n in over.notes)


def test_a_trainer_that_names_another_model_means_what_goes_with_it(tmp_path: Path) -> None:
    args = argparse.Namespace(model=DEIT, mean=None, std=None, crop_pct=None, interpolation="")
    found = chosen(saved(tmp_path, args=args))
    assert (found.preprocessing.mean, found.preprocessing.std) == (IMAGENET_MEAN, IMAGENET_STD)
    assert found.sources["mean"] == f"args in m.pth, trained as {DEIT}"
    same = chosen(saved(tmp_path, args=argparse.Namespace(model=VIT, mean=None)))
    assert same.preprocessing.mean == HALF and not same.notes


@pytest.mark.parametrize(
    "args",
    [
        {"mean": [123.7, 116.3, 103.5]}, {"mean": 0.5}, {"mean": [0.5]}, {"mean": "0.5"}, {"mean": [0.5, 0.5, "x"]},
        {"mean": {"r": 1}}, {"std": [float("nan")] * 3}, {"crop_pct": 87}, {"interpolation": "random"}, {"model": "resnet50"},
        {"model": "my own"}, {"interpolation": ["bicubic"]}, {"model": 7}, 3, None, "mean",
    ],
)  # fmt: skip
def test_what_a_trainer_does_not_say_plainly_is_left(args: Any, tmp_path: Path) -> None:
    found = chosen(saved(tmp_path, args=args))
    assert found.preprocessing == chosen(saved(tmp_path)).preprocessing
    assert found.sources["mean"] == f"timm's configuration of {VIT}"


@pytest.mark.parametrize(
    ("name", "fields", "expected"),
    [
        (
            "preprocessor_config.json",
            {"image_mean": OURS["mean"], "image_std": OURS["std"], "resample": 2, "do_center_crop": True,
             "size": {"shortest_edge": 256}, "crop_size": {"height": 224, "width": 224}},
            replace(Preprocessing.for_model(224, 0.875, "bilinear", OURS["mean"], OURS["std"]), crop_offset="floor"),
        ),
        (
            "preprocessor_config.json",
            {"image_mean": HALF, "image_std": HALF, "do_normalize": False, "size": {"height": 224, "width": 224}},
            replace(
                Preprocessing.for_model(224, 1.0, "bicubic", (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
                crop_mode="squash", crop_offset="floor",
            ),
        ),
        (
            "config.json",
            {"architecture": VIT, "pretrained_cfg": {**OURS, "crop_pct": 1.0, "interpolation": "lanczos"}},
            Preprocessing.for_model(224, 1.0, "lanczos", OURS["mean"], OURS["std"]),
        ),
    ],
)  # fmt: skip
def test_what_stands_beside_the_file_is_taken_and_said(
    name: str, fields: dict, expected: Preprocessing, tmp_path: Path
) -> None:
    (tmp_path / name).write_text(json.dumps(fields))
    found = chosen(saved(tmp_path))
    assert found.preprocessing == expected
    assert f"{name} beside" in found.sources["mean"]


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{", "[" * 100_000, "{}", '{"image_mean": [0.5]}', '{"image_mean": [0.1, 0.1, 0.1], "rescale_factor": "x"}',
     '{"do_rescale": false, "image_mean": [0.1, 0.1, 0.1], "image_std": [0.1, 0.1, 0.1], "rescale_factor": 0.1}',
     '{"do_rescale": false, "do_normalize": false}', '{"image_mean": [0, 0, 0], "rescale_factor": -1}', '{"pretrained_cfg": 3}', '{"resample": "x", "size": 3, "crop_size": [], "do_center_crop": true}', "\ud800"],
)  # fmt: skip
def test_a_file_beside_that_says_nothing_of_it_is_left(text: str, tmp_path: Path) -> None:
    for name in ("preprocessor_config.json", "config.json"):
        (tmp_path / name).write_text(text, errors="surrogatepass")
    assert chosen(saved(tmp_path)).sources["mean"] == f"timm's configuration of {VIT}"


@pytest.mark.slow
def test_an_image_processor_within_another_s_file_is_the_one_that_transformers_takes(tmp_path: Path) -> None:
    """What release 5 saves of CLIP's processor; an older file beside it is then read by nobody."""
    from transformers import CLIPImageProcessor

    theirs = CLIPImageProcessor(image_mean=OURS["mean"], image_std=OURS["std"], resample=2)
    within = {"image_processor": json.loads(theirs.to_json_string()), "processor_class": "CLIPProcessor"}
    (tmp_path / "processor_config.json").write_text(json.dumps(within))
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"image_mean": HALF}))
    found = chosen(saved(tmp_path))
    expected = Preprocessing.for_model(224, 1.0, "bilinear", OURS["mean"], OURS["std"])
    assert found.preprocessing == replace(expected, crop_offset="floor")
    assert found.sources["mean"] == "processor_config.json beside the checkpoint"
    (tmp_path / "processor_config.json").write_text(
        json.dumps({"processor_class": "CLIPProcessor"})
    )  # of older releases
    assert chosen(saved(tmp_path)).sources["mean"] == "preprocessor_config.json beside the checkpoint"


def test_timm_s_file_of_one_level(tmp_path: Path) -> None:
    """As its releases before 0.9 wrote it, and as it reads it still."""
    fields = {
        "architecture": VIT,
        "num_classes": 2,
        "input_size": [3, 224, 224],
        "crop_pct": 1.0,
        "interpolation": "bilinear",
    }
    (tmp_path / "config.json").write_text(json.dumps({**fields, **OURS}))
    found = chosen(saved(tmp_path))
    assert found.preprocessing == Preprocessing.for_model(224, 1.0, "bilinear", OURS["mean"], OURS["std"])
    assert found.sources["mean"].startswith("config.json beside m.pth")


@pytest.mark.parametrize(
    ("mode", "crop_mode", "said"),
    [
        (None, "center", ""),
        ("shortest", "center", ""),
        ("squash", "squash", "crop-mode squash of open_clip_config.json"),
        ("longest", "center", "images are padded to a square"),
    ],
)
def test_open_clip_resizes_to_the_size_itself(
    mode: str | None, crop_mode: str, said: str, tmp_path: Path
) -> None:
    """open_clip/transform.py: whatever it does of the sides, nothing is cropped of the shorter one."""
    name = "vit_base_patch16_clip_224"
    assert from_name(get_config(name)).crop_pct < 1
    fields = {**OURS, "interpolation": "bicubic"} | ({"resize_mode": mode} if mode else {})
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"preprocess_cfg": fields}))
    found = chosen(saved(tmp_path), name)
    expected = Preprocessing.for_model(224, 1.0, "bicubic", OURS["mean"], OURS["std"])
    assert found.preprocessing == replace(expected, crop_mode=crop_mode)
    assert about_the_crop(found) == [note for note in found.notes if said and said in note]
    cfg = {"architecture": name, "pretrained_cfg": {"crop_pct": 0.9, "mean": HALF}}
    (tmp_path / "config.json").write_text(json.dumps(cfg))
    assert chosen(saved(tmp_path), name).preprocessing.mean == HALF
    saved(tmp_path).rename(
        tmp_path / "open_clip_pytorch_model.bin"
    )  # of several files, its own is of these weights
    assert chosen(tmp_path / "open_clip_pytorch_model.bin", name).preprocessing.mean == tuple(OURS["mean"])


@pytest.mark.parametrize(
    ("fields", "side"),
    [
        ({"size": {"shortest_edge": 128}, "do_center_crop": True, "crop_size": {"height": 96, "width": 96}}, 96),
        ({"size": {"height": 96, "width": 96}, "do_center_crop": None, "crop_size": None}, 96),
        ({"size": 96}, 96),
        ({"size": {"height": 224, "width": 224}}, None),
        ({"size": {"shortest_edge": 96}}, None),
        ({"size": {"height": 96, "width": 128}}, None),
        ({"size": {"height": 96, "width": 96}, "do_resize": False}, None),
        ({"size": {"height": True, "width": True}}, None),
    ],
)  # fmt: skip
def test_a_model_that_is_used_at_another_size_is_said_to_be(
    fields: dict, side: int | None, tmp_path: Path
) -> None:
    """DINOv2 of transformers: positions for 518 pixels, images of 224."""
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(fields))
    notes = [note for note in chosen(saved(tmp_path)).notes if "--image-size" in note]
    assert len(notes) == bool(side)
    assert (
        not side
        or f"makes images of {side} pixels, and the model is built for 224; pass --image-size {side}"
        in notes[0]
    )


@pytest.mark.parametrize("kind", ["m.pth", "m.safetensors"])
@pytest.mark.parametrize(
    ("stem", "scale", "shape"), [("normalize.", 1, (1, 3, 1, 1)), ("0.", 1, (3,)), ("pixel_", 255, (3, 1, 1))]
)
def test_a_module_that_normalises_by_itself_says_how(
    kind: str, stem: str, scale: float, shape: tuple[int, ...], tmp_path: Path
) -> None:
    """Its mean and std stand among its weights, which are left out of the model."""
    values = {f"{stem}{name}": scale * torch.tensor(OURS[name]).reshape(shape) for name in ("mean", "std")}
    path, state = tmp_path / kind, {"model.head.weight": torch.zeros(2, 2), **values}
    for others in (
        {},
        {
            "other.mean": torch.zeros(3),
            "bn.running_mean": torch.zeros(3),
            "std": torch.ones(7),
            "y_mean": torch.zeros(3),
            "y_std": torch.ones(3),
        },
    ):
        save_file(state | others, path) if kind == "m.safetensors" else torch.save(
            {"model": state | others}, path
        )
        found = chosen(path)
        assert found.preprocessing.mean == pytest.approx(OURS["mean"])
        assert found.preprocessing.std == pytest.approx(OURS["std"])
        assert found.sources["mean"] == f"{stem}mean and std among the weights of {kind}"
    several = {"other.mean": torch.zeros(3), "other.std": torch.ones(3)}
    torch.save({"model": state | several}, path)
    assert "among the weights" not in chosen(path).sources["mean"]
    torch.save({"model": {**state, f"{stem}std": torch.zeros(shape)}}, path)
    assert "among the weights" not in chosen(path).sources["mean"]


def test_two_that_disagree_are_named(tmp_path: Path) -> None:
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"image_mean": HALF}))
    found = chosen(saved(tmp_path, args=argparse.Namespace(**OURS)))
    assert found.preprocessing.mean == (0.1, 0.2, 0.3)
    assert any(
        "of args in m.pth is taken, not 0.5 0.5 0.5 of preprocessor_config.json beside" in n
        for n in found.notes
    )


@pytest.mark.parametrize(
    "fields",
    [
        {"rescale_factor": 1 / 255},
        {"rescale_factor": 0.00392156862745098},
        {"rescale_factor": 1 / 127.5},
        {"rescale_factor": 1 / 127.5, "rescale_offset": True},
        {"rescale_factor": 1 / 127.5, "rescale_offset": True, "do_normalize": False},
        {"do_rescale": False, "image_mean": [123.675, 116.28, 103.53], "image_std": [58.395, 57.12, 57.375]},
        {"do_normalize": False},
    ],
)
def test_values_are_those_that_the_image_processor_makes(fields: dict, tmp_path: Path) -> None:
    """The right side is what transformers computes, step by step: rescale, offset, normalise."""
    fields = {"image_mean": [0.4, 0.5, 0.6], "image_std": [0.2, 0.25, 0.3], **fields}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(fields))
    ours = chosen(saved(tmp_path)).preprocessing
    pixels = np.random.default_rng(0).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    theirs = pixels.astype(np.float64)
    if fields.get("do_rescale", True):
        theirs = theirs * fields.get("rescale_factor", 1 / 255) - fields.get("rescale_offset", False)
    if fields.get("do_normalize", True):
        theirs = (theirs - fields["image_mean"]) / fields["image_std"]
    np.testing.assert_allclose(ours.normalise(pixels), theirs.transpose(2, 0, 1), atol=1e-5)


HW = {"height": 224, "width": 224}


@pytest.mark.parametrize(
    ("fields", "resize", "squeezed"),
    [
        ({"size": HW}, 224, True),
        ({"size": HW, "do_center_crop": None, "crop_size": None}, 224, True),
        ({"size": 224, "feature_extractor_type": "ViTFeatureExtractor"}, 224, True),
        ({"size": {"height": 256, "width": 256}, "do_center_crop": True, "crop_size": HW}, 256, True),
        ({"size": 256, "do_center_crop": True, "crop_size": 224, "feature_extractor_type": "DeiTFeatureExtractor"}, 256, True),
        ({"size": 256, "do_center_crop": True, "crop_size": 224, "feature_extractor_type": "CLIPFeatureExtractor"}, 256, False),
        ({"size": {"shortest_edge": 256}, "do_center_crop": True, "crop_size": HW}, 256, False),
        ({"size": {"shortest_edge": 224}, "crop_pct": 0.875}, 256, False),
        ({"size": {"shortest_edge": 256}}, 248, False),
        ({"size": HW, "do_resize": False}, 248, False),
        ({"size": {"height": 224, "width": 288}}, 248, False),
        ({"size": {"height": 0, "width": 0}}, 248, False),
    ],
)  # fmt: skip
def test_how_the_image_processor_comes_to_a_square(
    fields: dict, resize: int, squeezed: bool, tmp_path: Path
) -> None:
    """Pictures of any shape are seen as transformers sees them, and it is said where timm sees them otherwise."""
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(fields))
    found = chosen(saved(tmp_path))
    assert found.preprocessing.resize == resize
    assert found.preprocessing.crop_mode == ("squash" if squeezed else "center")
    said = "crop-mode squash of preprocessor_config.json beside the checkpoint is taken, not center of timm's configuration"
    assert [said in note for note in about_the_crop(found)] == [True] * squeezed


@pytest.mark.parametrize(
    ("mode", "said"), [("squash", "crop-mode squash"), ("border", "padded"), ("center", None)]
)
def test_timms_other_crops_are_told_of(mode: str, said: str | None, tmp_path: Path) -> None:
    cfg = {**OURS, "crop_pct": 1.0, "crop_mode": mode}
    (tmp_path / "config.json").write_text(json.dumps({"architecture": VIT, "pretrained_cfg": cfg}))
    for path in (saved(tmp_path), saved(tmp_path, args={"crop_mode": mode})):
        found = chosen(path)
        assert [said in note for note in about_the_crop(found)] == [True] * bool(said)
        assert found.preprocessing.crop_mode == ("squash" if mode == "squash" else "center")


def test_what_goes_with_a_name_may_be_squeezed_too(tmp_path: Path) -> None:
    """Nothing is to be said of it."""
    name = "vit_medium_patch16_gap_384"
    found = chosen(saved(tmp_path), name)
    assert found.preprocessing.crop_mode == "squash" and not about_the_crop(found)
    found = chosen(saved(tmp_path), name, crop_mode="center")
    assert found.preprocessing.crop_mode == "center" and not about_the_crop(found)


@pytest.mark.parametrize("options", [{}, {"crop_mode": "center"}, {"crop_pct": 0.9}])
def test_where_a_crop_between_two_pixels_begins_is_no_option_s(options: dict, tmp_path: Path) -> None:
    """The image processor of transformers says it, whoever says the rest of the crop."""
    fields = {"size": {"shortest_edge": 256}, "do_center_crop": True, "crop_size": HW}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(fields))
    found = chosen(saved(tmp_path), **options)
    assert (found.preprocessing.crop_mode, found.preprocessing.crop_offset) == ("center", "floor")
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"image_mean": HALF}))
    assert chosen(saved(tmp_path), **options).preprocessing.crop_offset == "round"
