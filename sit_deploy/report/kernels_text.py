"""What the kernels of a TensorRT-RTX engine are, and what they do with the products that its graph has in 8 bits, in sentences."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from engines.tensorrt.kernels import Census, Products
from sit_deploy.errors import InputError
from sit_deploy.schema import check
from sit_deploy.text import printable

_NOT_ALL = "not all in 8 bits"
_AGAIN = "build the bundle again"


def eight_bit_products(details: Mapping[str, Any]) -> Products | None:
    """Return what `engines.tensorrt.kernels` read in the builder's log; None for an engine whose builder is not asked.

    Args:
        details: the engine's, of a manifest.

    Raises:
        InputError: what the manifest says of them is nothing that a build wrote.
    """
    products = details.get("eight_bits")
    return check(products, Products, "eight_bits of the engine", _AGAIN) if products else None


def census_text(details: Mapping[str, Any]) -> str | None:
    """Return how many kernels an engine has and of what kind; None for one whose builder is not asked.

    Args:
        details: the engine's, of a manifest.

    Raises:
        InputError: what the manifest says of them is nothing that a build wrote.
    """
    if not (fields := details.get("kernels")):
        return None
    census = check(fields, Census, "kernels of the engine", _AGAIN)
    counts = (census.kernels, census.attention_kernels, census.attention, *census.products.values())
    if (
        min(counts) < 0
        or census.attention > census.attentions
        or sum(census.products.values()) > census.kernels
    ):
        raise InputError(f"kernels of the engine: counts that no engine has; {_AGAIN}")
    parts = [f"{census.kernels} kernels by its builder's log"]
    if census.attentions:
        parts.append(f"attention in one kernel in {census.attention} of {census.attentions} places")
    elif census.attention_kernels:
        parts.append(f"{census.attention_kernels} of them attention")
    if census.products:
        counts = [
            f"{count} in {printable(kind) or 'an unknown type'}" for kind, count in census.products.items()
        ]
        parts.append(f"products: {', '.join(counts)}")
    if census.widened:
        parts.append(f"{len(census.widened)} weights widened from 8 bits at every run")
    return "; ".join(parts)


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
