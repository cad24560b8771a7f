"""Optimum's ONNX export of one of our models, with the random weights of benchmarks/random_weights.py.

    python optimum_export.py JOB.json ANSWER.json

JOB: {"model": NAME, "output": FILE}. Its automatic way, `onnx_export_from_model`, is tried first; what it says when it refuses
is "refusal" in ANSWER. Then the model is exported as its command line would with `--library timm`, with timm's default configuration.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

from job import answer
from optimum.exporters.onnx import export, onnx_export_from_model
from optimum.exporters.tasks import TasksManager

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

from benchmarks.random_weights import random_model

TASK = "image-classification"


def main() -> None:
    job = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    model = random_model(job["model"])
    with answer(["optimum", "optimum-onnx", "transformers", "torch", "onnx"]) as told:
        with tempfile.TemporaryDirectory() as folder:
            try:
                onnx_export_from_model(model, folder, task=TASK)
            except ValueError as error:
                told["refusal"] = str(error)
        TasksManager.standardize_model_attributes(model, library_name="timm")
        make_config = TasksManager.get_exporter_config_constructor(
            "onnx", model=model, task=TASK, library_name="timm"
        )
        export(model=model, config=make_config(model.config), output=Path(job["output"]))


if __name__ == "__main__":
    main()
