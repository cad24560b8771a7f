"""The command line that builds the same again, for the manifest."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

from sit_deploy.data.damaged import USUAL_LIMIT
from sit_deploy.methods import TRAINING_FREE
from sit_deploy.models.data_config import from_options
from sit_deploy.pipeline.request import BuildRequest
from sit_deploy.precisions import EIGHT_BITS


def rebuild_command(request: BuildRequest, engine: str, *, tuned: bool = False) -> str:
    """Return the command that builds the same again, its paths absolute and the output folder left to the caller.

    Args:
        request: of the build.
        engine: its kind.
        tuned: its plan was chosen by measuring: it is named, and what it was held to is left out, or another might be chosen.
    """
    # the weights of a method without training are those of the model's teacher, which has no stages of its own
    stages = request.config.stage_blocks if request.method in TRAINING_FREE else request.stages
    options: dict[str, Any] = {
        "--model": request.config.name,
        "--stages": stages and ",".join(map(str, stages)),
        "--keeping-ratio": request.keeping_ratio,
        "--kept": request.kept and ",".join(map(str, request.kept)),
        "--method": request.method,
        "--precision": request.precision,
        "--checkpoint": request.fetched_from or (request.checkpoint and request.checkpoint.absolute()),
        "--checkpoint-key": request.checkpoint_key,
        "--engine": engine,
        "--image-size": request.image_size,
        "--num-classes": request.num_classes,
        "--outputs": request.outputs and ",".join(request.outputs),
        "--labels": request.labels and request.labels.absolute(),
        **from_options(request).options(),
        "--calib-data": request.calib_data and request.calib_data.absolute(),
        "--calib-images": request.calib_images,
        "--max-damaged": request.max_damaged if request.max_damaged != USUAL_LIMIT else None,
        **(_eight_bit_options(request) if request.precision in EIGHT_BITS else {}),
        "--val-data": request.val_data and _absolute(request.val_data),
        "--data-dir": request.data_dir and request.data_dir.absolute(),
        "--split": request.split,
        "--image-key": request.image_key,
        "--label-key": request.label_key,
        "--max-accuracy-drop": None if tuned else request.max_accuracy_drop,
        "--input": request.input if request.input != "float32" else None,
        "--opset": request.opset,
        "--optimization-level": request.optimization_level,
        "--workspace": request.workspace,
        "--hardware-compatibility": request.hardware_compatibility,
        "--threads": request.threads,
        "--profiling": request.profiling if request.profiling != "detailed" else None,
    }
    if request.dynamic_batch:
        options["--dynamic-batch"] = ":".join(map(str, request.dynamic_batch))
    else:
        options["--batch-size"] = request.batch_size
    words = [str(w) for pair in options.items() if pair[1] is not None for w in pair]
    words += [w for target in request.targets for w in ("--target", target)]
    for name in ("sensitivity", "version_compatible", "strip_weights", "refit", "allow_wider_kernels"):
        words += [f"--{name.replace('_', '-')}"] if getattr(request, name) else []
    return shlex.join(["sit-deploy", "build", *words, *([] if request.ema else ["--no-ema"])])


def _eight_bit_options(request: BuildRequest) -> dict[str, Any]:
    return {
        "--calib-method": request.calib_method,
        "--calib-percentile": request.calib_percentile if request.calib_method == "percentile" else None,
        "--calib-cache": request.calib_cache and request.calib_cache.absolute(),
        "--quantize": request.quantize and ",".join(request.quantize),
        "--tune-seconds": request.tune_seconds if request.tunes else None,
        "--min-sqnr": request.min_sqnr if request.tunes else None,
        "--rest": request.rest,
    }


def _absolute(data: str) -> str:
    """Return where labelled images are from anywhere: a folder's absolute path, or a data set's name as it is."""
    return str(Path(data).absolute()) if Path(data).is_dir() else str(data)
