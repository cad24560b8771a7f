"""The classes of weights that are yet to be fetched, as the config.json of their repository has them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.command_line import CommandLine

TIMM = {"architecture": "vit_tiny_patch16_224", "num_classes": 3, "pretrained_cfg": {}}
NAMED = {**TIMM, "label_names": ["ant", "bee", "cat"]}


@pytest.mark.parametrize(
    ("fields", "words", "message"),
    [
        (TIMM, (), "has 2 classes, the model 3 classes"),
        (TIMM, ("--num-classes", "3"), "has 2 classes, the model 3 classes"),
        (NAMED, (), "classes that the model has no name for"),
        # heads that contradict options are told of by whoever loads the weights
        (TIMM, ("--num-classes", "2"), "is not in the cache"),
        ({**TIMM, "num_classes": True}, (), "is not in the cache"),
    ],
)
def test_labelled_images_of_other_classes_are_refused_before_weights_are_fetched(
    fields: dict[str, Any],
    words: tuple[str, ...],
    message: str,
    cached: Callable[..., Path],
    cli: CommandLine,
    make_image_folder: Callable[..., Path],
) -> None:
    cached("me/three", fields)
    images = make_image_folder(("ant", "dog"), per_class=1)
    model = ("build", "--model", "hf-hub:me/three", "--engine", "onnxruntime")
    assert message in cli.refuses(*model, "--val-data", images, *words)


def test_names_of_classes_are_as_many_as_the_repository_says(
    cached: Callable[..., Path], cli: CommandLine
) -> None:
    cached("me/three", TIMM)
    (cli.folder / "two.txt").write_text("a\nb\n")
    words = ("build", "--model", "hf-hub:me/three", "--engine", "onnxruntime", "--labels", "two.txt")
    assert "two.txt: 2 class names for a model of 3 classes" in cli.refuses(*words)
