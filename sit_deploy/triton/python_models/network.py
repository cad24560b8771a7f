"""A bundle's engine as a model of Triton's Python backend: it serves where there is no GPU.

What runs it, ONNX Runtime or OpenVINO, is the part `session` that lies beside (onnxruntime_session.py or openvino_session.py).

All requests that Triton batched are one run. An engine of fixed batch gets its batch by repeating the last image.
"""

import json
from pathlib import Path

import numpy as np
import triton_python_backend_utils as pb_utils
from sit_deploy_parts.cpu import cpu_count, limited
from sit_deploy_parts.session import Session


def _number(config: dict, name: str, least: int, most: int) -> int:
    """Return a parameter of config.pbtxt, which people edit."""
    text = config.get("parameters", {}).get(name, {}).get("string_value", "")
    if not (text.isascii() and text.isdigit() and len(text) < 10 and least <= int(text) <= most):
        raise pb_utils.TritonModelException(
            f"parameter {name} of config.pbtxt must be a number from {least} to {most}, not {text[:40]!r}; "
            "mend it, or run sit-deploy package triton again"
        )
    return int(text)


def _copies(config: dict) -> int:
    """Return how many of this model run beside one another."""
    return sum(int(group.get("count", 1)) for group in config.get("instance_group", []))


def _threads(config: dict) -> int:
    """Return the threads of this copy; where nobody gave any, copies share what CPUs there are, a container's limit heeded.

    A runtime would take all CPUs that it sees, for every copy, and more than a limit of their time leaves.
    """
    threads, copies = _number(config, "threads", 0, 4096), _copies(config)
    if threads or (copies < 2 and not limited()):
        return threads  # 0: the runtime's choice
    return max(1, cpu_count() // max(1, copies))


class TritonPythonModel:
    """What Triton calls: `initialize` once an instance, then `execute` for every dynamic batch."""

    def initialize(self, args: dict) -> None:
        config = json.loads(args["model_config"])
        self._input, self._outputs = config["input"][0]["name"], [one["name"] for one in config["output"]]
        self._smallest = _number(config, "batch_min", 1, 1 << 16)
        self._largest = _number(config, "batch_max", self._smallest, 1 << 16)
        folder = Path(args["model_repository"]) / args["model_version"]
        self._session = Session(folder, _threads(config), _copies(config))

    def execute(self, requests: list) -> list:
        """Answer requests of (n, ...) images with their outputs, (n, ...) each."""
        given = [pb_utils.get_input_tensor_by_name(r, self._input).as_numpy() for r in requests]
        try:
            found = self._run(given[0] if len(given) == 1 else np.concatenate(given))
        except Exception as error:  # of whatever type: each request has to be answered
            failed = pb_utils.TritonError(str(error) or type(error).__name__)
            return [pb_utils.InferenceResponse(error=failed) for _ in requests]
        ends = np.cumsum([len(images) for images in given])[:-1]
        parts = zip(*(np.split(values, ends) for values in found), strict=True)
        return [
            pb_utils.InferenceResponse(
                [pb_utils.Tensor(*pair) for pair in zip(self._outputs, part, strict=True)]
            )
            for part in parts
        ]

    def _run(self, images: np.ndarray) -> list[np.ndarray]:
        """Return every output of images, in order."""
        short = self._smallest - len(images)
        if short > 0:
            padded = np.concatenate([images, np.repeat(images[-1:], short, axis=0)])
            return [values[: len(images)] for values in self._run(padded)]
        parts = [
            self._session.run(images[start : start + self._largest], self._input, self._outputs)
            for start in range(0, len(images), self._largest)
        ]
        return (
            parts[0] if len(parts) == 1 else [np.concatenate(values) for values in zip(*parts, strict=True)]
        )
