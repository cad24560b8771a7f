"""The PyTorch model that a bundle was made from, for comparing the two where the weights are at hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sit_deploy.bundle import Bundle, sha256
from sit_deploy.errors import InputError


def reference_model(bundle: Bundle, checkpoint: str | Path | None = None) -> Any:
    """Return the plain PyTorch model of a bundle, in eval mode.

    Args:
        checkpoint: where its weights are now, if not where the bundle was built from.
    Raises:
        InputError: the weights are gone, or are not those that the bundle was built from.
    """
    from sit_deploy.models.checkpoint import load_model

    facts, weights = bundle.manifest["model"], bundle.manifest["weights"]
    size, classes = facts["image_size"][0], facts["num_classes"]
    if weights["source"] == "random":
        if checkpoint is not None:
            raise InputError(f"bundle {bundle.path} was built from random weights; leave --checkpoint out")
        return load_model(facts["name"], None, size, classes).model
    path = Path(checkpoint or weights["source"])
    if not path.is_file():
        raise InputError(
            f"the reference needs the weights {bundle.path} was built from, and {path} is not there; pass --checkpoint FILE"
        )
    if sha256(path) != weights["sha256"]:
        raise InputError(
            f"{path} is not the checkpoint that {bundle.path} was built from (its hash differs); pass --checkpoint FILE"
        )
    return load_model(facts["name"], path, size, classes, weights["ema"]).model
