"""From the bytes of image files to what the network takes: the first step of an ensemble, in Triton's Python backend.

It follows the bundle's preprocessing to the pixel.

An image that cannot be decoded fails its own request, as an invalid argument, and no other.
"""

import base64
import binascii
import json
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import triton_python_backend_utils as pb_utils
from sit_deploy_parts.cpu import cpu_count
from sit_deploy_parts.errors import InputError
from sit_deploy_parts.preprocessing import Preprocessing, decode_image


class TritonPythonModel:
    """What Triton calls: `initialize` once an instance, then `execute` for every dynamic batch."""

    def initialize(self, args: dict) -> None:
        config = json.loads(args["model_config"])
        self._input, self._output = config["input"][0]["name"], config["output"][0]["name"]
        fields = config["parameters"]["preprocessing"]["string_value"]
        self._preprocessing = Preprocessing.from_dict(json.loads(fields))
        # Pillow decodes and resizes outside of Python's lock
        self._pool = ThreadPoolExecutor(min(4, cpu_count()), thread_name_prefix="decode")

    def execute(self, requests: list) -> list:
        """Answer requests of (n, 1) encoded images with (n, ...) prepared ones each."""
        given = [pb_utils.get_input_tensor_by_name(r, self._input).as_numpy().ravel() for r in requests]
        prepared = [[self._pool.submit(self._prepare, bytes(data)) for data in images] for images in given]
        return [self._answer(images) for images in prepared]

    def _answer(self, images: list) -> "pb_utils.InferenceResponse":
        """Answer one request. What fails it, of whatever type, is its own: the others of its batch are answered."""
        ready = np.empty((len(images), *self._preprocessing.shape), self._preprocessing.dtype)
        for row, image in enumerate(images):
            try:
                ready[row] = image.result()
            except Exception as error:
                known = isinstance(error, InputError)
                said = str(error) if known else f"cannot be prepared ({type(error).__name__}: {error})"
                where = f"image {row} of {len(images)}: " if len(images) > 1 else ""
                code = pb_utils.TritonError.INVALID_ARG if known else pb_utils.TritonError.INTERNAL
                return pb_utils.InferenceResponse(error=pb_utils.TritonError(where + said, code))
        return pb_utils.InferenceResponse([pb_utils.Tensor(self._output, ready)])

    def _prepare(self, data: bytes) -> np.ndarray:
        try:
            image = decode_image(data)
        except InputError as error:
            # JSON cannot carry the bytes of a file, so a client without the binary extension sends them in base64
            try:
                image = decode_image(base64.b64decode(data, validate=True))
            except (binascii.Error, ValueError, InputError):
                raise error from None
        return self._preprocessing(image)

    def finalize(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)
