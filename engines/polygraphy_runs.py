"""Running a graph with every tensor an output, through Polygraphy: what the runtimes share."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from engines.errors import EngineError, EngineNotInstalledError
from engines.install import pip_install

if TYPE_CHECKING:
    import numpy as np


def import_polygraphy() -> None:
    """Import Polygraphy.

    Raises:
        EngineNotInstalledError: it is missing.
    """
    try:
        importlib.import_module("polygraphy")
    except ImportError as error:
        raise EngineNotInstalledError(
            "comparing layers needs Polygraphy", f"run {pip_install('polygraphy')}"
        ) from error


def run(runner: Any, feeds: Mapping[str, np.ndarray], title: str) -> dict[str, np.ndarray]:
    """Run a Polygraphy runner once; copies of its outputs.

    Raises:
        EngineError: it does not build or run, in one line.
    """
    import numpy as np
    from polygraphy.logger import G_LOGGER

    with G_LOGGER.verbosity(G_LOGGER.CRITICAL):
        try:
            with runner:
                outputs = runner.infer(feed_dict=dict(feeds))
        except Exception as error:  # Polygraphy's own, the library's, and whatever lies between
            text = " ".join(str(error).split()) or type(error).__name__
            raise EngineError(
                f"{title} does not run the graph with every tensor an output: {text}"
            ) from error
    return {name: np.array(value) for name, value in outputs.items()}
