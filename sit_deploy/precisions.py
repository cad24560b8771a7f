"""The precisions that a graph can be built in: their names, and how far each may be from the PyTorch reference."""

from __future__ import annotations

# Largest error of a logit against the PyTorch reference, in standard deviations of the reference logits. float32 is the
# project's promise; the others leave several times the rounding that 24 blocks of each type were measured to add.
# Those of 8 bits only catch what went wrong: what they cost is measured as accuracy.
TOLERANCE = {"fp32": 1e-4, "fp16": 0.05, "bf16": 0.4, "int8": 1.0, "fp8": 1.5}
# Least cosine of any embedding (features, or a token) and the reference's.
LEAST_COSINE = {"fp32": 0.99999, "fp16": 0.9997, "bf16": 0.99, "int8": 0.9, "fp8": 0.85}

PRECISIONS = tuple(TOLERANCE)
EIGHT_BITS = ("int8", "fp8")  # written into a graph as QuantizeLinear and DequantizeLinear
FLOATS = tuple(precision for precision in PRECISIONS if precision not in EIGHT_BITS)
