"""Every tensor of a graph on a TensorRT engine that is built for that, through Polygraphy.

Every tensor becomes an output, which keeps TensorRT from fusing across it. So this is not the engine that ships: what is wrong
here is wrong in a kernel or in a type, and what is right here and wrong there is wrong in a fusion.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engines.polygraphy_runs import import_polygraphy, run
from engines.tensorrt.library import Flavour

if TYPE_CHECKING:
    import numpy as np


def tensor_outputs(flavour: Flavour, model: Path, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Build an engine with every tensor an output, and run it.

    Raises:
        EngineNotInstalledError: Polygraphy or the library is missing.
        EngineError: it does not build or run.
    """
    build = marked_engine(flavour, model, feeds)
    from polygraphy.backend.trt import TrtRunner

    return run(TrtRunner(build), feeds, flavour.kind)


def marked_engine(flavour: Flavour, model: Path, feeds: Mapping[str, np.ndarray]) -> Any:
    """Return a Polygraphy loader of an engine with every tensor an output, for the shapes of `feeds`."""
    if flavour.polygraphy_switch:
        # read when Polygraphy is imported, and asked for when its TensorRT backend is
        os.environ[flavour.polygraphy_switch] = "1"
    import_polygraphy()
    from polygraphy import constants
    from polygraphy.backend import trt as backend

    shapes = backend.Profile()
    for name, array in feeds.items():
        shapes.add(name, min=array.shape, opt=array.shape, max=array.shape)
    network = backend.NetworkFromOnnxPath(str(model), strongly_typed=True)
    marked = backend.ModifyNetworkOutputs(network, outputs=constants.MARK_ALL)
    # TF32 off, as in every build here
    config = backend.CreateConfig(profiles=[shapes], tf32=False)
    return backend.EngineFromNetwork(marked, config=config)
