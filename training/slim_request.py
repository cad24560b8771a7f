"""What to slim: the options of `sit-deploy slim` as data."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sit_deploy import limits
from sit_deploy.data.image_files import find_images
from sit_deploy.errors import InputError
from sit_deploy.models.card_file import read_card
from sit_deploy.models.catalog import get_config
from sit_deploy.models.config import ModelConfig, example_stages
from sit_deploy.models.file_kind import find_file
from sit_deploy.models.hub import is_place
from sit_deploy.pipeline.request import BuildRequest
from sit_deploy.pipeline.request_check import check_given_files
from sit_deploy.schema import convert_fields
from sit_deploy.text import file_name, require_utf8
from training.slim_options import BATCH_SIZE, LR, SECONDS, held_out

_LARGEST = {
    "steps": limits.STEPS,
    "batch_size": limits.BATCH,
    "seed": limits.SEED,
    "max_damaged": limits.IMAGES,
    "image_size": limits.PIXELS,
    "num_classes": limits.CLASSES,
}
# what is loaded as `sit-deploy build` loads it
_LOADED = (
    "checkpoint", "pretrained", "checkpoint_key", "ema", "image_size", "num_classes", "mean", "std", "crop_mode", "crop_pct", "interpolation", "orientation",
    "val_data", "data_dir", "split", "image_key", "label_key",
)  # fmt: skip


@dataclass(frozen=True)
class SlimRequest:
    """What to slim; the fields are the options of `sit-deploy slim`.

    Attributes:
        model: the slimmed model, or an unslimmed one whose stages are given; may be None where the checkpoint names the latter.
        images: folder of images, or a file, without labels.
        output: the file of the weights; None for MODEL-slim.safetensors.
        checkpoint: weights of the unslimmed model.
        pretrained, checkpoint_key, ema, image_size, num_classes: see `sit_deploy.pipeline.request.BuildRequest`; the preprocessing and the labelled images
            too (`val_data` and those after it).
        stages, keeping_ratio, kept: in place of the model's own.
        seconds: that fitting may take, the features of images included; SECONDS if None.
        steps: of fitting, in place of seconds.
        batch_size: images a step.
        lr: the largest learning rate.
        max_damaged: images that may be unreadable.
        force: replace a file that is there.
    """

    model: str | None
    images: Path
    output: Path | None = None
    checkpoint: Path | None = None
    pretrained: bool = False
    stages: tuple[int, ...] | None = None
    keeping_ratio: float | None = None
    kept: tuple[int, ...] | None = None
    checkpoint_key: str | None = None
    ema: bool = True
    image_size: int | None = None
    num_classes: int | None = None
    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None
    crop_mode: str | None = None
    crop_pct: float | None = None
    interpolation: str | None = None
    orientation: str | None = None
    val_data: str | None = None
    data_dir: Path | None = None
    split: str | None = None
    image_key: str | None = None
    label_key: str | None = None
    seconds: float | None = None
    steps: int | None = None
    batch_size: int = BATCH_SIZE
    lr: float = LR
    seed: int = 0
    device: str = "auto"
    max_damaged: int = 100
    force: bool = False

    def __post_init__(self) -> None:
        convert_fields(self)

    def check(self) -> SlimRequest:
        """Refuse what can be refused at once; return the request with what fitting takes where nothing is said.

        Raises:
            InputError: an option that is out of range, or that goes not with another.
        """
        limits.check_numbers(self, _LARGEST)
        require_utf8(**{k: v for k, v in vars(self).items() if k != "val_data"})
        for name, least in (
            ("steps", 1),
            ("batch_size", 1),
            ("image_size", 1),
            ("num_classes", 1),
            ("seed", 0),
            ("max_damaged", 0),
        ):
            value = getattr(self, name)
            if value is not None and value < least:
                raise InputError(f"--{name.replace('_', '-')} must be at least {least}, got {value}")
        for name, most in (("seconds", limits.SECONDS), ("lr", 1.0)):
            value = getattr(self, name)
            if value is not None and not 0 < value <= most:
                raise InputError(f"--{name} must be above 0 and at most {most:g}, got {value:g}")
        if self.seconds is not None and self.steps is not None:
            raise InputError("--seconds and --steps both say when fitting ends; leave one out")
        if self.checkpoint is None and not self.pretrained and not is_place(self.model):
            raise InputError(
                "what is slimmed is a trained model; pass its weights with --checkpoint, or --pretrained for timm's own"
            )
        seconds = SECONDS if self.seconds is None and self.steps is None else self.seconds
        self._check_files()
        return replace(self, seconds=seconds)

    def _check_files(self) -> None:
        """Refuse images, labelled ones and a place for the weights that cannot be, as far as can be told without PyTorch and the network."""
        count = len(find_images(self.images).images)
        if count - held_out(count) < self.batch_size:
            raise InputError(
                f"{count} image{'s' * (count > 1)} are fewer than the {self.batch_size} of one step and {held_out(count)} to check on; add some, "
                "or pass a smaller --batch-size"
            )
        check_given_files(self._loads(None))
        if not (self.pretrained or is_place(self.model) or is_place(self.checkpoint)):
            teacher = self.teacher()
            self.destination(self.config(teacher).name)

    def _loads(self, model: str | None) -> BuildRequest:
        """Return what loads the unslimmed model of a name."""
        values: dict[str, Any] = {field: getattr(self, field) for field in _LOADED}
        return BuildRequest(model, None, **values)

    def teacher(self) -> BuildRequest:
        """Return what loads the unslimmed model; of repositories, nothing but a config.json is fetched.

        Raises:
            InputError: as `BuildRequest.named`, a model that slims nothing, or a checkpoint that is slimmed.
        """
        if self.checkpoint is not None and not is_place(self.checkpoint):
            self._refuse_slimmed(find_file(self.checkpoint))
        name = self.model
        if name is not None and not is_place(name):
            config = self._config(name)
            name = config.teacher or config.name
        return self._loads(name).named()

    def config(self, teacher: BuildRequest) -> ModelConfig:
        """Return the configuration of the slimmed model.

        Args:
            teacher: what loads the unslimmed one, its model named.

        Raises:
            InputError: it slims nothing, or see `get_config`.
        """
        own = self.model is not None and not is_place(self.model)
        return self._config(str(self.model if own else teacher.config.name))

    def _config(self, name: str) -> ModelConfig:
        config = get_config(name, self.stages, self.keeping_ratio, self.kept)
        if len(config.stage_blocks) == 1:
            example = ",".join(map(str, example_stages(config.depth)))
            raise InputError(
                f"{config.name} slims nothing; say after how many of its {config.depth} blocks tokens are merged: --stages {example}"
            )
        return config

    def _refuse_slimmed(self, checkpoint: Path) -> None:
        card = read_card(checkpoint)
        if card and len(card.stages) > 1:
            unslimmed = get_config(card.name, card.stages, card.keeping_ratio, card.kept).teacher
            raise InputError(
                f"checkpoint {checkpoint} is a {card.name} of {'/'.join(map(str, card.tokens))} tokens, slimmed already; give that of the "
                f"unslimmed {unslimmed or 'model'}, or deploy it: sit-deploy build --checkpoint {checkpoint}"
            )

    def destination(self, name: str) -> Path:
        """Return the file to write, which can be written as far as can be told.

        Args:
            name: of the slimmed model.

        Raises:
            InputError: it exists, is the checkpoint itself, has another ending or lies in no folder.
        """
        path = self.output or Path(f"{file_name(name)}-slim.safetensors")
        if path.suffix != ".safetensors" or path.is_dir():
            raise InputError(
                f"output {path} must be a file that ends in .safetensors; pass for example -o student.safetensors"
            )
        if self.checkpoint is not None and path.exists() and path.samefile(find_file(self.checkpoint)):
            raise InputError(f"output {path} is the checkpoint itself; choose another -o")
        if path.exists() and not self.force:
            raise InputError(f"output {path} exists; pass --force to replace it, or choose another -o")
        folder = path.absolute().parent
        if not folder.is_dir():
            raise InputError(f"folder {folder} does not exist; make it, or choose another -o")
        if not os.access(folder, os.W_OK | os.X_OK):
            raise InputError(f"folder {folder} cannot be written to; choose another -o")
        return path
