"""What to build: the options of `sit-deploy build` as data."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import engines
from engines.base import Progress
from sit_deploy.data.damaged import USUAL_LIMIT
from sit_deploy.errors import InputError
from sit_deploy.methods import TRAINING_FREE
from sit_deploy.models.card import ModelCard
from sit_deploy.models.card_file import read_card
from sit_deploy.models.catalog import get_config
from sit_deploy.models.config import ModelConfig
from sit_deploy.models.config_json import ConfigJson
from sit_deploy.models.file_kind import find_file
from sit_deploy.models.hub import is_place, open_published, origin, place_of, resolve
from sit_deploy.models.timm_name import timm_architecture
from sit_deploy.outputs import LOGITS, in_order, listing
from sit_deploy.schema import convert_fields

INPUTS = ("float32", "uint8")
CALIBRATION_PERCENTILE = 99.99
CALIBRATION_IMAGES = 256  # images that 8 bits are calibrated on, and FP16 ranges observed, by default
AUTO = ("auto",)  # groups: those that measuring on the engine chooses
TUNE_SECONDS = 120.0  # of that, by default
OPSETS = (17, 18, 19, 20, 23)  # those that are written
COMPARED_IMAGES = 8  # images that hops are compared on by default


@dataclass(frozen=True)
class BuildRequest:
    """What to build; the fields are the options of `sit-deploy build`.

    Attributes:
        model: may be None where the checkpoint has a model card, or a config.json beside it.
            A repository or folder (`models.hub`) is its model and its weights.
        output: None for the model's name, and the precision of a bundle.
        fetched_from: the repository or folder that `checkpoint` is of, at its commit.
        stages, keeping_ratio, kept, method: in place of the model's own.
        pretrained: take timm's own weights of the model.
        checkpoint_key: where in the checkpoint the weights are, if it has several (`read_checkpoint`).
        outputs: of the graph (`sit_deploy.outputs`); None for logits, or features of a model without a classifier.
        dynamic_batch: (min, opt, max), in place of `batch_size`.
        calib_data: folder of images for the comparisons, the ranges of FP16 and the calibration of 8 bits; synthetic ones
            without it.
        val_data: labelled images for accuracy, and data_dir, split, image_key, label_key which of them
            (`sit_deploy.data.labelled.open_labelled`).
        targets: compute capabilities.
        workspace: MiB of scratch memory of one layer.
        quantize: groups of layers for 8 bits (`calibration.plan`); AUTO for those that measuring on the engine chooses. None is
            AUTO for an engine that runs here, else the default groups.
        tune_seconds: of that measuring; TUNE_SECONDS if None.
        min_sqnr: dB of the logits against float32 that the chosen plan keeps.
        rest: what an int8 or fp8 graph holds beside, "fp32", "fp16" or "bf16"; None for what the engine likes.
        input: "uint8" for a graph that takes pixels and normalises by itself.
        sensitivity: measure every layer alone.
        max_damaged: images of calib_data and val_data that may be unreadable; they are left out.
        allow_wider_kernels: keep an engine whose kernels multiply in more bits than was asked for.
        mean, std, crop_mode, crop_pct, interpolation, orientation: of the preprocessing, in place of what else says it
            (`models.data_config`).
    """

    model: str | None = None
    output: Path | None = None
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
    calib_images: int | None = None
    calib_method: str = "auto"
    calib_percentile: float = CALIBRATION_PERCENTILE
    calib_cache: Path | None = None
    quantize: tuple[str, ...] | None = None
    tune_seconds: float | None = None
    min_sqnr: float | None = None
    rest: str | None = None
    input: str = "float32"
    sensitivity: bool = False
    val_data: str | None = None
    data_dir: Path | None = None
    split: str | None = None
    image_key: str | None = None
    label_key: str | None = None
    max_accuracy_drop: float | None = None
    opset: int = 20
    targets: tuple[str, ...] = ()
    timing_cache: Path | None = None
    optimization_level: int | None = None
    workspace: int | None = None
    hardware_compatibility: str | None = None
    version_compatible: bool = False
    strip_weights: bool = False
    refit: bool = False
    allow_wider_kernels: bool = False
    profiling: str = "detailed"
    threads: int | None = None
    force: bool = False
    stages: tuple[int, ...] | None = None
    keeping_ratio: float | None = None
    kept: tuple[int, ...] | None = None
    method: str | None = None
    checkpoint_key: str | None = None
    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None
    crop_mode: str | None = None
    crop_pct: float | None = None
    interpolation: str | None = None
    orientation: str | None = None
    pretrained: bool = False
    outputs: tuple[str, ...] | None = None
    max_damaged: int = USUAL_LIMIT
    fetched_from: str | None = None

    def __post_init__(self) -> None:
        if isinstance(self.val_data, os.PathLike):
            object.__setattr__(self, "val_data", os.fsdecode(self.val_data))
        convert_fields(self)
        if self.outputs is not None:
            object.__setattr__(self, "outputs", in_order(self.outputs))

    @property
    def config(self) -> ModelConfig:
        """The model's configuration.

        Raises:
            InputError: no model, an unknown one, or stages that do not fit it.
        """
        if self.model is None:
            raise InputError("no model was named; pass --model NAME: `sit-deploy models` lists them")
        return get_config(self.model, self.stages, self.keeping_ratio, self.kept, self.method)

    @property
    def card(self) -> ModelCard | None:
        """The model card of the checkpoint, where it has one."""
        return read_card(self.checkpoint) if self.checkpoint else None

    def named(self, model_option: str = "--model") -> BuildRequest:
        """Return the request with its model's name, where that can be told without fetching weights.

        Of a repository only config.json is fetched: `checkpoint` stays one, at its commit, until the request is completed.

        Args:
            model_option: what names the model on the command line that this is for.

        Raises:
            InputError: as `completed`, and `sit_deploy.models.hub.resolve`.
        """
        if self.pretrained and self.stages and len(self.stages) > 1:
            stages = ",".join(map(str, self.stages))
            raise InputError(
                f"timm's weights of {self.model} are of the model that slims nothing; slim it first: sit-deploy train --model "
                f"{self.model} --stages {stages} --pretrained"
            )
        start = resolve(self.model, self.checkpoint, self.pretrained)
        request = replace(
            self,
            model=start.model,
            checkpoint=start.weights,
            pretrained=False,
            image_size=start.image_size if self.image_size is None else self.image_size,
        )
        return request if request.awaits_weights else request.completed(model_option)

    @property
    def awaits_weights(self) -> bool:
        """Whether its weights are yet to be fetched."""
        return is_place(self.checkpoint)

    def completed(self, model_option: str = "--model", progress: Progress | None = None) -> BuildRequest:
        """Return the request with what the checkpoint's model card says where it says nothing itself.

        A folder of a checkpoint becomes the file that it means; of a repository, the file is fetched.

        Args:
            model_option: what names the model on the command line that this is for.
            progress: of fetching (`sit_deploy.models.hub_client.fetch`).

        Raises:
            InputError: a model that nobody names, or one that contradicts the card.
        """
        if self.pretrained or is_place(self.model):
            return self.named(model_option).completed(model_option, progress)
        if self.awaits_weights:
            place = str(self.checkpoint)
            path = open_published(place).weights(progress)
            place = place_of(path) if origin(path) else place
            return replace(self, checkpoint=path, fetched_from=place).completed(model_option)
        if self.checkpoint is not None and (file := find_file(self.checkpoint)) != self.checkpoint:
            return replace(self, checkpoint=file).completed(model_option)
        card = self.card
        if card is None:
            if self.model is None and self.checkpoint is not None:
                config = ConfigJson.beside(self.checkpoint)
                if config.names_a_model and self.checkpoint.is_file():
                    name = timm_architecture(config, str(self.checkpoint))
                    size = config.image_size if self.image_size is None else self.image_size
                    return replace(self, model=name, image_size=size)
                found = (
                    "has no model card" if self.checkpoint.is_file() else "does not exist or is not a file"
                )
                if self.fetched_from:
                    raise InputError(
                        f"{self.fetched_from} has neither a config.json nor a model card that names its model; name the one that fits it with "
                        f"{model_option}, and give {self.fetched_from} as its weights"
                    )
                raise InputError(
                    f"checkpoint {self.checkpoint} {found}; pass {model_option} NAME with one that fits it"
                )
            return self
        if self.method in TRAINING_FREE:
            return self._without_training(card, model_option)
        theirs = get_config(card.name, card.stages, card.keeping_ratio, card.kept)
        size = card.image_size if self.image_size is None else self.image_size
        name = get_config(self.model).name if self.model else theirs.name
        stages = card.stages if self.stages is None else tuple(self.stages)
        ratio, kept = self.keeping_ratio, self.kept
        if ratio is None and kept is None:
            ratio, kept = card.keeping_ratio, theirs.kept_at(size)
        same_tokens = kept[1:] == card.tokens[1:] if kept else ratio == card.keeping_ratio
        if (name, stages) != (theirs.name, card.stages) or not same_tokens:
            trained = _spell(theirs.name, card.stages, card.keeping_ratio, card.tokens if kept else card.kept)
            option = "--keeping-ratio" if self.kept is None else "--kept"
            slims = len(card.stages) == 1 < len(stages) and model_option == "--model"
            also = ", or slim it without training: --method transform" if slims else ""
            raise InputError(
                f"checkpoint {self.checkpoint} is a {trained} by its model card, not the {_spell(name, stages, ratio, kept)} asked for; "
                f"leave out {model_option}{f', --stages and {option}' if model_option == '--model' else ''}{also}"
            )
        return replace(
            self, model=theirs.name, stages=card.stages, keeping_ratio=ratio, kept=kept, image_size=size
        )

    def _without_training(self, card: ModelCard, model_option: str) -> BuildRequest:
        """As `completed`, for an unslimmed checkpoint whose tokens are merged without training."""
        config = get_config(self.model or card.name, self.stages, self.keeping_ratio, self.kept, self.method)
        theirs = get_config(card.name, card.stages)
        if len(card.stages) > 1:
            trained = _spell(theirs.name, card.stages, card.keeping_ratio, card.kept)
            raise InputError(
                f"checkpoint {self.checkpoint} is a {trained} by its model card, slimmed by what was trained for it; leave out --method, or "
                "give the checkpoint of an unslimmed model"
            )
        if config.name != theirs.name:
            raise InputError(
                f"checkpoint {self.checkpoint} is a {theirs.name} by its model card, and {self.model} is made of a {config.name}; leave out "
                f"{model_option}, and pass --stages"
            )
        size = card.image_size if self.image_size is None else self.image_size
        return replace(self, model=config.name, stages=config.stage_blocks, image_size=size)

    def in_high_precision(self, precision: str | None = None) -> BuildRequest:
        """Return the request for a whole graph in a float precision: that beside 8 bits, if none is named."""
        return replace(
            self,
            precision=precision or self.high,
            calib_images=None,
            calib_method="auto",
            calib_percentile=CALIBRATION_PERCENTILE,
            calib_cache=None,
            quantize=None,
            tune_seconds=None,
            min_sqnr=None,
            rest=None,
            sensitivity=False,
        )

    @property
    def needs_no_head(self) -> bool:
        """Whether outputs were asked for, and no logits among them."""
        return self.outputs is not None and LOGITS not in self.outputs

    def require_logits(self, names: Sequence[str]) -> None:
        """Refuse what needs classes of a graph that has none.

        Args:
            names: of the graph's outputs.

        Raises:
            InputError: labelled images, or names of classes.
        """
        given = "--val-data" if self.val_data else "--labels" if self.labels else None
        if given and LOGITS not in names:
            raise InputError(
                f"{given} needs classes, and what is built gives {listing(names)} and no logits; leave it out"
            )

    @property
    def val_options(self) -> dict[str, Any]:
        """Which of the labelled images, as `sit_deploy.data.labelled.open_labelled` takes it."""
        keys = {"image_key": self.image_key, "label_key": self.label_key}
        return {"root": self.data_dir, "split": self.split, **keys}

    @property
    def high(self) -> str:
        """The precision of what is not in 8 bits."""
        return self.rest or "fp32"

    @property
    def trained_thresholds(self) -> dict[str, float] | None:
        """The model's own thresholds by layer, where it was trained in this precision (`train --qat`).

        None where something asks for others.
        """
        trained = self.card.quantization if self.card else None
        asked = self.calib_cache or (self.quantize and not self.tunes)
        if not trained or trained["grid"] != self.precision or asked:
            return None
        return trained["thresholds"]

    @property
    def tunes(self) -> bool:
        """Whether the layers for 8 bits are chosen by measuring on the engine."""
        return self.quantize == AUTO

    @property
    def has_limit(self) -> bool:
        """Whether 8 bits have to keep something, and else give way to a float precision."""
        return self.max_accuracy_drop is not None or self.min_sqnr is not None

    @property
    def usual_batch(self) -> int:
        """The batch that the engine is tuned for."""
        return self.dynamic_batch[1] if self.dynamic_batch else self.batch_size

    @property
    def batch_range(self) -> tuple[int, int]:
        """Smallest and largest batch that the engine is to take."""
        if self.dynamic_batch:
            return self.dynamic_batch[0], self.dynamic_batch[2]
        return self.batch_size, self.batch_size

    def engine_options(self) -> engines.BuildOptions:
        """The options that the engine is built with.

        Raises:
            engines.EngineBuildError: a value that no engine takes.
        """
        return engines.BuildOptions(
            dynamic_batch=self.dynamic_batch,
            optimization_level=self.optimization_level,
            timing_cache=self.timing_cache,
            compute_capabilities=self.targets,
            workspace_bytes=None if self.workspace is None else self.workspace << 20,
            hardware_compatibility=self.hardware_compatibility,
            version_compatible=self.version_compatible,
            strip_weights=self.strip_weights,
            refit=self.refit,
            profiling=self.profiling,
            threads=self.threads,
        )


def _spell(
    name: str, stages: tuple[int, ...], keeping_ratio: float | None, kept: tuple[int, ...] | None
) -> str:
    tokens = f"keeping {','.join(map(str, kept))} tokens" if kept else f"and keeping ratio {keeping_ratio:g}"
    return f"{name} of stages {','.join(map(str, stages))} {tokens}"
