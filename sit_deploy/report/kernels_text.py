"""What the kernels of a TensorRT engine are, and whether they have the precision that its graph has, in sentences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from engines.kernels import COMPILED, INSPECTOR, LOG, Census, Products
from sit_deploy.errors import InputError
from sit_deploy.schema import check
from sit_deploy.text import printable

_NOT_ALL = "not all in 8 bits"
_AGAIN = "build the bundle again"


def eight_bit_products(details: Mapping[str, Any]) -> Products | None:
    """Return what `engines.kernels` says of them; None for an engine whose builder is not asked.

    Args:
        details: the engine's, of a manifest.

    Raises:
        InputError: what the manifest says of them is nothing that a build wrote.
    """
    products = details.get("eight_bits")
    return check(products, Products, "eight_bits of the engine", _AGAIN) if products else None


def told_by(details: Mapping[str, Any]) -> str:
    """Return who told of an engine's kernels: the builder's log, where nothing else is said."""
    told = details.get("kernels_told_by")
    return told if told in (INSPECTOR, COMPILED) else LOG


def raised_note(details: Mapping[str, Any]) -> str | None:
    """Return which products the graph has in 16 bits and the engine multiplies in 32; None where none is known to be.

    Args:
        details: the engine's, of a manifest.

    Raises:
        InputError: what the manifest says of them is nothing that a build wrote.
    """
    nodes = check(details.get("raised") or (), tuple[str, ...], "raised of the engine", _AGAIN)
    if not nodes:
        return None
    return f"not all in 16 bits: by its {told_by(details)} the engine multiplies {len(nodes)} products of the graph in 32 bits ({_some(nodes)})"


def lowered_note(details: Mapping[str, Any]) -> str | None:
    """Return which products the graph has in float32 and the engine multiplies in bfloat16, or of which it does not tell; None where there are none.

    Args:
        details: the engine's, of a manifest.

    Raises:
        InputError: what the manifest says of them is nothing that a build wrote.
    """
    nodes = check(details.get("lowered") or (), tuple[str, ...], "lowered of the engine", _AGAIN)
    untold = check(details.get("untold") or (), tuple[str, ...], "untold of the engine", _AGAIN)
    if untold:
        return f"of {len(untold)} products in 16 bits its {told_by(details)} does not tell ({_some(untold)})"
    if not nodes:
        return None
    return f"{len(nodes)} product{'s' * (len(nodes) != 1)} that the graph has in fp32 it multiplies in bfloat16 ({_some(nodes)})"


def lacking_text(details: Mapping[str, Any], precision: str) -> str | None:
    """Return which products are multiplied in more bits than the graph has them in; None where none is known to be.

    Args:
        details: the engine's, of a manifest.
        precision: of the build.

    Raises:
        InputError: what the manifest says of them is nothing that a build wrote.
    """
    products, parts = eight_bit_products(details), []
    if products and products.widened:
        parts.append(kernels_note(products, precision, told_by(details)))
    if raised := raised_note(details):
        parts.append(raised)
    return "; ".join(parts) or None


def engine_text(details: Mapping[str, Any], precision: str) -> str | None:
    """Return all that there is to say of an engine's kernels; None for one whose builder is not asked.

    Args:
        details: the engine's, of a manifest.
        precision: of the build.

    Raises:
        InputError: what the manifest says of them is nothing that a build wrote.
    """
    products = eight_bit_products(details)
    parts = (
        census_text(details),
        kernels_note(products, precision, told_by(details)) if products and not products.widened else None,
        lacking_text(details, precision),
        lowered_note(details),
    )
    return "; ".join(filter(None, parts)) or None


def census_text(details: Mapping[str, Any]) -> str | None:
    """Return how many kernels an engine has and of what kind; None for one whose builder is not asked.

    Args:
        details: the engine's, of a manifest.

    Raises:
        InputError: what the manifest says of them is nothing that a build wrote.
    """
    census = _census(details)
    if census is None:
        return None
    parts = [f"{census.kernels} kernels by its {told_by(details)}"]
    if census.attentions:
        parts.append(f"attention in one kernel in {census.attention} of {census.attentions} places")
    elif census.attention_kernels:
        parts.append(f"{census.attention_kernels} of them attention")
    if census.products:
        counts = [
            f"{count} in {printable(kind) or 'an unknown type'}" for kind, count in census.products.items()
        ]
        parts.append(f"kernels of products: {', '.join(counts)}")
    if census.widened:
        parts.append(f"{len(census.widened)} weights widened from 8 bits at every run")
    return "; ".join(parts)


def broken_attention_note(details: Mapping[str, Any]) -> str | None:
    """Return in how many places attention is several kernels; None where it is one everywhere, or nothing tells.

    Args:
        details: the engine's, of a manifest.

    Raises:
        InputError: what the manifest says of them is nothing that a build wrote.
    """
    census = _census(details)
    broken = census.attentions - census.attention if census else 0
    if not broken:
        return None
    return f"attention is several kernels in {broken} of {census.attentions} places, by its {told_by(details)}, and slower there"


def kernels_note(products: Products, precision: str, by: str = LOG) -> str:
    """Return how many products are multiplied in 8 bits. What is not told is called unknown.

    Args:
        products: of the graph, in 8 bits.
        precision: of the build.
        by: who told of the kernels.
    """
    if not products.kept and not products.widened:
        return (
            f"{_NOT_ALL}, perhaps: which of {products.count} products in {precision} the engine multiplies so is unknown, since its "
            "builder does not tell; --profiling detailed makes it"
        )
    if products.all_kept:
        return f"by its {by} the engine multiplies all {products.count} products in {precision} in 8 bits"
    doubt = "" if products.widened else ", perhaps"  # what is not told may well be in 8 bits
    parts = [
        f"{_NOT_ALL}{doubt}: by its {by} the engine multiplies {len(products.kept)} of {products.count} products in {precision} so"
    ]
    if widened := products.widened:
        parts.append(
            f"for {len(widened)} it widens the weights while it runs, to multiply in 16 bits ({_some(widened)})"
        )
    if products.unknown:
        parts.append(f"of {len(products.unknown)} {'the log' if by == LOG else 'it'} does not tell")
    return "; ".join(parts)


def _census(details: Mapping[str, Any]) -> Census | None:
    """Return the counts that a manifest has of an engine's kernels; None where it has none."""
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
    return census


def _some(names: Sequence[str]) -> str:
    return ", ".join(map(printable, names[:3])) + (", ..." if len(names) > 3 else "")
