"""What to build: the options of `sit-deploy build` as data, and what can be refused before anything heavy is imported."""

from __future__ import annotations

import os
import shlex
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import engines
from sit_deploy import limits
from sit_deploy.errors import InputError
from sit_deploy.limits import check_numbers
from sit_deploy.models.card import ModelCard
from sit_deploy.models.card_file import read_card
from sit_deploy.models.catalog import get_config
from sit_deploy.models.config import ModelConfig, check_class_count
from sit_deploy.models.file_kind import find_file
from sit_deploy.precisions import EIGHT_BITS, PRECISIONS
from sit_deploy.schema import convert_fields
from sit_deploy.text import require_utf8

INPUTS = ("float32", "uint8")
CALIBRATION_PERCENTILE = 99.99
OLDEST_ONNXRUNTIME = (1, 26)  # for 8 bits
OLDEST_FP8_OPSET = 19  # of ONNX: QuantizeLinear to E4M3, and from FP16
CALIBRATION_IMAGES = 256  # images that 8 bits are calibrated on by default
OPSETS = (17, 20)  # oldest and newest that are written
COMPARED_IMAGES = 8  # images that hops are compared on, and FP16 ranges observed, by default
_LARGEST = {
    "batch_size": limits.BATCH,
    "image_size": limits.PIXELS,
    "num_classes": limits.CLASSES,
    "calib_images": limits.STREAMED,
    "workspace": limits.MEBIBYTES,
    "threads": limits.THREADS,
    "keeping_ratio": 1,
    "calib_percentile": 100,
}


