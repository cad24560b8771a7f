"""sit-deploy: from a SiT checkpoint to an engine that serves. See README.md; the command is `sit-deploy`.

    import sit_deploy

    with sit_deploy.load("sit_s-fp32") as classify:
        logits = classify(["cat.jpg"])

What the command line does is here as functions with typed results (docs/python.md); every error is a `sit_deploy.Error`.
Importing this package is quick; what needs NumPy, PyTorch or an engine's runtime is imported at first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sit_deploy import import_check

if TYPE_CHECKING:
    from calibration.errors import CalibrationError
    from engines.errors import EngineError
    from engines.timing import TimingOptions
    from sit_deploy.bundle import Bundle, load_bundle
    from sit_deploy.calls import show_progress
    from sit_deploy.embeddings import Embedded, EmbedRequest, embed
    from sit_deploy.errors import Error, GateError, InputError
    from sit_deploy.inference import Classifier, load
    from sit_deploy.pipeline.build import build, export
    from sit_deploy.pipeline.calibration import CalibrationResult, calibrate
    from sit_deploy.pipeline.request import BuildRequest
    from sit_deploy.predictions import ClassProbability, Prediction
    from sit_deploy.report.build_types import GraphReport
    from sit_deploy.validation.bench import BenchResult, bench
    from sit_deploy.validation.report import Report, ReportRequest, write_report
    from sit_deploy.validation.validate import ValidateRequest, Validation, validate
    from training.loop import train
    from training.request import TrainRequest
    from training.slim import Slimmed, slim
    from training.slim_request import SlimRequest
    from training.summary import Summary

import_check.check()

__version__ = "0.1.0"
__all__ = [
    "BenchResult",
    "BuildRequest",
    "Bundle",
    "CalibrationError",
    "CalibrationResult",
    "ClassProbability",
    "Classifier",
    "EmbedRequest",
    "Embedded",
    "EngineError",
    "Error",
    "GateError",
    "GraphReport",
    "InputError",
    "Prediction",
    "Report",
    "ReportRequest",
    "SlimRequest",
    "Slimmed",
    "Summary",
    "TimingOptions",
    "TrainRequest",
    "ValidateRequest",
    "Validation",
    "bench",
    "build",
    "calibrate",
    "embed",
    "export",
    "load",
    "load_bundle",
    "show_progress",
    "slim",
    "train",
    "validate",
    "write_report",
]

# where each name is; `training` stands above this package, and is named here as text alone
_HOMES = {
    "BenchResult": "sit_deploy.validation.bench",
    "BuildRequest": "sit_deploy.pipeline.request",
    "Bundle": "sit_deploy.bundle",
    "CalibrationError": "calibration.errors",
    "CalibrationResult": "sit_deploy.pipeline.calibration",
    "ClassProbability": "sit_deploy.predictions",
    "Classifier": "sit_deploy.inference",
    "EmbedRequest": "sit_deploy.embeddings",
    "Embedded": "sit_deploy.embeddings",
    "EngineError": "engines.errors",
    "Error": "sit_deploy.errors",
    "GateError": "sit_deploy.errors",
    "GraphReport": "sit_deploy.report.build_types",
    "InputError": "sit_deploy.errors",
    "Prediction": "sit_deploy.predictions",
    "Report": "sit_deploy.validation.report",
    "ReportRequest": "sit_deploy.validation.report",
    "SlimRequest": "training.slim_request",
    "Slimmed": "training.slim",
    "Summary": "training.summary",
    "TimingOptions": "engines.timing",
    "TrainRequest": "training.request",
    "ValidateRequest": "sit_deploy.validation.validate",
    "Validation": "sit_deploy.validation.validate",
    "bench": "sit_deploy.validation.bench",
    "build": "sit_deploy.pipeline.build",
    "calibrate": "sit_deploy.pipeline.calibration",
    "embed": "sit_deploy.embeddings",
    "export": "sit_deploy.pipeline.build",
    "load": "sit_deploy.inference",
    "load_bundle": "sit_deploy.bundle",
    "show_progress": "sit_deploy.calls",
    "slim": "training.slim",
    "train": "training.loop",
    "validate": "sit_deploy.validation.validate",
    "write_report": "sit_deploy.validation.report",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
