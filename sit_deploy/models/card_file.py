"""Weights with their model card in one safetensors file, so that the file suffices to deploy the model: written and read.

The card is the text of one key of the file's metadata, `sit_deploy`, as JSON; a copy is written beside the weights for people.
"""

from __future__ import annotations

import json
import re
import struct
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engines.files import atomic_path
from engines.strict_json import parse
from sit_deploy.errors import InputError
from sit_deploy.models.card import ModelCard
from sit_deploy.models.card_check import contradiction
from sit_deploy.models.file_kind import MAX_SAFETENSORS_HEADER, find_file, is_safetensors

if TYPE_CHECKING:
    from torch import Tensor

KEY = "sit_deploy"
# ours and timm's, transformers', torchvision's, under whatever prefix
_HEAD = re.compile(r"(^|\.)(head|head\.fc|classifier)\.weight$")


def read_card(path: str | Path) -> ModelCard | None:
    """Return the card of a safetensors file, None for a file without one or of another kind. Reads its header alone.

    Raises:
        InputError: a card that cannot be understood, or that says of the weights what they are not.
    """
    try:
        path = find_file(path)
    except InputError:  # whoever reads the weights will say what is wrong
        return None
    header = _header(path)
    text = header.get("__metadata__", {}).get(KEY)
    if text is None:
        return None
    try:
        card = ModelCard.from_dict(parse(text) if isinstance(text, str) else text)
    except ValueError as error:
        raise InputError(f"the model card of {path} is no JSON ({error}); save the model again") from None
    except InputError as error:
        raise InputError(f"the model card of {path} cannot be used: {error}") from None
    if difference := contradiction(card, header):
        raise InputError(
            f"the model card of {path} does not fit its weights: {difference}; save the model again"
        )
    return card


def save_weights(path: str | Path, state_dict: dict[str, Tensor], card: ModelCard) -> None:
    """Write weights with their card as safetensors, whole or not at all, and a copy of the card beside (`.json`).

    Tensors are written from the CPU; those that share memory are written each for itself.

    Raises:
        engines.EngineError: the folder does not exist or cannot be written.
    """
    from safetensors.torch import save

    path = Path(path)
    fields = card.to_dict()
    own = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in state_dict.items()}
    with atomic_path(path) as temporary:
        # by way of bytes: written by the format's own library, the file would be closed to all but its owner
        temporary.write_bytes(
            save(own, metadata={KEY: json.dumps(fields, ensure_ascii=False, allow_nan=False)})
        )
    with atomic_path(path.with_suffix(".json")) as temporary:
        text = json.dumps(fields, indent=2, ensure_ascii=False, allow_nan=False)
        temporary.write_text(text + "\n", encoding="utf-8")


def head_outputs(path: Path) -> int | None:
    """Return how many outputs the head of a safetensors file has; None where its header does not tell: no head, heads that differ, another file."""
    shapes = (
        entry.get("shape")
        for name, entry in _header(path).items()
        if _HEAD.search(name) and isinstance(entry, dict)
    )
    found = {shape[0] for shape in shapes if isinstance(shape, list) and len(shape) == 2}
    return found.pop() if len(found) == 1 else None


def _header(path: Path) -> dict[str, Any]:
    """Return the header of a safetensors file: 8 bytes of length, little-endian, then JSON; empty for another file."""
    if not path.is_file() or not is_safetensors(path):
        return {}
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            header = parse(file.read(length)) if length <= MAX_SAFETENSORS_HEADER else {}
    except (OSError, ValueError, struct.error):  # whoever reads the weights will say what is wrong
        return {}
    return header if isinstance(header, dict) and isinstance(header.get("__metadata__", {}), dict) else {}
