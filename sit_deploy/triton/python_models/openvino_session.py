"""A bundle's own engine on OpenVINO, compiled as `engines.openvino` does, whose modules lie beside: the `session` of network.py."""

from pathlib import Path

import numpy as np
import triton_python_backend_utils as pb_utils
from sit_deploy_parts.errors import EngineError, EngineNotInstalledError
from sit_deploy_parts.openvino.library import import_openvino
from sit_deploy_parts.openvino.runner import OpenVinoRunner, compile_engine


class Session:
    """Opens engine.xml of a folder, in the types that the file says.

    Args:
        folder: of the model's version.
        threads: CPU threads; 0 leaves the choice to the runtime.
        copies: of this model that run beside one another.

    Raises:
        TritonModelException: OpenVINO is missing, the engine is damaged, or the CPU has not the types it is to be run in.
    """

    def __init__(self, folder: Path, threads: int, copies: int) -> None:
        try:
            ov = import_openvino()
            # each process counts CPUs from the first on: the threads of all copies would be pinned to the same ones
            more = {ov.properties.hint.enable_cpu_pinning: False} if copies > 1 else {}
            compiled = compile_engine(ov, folder / "engine.xml", threads or None, more)
            self._runner = OpenVinoRunner(compiled)
        except EngineNotInstalledError as error:
            raise pb_utils.TritonModelException(
                f"{error.reason} in the server's Python, and this model is an engine of it; run `pip install openvino` there, or "
                "`sit-deploy serve BUNDLE --install`"
            ) from None
        except EngineError as error:
            raise pb_utils.TritonModelException(str(error)) from None

    def run(self, images: np.ndarray, given: str, wanted: list[str]) -> list[np.ndarray]:
        """Return the outputs `wanted` of images for the input `given`, a batch that the engine takes."""
        found = self._runner.infer({given: images})
        return [found[name] for name in wanted]
