"""Comparing a model card with the shapes of the weights that it describes, which the header of the same file gives."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from sit_deploy.models.card import ModelCard

_POSITIONS = (0, 1, 2)  # beside the patches: class token, dist token


def contradiction(card: ModelCard, header: Mapping[str, Any]) -> str | None:
    """Return the first thing that card and weights say differently, as half a sentence; None where there is none.

    Args:
        card: the card.
        header: of the safetensors file: `shape` by name. What has another name than in our models is not compared.
    """
    shapes = {name: _shape(entry) for name, entry in header.items() if name != "__metadata__"}
    return next(
        (f"{its} by the card, and {theirs} by the weights" for its, theirs in _differences(card, shapes)),
        None,
    )


def _differences(card: ModelCard, shapes: Mapping[str, tuple[int, ...]]) -> Iterator[tuple[str, str]]:
    for head in ("head.weight", "head.bias", "head_dist.weight"):
        if shapes.get(head) and shapes[head][0] != card.num_classes:
            yield f"it has {card.num_classes} classes", f"{shapes[head][0]}"
    position = shapes.get("pos_embed", ())
    if len(position) == 3 and position[1] - card.tokens[0] not in _POSITIONS:
        yield f"it has {card.tokens[0]} patches at {card.image_size} pixels", f"{position[1]} positions"
    patch = next((s[-1] for name, s in shapes.items() if name.endswith("patch_embed.proj.weight")), None)
    if patch and (card.image_size // patch) ** 2 != card.tokens[0] and not _has_stem(shapes):
        yield f"it has {card.tokens[0]} patches at {card.image_size} pixels", f"patches of {patch} pixels"
    if "pos_embed" in shapes and ("dist_token" in shapes) != card.dist_token:
        have = "has" if card.dist_token else "has no"
        yield f"it {have} dist token", "none" if card.dist_token else "one"
    blocks = _count(shapes, r"blocks\.(\d{1,4})\.")
    if blocks and blocks != sum(card.stages):
        yield f"it has {sum(card.stages)} blocks ({_list(card.stages)})", f"{blocks}"
    tsms = _count(shapes, r"tsm\.(\d{1,4})\.")
    if blocks and tsms != len(card.stages) - 1:
        yield f"it slims {len(card.stages) - 1} times", f"{tsms} times"
    kept = [shapes.get(f"tsm.{i}.weight.3.weight", (0,))[0] for i in range(tsms)]
    if tsms and all(kept) and kept != list(card.tokens[1:]):
        yield f"its stages keep {_list(card.tokens[1:])} tokens", _list(kept)


def _shape(entry: Any) -> tuple[int, ...]:
    shape = entry.get("shape") if isinstance(entry, dict) else None
    sides = shape if isinstance(shape, list) else []
    return tuple(sides) if all(isinstance(side, int) and side > 0 for side in sides) else ()


def _count(shapes: Mapping[str, Any], pattern: str) -> int:
    """Return how many numbers the pattern's group takes among the names."""
    return len({match[1] for match in map(re.compile(pattern).match, shapes) if match})


def _has_stem(shapes: Mapping[str, Any]) -> bool:
    """Whether convolutions make the patches together, so that the last one's side says nothing of them."""
    return "patch_embed.conv1.weight" in shapes


def _list(numbers: Any) -> str:
    return ", ".join(map(str, numbers))
