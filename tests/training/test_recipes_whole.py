"""The whole recipe of every model, as it is by default, on photographs: with a small network, and few of the epochs."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import pytest

from tests.helpers.train import log_rows, write_photographs
from training import TrainRequest, train
from training.recipes import Recipe, recipe_for

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("small_nano", "no_curves")]

FEW = {"epochs": 2, "cooldown_epochs": 1, "warmup_epochs": 0, "batch_size": 8}


def recipes() -> dict[str, Recipe]:
    """Return the recipes of every model with its name, those that are the same once."""
    found: dict[str, Recipe] = {}
    for model in ("sit_t", "sit_xs", "sit_s", "sit_m", "sit_l", "lvvit_t", "lvvit_s", "lvvit_m", "lvvit_l"):
        for tuned in (False, True):
            distils = model.startswith("sit")
            recipe = recipe_for(model, distils=distils, from_checkpoint=tuned, data="photographs/")
            if recipe not in found.values():
                found[f"{model}{'-tuned' if tuned else ''}"] = recipe
    return found


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_photographs(tmp_path_factory.mktemp("photographs") / "data", train=16, val=4)


@pytest.fixture(scope="module")
def teacher(photographs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("teacher") / "run"
    overrides = tuple({**FEW, "epochs": 1, "cooldown_epochs": 0}.items())
    return train(
        TrainRequest("lvvit_nano", str(photographs), output, image_size=48, overrides=overrides, workers=0)
    ).weights


def test_there_are_as_many_as_the_documentation_says() -> None:
    assert list(recipes()) == ["sit_t", "sit_xs", "sit_l", "lvvit_t", "lvvit_t-tuned"]


@pytest.mark.parametrize("model", recipes())
def test_the_whole_recipe_trains_on_photographs(
    model: str, photographs: Path, teacher: Path, tmp_path: Path
) -> None:
    overrides = {**asdict(recipes()[model]), **FEW}
    options = {"teacher": teacher} if model.startswith("sit") else {"init": teacher}
    request = TrainRequest(
        "sit_nano" if "teacher" in options else "lvvit_nano", str(photographs), tmp_path / "run",
        image_size=48, overrides=tuple(overrides.items()), workers=0, **options,
    )  # fmt: skip
    summary = train(request)
    assert (summary.damaged_images, summary.epochs) == (0, 3)
    assert len(log_rows(tmp_path / "run", "epoch")) == 4
