from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

import engines
from sit_deploy.bundle import load_bundle
from sit_deploy.validation.drift import compare_stream, debug_on_cpu, stream_tensors
from tests.helpers.command_line import CommandLine
from tests.helpers.digits import Digits
from tests.sit_deploy.conftest import GraphMade

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("polygraphy") is None, reason="needs Polygraphy: pip install polygraphy"
)


def test_the_stream_of_a_graph(graph_made: GraphMade) -> None:
    """Two sums a block but the last, whose second gives the class token alone; three slimmings; and the logits."""
    names = stream_tensors(onnx.load(graph_made.file))
    assert names[:3] == ["blocks.0/add", "blocks.0/add_2", "blocks.1/add"]
    assert [n for n in names if n.startswith("tsm.")] == [f"tsm.{i}/concat" for i in range(3)]
    assert names[-1] == "logits" and len(names) == len(set(names)) == 2 * 8 + 3 + 1


def test_a_bundle_in_fp32_is_its_graph(nano_fp32: Path) -> None:
    found = debug_on_cpu(load_bundle(nano_fp32))
    assert found.first_bad is None and found.missing == ()
    assert max(row.error for row in found.tensors) < 1e-5


def test_a_missing_package_is_said_before_anything_is_exported(
    nano_fp32: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "polygraphy", None)
    monkeypatch.setattr(
        "sit_deploy.validation.drift.reference_model", lambda *_: pytest.fail("it was loaded")
    )
    with pytest.raises(
        engines.EngineNotInstalledError, match=r"comparing layers needs Polygraphy; run .*pip"
    ):
        debug_on_cpu(load_bundle(nano_fp32))


def test_int8_drifts_as_it_goes_on(nano_int8: Path, digits: Digits) -> None:
    """Scales have migrated in this graph: only along the stream do its values mean the same."""
    bundle = load_bundle(nano_int8)
    found = compare_stream(digits.float_graph.graph, bundle, bundle.golden()[0])
    sqnr = [row.sqnr_db for row in found.tensors if row.sqnr_db is not None]
    assert len(sqnr) == len(found.tensors) and min(sqnr) > 10
    assert np.mean(sqnr[:4]) > np.mean(sqnr[-4:])


@pytest.mark.slow
def test_the_first_layer_that_is_wrong_is_named(
    nano_fp32: Path, copy_of: Callable[[Path], Path], cli: CommandLine
) -> None:
    from tests.helpers.bundles import seal_again

    bundle = copy_of(nano_fp32)
    graph = onnx.load(bundle / "model.onnx")
    used = next(node.input[1] for node in graph.graph.node if node.name == "blocks.2/mlp/fc2")
    (weight,) = (t for t in graph.graph.initializer if t.name == used)
    weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight) * np.float32(1.5), weight.name))
    onnx.save(graph, bundle / "model.onnx")
    seal_again(bundle)
    found = cli("validate", bundle, "--debug", "--json").json()["debug"]
    assert found["first_bad"]["tensor"] == "blocks.2/add_2"
    out = cli("validate", bundle, "--debug").out
    assert "first bad layer: blocks.2/add_2 (Add)" in out
