"""Pictures that are squeezed into a square: in C++ as in Python, to the bit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sit_deploy.bundle import load_bundle
from sit_deploy.preprocessing import load_image
from tests.engines.cpp.conftest import Programs
from tests.engines.cpp.manifests import rewrite


def test_a_bundle_says_how_pictures_become_squares(
    checked: Programs, light: Path, copy_of: Callable[..., Path], tmp_path: Path
) -> None:
    paths = []
    for shape in ((90, 61), (61, 90), (1, 1), (1, 700), (333, 1001), (64, 64)):
        values = np.random.default_rng(shape).integers(0, 256, (*shape, 3)).astype(np.uint8)
        paths.append(tmp_path / f"{shape[0]} x {shape[1]}.png")
        Image.fromarray(values).save(paths[-1])
    found: dict[str | None, list[bytes]] = {}
    for said in ("squash", "center", None):
        folder = copy_of(light, str(said))
        rewrite(folder, lambda m, said=said: m["preprocessing"].update(crop_mode=said))
        if said is None:  # as in bundles of before there was a choice
            rewrite(folder, lambda m: m["preprocessing"].pop("crop_mode"))
        prepare = load_bundle(folder).preprocessing()
        found[said] = [checked.output("sit_probe", "prepare", folder, path) for path in paths]
        assert found[said] == [prepare(load_image(path)).tobytes() for path in paths], said
    assert found["center"] == found[None]
    same = [one == other for one, other in zip(found["squash"], found["center"], strict=True)]
    assert same == [False, False, True, False, False, True]  # of square pictures


def test_a_bundle_says_where_a_crop_between_two_pixels_begins(
    checked: Programs, light: Path, copy_of: Callable[..., Path], tmp_path: Path
) -> None:
    size = load_bundle(light).preprocessing().size[0]
    found = []
    for said in ("floor", "round"):
        folder = copy_of(light, said)
        rewrite(folder, lambda m, said=said: m["preprocessing"].update(crop_offset=said, resize=size))
        prepare = load_bundle(folder).preprocessing()
        for beyond in range(5):
            values = np.random.default_rng(beyond).integers(0, 256, (size, size + beyond, 3)).astype(np.uint8)
            Image.fromarray(values).save(tmp_path / "image.png")
            ours = checked.output("sit_probe", "prepare", folder, tmp_path / "image.png")
            assert ours == prepare(load_image(tmp_path / "image.png")).tobytes(), (said, beyond)
            found.append(ours)
    same = [one == other for one, other in zip(found[:5], found[5:], strict=True)]
    assert same == [True, True, True, False, True]  # half a pixel is at 0, one and a half at 2


@pytest.mark.parametrize("change", [{"crop_mode": "border"}, {"crop_mode": 1}, {"crop_offset": "ceil"}])
def test_another_way_is_refused(
    change: dict[str, object], checked: Programs, light: Path, copy_of: Callable[..., Path]
) -> None:
    folder = rewrite(copy_of(light), lambda m: m["preprocessing"].update(change))
    assert next(iter(change)) in checked.refusal("sit_probe", "open", folder)
