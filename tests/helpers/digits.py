"""A model of half of sit_nano's blocks and pictures of digits: what is built in 8 bits in seconds."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sit_deploy.models.catalog import CONFIGS
from sit_deploy.pipeline.request import BuildRequest

# of `Digits`: what 8 bits take grows with the number of layers
HALF = replace(CONFIGS["sit_nano"], name="sit_half_nano", stage_blocks=(1, 1, 1, 1), teacher=None)


@dataclass(frozen=True)
class Digits:
    """sit_nano with half the blocks and of ten classes, with a model card, pictures of digits, and the first half of an int8 build with them.

    images: labelled ones, each in the folder of the class that the model puts it in. float_graph: of the model; `hops` and
    `notes` as a build has them.
    """

    checkpoint: Path
    images: Path
    float_graph: Any
    hops: list[Any]
    notes: list[str]

    def request(self, output: Path, **fields: Any) -> BuildRequest:
        """Return a request for int8 on ONNX Runtime: of some layers, by few images, the method given; a build of two seconds."""
        common = {"precision": "int8", "engine": "onnxruntime", "calib_method": "minmax"}
        common |= {"checkpoint": self.checkpoint, "calib_data": self.images, "quantize": ("fc1", "tsm")}
        if fields.get("calib_data", self.images):
            common["calib_images"] = 4
        return BuildRequest(None, output, **(common | fields)).completed()

    def words(self, *more: Any) -> list[Any]:
        """Return the words of `sit-deploy build` for the same."""
        options = ("--checkpoint", self.checkpoint, "--precision", "int8", "--engine", "onnxruntime")
        return ["build", *options, *more]


@contextmanager
def half_nano() -> Iterator[None]:
    """Let this process know the model of `digits` by its name; those that list models do not see it afterwards."""
    from sit_deploy.models import catalog, registry
    from sit_deploy.models.sit import SiT

    create_model = registry.timm.create_model

    def create(name: str, **options: Any) -> Any:
        if name != HALF.name:
            return create_model(name, **options)
        return SiT(**{**registry._arguments(HALF), **options})

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(catalog.CONFIGS, HALF.name, HALF)
        patch.setitem(catalog._ALIASES, HALF.name, HALF.name)
        patch.setattr(registry.timm, "create_model", create)
        yield


def make_digits(folder: Path) -> None:
    import torch
    from PIL import Image
    from sklearn.datasets import load_digits

    from sit_deploy.models.card import ModelCard
    from sit_deploy.models.card_file import save_weights
    from sit_deploy.preprocessing import Preprocessing
    from tests.helpers.models import named_model

    folder.mkdir()
    model, prepare = named_model(HALF.name, num_classes=10), Preprocessing.for_model(112)
    pictures = [
        Image.fromarray((grey * 15.9).astype(np.uint8)).resize((112, 112)).convert("RGB")
        for grey in load_digits().images[:20]
    ]
    batch = torch.from_numpy(np.stack([prepare(picture) for picture in pictures]))
    with torch.no_grad():
        model.head.bias -= model(batch).mean(0)  # so that every class comes up
        likeliest = model(batch).argmax(1).tolist()
    for index, (picture, best) in enumerate(zip(pictures, likeliest, strict=True)):
        place = folder / "images" / str(best)
        place.mkdir(parents=True, exist_ok=True)
        picture.save(place / f"{index:02}.png")
    names = tuple(map(str, range(10)))
    card = ModelCard(HALF.name, HALF.stage_blocks, 0.5, (49, 24, 12, 6), 112, 10, prepare, classes=names)
    save_weights(folder / "nano.safetensors", model.state_dict(), card)


def stand_in_for_the_float_graph(
    digits: Digits, monkeypatch: pytest.MonkeyPatch, float_graph: Any = None
) -> None:
    """Let every build take a float graph made once, its own where none is given: exporting takes seconds."""

    def stand_in(work: Any, folder: Path) -> Any:
        from sit_deploy.data.image_folder import ImageFolder
        from sit_deploy.data.labelled import match_labels
        from sit_deploy.graph.write import write_graph

        chosen = digits.float_graph if float_graph is None else float_graph
        work.hops += digits.hops
        work.notes += digits.notes
        write_graph(chosen.graph, folder / "model.onnx")
        if work.request.val_data:
            work.samples = match_labels(ImageFolder(work.request.val_data), chosen.classes, 10)
        return chosen

    for module in ("lower", "calibration"):
        monkeypatch.setattr(f"sit_deploy.pipeline.{module}.make_float_graph", stand_in)


def trained_checkpoint(digits: Digits, folder: Path, thresholds: dict[str, float]) -> Path:
    """Write the checkpoint of `digits` with a card that says it was trained in int8, with these thresholds by layer."""
    from safetensors.torch import load_file

    from sit_deploy.models.card_file import read_card, save_weights

    card = replace(read_card(digits.checkpoint), quantization={"grid": "int8", "thresholds": thresholds})
    save_weights(folder / "qat.safetensors", load_file(digits.checkpoint), card)
    return folder / "qat.safetensors"
