"""Layers and times come from the runtimes' own profilers; only what does not depend on the machine is held to anything."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest

import engines
from engines import BuildOptions, EngineError

RUNTIMES = [
    "onnxruntime",
    pytest.param(
        "openvino",
        marks=pytest.mark.skipif(
            importlib.util.find_spec("openvino") is None, reason="needs OpenVINO: pip install openvino"
        ),
    ),
]


@pytest.mark.parametrize("kind", RUNTIMES)
def test_layers_of_a_real_engine(kind: str, make_mlp, tmp_path: Path) -> None:
    source = make_mlp()
    target = tmp_path / engines.get(kind).filename
    engines.get(kind).build(source, target, BuildOptions())
    before = sorted(tmp_path.iterdir())
    feeds = {"x": np.ones((2, 8), np.float32)}
    found = engines.get(kind).layer_times(target, feeds, runs=5, threads=1)
    if kind == "onnxruntime":
        operators = [layer.operator for layer in found]
        assert sum(o in ("MatMul", "Gemm", "FusedMatMul", "FusedGemm") for o in operators) == 2
    assert found  # OpenVINO makes one layer of all of it
    assert all(layer.ms >= 0 and layer.layer for layer in found)
    assert len({layer.layer for layer in found}) == len(found)
    assert sorted(tmp_path.iterdir()) == before  # the profiler writes a file, which must not stay


@pytest.mark.parametrize("kind", RUNTIMES)
def test_an_engine_that_is_none(kind: str, tmp_path: Path) -> None:
    target = tmp_path / engines.get(kind).filename
    target.write_bytes(b"no engine")
    with pytest.raises(EngineError, match="cannot profile"):
        engines.get(kind).layer_times(target, {})
