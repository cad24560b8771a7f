"""Whether the engine's kernels have the precision that was asked for: an engine that multiplies in more bits is no build of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sit_deploy.errors import GateError
from sit_deploy.pipeline.lower import LoweredGraph
from sit_deploy.pipeline.request import BuildRequest
from sit_deploy.pipeline.work import Work
from sit_deploy.precisions import EIGHT_BITS
from sit_deploy.report.kernels_text import (
    broken_attention_note,
    eight_bit_products,
    kernels_note,
    lacking_text,
    told_by,
)


def require_kernels(work: Work, details: Mapping[str, Any], lowered: LoweredGraph) -> None:
    """Hold an engine to the precision that was asked for, as far as its kernels are told; what they do not tell, a warning says.

    Args:
        work: of the build.
        details: the engine's.
        lowered: the graph that it was built of.

    Raises:
        GateError: products of the graph are multiplied in more bits, and nobody allowed that.
    """
    request = work.request
    if lacking := lacking_text(details, request.precision):
        if not request.allow_wider_kernels:
            raise GateError(f"{lacking}; nothing was written: {_remedy(request, details, lowered)}")
        work.warn(lacking)
    elif (products := eight_bit_products(details)) and not products.all_kept:
        work.warn(kernels_note(products, request.precision, told_by(details)))
    # in 32 bits it hardly ever is one
    if request.precision != "fp32" and (broken := broken_attention_note(details)):
        way = "pass --quantize default,attention, or leave attention out of it"
        work.warn(f"{broken}; {way}" if "attention" in (request.quantize or ()) else broken)


def _remedy(request: BuildRequest, details: Mapping[str, Any], lowered: LoweredGraph) -> str:
    """Return what to pass instead: a precision that the kernels have, the groups of layers that they have it for, or leave to go on."""
    ways = [f"--precision {request.high if request.precision in EIGHT_BITS else 'fp32'}"]
    products = eight_bit_products(details)
    if lowered.quantization and products:
        low = [layer for layer in lowered.quantization.quantizer.plan.layers if not layer.is_high]
        wider = {layer.group for layer in low if layer.name in products.widened}
        kept = sorted({layer.group for layer in low} - wider)
        ways += [f"--quantize {','.join(kept)} for the layers that have kernels"] if kept else []
    return f"pass {', '.join(ways)}, or --allow-wider-kernels to have this engine nevertheless"
