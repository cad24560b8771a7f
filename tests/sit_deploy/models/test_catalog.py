"""The named models are those of the paper and the official code."""

from __future__ import annotations

import subprocess
import sys

import pytest

from sit_deploy.errors import InputError
from sit_deploy.models.catalog import CONFIGS, get_config
from sit_deploy.models.data_config import choose, from_name

# width, depth, heads, blocks of the stages, pixels, patch tokens of the stages, residual divisor, stem
ARCHITECTURES = {
    "sit_t": (320, 14, 5, (1, 1, 1, 11), 224, (196, 98, 49, 24), 2, "4c"),
    "sit_xs": (384, 16, 6, (1, 1, 1, 13), 224, (196, 98, 49, 24), 2, "4c"),
    "sit_s": (384, 16, 6, (9, 3, 2, 2), 224, (196, 98, 49, 24), 2, "4c"),
    "sit_m": (512, 20, 8, (10, 4, 3, 3), 224, (196, 98, 49, 24), 2, "4c"),
    "sit_l": (768, 24, 12, (10, 4, 3, 7), 288, (324, 162, 81, 40), 3, "6c"),
    "lvvit_t": (320, 14, 5, (14,), 224, (196,), 2, "4c"),
    "lvvit_s": (384, 16, 6, (16,), 224, (196,), 2, "4c"),
    "lvvit_m": (512, 20, 8, (20,), 224, (196,), 2, "4c"),
    "lvvit_l": (768, 24, 12, (24,), 288, (324,), 3, "6c"),
    "sit_nano": (128, 8, 4, (2, 2, 2, 2), 112, (49, 24, 12, 6), 2, "4c"),
    "lvvit_nano": (128, 8, 4, (8,), 112, (49,), 2, "4c"),
    "sit_micro": (96, 16, 3, (1, 1, 1, 13), 112, (49, 24, 12, 6), 2, "4c"),
    "lvvit_micro": (96, 16, 3, (16,), 112, (49,), 2, "4c"),
    # DeiT's residual branches are not divided, and it has one convolution for a stem
    "sit_deit_s": (384, 12, 6, (6, 2, 2, 2), 224, (196, 98, 49, 24), 1, "4c"),
    "sit_deit_b": (768, 12, 12, (6, 2, 2, 2), 224, (196, 98, 49, 24), 1, "4c"),
}
TEACHERS = {
    "sit_t": "lvvit_t",
    "sit_xs": "lvvit_s",
    "sit_s": "lvvit_s",
    "sit_m": "lvvit_m",
    "sit_l": "lvvit_l",
    "sit_nano": "lvvit_nano",
    "sit_micro": "lvvit_micro",
    "sit_deit_s": "deit_small_patch16_224",
    "sit_deit_b": "deit_base_patch16_224",
}
TOP1 = {
    "sit_t": 80.1,
    "sit_xs": 81.2,
    "sit_s": 83.1,
    "sit_m": 84.2,
    "sit_l": 85.6,
    "lvvit_t": 81.8,
    "lvvit_s": 83.1,
    "lvvit_m": 84.0,
    "lvvit_l": 85.3,
}
ALIASES = {
    "sit_lvvit_tiny": "sit_t",
    "sit_lvvit_xsmall": "sit_xs",
    "sit_lvvit_small": "sit_s",
    "sit_lvvit_medium": "sit_m",
    "sit_lvvit_large": "sit_l",
    "lvvit_tiny": "lvvit_t",
    "lvvit_small": "lvvit_s",
    "lvvit_medium": "lvvit_m",
    "lvvit_large": "lvvit_l",
}


def test_every_model_is_in_the_table() -> None:
    assert set(CONFIGS) == set(ARCHITECTURES)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_architecture(name: str) -> None:
    c = get_config(name)
    found = (
        c.embed_dim,
        c.depth,
        c.num_heads,
        c.stage_blocks,
        c.image_size,
        c.tokens(),
        c.skip_lam,
        c.stem,
    )
    assert found == ARCHITECTURES[name]
    assert (c.mlp_ratio, c.keeping_ratio, c.num_classes) == (4.0 if "deit" in name else 3.0, 0.5, 1000)
    assert c.patch_size == 16


def test_teachers_and_published_accuracy() -> None:
    assert {n: c.teacher for n, c in CONFIGS.items() if c.teacher} == TEACHERS
    assert {n: c.top1 for n, c in CONFIGS.items() if c.top1} == TOP1


@pytest.mark.parametrize("name", [name for name in ARCHITECTURES if "nano" not in name])
def test_evaluated_at_256_of_224_pixels_as_published(name: str) -> None:
    """datasets.py of github.com/Sense-X/SiT and of facebookresearch/deit; timm looks at 0.9 of a picture for DeiT."""
    c = get_config(name)
    choice = choose(c.image_size, [], from_name(c), "exif")
    assert choice.preprocessing.resize == int(256 / 224 * c.image_size)


def test_official_names_are_aliases() -> None:
    assert {alias: get_config(alias).name for alias in ALIASES} == ALIASES
    assert {a for c in CONFIGS.values() for a in c.aliases} == set(ALIASES)


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("sit_x", "'sit_xs'"),
        ("SIT_S", ""),
        ("lvvit_smal", "'lvvit_small'"),
        ("deit_smal_patch16_224", "'deit_small_patch16_224'"),
        ("vit_tiny_patch16_24", "'vit_tiny_patch16_224'"),
    ],
)
def test_unknown_name_is_one_line_with_the_nearest(name: str, hint: str) -> None:
    with pytest.raises(InputError) as caught:
        get_config(name)
    message = str(caught.value)
    assert f"unknown model '{name}'" in message
    assert "sit-deploy models" in message
    assert hint in message
    assert "\n" not in message


def test_configs_and_cost_need_no_torch() -> None:
    code = (
        "import sys; from sit_deploy.models import CONFIGS, get_config; from sit_deploy.models.cost import cost;"
        "cost(get_config('sit_s')); cost(get_config('sit_deit_s', (3, 9), 0.7)); sys.exit(bool({'torch', 'timm', 'numpy', 'onnx'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("sit_tiny", "sit_t"),
        ("sit_small", "sit_lvvit_small"),
        ("SIT_S", "sit_s"),
        ("lvit_s", "lvvit_s"),
        ("deit_smal_patch16_224", "deit_small_patch16_224"),
    ],
)
def test_an_unknown_name_is_taken_for_one_of_its_family(name: str, meant: str) -> None:
    """A student's name is not answered by a teacher's."""
    with pytest.raises(InputError, match=f"unknown model '{name}'; did you mean '{meant}'"):
        get_config(name)


def test_a_name_that_fits_on_no_line() -> None:
    with pytest.raises(InputError) as caught:
        get_config("v" * 5000)
    assert str(caught.value) == f"the name of a model has at most 300 characters, and {'v' * 40}... has 5000"
