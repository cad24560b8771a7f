"""The kernels of an engine, where its builder names them: kept beside the engine, and those of any ONNX graph."""

from __future__ import annotations

import json
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import engines
from sit_deploy.bundle import Bundle
from sit_deploy.errors import InputError
from sit_deploy.schema import decode

if TYPE_CHECKING:
    from engines import BuildOptions, EngineInfo, Progress

KERNELS = "kernels.json"
KIND = "tensorrt-rtx"  # whose builder names them with no GPU
_SCHEMA = 1


@dataclass(frozen=True)
class KernelRow:
    """A kernel, as `engines.tensorrt.kernels.Kernel.to_dict` gives it.

    Attributes:
        role: product, attention, widening or other.
        kind, name: the builder's.
        reads, writes: tensors as type[shape], inputs before constants.
        nodes: of the ONNX graph, that it has a part in.
    """

    role: str
    kind: str
    name: str
    reads: tuple[str, ...]
    writes: tuple[str, ...]
    nodes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON values."""
        return asdict(self)


@dataclass(frozen=True)
class _File:
    schema: int
    kernels: tuple[KernelRow, ...]


def write_kernels(info: EngineInfo, path: Path) -> None:
    """Write the kernels of an engine that was built; nothing where its builder does not name them."""
    if info.kernels:
        rows = ",\n".join(json.dumps(kernel) for kernel in info.kernels)
        path.write_text(f'{{"schema": {_SCHEMA}, "kernels": [\n{rows}\n]}}\n', encoding="utf-8")


def kernels_of_bundle(bundle: Bundle) -> tuple[KernelRow, ...]:
    """Return the kernels of a bundle's engine, in the order in which they run.

    Raises:
        InputError: it has no list of them, or one that cannot be read.
    """
    path = bundle.path / KERNELS
    if KERNELS not in bundle.manifest.files:
        kind = bundle.manifest.engine.kind
        raise InputError(
            f"{bundle.path} has no list of its engine's kernels: "
            + (
                "its builder did not tell them; build it again with --profiling detailed"
                if kind == KIND
                else f"only TensorRT-RTX's builder tells them; pass {bundle.path}/model.onnx, and it is built with that"
            )
        )
    again = "build the bundle again"
    content = decode(path, _File, again)
    if content.schema != _SCHEMA:
        raise InputError(f"{path} has schema {content.schema}, which this version does not know; {again}")
    return content.kernels


def kernels_of_graph(
    path: Path, options: BuildOptions, progress: Progress | None = None
) -> tuple[tuple[KernelRow, ...], dict[str, Any]]:
    """Build a graph with TensorRT-RTX, throw the engine away, and return its kernels and details.

    Args:
        path: an ONNX file, of whatever origin.
        options: of the build: the GPU and the batch sizes.
        progress: called with a step, how much of it is done, and of how much.

    Raises:
        EngineError: TensorRT-RTX is not there or does not take the graph.
        InputError: its builder does not tell its kernels.
    """
    with tempfile.TemporaryDirectory(prefix="sit-deploy-") as folder:
        info = engines.get(KIND).build(path, Path(folder) / "engine.plan", options, progress)
    if not info.kernels:
        raise InputError(
            f"TensorRT-RTX {info.version} built {path} and did not tell its kernels in a form that is known"
        )
    return tuple(
        KernelRow(**{k: tuple(v) if isinstance(v, list) else v for k, v in row.items()})
        for row in info.kernels
    ), info.details
