"""Evidence as JSON has it, to be judged, and what its verdict says."""

from __future__ import annotations

from typing import Any

from engines.speedup import Speedup
from sit_deploy.measure.accuracy import Accuracy
from sit_deploy.report.types import Evidence
from sit_deploy.report.verdict import Limits, Verdict, Weight
from sit_deploy.report.verdict import judge as judge_evidence


def accuracy(
    images: int = 10_000,
    lost: int = 20,
    gained: int = 10,
    agreement: float = 99.0,
    reference: float = 80.0,
    warning: str | None = None,
    **basis: Any,
) -> dict[str, Any]:
    engine = reference - 100 * (lost - gained) / images
    found = Accuracy(images, reference, 95.0, engine, 95.0, agreement, lost, gained, **{**OF_TEN, **basis})
    more = {"warning": warning, "teacher": None, "measured_on": "onnxruntime engine", "data": "val"}
    return {**found.to_dict(), **more}


# what figures rest on that can be believed
OF_TEN = {"classes": 10, "present": 10, "majority": 12.0, "reference_classes": 10, "engine_classes": 10}
OF_TEN |= {"sqnr_db": 30.0, "lowest_cosine": 0.98}


def faster(
    median: float, doubt: str | None = None, times: tuple[float, float] = (8.0, 4.0)
) -> dict[str, Any]:
    return Speedup(median, 0.9 * median, 1.1 * median, (), *times, doubt).to_dict()


def eight_bits(ratio: float, doubt: str | None = None) -> dict[str, Any]:
    speed = {
        "over": "fp32",
        "batch_size": 8,
        "ratio": ratio,
        "low": ratio,
        "high": ratio,
        "per_round": [ratio],
    }
    return quantized({**speed, "p50_ms": {"fp32": 4.0, "int8": 4 / ratio}, "doubt": doubt})


def quantized(speed: dict[str, Any]) -> dict[str, Any]:
    return {"method": "minmax", "rest": "fp32", "share_of_macs": 0.9, "layers": [], "speed": speed}


def hop(name: str = "ONNX int8", passed: bool = True, error: float = 1e-3) -> dict[str, Any]:
    """A step that was compared, with a tolerance of 1."""
    figures = {"error": error, "step_error": error, "sqnr_db": 40.0, "agreement": 1.0, "tolerance": 1.0}
    return {"name": name, "compared": True, "passed": passed, "note": "", **figures}


def stage(name: str, macs: int = 10) -> dict[str, Any]:
    figures = dict.fromkeys(("top1", "agreement", "sqnr_db", "latency_ms"))
    return {"name": name, "runtime": "a runtime", "size": 1, "macs": macs, "note": "", **figures}


NAMES = ("teacher", "student", "ONNX fp32", "onnxruntime engine")


def evidence(**changed: Any) -> dict[str, Any]:
    """Evidence as JSON has it: of a good engine, but for what is changed."""
    prepared = {
        "size": [112, 112],
        "mean": [0.5] * 3,
        "std": [0.5] * 3,
        "resize": 128,
        "interpolation": "bicubic",
    }
    model = {
        "name": "sit_nano",
        "image_size": [112, 112],
        "num_classes": 10,
        "tokens": [49],
        "parameters": 9,
        "macs": 9,
    }
    engine = {"kind": "onnxruntime", "version": "1", "target": "cpu", "why": "", "details": {}}
    build = {
        **{"model": model, "classes": None, "precision": "int8", "batch": {"size": 1}, "engine": engine},
        **{
            "weights": {"source": "x.pth"},
            "hops": [hop()],
            "notes": [],
            "compared_on": "images",
            "accuracy": None,
        },
        **{"preprocessing": prepared, "plan": {"held_back": []}, "graph": {"operators": {}}, "seconds": {}},
        **{"versions": {}, "command": "sit-deploy build", "quantization": eight_bits(1.5)},
    }
    around = {"image": "JPEG", "decode_ms": 1.0, "prepare_ms": 1.0, "classes_ms": 1.0}
    whole = {
        **{"bundle": "a", "name": "a", "date": "2026-01-01", "build": build, "golden": hop("golden output")},
        **{
            "ledger": {"entries": list(map(stage, NAMES)), "images": 9, "batch_size": 8},
            "accuracy": accuracy(),
        },
        **{"timing": {}, "around": around, "speedups": {"student": faster(2.5), "teacher": faster(3.5)}},
        **{"drift": {"note": "", "tensors": []}, "layers": [], "threads": 1, "versions": {}},
        "machine": {"cpu_model": "a CPU", "usable_cpus": 2},
    }
    return {**whole, **changed}


class Told:
    """A verdict, its sentences by what they weigh."""

    def __init__(self, verdict: Verdict) -> None:
        self.verdict, self.outcome, self.headline = verdict, verdict.outcome, verdict.headline
        self.against, self.missing, self.unmeasured, self.favour = (
            tuple(reason.text for reason in verdict.of_weight(weight)) for weight in Weight
        )


def judge(fields: dict[str, Any], **limits: float) -> Told:
    return Told(judge_evidence(Evidence.from_dict(fields), Limits(**limits)))
