"""Writing an ONNX graph to a file, the same bytes for the same graph."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx


def write_graph(graph: onnx.ModelProto, path: Path) -> None:
    """Write a graph.

    Args:
        graph: under 2 GB, which is what a file without external data holds.
        path: the file, overwritten where it is there.
    """
    path.write_bytes(graph.SerializeToString(deterministic=True))
