"""What of a build's request can be refused before anything heavy is imported."""

from __future__ import annotations

import os
from pathlib import Path

import engines
from engines.base import ATTENTION_OPSET
from engines.install import pip_install
from sit_deploy import limits
from sit_deploy.errors import InputError
from sit_deploy.limits import check_numbers
from sit_deploy.models.config import check_class_count, takes_side
from sit_deploy.models.hub import open_published
from sit_deploy.pipeline.classes import known_classes, published_classes
from sit_deploy.pipeline.request import (
    AUTO,
    CALIBRATION_PERCENTILE,
    INPUTS,
    OPSETS,
    TUNE_SECONDS,
    BuildRequest,
)
from sit_deploy.precisions import EIGHT_BITS, FLOATS, PRECISIONS
from sit_deploy.text import require_utf8

OLDEST_ONNXRUNTIME = (1, 26)  # for 8 bits
OLDEST_FP8_OPSET = 19  # of ONNX: QuantizeLinear to E4M3, and from FP16
_MOST_DB = 200  # of logits: float32's own rounding is at 120 or so
_LARGEST = {
    "batch_size": limits.BATCH,
    "image_size": limits.PIXELS,
    "num_classes": limits.CLASSES,
    "calib_images": limits.STREAMED,
    "max_damaged": limits.IMAGES,
    "workspace": limits.MEBIBYTES,
    "threads": limits.THREADS,
    "keeping_ratio": 1,
    "calib_percentile": 100,
    "tune_seconds": limits.SECONDS,
    "min_sqnr": _MOST_DB,
}


