"""ONNX Runtime's side is real; TensorRT's is built for real where it can be, and its numbers come from a damaged graph."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from engines import EngineError, EngineNotInstalledError, NoGpuError, get
from engines.gpus import GpuStatus
from engines.layer_comparison import compare_layers

pytest.importorskip("polygraphy")
FEEDS = {"x": np.random.default_rng(1).standard_normal((2, 8)).astype(np.float32)}


def test_every_tensor_comes_out(make_mlp):
    model = make_mlp()
    found = get("onnxruntime").tensor_outputs(model, FEEDS)
    assert set(found) == {"hidden", "active", "y"}
    same = compare_layers(onnx.load(model), found, found, 1e-6)
    assert same.first_bad is None and [row.error for row in same.tensors] == [0.0] * 3


def test_a_damaged_weight_names_its_node(make_mlp, tmp_path: Path):
    model = make_mlp()
    damaged = onnx.load(model)
    weight = damaged.graph.initializer[1]
    values = numpy_helper.to_array(weight).copy()
    values[3] *= -1
    weight.CopyFrom(numpy_helper.from_array(values, weight.name))
    onnx.save(damaged, tmp_path / "damaged.onnx")
    compared = compare_layers(
        onnx.load(model),
        get("onnxruntime").tensor_outputs(model, FEEDS),
        get("onnxruntime").tensor_outputs(tmp_path / "damaged.onnx", FEEDS),
        1e-3,
    )
    assert (compared.first_bad.node, compared.first_bad.operator) == ("second", "MatMul")
    assert [row.passed for row in compared.tensors] == [True, True, False]
    assert compared.worst(1)[0].tensor == "y"
    assert compared.to_dict()["first_bad"]["tensor"] == "y"


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_is_bad_whatever_the_tolerance(make_mlp, bad: float):
    model = make_mlp()
    good = get("onnxruntime").tensor_outputs(model, FEEDS)
    broken = {name: value.copy() for name, value in good.items()}
    broken["active"][0, 0] = bad
    compared = compare_layers(onnx.load(model), good, broken, float("inf"))
    assert compared.first_bad.node == "relu" and compared.first_bad.error is None
    assert compared.worst(1)[0].node == "relu"


def test_tensors_of_one_side_are_listed(make_mlp):
    model = make_mlp()
    good = get("onnxruntime").tensor_outputs(model, FEEDS)
    fewer = {name: value for name, value in good.items() if name != "active"}
    assert compare_layers(onnx.load(model), good, fewer, 1).missing == ("active",)
    with pytest.raises(EngineError, match="no tensor in common"):
        compare_layers(onnx.load(model), good, {"z": FEEDS["x"]}, 1)


def test_error_is_in_standard_deviations_of_the_reference(make_mlp):
    model = make_mlp()
    good = get("onnxruntime").tensor_outputs(model, FEEDS)
    moved = {**good, "y": good["y"] + 0.5 * good["y"].std()}
    assert compare_layers(onnx.load(model), good, moved, 1).tensors[-1].error == pytest.approx(0.5, rel=1e-4)


def test_without_a_gpu(make_mlp, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("engines.tensorrt.engine.find_gpus", lambda: GpuStatus((), "no driver"))
    with pytest.raises(NoGpuError, match="Leave --debug out"):
        get("tensorrt-rtx").tensor_outputs(make_mlp(), FEEDS)


def test_without_polygraphy(make_mlp, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "polygraphy", None)
    with pytest.raises(EngineNotInstalledError, match="pip install 'polygraphy>="):
        get("onnxruntime").tensor_outputs(make_mlp(), FEEDS)


def test_a_graph_that_does_not_run(make_mlp):
    with pytest.raises(EngineError, match="ONNX Runtime does not run the graph") as caught:
        get("onnxruntime").tensor_outputs(make_mlp(), {"x": FEEDS["x"][:1, :3]})
    assert "\n" not in str(caught.value)


def test_the_marked_graph_is_taken_by_the_real_builder(make_mlp):
    """In a process of its own: Polygraphy settles on one TensorRT when it is imported."""
    import subprocess

    pytest.importorskip("tensorrt_rtx")
    code = (
        "import sys, numpy as np\n"
        "from pathlib import Path\n"
        "from engines.tensorrt.library import TENSORRT_RTX\n"
        "from engines.tensorrt.tensors import marked_engine\n"
        "loader = marked_engine(TENSORRT_RTX, Path(sys.argv[1]), {'x': np.zeros((2, 8), np.float32)})\n"
        "builder, network, _ = loader._network()\n"
        "names = {network.get_output(i).name for i in range(network.num_outputs)}\n"
        "config = loader._config(builder, network)\n"
        "plan = builder.build_serialized_network(network, config)\n"
        "assert {'hidden', 'active', 'y'} <= names, names\n"
        "assert len(bytes(plan)) > 1000\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(make_mlp())], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
