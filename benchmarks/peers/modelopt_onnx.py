"""NVIDIA ModelOpt's `modelopt.onnx.quantization.quantize` in int8, or in FP8.

    python modelopt_onnx.py JOB.json ANSWER.json

Methods: max, entropy on the layers asked for, the rest FP32; "default": its own choice of layers and method, the rest FP16; "fp8": the
same in FP8.
"""

from __future__ import annotations

import re

from job import answer, read
from modelopt.onnx.quantization import quantize


def main() -> None:
    job = read()
    choice = {}
    if job.method not in ("default", "fp8"):
        choice = {
            "calibration_method": job.method,
            "op_types_to_quantize": ["Conv", "MatMul", "Gemm"],
            # it takes patterns
            "nodes_to_quantize": [re.escape(name) for name in job.layers],
            "high_precision_dtype": "fp32",
            # else it skips the layers that take one token only, which TensorRT would not speed up
            "enable_gemv_detection_for_trt": False,
        }
    with answer(["nvidia-modelopt", "onnxruntime-gpu", "onnx"]):
        quantize(
            str(job.graph),
            quantize_mode="fp8" if job.method == "fp8" else "int8",
            calibration_data=job.images,
            calibration_eps=["cpu"],
            output_path=str(job.output),
            log_level="WARNING",
            **choice,
        )


if __name__ == "__main__":
    main()
