"""NNCF's `quantize` on an ONNX model, told that it is a transformer: SmoothQuant, asymmetric activations, bias correction.

    python nncf_quantize.py JOB.json ANSWER.json

Methods, on the layers asked for, every other node ignored: fast_bias and accurate_bias, its two bias corrections; "tuned":
the accurate one, ranges from the least to the greatest value in place of their means over images, and all 8 bits for the
first layer's weights, of which it spares one for CPUs without VNNI. "default": the operators that it takes by itself.
"""

from __future__ import annotations

import nncf
import onnx
from job import answer, read
from nncf.quantization.advanced_parameters import AdvancedQuantizationParameters, OverflowFix
from nncf.quantization.range_estimator import RangeEstimatorParametersSet


def main() -> None:
    job = read()
    model = onnx.load(job.graph)
    ignored, advanced = None, None
    if job.method != "default":
        ignored = nncf.IgnoredScope(names=[n.name for n in model.graph.node if n.name not in set(job.layers)])
    if job.method == "tuned":
        advanced = AdvancedQuantizationParameters(
            overflow_fix=OverflowFix.DISABLE,
            activations_range_estimator_params=RangeEstimatorParametersSet.MINMAX,
        )
    dataset = nncf.Dataset(job.images, lambda image: {"images": image[None]})
    with answer(["nncf", "onnx", "onnxruntime"]):
        quantized = nncf.quantize(
            model,
            dataset,
            subset_size=len(job.images),
            model_type=nncf.ModelType.TRANSFORMER,
            fast_bias_correction=job.method not in ("accurate_bias", "tuned"),
            ignored_scope=ignored,
            advanced_parameters=advanced,
        )
        onnx.save(quantized, job.output)


if __name__ == "__main__":
    main()
