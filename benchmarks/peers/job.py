"""What a peer's script is asked and what it answers. Standard library and NumPy only: it runs in every peer's environment."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Job:
    """Quantize `graph` into `output` by `method`.

    Attributes:
        images: float32 (n, 3, H, W), preprocessed, of which the graph takes one at a time.
        layers: names of the nodes to quantize; a method called "default" leaves the choice to the peer.
    """

    graph: Path
    output: Path
    method: str
    layers: list[str]
    images: np.ndarray


def read() -> Job:
    """Return the job in the JSON file that the command line names."""
    fields = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    images = np.load(fields["images"])
    return Job(Path(fields["graph"]), Path(fields["output"]), fields["method"], fields["layers"], images)


@contextmanager
def answer(packages: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Time the block and write ANSWER: its seconds, the packages' versions, and what the block puts into the dictionary."""
    told: dict[str, Any] = {}
    started = time.perf_counter()
    yield told
    seconds = time.perf_counter() - started
    told |= {"seconds": seconds, "versions": {p: version(p) for p in packages}}
    Path(sys.argv[2]).write_text(json.dumps(told), encoding="utf-8")
