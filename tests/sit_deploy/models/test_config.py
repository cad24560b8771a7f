"""The token schedule and the rules of a configuration."""

from __future__ import annotations

from typing import Any

import pytest

from sit_deploy.errors import InputError
from sit_deploy.models.catalog import get_config, title
from sit_deploy.models.config import STEMS, check_image_sides, example_stages, kept_tokens, takes_side


def test_stems() -> None:
    assert STEMS == {
        "4c": ((8, 2), (4, 2), (2, 2), (1, 2)),
        "6c": ((8, 2), (8, 1), (8, 1), (4, 2), (2, 2), (1, 2)),
    }


@pytest.mark.parametrize(
    ("size", "tokens"), [(224, (196, 98, 49, 24)), (240, (225, 112, 56, 28)), (384, (576, 288, 144, 72))]
)
def test_tokens_at_another_size_are_rounded_down_from_the_first_count(
    size: int, tokens: tuple[int, ...]
) -> None:
    assert get_config("sit_s").tokens(size) == tokens


def test_sides_are_multiples_of_the_patch_or_the_models_own() -> None:
    check_image_sides((28, 42), 14)
    check_image_sides((384, 392), 14, own=384)
    for wrong in (0, 7, 384):
        assert not takes_side(wrong, 14)
    with pytest.raises(InputError, match="divisible by 14, got 392x384; take 378 or 392"):
        check_image_sides((392, 384), 14)
    with pytest.raises(InputError, match="got 384x398; take 392 or 406"):
        check_image_sides((384, 398), 14, own=384)


def test_kept_tokens_of_another_ratio() -> None:
    # each from the patches, not from the stage before: int(int(225·0.7)·0.7) would be 109
    assert kept_tokens(225, 4, 0.7) == (225, 157, 110, 77)
    assert kept_tokens(196, 3, 1.0) == (196, 196, 196)


def test_other_stages_slim_a_teacher() -> None:
    config = get_config("lvvit_s", (9, 3, 2, 2))
    assert (config.name, config.teacher, config.top1) == ("lvvit_s", "lvvit_s", None)
    assert config.tokens() == get_config("sit_s").tokens()
    assert title(config) == "lvvit_s of stages 9,3,2,2"


def test_another_ratio_and_none() -> None:
    assert get_config("sit_s", keeping_ratio=0.7).tokens() == (196, 137, 96, 67)
    assert get_config("sit_s", (9, 3, 2, 2), 0.5) is get_config("sit_s")
    teacher = get_config("sit_s", (16,))
    assert (teacher.tokens(), teacher.teacher) == ((196,), None)


def test_kept_tokens_of_any_counts() -> None:
    config = get_config("sit_nano", kept=[49, 30, 30, 1])
    assert config.tokens() == config.tokens(112) == config.kept == (49, 30, 30, 1)
    assert config.kept_at(128) == (64, 30, 30, 1)
    assert config.at(112) is config
    assert get_config("lvvit_nano", (4, 4), kept=(49, 9)).teacher == "lvvit_nano"
    assert get_config("lvvit_nano", (8,), kept=(49,)) is get_config("lvvit_nano")
    # what the ratio gives too is the same model, under the name that it has
    assert get_config("sit_nano", kept=(49, 24, 12, 6)).at(112).kept is None
    assert get_config("sit_nano", kept=(64, 32, 16, 8)).at(128).kept is None


def test_kept_tokens_belong_to_an_image_size() -> None:
    config = get_config("sit_nano", kept=(64, 30, 18, 9))
    assert config.tokens(128) == (64, 30, 18, 9)
    message = "kept tokens 64,30,18,9 begin with 64, and images of 112 pixels have 49 patches of 16; begin with 49, or take images of 128"
    with pytest.raises(InputError, match=message):
        config.tokens()
    with pytest.raises(InputError, match=message):
        config.at(112)
    with pytest.raises(InputError, match=r"49 patches of 16; begin with 49$"):
        get_config("sit_nano", kept=(50, 30, 18, 9)).tokens()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"kept": (49, 30, 18)}, "49,30,18 do not fit the stages 2,2,2,2 of sit_nano.*of the 4.*--kept 49,24,12,6"),
        ({"kept": (49, 30, 18, 9, 4)}, "do not fit the stages 2,2,2,2"),
        ({"kept": ()}, "kept tokens of no number do not fit"),
        ({"kept": (49, 30, 40, 9)}, "grow from 30 to 40, and slimming must not"),
        ({"kept": (49, 30, 18, 0)}, "49,30,18,0 leave a stage without a token"),
        ({"kept": (49, 24, 12, 6), "keeping_ratio": 0.5}, "say the same thing twice; pass --kept or --keeping-ratio"),
        ({"name": "lvvit_nano", "kept": (49,)}, "lvvit_nano slims nothing, so kept tokens change nothing.*--stages 5,1,1,1"),
    ],
)  # fmt: skip
def test_kept_tokens_that_fit_no_image(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        get_config(**{"name": "sit_nano", **fields})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "stages", "message"),
    [
        (
            "lvvit_s",
            (9, 3, 2),
            "stages 9,3,2 do not fit lvvit_s.*depth of 16; pass for example --stages 10,2,2,2",
        ),
        ("sit_deit_s", (6, 2, 2, 3), "depth of 12; pass for example --stages 6,2,2,2"),
        ("sit_nano", (8, 0), "every stage must have a block.*depth of 8; pass for example --stages 5,1,1,1"),
        ("sit_nano", (), "stages of no number do not fit"),
    ],
)
def test_stages_that_do_not_fit(name: str, stages: tuple[int, ...], message: str) -> None:
    with pytest.raises(InputError, match=message):
        get_config(name, stages)


@pytest.mark.parametrize("ratio", [0.0, -0.5, 1.01, float("nan")])
def test_ratios_out_of_range(ratio: float) -> None:
    with pytest.raises(InputError, match="keeping ratio must be above 0 and at most 1, got"):
        get_config("sit_s", keeping_ratio=ratio)


def test_a_ratio_of_a_model_that_slims_nothing() -> None:
    with pytest.raises(InputError, match=r"lvvit_s slims nothing.*--stages 10,2,2,2"):
        get_config("lvvit_s", keeping_ratio=0.7)
    assert get_config("lvvit_s", (16,), 0.7).tokens() == (196,)  # said of both: nothing is asked for in vain


def test_every_example_fits_its_depth() -> None:
    for depth in range(1, 41):
        assert sum(example_stages(depth)) == depth and min(example_stages(depth)) >= 1