def check_request(request: BuildRequest) -> None:
    """Refuse what can be refused at once.

    Raises:
        InputError, engines.EngineError, calibration.CalibrationError: an option that is unknown, out of range or in need of another.
    """
    from sit_deploy.models.data_config import from_options

    require_utf8(**(vars(request) | {"val_data": Path(request.val_data) if request.val_data else None}))
    unnamed = request.model is None and request.awaits_weights  # what a card in them has to say
    config = None if unnamed else request.config
    check_numbers(request, _LARGEST)
    from_options(request)  # raises for values out of range
    if request.precision not in PRECISIONS:
        raise InputError(
            f"precision '{request.precision}' is not offered; choose from {', '.join(PRECISIONS)}"
        )
    if request.input not in INPUTS:
        raise InputError(f"--input {request.input} is not offered; choose {' or '.join(INPUTS)}")
    if request.batch_size < 1:
        raise InputError(
            f"batch size must be at least 1, got {request.batch_size}; pass --batch-size 1 or more"
        )
    if request.dynamic_batch and request.dynamic_batch[2] > limits.BATCH:
        raise InputError(f"--dynamic-batch goes up to {limits.BATCH}, got {request.dynamic_batch[2]}")
    if request.dynamic_batch and request.batch_size != 1:
        raise InputError(
            f"--batch-size {request.batch_size} and --dynamic-batch exclude each other; pass one of them"
        )
    if request.num_classes is not None:
        check_class_count(request.num_classes)
    if request.calib_images is not None and request.calib_images < 1:
        raise InputError(
            f"number of images must be at least 1, got {request.calib_images}; pass --calib-images 1 or more"
        )
    if request.calib_images is not None and request.calib_images > (held := _held_images(request)):
        raise InputError(
            f"{request.calib_images} images would be {'made up' if request.calib_data is None else 'held in memory'} to compare on; "
            f"pass --calib-images {held} or fewer"
        )
    if request.opset not in OPSETS:
        raise InputError(
            f"opset must be {OPSETS[0]} to {OPSETS[-2]}, or {OPSETS[-1]}, got {request.opset}; leave --opset out"
        )
    if request.opset >= ATTENTION_OPSET:  # every build is compared on ONNX Runtime
        engines.get("onnxruntime").check_opset(request.opset)
    _check_eight_bits(request)
    if config:
        size = config.image_size if request.image_size is None else request.image_size
        patch = config.patch_size
        if not takes_side(size, patch, own=config.image_size):
            below = max(patch, size // patch * patch)
            raise InputError(
                f"image size {size} is not a positive multiple of {patch}; take {below} or {below + patch}"
            )
        config.at(size)  # raises for tokens kept of other images
    if request.max_accuracy_drop is not None and not 0 <= request.max_accuracy_drop <= 100:
        raise InputError(
            f"--max-accuracy-drop is in points of top-1, 0 to 100, got {request.max_accuracy_drop:g}"
        )
    if request.val_data is None:
        for name in ("max_accuracy_drop", "data_dir", "split", "image_key", "label_key"):
            if getattr(request, name) is not None:
                raise InputError(f"--{name.replace('_', '-')} needs images with labels; pass --val-data DIR")
    request.engine_options()  # raises for values that no engine takes


def check_files(request: BuildRequest) -> None:
    """Refuse what weights that are yet to be fetched cannot be, and files and folders of images that are not there.

    Raises:
        InputError: a classifier is asked for, and they are of a backbone; and as `check_given_files`.
    """
    if not request.needs_no_head and request.model and request.config.num_classes:
        published = open_published(request.checkpoint)
        if published.config.lacks_classifier:
            kind = published.config.fields["architectures"][0]
            raise InputError(
                f"{published.place} is a backbone without a classifier ({kind}); build it with --outputs features, or train one: "
                f"sit-deploy train --model {request.model} --init {published.place}"
            )
    _check_files(request, *published_classes(request))


def check_given_files(request: BuildRequest) -> None:
    """Refuse files, folders of images and data sets that are not there, or not of the model's classes.

    The one way in which every command refuses them before PyTorch is imported, weights are fetched or loaded, and anything is
    exported: what it cannot tell yet, whoever opens them says.

    Raises:
        InputError: names what is wrong, and what mends it.
    """
    if request.outputs is not None:
        request.require_logits(request.outputs)
    _check_files(request, *known_classes(request))


def _check_files(request: BuildRequest, classes: list[str] | None, count: int | None) -> None:
    if request.calib_data:
        from sit_deploy.data.splits import check_training_images

        check_training_images(request.calib_data)
    if request.val_data:
        from sit_deploy.data.labelled import check_labelled

        check_labelled(request.val_data, classes, count, **request.val_options)


def _held_images(request: BuildRequest) -> int:
    """The most images that may be asked for: made ones stay in memory, and so do all where none are calibrated on."""
    if request.calib_data is None:
        return limits.SYNTHETIC
    return limits.STREAMED if request.precision in EIGHT_BITS else limits.HELD


def _check_eight_bits(request: BuildRequest) -> None:
    if request.precision not in EIGHT_BITS:
        given = [
            f"--{name.replace('_', '-')}"
            for name in ("calib_cache", "quantize", "rest", "sensitivity", "tune_seconds", "min_sqnr")
            if (value := getattr(request, name)) is not None and value is not False
        ]
        given += ["--calib-method"] if request.calib_method != "auto" else []
        given += ["--calib-percentile"] if request.calib_percentile != CALIBRATION_PERCENTILE else []
        if given:
            raise InputError(f"{given[0]} is for 8 bits; pass --precision int8 or fp8 with it")
        return
    _check_onnxruntime()
    from calibration.thresholds import METHODS_OF

    methods = ("auto", *METHODS_OF[request.precision])
    if request.calib_method not in methods:
        raise InputError(
            f"{request.precision} has no calibration method '{request.calib_method}'; choose from {', '.join(methods)}"
        )
    if request.precision == "fp8" and request.opset < OLDEST_FP8_OPSET:
        raise InputError(
            f"fp8 needs opset {OLDEST_FP8_OPSET}, got {request.opset}; leave --opset out, or pass --precision int8"
        )
    if request.precision == "int8" and request.opset >= ATTENTION_OPSET:
        # 1.32 turns int8 codes to uint8, output_dtype left behind: https://github.com/microsoft/onnxruntime/issues/25526
        raise InputError(
            f"int8 does not go with opset {request.opset}: ONNX Runtime, which every build is measured with, does not load its own "
            "rewriting of such a graph; leave --opset out"
        )
    if request.rest not in (None, *FLOATS):
        raise InputError(
            f"--rest {request.rest} is not offered; choose {', '.join(FLOATS[:-1])} or {FLOATS[-1]}"
        )
    if request.rest == "fp16" and request.opset < OLDEST_FP8_OPSET:
        raise InputError(
            f"int8 beside fp16 needs opset {OLDEST_FP8_OPSET}, got {request.opset}; leave --opset out, or pass --rest fp32"
        )
    _check_tuning(request)
    if not 0 < request.calib_percentile <= 100:
        raise InputError(
            f"--calib-percentile must be above 0 and at most 100, got {request.calib_percentile:g}"
        )
    _check_calibration(request)


def _check_tuning(request: BuildRequest) -> None:
    """Refuse what contradicts choosing the layers by measuring."""
    groups = request.quantize
    if groups and AUTO[0] in groups and groups != AUTO:
        others = ",".join(group for group in groups if group != AUTO[0])
        raise InputError(
            f"--quantize auto chooses the groups itself; pass --quantize auto, or --quantize {others}"
        )
    if groups and groups != AUTO:
        from calibration.plan import check_groups

        check_groups(groups)
    if groups == AUTO and request.precision != "int8":
        raise InputError(
            f"--quantize auto is for int8, which it times on an engine that runs here; pass --quantize default with {request.precision}"
        )
    if request.tune_seconds is not None and not 0 < request.tune_seconds <= limits.SECONDS:
        raise InputError(
            f"--tune-seconds must be above 0 and at most {limits.SECONDS:,}, got {request.tune_seconds:g}; leave it out for "
            f"{TUNE_SECONDS:g}"
        )
    if request.min_sqnr is not None and not 0 <= request.min_sqnr <= _MOST_DB:
        raise InputError(
            f"--min-sqnr must be 0 to {_MOST_DB} dB, got {request.min_sqnr:g}; pass for example --min-sqnr 30"
        )
    if groups and groups != AUTO:
        for name in ("tune_seconds", "min_sqnr"):
            if getattr(request, name) is not None:
                raise InputError(
                    f"--{name.replace('_', '-')} is for --quantize auto; leave it out, or --quantize {','.join(groups)}"
                )


def _check_calibration(request: BuildRequest) -> None:
    """Refuse a request that nothing says the ranges of, or nothing can be measured on."""
    if request.calib_cache and not request.calib_cache.exists():
        if not request.calib_data:
            raise InputError(
                f"calibration cache {request.calib_cache} does not exist; make one with sit-deploy calibrate, or pass "
                "--calib-data DIR too"
            )
        folder = request.calib_cache.absolute().parent
        if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
            raise InputError(
                f"folder {folder} of the calibration cache does not exist or cannot be written; choose another place"
            )
    known = request.calib_data or request.calib_cache or request.trained_thresholds
    if request.checkpoint and not known and not _card_may_come(request):
        raise InputError(
            f"{request.precision} needs images to calibrate on; pass --calib-data DIR with some hundred pictures "
            "like those to come, or --calib-cache FILE from sit-deploy calibrate"
        )
    synthetic = not (request.checkpoint or request.calib_cache)
    if request.sensitivity and not (request.calib_data or request.val_data or synthetic):
        raise InputError("--sensitivity needs images; pass --calib-data DIR or --val-data DIR")


def _card_may_come(request: BuildRequest) -> bool:
    """Say whether weights that are yet to be fetched may have a model card, and the ranges of training in it."""
    return request.awaits_weights and not open_published(request.checkpoint).config.names_a_model


def _check_onnxruntime() -> None:
    """Refuse 8 bits with a release that runs their graphs wrongly: it fuses Q/DQ otherwise, and loads no FP8 weights."""
    found = engines.get("onnxruntime").probe().version or "none"
    oldest = ".".join(map(str, OLDEST_ONNXRUNTIME))
    if not found[:1].isdigit() or tuple(int(part) for part in found.split(".")[:2]) < OLDEST_ONNXRUNTIME:
        raise InputError(
            f"int8 and fp8 need ONNX Runtime {oldest} or newer to be measured with, and {found} "
            f"is installed; run {pip_install(f'onnxruntime>={oldest}')} (with Python 3.11 or newer)"
        )
