"""NNCF's `quantize` on an OpenVINO model, told that it is a transformer; the rest is its defaults.

    python nncf_openvino.py JOB.json ANSWER.json

The model is the ONNX graph as OpenVINO reads it. Its batch size is fixed; the images are a multiple of it.
"""

from __future__ import annotations

import nncf
import openvino as ov
from job import answer, read


def main() -> None:
    job = read()
    model = ov.Core().read_model(job.graph)
    batch = model.inputs[0].shape[0]
    batches = [job.images[i : i + batch] for i in range(0, len(job.images), batch)]
    with answer(["nncf", "openvino"]):
        quantized = nncf.quantize(
            model, nncf.Dataset(batches), subset_size=len(batches), model_type=nncf.ModelType.TRANSFORMER
        )
        ov.save_model(quantized, job.output, compress_to_fp16=False)


if __name__ == "__main__":
    main()
