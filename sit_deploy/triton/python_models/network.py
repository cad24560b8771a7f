"""A bundle's graph on ONNX Runtime, as a model of Triton's Python backend: it serves where there is no GPU.

All requests that Triton batched are one run. An engine of fixed batch gets its batch by repeating the last image.
"""

import json
import os
from pathlib import Path

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # its official wheels report usage over the network

import numpy as np
import onnxruntime as ort
import triton_python_backend_utils as pb_utils
from sit_deploy_parts.cpu import int8_saturates


def _number(config: dict, name: str, least: int, most: int) -> int:
    """Return a parameter of config.pbtxt, which people edit."""
    text = config.get("parameters", {}).get(name, {}).get("string_value", "")
    if not (text.isascii() and text.isdigit() and len(text) < 10 and least <= int(text) <= most):
        raise pb_utils.TritonModelException(
            f"parameter {name} of config.pbtxt must be a number from {least} to {most}, not {text[:40]!r}; "
            "mend it, or run sit-deploy package triton again"
        )
    return int(text)


def _threads(config: dict) -> int:
    """Return the threads of this copy; copies that nobody gave threads share the CPUs, which each would take whole."""
    threads = _number(config, "threads", 0, 4096)
    copies = sum(int(group.get("count", 1)) for group in config.get("instance_group", []))
    if threads or copies < 2:
        return threads  # 0: ONNX Runtime's choice
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cpus // copies)


class TritonPythonModel:
    """What Triton calls: `initialize` once an instance, then `execute` for every dynamic batch."""

    def initialize(self, args: dict) -> None:
        config = json.loads(args["model_config"])
        self._input, self._output = config["input"][0]["name"], config["output"][0]["name"]
        self._smallest = _number(config, "batch_min", 1, 1 << 16)
        self._largest = _number(config, "batch_max", self._smallest, 1 << 16)
        options = ort.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = _threads(config)
        if int8_saturates():
            options.add_session_config_entry("session.x64quantprecision", "1")
        engine = Path(args["model_repository"]) / args["model_version"] / "engine.onnx"
        self._session = ort.InferenceSession(str(engine), options, providers=["CPUExecutionProvider"])

    def execute(self, requests: list) -> list:
        """Answer requests of (n, ...) images with (n, classes) logits each."""
        given = [pb_utils.get_input_tensor_by_name(r, self._input).as_numpy() for r in requests]
        try:
            logits = self._run(given[0] if len(given) == 1 else np.concatenate(given))
        except Exception as error:  # ONNX Runtime's errors share no base; each request has to be answered
            failed = pb_utils.TritonError(f"ONNX Runtime failed while running: {error}")
            return [pb_utils.InferenceResponse(error=failed) for _ in requests]
        ends = np.cumsum([len(images) for images in given])[:-1]
        return [
            pb_utils.InferenceResponse([pb_utils.Tensor(self._output, part)])
            for part in np.split(logits, ends)
        ]

    def _run(self, images: np.ndarray) -> np.ndarray:
        short = self._smallest - len(images)
        if short > 0:
            padded = np.concatenate([images, np.repeat(images[-1:], short, axis=0)])
            return self._run(padded)[: len(images)]
        parts = [
            self._session.run([self._output], {self._input: images[start : start + self._largest]})[0]
            for start in range(0, len(images), self._largest)
        ]
        return parts[0] if len(parts) == 1 else np.concatenate(parts)
