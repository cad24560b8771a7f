"""Which preprocessing is taken, and who says so."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from sit_deploy.errors import InputError
from sit_deploy.models.card import ModelCard
from sit_deploy.models.catalog import get_config
from sit_deploy.models.data_config import (
    FIELDS,
    DataConfig,
    Source,
    choose,
    describe,
    from_card,
    from_name,
    from_options,
    override,
)
from sit_deploy.pipeline.command import rebuild_command
from sit_deploy.pipeline.request import BuildRequest
from sit_deploy.pipeline.request_check import check_request
from sit_deploy.preprocessing import IMAGENET_MEAN, Preprocessing

HALF = (0.5, 0.5, 0.5)

# ------------------------------------------------------------------------------------------------------- options


def test_every_option_wins_and_is_in_the_command_that_builds_again() -> None:
    values = {
        "mean": (0.1, 0.2, 0.3),
        "std": HALF,
        "crop_mode": "squash",
        "crop_pct": 0.95,
        "interpolation": "lanczos",
        "orientation": "exif",
    }
    request = BuildRequest("sit_nano", Path("b"), **values)
    found = choose(112, [from_options(request)], from_name(get_config("sit_nano")), "stored")
    assert found.preprocessing == Preprocessing(
        (112, 112), 117, "lanczos", values["mean"], HALF, orientation="exif", crop_mode="squash"
    )
    assert set(found.sources.values()) == {"the options"} and not found.notes
    words = rebuild_command(request, "onnxruntime").split()
    for name in FIELDS:
        value = values[name]
        told = words[words.index(f"--{name.replace('_', '-')}") + 1]
        assert told == (",".join(map(str, value)) if isinstance(value, tuple) else str(value))
    plain = rebuild_command(BuildRequest("sit_nano", Path("b")), "onnxruntime")
    assert not any(f"--{name.replace('_', '-')}" in plain for name in FIELDS)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"mean": (123.675, 116.28, 103.53)}, "of 0 to 255, pass --mean 0.485,0.456,0.406"),
        ({"std": (58.395, 57.12, 57.375)}, "of 0 to 255, pass --std 0.229,0.224,0.225"),
        ({"mean": (-0.1, 0.5, 0.5)}, "--mean must be from 0 to 1"),
        ({"mean": (float("nan"), 0.5, 0.5)}, "--mean must be from 0 to 1"),
        ({"std": (0.0, 0.5, 0.5)}, "--std must be from above 0 to 1"),
        ({"std": (float("inf"),) * 3}, "--std"),
        ({"crop_pct": 87.5}, "pass for example --crop-pct 0.875"),
        ({"crop_pct": 0.0}, "--crop-pct is a share"),
        ({"crop_pct": float("nan")}, "--crop-pct is a share"),
        ({"interpolation": "nearest"}, "choose bilinear, bicubic, lanczos"),
        ({"orientation": "upright"}, "choose exif, stored"),
        ({"crop_mode": "border"}, "--crop-mode border is not offered; choose center, squash"),
    ],
)
def test_a_value_out_of_range_is_refused_with_what_to_pass(options: dict, said: str) -> None:
    request = BuildRequest("sit_nano", Path("b"), **options)
    with pytest.raises(InputError, match=said):
        check_request(request)


def test_an_option_against_the_card_is_said() -> None:
    ours = Preprocessing.for_model(112, 0.8, "bilinear", HALF, HALF, "exif")
    card = ModelCard("sit_nano", (2, 2, 2, 2), 0.5, (49, 24, 12, 6), 112, 7, ours)
    named = from_name(get_config("sit_nano"))
    for size in (64, 112, 224):
        assert choose(size, [from_card(card)], named, "stored").preprocessing == ours.at(size)
    found = choose(
        112,
        [DataConfig(Source.OPTIONS, mean=IMAGENET_MEAN, orientation="stored"), from_card(card)],
        named,
        "stored",
    )
    assert found.preprocessing == replace(ours, mean=IMAGENET_MEAN, orientation="stored")
    assert (found.sources["mean"], found.sources["std"]) == ("the options", "the model card")
    mean, turned = found.notes
    assert "mean 0.485 0.456 0.406 of the options is taken, not 0.5 0.5 0.5 of the model card" in mean
    assert "orientation stored of the options is taken, not exif of the model card" in turned


# -------------------------------------------------------------------------------------------- an override, words


def test_an_override_of_a_bundle() -> None:
    ours = Preprocessing.for_model(112)
    found = override(ours, DataConfig(Source.OPTIONS, crop_pct=1.0, orientation="exif", std=HALF))
    assert found == replace(ours, resize=112, orientation="exif", std=HALF)
    assert override(ours.raw, DataConfig(Source.OPTIONS, orientation="exif")) == replace(
        ours.raw, orientation="exif"
    )
    found = override(ours, DataConfig(Source.OPTIONS, crop_mode="squash"))
    assert found == replace(ours, crop_mode="squash")
    with pytest.raises(InputError, match="normalises by itself"):
        override(ours.raw, DataConfig(Source.OPTIONS, mean=HALF))


def test_the_words_name_every_value_and_its_source() -> None:
    found = choose(112, [DataConfig(Source.OPTIONS, mean=HALF)], from_name(get_config("sit_nano")), "stored")
    assert describe(found.preprocessing.to_dict(), found.sources) == (
        "mean 0.5 0.5 0.5 (from the options); std 0.229 0.224 0.225, shorter side to 128 and centre 112 x 112, bicubic (from "
        "the configuration of sit_nano); pixels as stored, EXIF unheeded (from the default for weights trained elsewhere)"
    )
    assert "from" not in describe(found.preprocessing.to_dict(), None)
    squeezed = replace(found.preprocessing, crop_mode="squash").to_dict()
    assert "std 0.229 0.224 0.225, squeezed into a square, side to 128 and centre 112 x 112" in describe(
        squeezed, None
    )
