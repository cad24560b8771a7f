"""sit-deploy: from a SiT checkpoint to an engine that serves. See README.md; the command is `sit-deploy`.

    import sit_deploy

    with sit_deploy.load("sit_s-fp32") as classify:
        logits = classify(["cat.jpg"])

Importing this package is quick; what needs NumPy or an engine's runtime is imported at first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sit_deploy import import_check

if TYPE_CHECKING:
    from sit_deploy.bundle import Bundle, load_bundle
    from sit_deploy.inference import Classifier, load

import_check.check()

__version__ = "0.1.0"
__all__ = ["Bundle", "Classifier", "load", "load_bundle"]

_LAZY = {
    "Bundle": "bundle",
    "Classifier": "inference",
    "load": "inference",
    "load_bundle": "bundle",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_LAZY[name]}"), name)
