"""What a TensorRT-RTX engine's kernels do with the products that its graph has in 8 bits, said in a sentence."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

NOT_ALL = "not all in 8 bits"  # how the sentence begins that a reader must not miss


def kernels_note(details: Mapping[str, Any], precision: str) -> str | None:
    """Return how many products are multiplied in 8 bits, by what `engines.tensorrt.kernels` read in the builder's log.

    Args:
        details: the engine's, of a manifest.
        precision: of the bundle.

    Returns:
        None for an engine whose builder is not asked. What the log does not tell is called unknown.
    """
    found = details.get("eight_bits")
    if not found:
        return None
    kept, widened, unknown = (found[name] for name in ("kept", "widened", "unknown"))
    of = len(kept) + len(widened) + len(unknown)
    if not kept and not widened:
        return (
            f"{NOT_ALL}, perhaps: which of {of} products in {precision} the engine multiplies so is unknown, since its "
            "builder does not tell; --profiling detailed makes it"
        )
    if not widened and not unknown:
        return f"by its builder's log the engine multiplies all {of} products in {precision} in 8 bits"
    parts = [
        f"{NOT_ALL}: by its builder's log the engine multiplies {len(kept)} of {of} products in {precision} so"
    ]
    if widened:
        more = ", ..." if len(widened) > 3 else ""
        parts.append(
            f"for {len(widened)} it widens the weights while it runs, to multiply in 16 bits ({', '.join(widened[:3])}{more})"
        )
    if unknown:
        parts.append(f"of {len(unknown)} the log does not tell")
    return "; ".join(parts)
