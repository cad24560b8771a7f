"""What a TensorRT-RTX engine's kernels do with the products that its graph has in 8 bits, said in a sentence."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from engines.tensorrt.kernels import Products

_NOT_ALL = "not all in 8 bits"


def eight_bit_products(details: Mapping[str, Any]) -> Products | None:
    """Return what `engines.tensorrt.kernels` read in the builder's log; None for an engine whose builder is not asked.

    Args:
        details: the engine's, of a manifest.
    """
    products = details.get("eight_bits")
    return Products.from_dict(products) if products else None


def kernels_note(products: Products, precision: str) -> str:
    """Return how many products are multiplied in 8 bits. What the log does not tell is called unknown."""
    if not products.kept and not products.widened:
        return (
            f"{_NOT_ALL}, perhaps: which of {products.count} products in {precision} the engine multiplies so is unknown, since its "
            "builder does not tell; --profiling detailed makes it"
        )
    if products.all_kept:
        return f"by its builder's log the engine multiplies all {products.count} products in {precision} in 8 bits"
    parts = [
        f"{_NOT_ALL}: by its builder's log the engine multiplies {len(products.kept)} of {products.count} products in {precision} so"
    ]
    if widened := products.widened:
        more = ", ..." if len(widened) > 3 else ""
        parts.append(
            f"for {len(widened)} it widens the weights while it runs, to multiply in 16 bits ({', '.join(widened[:3])}{more})"
        )
    if products.unknown:
        parts.append(f"of {len(products.unknown)} the log does not tell")
    return "; ".join(parts)
