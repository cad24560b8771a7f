"""What the commands on a page need, made small: models a hundredth the size under the same options, and files of the names there."""

from __future__ import annotations

import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from sit_deploy.models.card import ModelCard
from sit_deploy.models.card_file import save_weights
from sit_deploy.pipeline.build import build
from sit_deploy.preprocessing import Preprocessing
from tests.helpers.models import named_model
from tests.helpers.shared import shared
from tests.sit_deploy.conftest import CLASSES, Trained

# what a page calls a model, and what is taken for it
_MODELS = {
    r"sit_(?:t|xs|s|m|l)": "sit_nano",
    r"lvvit_(?:t|s|m|l)": "lvvit_nano",
    r"vit_small_patch14_dinov2": "vit_small_patch14_dinov2:depth=2,embed_dim=64,num_heads=2",
}
_OTHER_WORDS = {"9,3,2,2": "5,1,1,1"}  # stages of lvvit_s: lvvit_nano has half the blocks
_PICTURES = 2  # of a folder without labels: a figure of each takes a second
_TEACHER = re.compile(r"lvvit|teacher")


class StandIns:
    """An empty folder in which a page's commands are to run."""

    def __init__(
        self, folder: Path, trained: Trained, teacher: Path, factory: pytest.TempPathFactory
    ) -> None:
        self.folder, self._trained, self._teacher, self._factory = folder, trained, teacher, factory

    def take(self, words: tuple[str, ...]) -> tuple[str, ...]:
        """Return a command for the small models."""
        return tuple(_small(word, words[i - 1] if i else "") for i, word in enumerate(words))

    def provide(self, options: dict[str, Any]) -> None:
        """Make the files that a command is to read and that no command before has written.

        Args:
            options: values of the command's options and arguments, by name.
        """
        for name, value in options.items():
            for one in value if isinstance(value, tuple) else (value,):
                self._provide(name, self.folder / str(one)) if isinstance(one, str | Path) else None

    def _provide(self, name: str, path: Path) -> None:
        if path.exists():
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        if (
            name == "source" and path.suffix == ".safetensors"
        ):  # it names its model, as what `slim` and `train` write does
            model = named_model("sit_nano", num_classes=len(CLASSES))
            card = ModelCard(
                "sit_nano",
                (5, 1, 1, 1),
                0.5,
                (49, 24, 12, 6),
                112,
                len(CLASSES),
                Preprocessing.for_model(112),
            )
            save_weights(path, model.state_dict(), card)
        elif name in ("checkpoint", "teacher"):
            shutil.copy(self._teacher if _TEACHER.search(path.name) else self._trained.checkpoint, path)
        elif name == "labels":
            shutil.copy(self._trained.labels, path)
        elif name in ("data", "val_data", "calib_data"):
            shutil.copytree(self._trained.images, path)
        elif path.suffix == ".onnx":
            shutil.copy(self._bundle() / "model.onnx", path)
        elif name == "images" and not path.suffix:
            path.mkdir()
            for picture in sorted(self._trained.images.rglob("*.png"))[:_PICTURES]:
                shutil.copy(picture, path)
        elif path.suffix == ".jpg":
            Image.effect_mandelbrot((160, 120), (-2, -1.2, 1, 1.2), 60).convert("RGB").save(path)
        elif name in ("bundle", "bundles", "source", "sources", "target"):
            bundle = self._bundle(path.name)
            shutil.copytree(bundle, path / "one" if path.name == "bundles" else path)

    def _bundle(self, name: str = "") -> Path:
        """Return a bundle that takes 1 to 8 images, in FP16 and of the teacher if its name says so, with a name of its own in Triton."""
        precision = "fp16" if "fp16" in name else "fp32"
        fields: dict[str, Any] = {"precision": precision, "dynamic_batch": (1, 2, 8)}
        if of_teacher := name.startswith(("lvvit", "sit_xs")):
            fields |= {"model": "lvvit_nano", "checkpoint": self._teacher}
        made = f"page-{'teacher' if of_teacher else 'student'}-{precision}"
        return shared(self._factory, made, lambda path: build(replace(self._trained.request(path), **fields)))


def _small(word: str, before: str) -> str:
    if before in ("--model", "--teacher-model"):
        return next((small for name, small in _MODELS.items() if re.fullmatch(name, word)), word)
    return _OTHER_WORDS.get(word, word)