@dataclass(frozen=True)
class BuildRequest:
    """What to build; the fields are the options of `sit-deploy build`.

    Attributes:
        model: may be None where the checkpoint has a model card.
        stages, keeping_ratio: in place of the model's own.
        checkpoint_key: where in the checkpoint the weights are, if it has several (`read_checkpoint`).
        dynamic_batch: (min, opt, max), in place of `batch_size`.
        calib_data: folder of images for the comparisons, the ranges of FP16 and the calibration of 8 bits; synthetic ones
            without it.
        val_data: labelled images for accuracy, and data_dir, split, image_key, label_key which of them
            (`sit_deploy.data.labelled.open_labelled`).
        targets: compute capabilities.
        workspace: MiB of scratch memory of one layer.
        quantize: groups of layers for 8 bits (`calibration.plan`).
        rest: what an int8 or fp8 graph holds beside, "fp32" or "fp16"; None for what the engine likes.
        input: "uint8" for a graph that takes pixels and normalises by itself.
        sensitivity: measure every layer alone.
        mean, std, crop_pct, interpolation, orientation: of the preprocessing, in place of what else says it
            (`models.data_config`).
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
    calib_images: int | None = None
    calib_method: str = "auto"
    calib_percentile: float = CALIBRATION_PERCENTILE
    calib_cache: Path | None = None
    quantize: tuple[str, ...] | None = None
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
    profiling: str = "detailed"
    threads: int | None = None
    force: bool = False
    stages: tuple[int, ...] | None = None
    keeping_ratio: float | None = None
    checkpoint_key: str | None = None
    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None
    crop_pct: float | None = None
    interpolation: str | None = None
    orientation: str | None = None

    def __post_init__(self) -> None:
        if isinstance(self.val_data, os.PathLike):
            object.__setattr__(self, "val_data", os.fsdecode(self.val_data))
        convert_fields(self)

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

    def completed(self, model_option: str = "--model") -> BuildRequest:
        """Return the request with what the checkpoint's model card says where it says nothing itself.

        A folder of a checkpoint becomes the file that it means.

        Args:
            model_option: what names the model on the command line that this is for.

        Raises:
            InputError: a model that nobody names, or one that contradicts the card.
        """
        if self.checkpoint is not None and self.checkpoint.is_dir():
            return replace(self, checkpoint=find_file(self.checkpoint)).completed(model_option)
        card = self.card
        if card is None:
            if self.model is None and self.checkpoint is not None:
                found = (
                    "has no model card" if self.checkpoint.is_file() else "does not exist or is not a file"
                )
                raise InputError(
                    f"checkpoint {self.checkpoint} {found}; pass {model_option} NAME with one that fits it"
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
                f"leave out {model_option}{', --stages and --keeping-ratio' if model_option == '--model' else ''}"
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
        from sit_deploy.models.data_config import from_options

        options: dict[str, Any] = {
            "--model": self.config.name,
            "--stages": self.stages and ",".join(map(str, self.stages)),
            "--keeping-ratio": self.keeping_ratio,
            "--precision": self.precision,
            "--checkpoint": self.checkpoint and self.checkpoint.absolute(),
            "--checkpoint-key": self.checkpoint_key,
            "--engine": engine,
            "--image-size": self.image_size,
            "--num-classes": self.num_classes,
            "--labels": self.labels and self.labels.absolute(),
            **from_options(self).options(),
            "--calib-data": self.calib_data and self.calib_data.absolute(),
            "--calib-images": self.calib_images,
            **(self._eight_bit_options() if self.precision in EIGHT_BITS else {}),
            "--val-data": self.val_data and _absolute(self.val_data),
            "--data-dir": self.data_dir and self.data_dir.absolute(),
            "--split": self.split,
            "--image-key": self.image_key,
            "--label-key": self.label_key,
            "--max-accuracy-drop": self.max_accuracy_drop,
            "--input": self.input if self.input != "float32" else None,
            "--opset": self.opset,
            "--optimization-level": self.optimization_level,
            "--workspace": self.workspace,
            "--hardware-compatibility": self.hardware_compatibility,
            "--profiling": self.profiling if self.profiling != "detailed" else None,
        }
        if self.dynamic_batch:
            options["--dynamic-batch"] = ":".join(map(str, self.dynamic_batch))
        else:
            options["--batch-size"] = self.batch_size
        words = [str(w) for pair in options.items() if pair[1] is not None for w in pair]
        words += [w for target in self.targets for w in ("--target", target)]
        for name in ("sensitivity", "version_compatible", "strip_weights", "refit"):
            words += [f"--{name.replace('_', '-')}"] if getattr(self, name) else []
        return shlex.join(["sit-deploy", "build", *words, *([] if self.ema else ["--no-ema"])])

    def _eight_bit_options(self) -> dict[str, Any]:
        return {
            "--calib-method": self.calib_method,
            "--calib-percentile": self.calib_percentile if self.calib_method == "percentile" else None,
            "--calib-cache": self.calib_cache and self.calib_cache.absolute(),
            "--quantize": self.quantize and ",".join(self.quantize),
            "--rest": self.rest,
        }

    def in_high_precision(self) -> BuildRequest:
        """Return the request for what 8 bits are measured against: the precision of their rest for the whole graph."""
        return replace(
            self,
            precision=self.high,
            calib_images=None,
            calib_method="auto",
            calib_percentile=CALIBRATION_PERCENTILE,
            calib_cache=None,
            quantize=None,
            rest=None,
            sensitivity=False,
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
        if not trained or trained["grid"] != self.precision or self.calib_cache or self.quantize:
            return None
        return trained["thresholds"]

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
        from sit_deploy.models.data_config import from_options

        require_utf8(**(vars(self) | {"val_data": Path(self.val_data) if self.val_data else None}))
        config = self.config
        check_numbers(self, _LARGEST)
        from_options(self)  # raises for values out of range
        if self.precision not in PRECISIONS:
            raise InputError(
                f"precision '{self.precision}' is not offered; choose from {', '.join(PRECISIONS)}"
            )
        if self.input not in INPUTS:
            raise InputError(f"--input {self.input} is not offered; choose {' or '.join(INPUTS)}")
        if self.batch_size < 1:
            raise InputError(
                f"batch size must be at least 1, got {self.batch_size}; pass --batch-size 1 or more"
            )
        if self.dynamic_batch and self.dynamic_batch[2] > limits.BATCH:
            raise InputError(f"--dynamic-batch goes up to {limits.BATCH}, got {self.dynamic_batch[2]}")
        if self.dynamic_batch and self.batch_size != 1:
            raise InputError(
                f"--batch-size {self.batch_size} and --dynamic-batch exclude each other; pass one of them"
            )
        if self.num_classes is not None:
            check_class_count(self.num_classes)
        if self.calib_images is not None and self.calib_images < 1:
            raise InputError(
                f"number of images must be at least 1, got {self.calib_images}; pass --calib-images 1 or more"
            )
        if self.calib_images is not None and self.calib_images > (held := self._held_images):
            raise InputError(
                f"{self.calib_images} images would be {'made up' if self.calib_data is None else 'held in memory'} to compare on; "
                f"pass --calib-images {held} or fewer"
            )
        if not OPSETS[0] <= self.opset <= OPSETS[1]:
            raise InputError(f"opset must be {OPSETS[0]} to {OPSETS[1]}, got {self.opset}; leave --opset out")
        self._check_eight_bits()
        size = config.image_size if self.image_size is None else self.image_size
        patch = config.patch_size
        if size < patch or size % patch:
            below = max(patch, size // patch * patch)
            raise InputError(
                f"image size {size} is not a positive multiple of {patch}; take {below} or {below + patch}"
            )
        if self.max_accuracy_drop is not None and not 0 <= self.max_accuracy_drop <= 100:
            raise InputError(
                f"--max-accuracy-drop is in points of top-1, 0 to 100, got {self.max_accuracy_drop:g}"
            )
        if self.val_data is None:
            for name in ("max_accuracy_drop", "data_dir", "split", "image_key", "label_key"):
                if getattr(self, name) is not None:
                    raise InputError(
                        f"--{name.replace('_', '-')} needs images with labels; pass --val-data DIR"
                    )
        self.engine_options()  # raises for values that no engine takes

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

    @property
    def _held_images(self) -> int:
        """The most images that may be asked for: made ones stay in memory, and so do all where none are calibrated on."""
        if self.calib_data is None:
            return limits.SYNTHETIC
        return limits.STREAMED if self.precision in EIGHT_BITS else limits.HELD

    def _check_eight_bits(self) -> None:
        if self.precision not in EIGHT_BITS:
            given = [
                f"--{name.replace('_', '-')}"
                for name in ("calib_cache", "quantize", "rest", "sensitivity")
                if getattr(self, name)
            ]
            given += ["--calib-method"] if self.calib_method != "auto" else []
            given += ["--calib-percentile"] if self.calib_percentile != CALIBRATION_PERCENTILE else []
            if given:
                raise InputError(f"{given[0]} is for 8 bits; pass --precision int8 or fp8 with it")
            return
        _check_onnxruntime()
        from calibration.thresholds import METHODS_OF

        methods = ("auto", *METHODS_OF[self.precision])
        if self.calib_method not in methods:
            raise InputError(
                f"{self.precision} has no calibration method '{self.calib_method}'; choose from {', '.join(methods)}"
            )
        if self.precision == "fp8" and self.opset < OLDEST_FP8_OPSET:
            raise InputError(
                f"fp8 needs opset {OLDEST_FP8_OPSET}, got {self.opset}; leave --opset out, or pass --precision int8"
            )
        if self.rest not in (None, "fp32", "fp16"):
            raise InputError(f"--rest {self.rest} is not offered; choose fp32 or fp16")
        if self.rest == "fp16" and self.opset < OLDEST_FP8_OPSET:
            raise InputError(
                f"int8 beside fp16 needs opset {OLDEST_FP8_OPSET}, got {self.opset}; leave --opset out, or pass --rest fp32"
            )
        if not 0 < self.calib_percentile <= 100:
            raise InputError(
                f"--calib-percentile must be above 0 and at most 100, got {self.calib_percentile:g}"
            )
        self._check_calibration()

    def _check_calibration(self) -> None:
        """Refuse a request that nothing says the ranges of, or nothing can be measured on."""
        if self.calib_cache and not self.calib_cache.exists():
            if not self.calib_data:
                raise InputError(
                    f"calibration cache {self.calib_cache} does not exist; make one with sit-deploy calibrate, or pass "
                    "--calib-data DIR too"
                )
            folder = self.calib_cache.absolute().parent
            if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
                raise InputError(
                    f"folder {folder} of the calibration cache does not exist or cannot be written; choose another place"
                )
        if self.checkpoint and not (self.calib_data or self.calib_cache or self.trained_thresholds):
            raise InputError(
                f"{self.precision} needs images to calibrate on; pass --calib-data DIR with some hundred pictures "
                "like those to come, or --calib-cache FILE from sit-deploy calibrate"
            )
        synthetic = not (self.checkpoint or self.calib_cache)
        if self.sensitivity and not (self.calib_data or self.val_data or synthetic):
            raise InputError("--sensitivity needs images; pass --calib-data DIR or --val-data DIR")


def _check_onnxruntime() -> None:
    """Refuse 8 bits with a release that runs their graphs wrongly: it fuses Q/DQ otherwise, and loads no FP8 weights."""
    found = engines.get("onnxruntime").probe().version or "none"
    if not found[:1].isdigit() or tuple(int(part) for part in found.split(".")[:2]) < OLDEST_ONNXRUNTIME:
        raise InputError(
            f"int8 and fp8 need ONNX Runtime {'.'.join(map(str, OLDEST_ONNXRUNTIME))} or newer to be measured with, and {found} "
            "is installed; run `pip install -U onnxruntime` (with Python 3.11 or newer)"
        )


def _absolute(data: str) -> str:
    """Return where labelled images are from anywhere: a folder's absolute path, or a data set's name as it is."""
    return str(Path(data).absolute()) if Path(data).is_dir() else str(data)


def _spell(name: str, stages: tuple[int, ...], keeping_ratio: float) -> str:
    return f"{name} of stages {','.join(map(str, stages))} and keeping ratio {keeping_ratio:g}"
