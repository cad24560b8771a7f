"""ONNX Runtime's `quantize_static`: Q/DQ, signed 8 bits both sides, symmetric, weights per output channel.

    python onnxruntime_static.py JOB.json ANSWER.json

Methods: minmax, entropy, percentile on the layers asked for, the layers' outputs left alone (its own choice would quantize
them too, and so the residual stream); "default": MinMax with every operator and output that it takes by itself.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from job import answer, read
from onnxruntime.quantization import (
    CalibrationDataReader,
    CalibrationMethod,
    QuantFormat,
    QuantType,
    quantize_static,
)

METHODS = {
    "default": CalibrationMethod.MinMax,
    "minmax": CalibrationMethod.MinMax,
    "entropy": CalibrationMethod.Entropy,
    "percentile": CalibrationMethod.Percentile,
}
TYPES = ["Conv", "MatMul", "Gemm"]


class Reader(CalibrationDataReader):
    def __init__(self, images: np.ndarray) -> None:
        self._feeds: Iterator[dict[str, np.ndarray]] = ({"images": image[None]} for image in images)

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self._feeds, None)


def main() -> None:
    job = read()
    options = {"ActivationSymmetric": True, "WeightSymmetric": True}
    if job.method == "default":
        choice = {"extra_options": options}
    else:
        choice = {
            "op_types_to_quantize": TYPES,
            "nodes_to_quantize": job.layers,
            "extra_options": {**options, "OpTypesToExcludeOutputQuantization": TYPES},
        }
    with answer(["onnxruntime", "onnx"]):
        quantize_static(
            job.graph,
            job.output,
            Reader(job.images),
            quant_format=QuantFormat.QDQ,
            activation_type=QuantType.QInt8,
            weight_type=QuantType.QInt8,
            per_channel=True,
            calibrate_method=METHODS[job.method],
            **choice,
        )


if __name__ == "__main__":
    main()
