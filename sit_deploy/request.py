"""What to build: the options of `sit-deploy build` as data, and what can be refused before anything heavy is imported."""

from __future__ import annotations

import shlex
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import engines
from sit_deploy.errors import InputError
from sit_deploy.models.card import ModelCard, read_card
from sit_deploy.models.configs import ModelConfig, get_config
from sit_deploy.parity import TOLERANCE

PRECISIONS = tuple(TOLERANCE)


@dataclass(frozen=True)
class BuildRequest:
    """What to build; the fields are the options of `sit-deploy build`.

    model: may be None where the checkpoint has a model card. stages, keeping_ratio: in place of the model's own.
    dynamic_batch: (min, opt, max), in place of `batch_size`. calib_data: folder of images for the comparisons and the
    ranges of FP16; synthetic ones without it. val_data: ImageFolder for accuracy. targets: compute capabilities.
    """

    model: str | None
    output: Path
    precision: str = "fp32"
    checkpoint: Path | None = None
    ema: bool = True
    engine: str = "auto"
    batch_size: int = 1
    dynamic_batch: tuple[int, int, int] | None = None
    image_size: int | None = None
    num_classes: int | None = None
    labels: Path | None = None
    calib_data: Path | None = None
    calib_images: int = 8
    val_data: Path | None = None
    max_accuracy_drop: float | None = None
    opset: int = 20
    targets: tuple[str, ...] = ()
    timing_cache: Path | None = None
    optimization_level: int | None = None
    threads: int | None = None
    force: bool = False
    stages: tuple[int, ...] | None = None
    keeping_ratio: float | None = None

    @property
    def config(self) -> ModelConfig:
        """The model's configuration.

        Raises:
            InputError: no model, an unknown one, or stages that do not fit it.
        """
        if self.model is None:
            raise InputError("no model was named; pass --model NAME: `sit-deploy models` lists them")
        return get_config(self.model, self.stages, self.keeping_ratio)

    @property
    def card(self) -> ModelCard | None:
        """The model card of the checkpoint, where it has one."""
        return read_card(self.checkpoint) if self.checkpoint else None

    def completed(self) -> BuildRequest:
        """Return the request with what the checkpoint's model card says where it says nothing itself.

        Raises:
            InputError: a model that nobody names, or one that contradicts the card.
        """
        card = self.card
        if card is None:
            if self.model is None and self.checkpoint is not None:
                found = (
                    "has no model card" if self.checkpoint.is_file() else "does not exist or is not a file"
                )
                raise InputError(
                    f"checkpoint {self.checkpoint} {found}; pass --model NAME with one that fits it"
                )
            return self
        theirs = get_config(card.name, card.stages, card.keeping_ratio)
        stages = card.stages if self.stages is None else self.stages
        ratio = card.keeping_ratio if self.keeping_ratio is None else self.keeping_ratio
        asked = (get_config(self.model).name if self.model else theirs.name, tuple(stages), ratio)
        trained = (theirs.name, card.stages, card.keeping_ratio)
        if asked != trained:
            raise InputError(
                f"checkpoint {self.checkpoint} is a {_spell(*trained)} by its model card, not the {_spell(*asked)} asked for; "
                "leave out --model, --stages and --keeping-ratio"
            )
        return replace(
            self,
            model=theirs.name,
            stages=card.stages,
            keeping_ratio=card.keeping_ratio,
            image_size=card.image_size if self.image_size is None else self.image_size,
        )

    def command(self, engine: str) -> str:
        """Return the command that builds the same again, its paths absolute and the output folder left to the caller."""
        options: dict[str, Any] = {
            "--model": self.config.name,
            "--stages": self.stages and ",".join(map(str, self.stages)),
            "--keeping-ratio": self.keeping_ratio,
            "--precision": self.precision,
            "--checkpoint": self.checkpoint and self.checkpoint.absolute(),
            "--engine": engine,
            "--image-size": self.image_size,
            "--num-classes": self.num_classes,
            "--labels": self.labels and self.labels.absolute(),
            "--calib-data": self.calib_data and self.calib_data.absolute(),
            "--calib-images": self.calib_images,
            "--val-data": self.val_data and self.val_data.absolute(),
            "--max-accuracy-drop": self.max_accuracy_drop,
            "--opset": self.opset,
            "--optimization-level": self.optimization_level,
        }
        if self.dynamic_batch:
            options["--dynamic-batch"] = ":".join(map(str, self.dynamic_batch))
        else:
            options["--batch-size"] = self.batch_size
        words = [str(w) for pair in options.items() if pair[1] is not None for w in pair]
        words += [w for target in self.targets for w in ("--target", target)]
        return shlex.join(["sit-deploy", "build", *words, *([] if self.ema else ["--no-ema"])])

    @property
    def batch_range(self) -> tuple[int, int]:
        """Smallest and largest batch that the engine is to take."""
        if self.dynamic_batch:
            return self.dynamic_batch[0], self.dynamic_batch[2]
        return self.batch_size, self.batch_size

    def check(self) -> None:
        """Refuse what can be refused at once.

        Raises:
            InputError, engines.EngineError: an option that is unknown, out of range or in need of another.
        """
        config = self.config
        if self.precision not in PRECISIONS:
            raise InputError(
                f"precision '{self.precision}' is not offered; choose from {', '.join(PRECISIONS)}"
            )
        if self.batch_size < 1:
            raise InputError(
                f"batch size must be at least 1, got {self.batch_size}; pass --batch-size 1 or more"
            )
        if self.dynamic_batch and self.batch_size != 1:
            raise InputError(
                f"--batch-size {self.batch_size} and --dynamic-batch exclude each other; pass one of them"
            )
        if self.calib_images < 1:
            raise InputError(
                f"number of images must be at least 1, got {self.calib_images}; pass --calib-images 1 or more"
            )
        size = config.image_size if self.image_size is None else self.image_size
        patch = config.patch_size
        if size < patch or size % patch:
            below = max(patch, size // patch * patch)
            raise InputError(
                f"image size {size} is not a positive multiple of {patch}; take {below} or {below + patch}"
            )
        if self.max_accuracy_drop is not None and self.val_data is None:
            raise InputError("--max-accuracy-drop needs images with labels; pass --val-data DIR")
        engines.BuildOptions(  # raises for values that no engine takes
            dynamic_batch=self.dynamic_batch,
            optimization_level=self.optimization_level,
            threads=self.threads,
        )


def _spell(name: str, stages: tuple[int, ...], keeping_ratio: float) -> str:
    return f"{name} of stages {','.join(map(str, stages))} and keeping ratio {keeping_ratio:g}"
