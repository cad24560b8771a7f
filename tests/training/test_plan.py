"""What a run says that it will do."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import pytest

from training.plan import Plan
from training.recipes import DIGITS_TEACHER, Recipe


def plan(images: int, steps: int, batch: int | None = None, **values: Any) -> Plan:
    recipe = replace(Recipe(), **values)
    return Plan.of(recipe, images, batch or recipe.batch_size, steps)


def test_small_data_at_the_default_batch() -> None:
    """216 images of which one step an epoch is made, and a cool-down that is longer than what was asked for."""
    small = plan(216, 1, epochs=2)
    assert small.text() == (
        "216 images to train on, 128 a step: 1 step an epoch, 3 views each of 43 of them; 12 epochs (10 of them at the "
        "smallest learning rate, --cooldown-epochs): 12 steps in all; learning rate 5e-05 to 2.5e-06"
    )
    assert small.warning() == (
        "12 steps in all will hardly train anything: pass a smaller --batch-size (with 24 there are 108) or more --epochs"
    )


@pytest.mark.parametrize(("images", "epochs"), [(216, 1), (1000, 1), (40, 3), (129, 30)])
@pytest.mark.parametrize("processes", [1, 4])
def test_the_batch_that_the_warning_names_helps(images: int, epochs: int, processes: int) -> None:
    batch_size = 128 // processes if images > 128 else 32 // processes
    batch = batch_size * processes
    short = plan(images, images // batch, batch, epochs=epochs, cooldown_epochs=0, batch_size=batch_size)
    warned = short.warning() or ""
    [(size, said)] = re.findall(r"--batch-size \(with (\d+) there are (\d+)\)", warned) or [("8", "")]
    assert int(size) % 2 == 0 and int(size) >= 8 and "more --epochs" in warned
    if said:
        assert int(said) == epochs * (images // (int(size) * processes)) > short.steps
    else:
        assert batch_size <= 8


def test_a_run_that_is_long_enough_is_not_warned_of() -> None:
    assert plan(1281167, 1251, 1024).warning() is None
    assert Plan.of(DIGITS_TEACHER, 1437, 32, 44).warning() is None
    assert plan(216, 1, epochs=40, cooldown_epochs=10).warning() is None
    assert plan(3, 1, 2, batch_size=2, epochs=49, cooldown_epochs=0).warning() is not None
