"""ONNX graphs between export and engine. Each module is imported by its own name, so that onnx loads only when needed.

lint       proves a graph deployable: `lint`, `check`
precision  writes FP16 or BF16 into a graph as explicit types: `to_precision`
simulate   runs a low-precision graph faithfully on a CPU, and finds where it overflows: `simulate`, `first_non_finite`
inspect    says what a graph holds: `summarize`, `count_macs`
"""
