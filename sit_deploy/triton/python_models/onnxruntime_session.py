"""A bundle's graph on ONNX Runtime: the `session` of network.py."""

import os
from pathlib import Path

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # its official wheels report usage over the network

import numpy as np
import onnxruntime as ort
from sit_deploy_parts.cpu import int8_saturates


class Session:
    """Opens engine.onnx of a folder.

    Args:
        folder: of the model's version.
        threads: CPU threads; 0 leaves the choice to the runtime.
        copies: of this model that run beside one another.
    """

    def __init__(self, folder: Path, threads: int, copies: int) -> None:
        options = ort.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = threads
        if int8_saturates():
            options.add_session_config_entry("session.x64quantprecision", "1")
        engine = folder / "engine.onnx"
        self._session = ort.InferenceSession(str(engine), options, providers=["CPUExecutionProvider"])

    def run(self, images: np.ndarray, given: str, wanted: list[str]) -> list[np.ndarray]:
        """Return the outputs `wanted` of images for the input `given`, a batch that the engine takes."""
        try:
            return self._session.run(wanted, {given: images})
        except Exception as error:  # its errors share no base
            raise RuntimeError(f"ONNX Runtime failed while running: {error}") from error
