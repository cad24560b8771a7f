from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from engines import (
    BuildOptions,
    EngineBuildError,
    EngineLoadError,
    EngineNotInstalledError,
    cpu,
)

ort = pytest.importorskip("onnxruntime")

from engines.onnxruntime.engine import OnnxRuntime  # noqa: E402

OPTIONS = BuildOptions()
ROOT = Path(__file__).resolve().parents[3]
SATURATES_HERE = cpu.int8_saturates()


def reference(path: Path, x: np.ndarray) -> np.ndarray:
    w1, w2 = (numpy_helper.to_array(tensor) for tensor in onnx.load(path).graph.initializer)
    return np.maximum(x @ w1, 0) @ w2


@pytest.mark.parametrize("threads", [None, 1])
def test_built_engine_gives_the_graph_s_numbers(make_mlp, tmp_path: Path, threads: int | None):
    source, target = make_mlp(), tmp_path / "engine.onnx"
    info = OnnxRuntime().build(source, target, BuildOptions(threads=threads))
    assert info.size_bytes == target.stat().st_size
    assert info.target == "cpu"
    assert info.details["nodes"] == 3
    x = np.random.default_rng(1).standard_normal((2, 8)).astype(np.float32)
    with OnnxRuntime().load(target, threads=threads) as runner:
        np.testing.assert_allclose(runner.infer({"x": x})["y"], reference(source, x), rtol=1e-5)


def test_open_batch_runs_at_several_sizes(make_mlp, tmp_path: Path):
    source, target = make_mlp(batch="batch"), tmp_path / "engine.onnx"
    OnnxRuntime().build(source, target, BuildOptions(dynamic_batch=(1, 2, 4)))
    with OnnxRuntime().load(target) as runner:
        assert runner.inputs[0].shape == (None, 8)
        for batch in (1, 3):
            assert runner.infer({"x": np.ones((batch, 8), np.float32)})["y"].shape == (batch, 8)


def test_half_precision_graph_keeps_its_types(make_mlp, tmp_path: Path):
    target = tmp_path / "engine.onnx"
    OnnxRuntime().build(make_mlp("float16"), target, OPTIONS)
    with OnnxRuntime().load(target) as runner:
        assert [spec.dtype for spec in (*runner.inputs, *runner.outputs)] == ["float16"] * 2
        assert runner.infer({"x": np.ones((2, 8), np.float16)})["y"].dtype == np.float16


@pytest.fixture
def fp8_graph(tmp_path: Path) -> Path:
    """y = x · w in FP8 (E4M3), quantized and dequantized on both sides; float32 (2, 8) → (2, 8)."""
    grid = TensorProto.FLOAT8E4M3FN
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [2, 8]) for name in ("x", "y"))
    weights = [
        numpy_helper.from_array(np.float32(0.5), "scale"),
        helper.make_tensor("zero", grid, [], [0.0]),
        helper.make_tensor("w", grid, [8, 8], np.linspace(-2, 2, 64)),
    ]
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["left"]),
        helper.make_node("DequantizeLinear", ["w", "scale", "zero"], ["right"]),
        helper.make_node("MatMul", ["left", "right"], ["y"], name="product"),
    ]
    model = helper.make_model(
        helper.make_graph(nodes, "fp8", [x], [y], weights),
        opset_imports=[helper.make_opsetid("", 20)],
        ir_version=9,
    )
    onnx.save(model, tmp_path / "fp8.onnx")
    return tmp_path / "fp8.onnx"


def test_a_release_that_joins_fp8_to_int8_operators_is_told_not_to(
    fp8_graph: Path, make_mlp, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """As 1.26 to 1.31 do, in building, running and timing; a graph without FP8 that is refused is refused once."""
    refused: list[object] = []
    real = ort.InferenceSession

    def session(source: object, options: ort.SessionOptions, providers: list) -> ort.InferenceSession:
        try:
            told = options.get_session_config_entry("session.disable_quant_qdq") == "1"
        except RuntimeError:  # there is no such entry
            told = False
        if not told:
            refused.append(source)
            raise RuntimeError("Type 'tensor(float8e4m3fn)' of (MatMulIntegerToFloat) is invalid.")
        return real(source, options, providers=providers)

    x = np.random.default_rng(1).standard_normal((2, 8)).astype(np.float32)
    direct = ReferenceEvaluator(onnx.load(fp8_graph)).run(None, {"x": x})[0]
    monkeypatch.setattr(ort, "InferenceSession", session)
    target = tmp_path / "engine.onnx"
    OnnxRuntime().build(fp8_graph, target, OPTIONS)
    with OnnxRuntime().load(target) as runner:
        np.testing.assert_allclose(runner.infer({"x": x})["y"], direct, rtol=1e-5)
    assert OnnxRuntime().layer_times(target, {"x": x}, runs=1)
    assert len(refused) == 3
    with pytest.raises(EngineBuildError, match="cannot build"):
        OnnxRuntime().build(make_mlp(), tmp_path / "other.onnx", OPTIONS)
    assert len(refused) == 4


def test_fixed_batch_refuses_a_range(make_mlp, tmp_path: Path):
    with pytest.raises(EngineBuildError, match=r"1:2:4 .*fixed shape \(2, 8\)"):
        OnnxRuntime().build(make_mlp(), tmp_path / "e.onnx", BuildOptions(dynamic_batch=(1, 2, 4)))


def test_rewrites_run_first_and_are_counted(make_mlp, tmp_path: Path):
    def drop_relu(model: onnx.ModelProto) -> dict[str, int]:
        relu = next(node for node in model.graph.node if node.op_type == "Relu")
        model.graph.node.remove(relu)
        model.graph.node[-1].input[0] = relu.input[0]
        return {"drop_relu": 1}

    target = tmp_path / "engine.onnx"
    info = OnnxRuntime(rewrites=[drop_relu]).build(make_mlp(), target, OPTIONS)
    assert info.details["rewrites"] == {"drop_relu": 1}
    assert info.details["operators"] == {"MatMul": 2}


def test_weights_in_a_file_beside_the_model(make_mlp, tmp_path: Path):
    source = tmp_path / "split.onnx"
    onnx.save(
        onnx.load(make_mlp()),
        source,
        save_as_external_data=True,
        location="split.bin",
        size_threshold=0,
    )
    x = np.ones((2, 8), np.float32)
    for name, engine in {"a": OnnxRuntime(), "b": OnnxRuntime([lambda model: {}])}.items():
        target = tmp_path / f"{name}.onnx"
        engine.build(source, target, OPTIONS)
        with engine.load(target) as runner:
            np.testing.assert_allclose(runner.infer({"x": x})["y"], reference(source, x), rtol=1e-5)


def test_damaged_onnx_is_one_line(damaged_onnx: Path, tmp_path: Path):
    target = tmp_path / "engine.onnx"
    before = set(tmp_path.iterdir())
    with pytest.raises(EngineBuildError) as caught:
        OnnxRuntime().build(damaged_onnx, target, OPTIONS)
    assert "not a readable ONNX model" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert set(tmp_path.iterdir()) == before


def test_mixed_types_are_refused_and_leave_nothing(make_mlp, tmp_path: Path):
    source = make_mlp(second="float16")
    with pytest.raises(EngineBuildError, match="second") as caught:
        OnnxRuntime().build(source, tmp_path / "engine.onnx", OPTIONS)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == [source]


def test_damaged_engine_is_one_line(damaged_onnx: Path):
    with pytest.raises(EngineLoadError) as caught:
        OnnxRuntime().load(damaged_onnx)
    assert "\n" not in str(caught.value)


def test_missing_files(tmp_path: Path):
    with pytest.raises(EngineBuildError, match="no such ONNX file"):
        OnnxRuntime().build(tmp_path / "a.onnx", tmp_path / "b.onnx", OPTIONS)
    with pytest.raises(EngineLoadError, match="no such engine file"):
        OnnxRuntime().load(tmp_path / "b.onnx")


@pytest.mark.skipif("CUDAExecutionProvider" in ort.get_available_providers(), reason="this one has CUDA")
def test_cuda_without_the_provider(make_mlp, tmp_path: Path):
    with pytest.raises(EngineBuildError, match="onnxruntime-gpu"):
        OnnxRuntime().build(make_mlp(), tmp_path / "e.onnx", BuildOptions(device="cuda:0"))


@pytest.mark.parametrize("device", ["tpu", "cuda:", "cuda:x", "cpu:0"])
def test_unknown_device(make_mlp, device: str):
    with pytest.raises(EngineLoadError, match="unknown device"):
        OnnxRuntime().load(make_mlp(), device=device)


@pytest.mark.parametrize(
    "options",
    [
        BuildOptions(optimization_level=0),
        BuildOptions(compute_capabilities=("sm80",)),
        BuildOptions(timing_cache=Path("cache")),
        BuildOptions(workspace_bytes=1),
        BuildOptions(hardware_compatibility="ampere_plus"),
        BuildOptions(version_compatible=True),
        BuildOptions(strip_weights=True),
        BuildOptions(refit=True),
    ],
)
def test_options_it_cannot_honour_are_refused(make_mlp, tmp_path: Path, options: BuildOptions):
    with pytest.raises(EngineBuildError, match="has no use for"):
        OnnxRuntime().build(make_mlp(), tmp_path / "engine.onnx", options)


def test_missing_and_broken_packages_are_told_apart(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(EngineNotInstalledError, match="pip install 'onnxruntime>="):
        OnnxRuntime().load(tmp_path / "e.onnx")
    (tmp_path / "onnxruntime.py").write_text("raise ImportError('libfoo.so: cannot open')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "onnxruntime")
    answer = OnnxRuntime().probe()
    assert not answer.installed
    assert "installed but cannot be imported (libfoo.so: cannot open)" in answer.reason


@pytest.mark.parametrize(
    ("machine", "flags", "saturates"),
    [
        ("x86_64", "sse4_1 avx2", True),
        ("x86_64", "avx2 avx512_vnni", False),
        ("AMD64", "avx2 avx_vnni", False),
        ("aarch64", "", False),
    ],
)
def test_which_cpus_saturate_int8(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, machine: str, flags: str, saturates: bool
):
    information = tmp_path / "cpuinfo"
    information.write_text(f"processor : 0\nmodel name : Some CPU\nflags : {flags}\n")
    monkeypatch.setattr("engines.cpu._INFORMATION", information)
    monkeypatch.setattr("platform.machine", lambda: machine)
    assert cpu.int8_saturates() is saturates
    assert cpu.model_name() == "Some CPU"


@pytest.mark.parametrize("saturates", [True, False])
def test_int8_engine_gives_exact_numbers(
    int8_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, saturates: bool
):
    # Extreme values: pairs of products reach 2 * 255 * 127, which 16 bits do not hold.
    monkeypatch.setattr("engines.cpu.int8_saturates", lambda: saturates or SATURATES_HERE)
    target = tmp_path / "engine.onnx"
    info = OnnxRuntime().build(int8_model, target, OPTIONS)
    assert "MatMulIntegerToFloat" in info.details["operators"]
    with OnnxRuntime().load(target) as runner:
        got = runner.infer({"x": np.full((2, 64), 127, np.float32)})["y"]
    np.testing.assert_array_equal(got, np.full((2, 64), 64 * 127 * 127, np.float32))


@pytest.mark.parametrize(("set_by_user", "expected"), [(None, "1"), ("0", "0")])
def test_usage_is_not_reported_unless_the_user_says_so(set_by_user: str | None, expected: str):
    """ONNX Runtime reads the variable when it is imported, so it is looked at in a process of its own."""
    program = (
        "import os, engines; engines.get('onnxruntime').probe(); print(os.environ['ORT_DISABLE_TELEMETRY'])"
    )
    environment = {k: v for k, v in os.environ.items() if k != "ORT_DISABLE_TELEMETRY"}
    if set_by_user is not None:
        environment["ORT_DISABLE_TELEMETRY"] = set_by_user
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert done.stdout.strip() == expected


@pytest.mark.parametrize(
    ("threads", "streams", "at_once", "in_session"),
    [(4, None, 4, 1), (4, 2, 2, 3), (1, None, 1, 1), (2, 1, 1, 2)],
)
def test_several_calls_of_one_session(
    threads: int,
    streams: int | None,
    at_once: int,
    in_session: int,
    make_mlp,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    """Callers compute on their own threads, so that callers and the session's other threads are `threads`."""
    from concurrent.futures import ThreadPoolExecutor

    from engines.onnxruntime import runner as module

    asked = []
    open_session = module.open_session
    monkeypatch.setattr(module, "open_session", lambda *args: asked.append(args[2]) or open_session(*args))
    target = tmp_path / "engine.onnx"
    OnnxRuntime().build(make_mlp(), target, OPTIONS)
    arrays = list(np.random.default_rng(1).standard_normal((40, 2, 8)).astype(np.float32))
    with OnnxRuntime().load_for_throughput(target, threads=threads, streams=streams) as runner:
        assert (runner.at_once, asked) == (at_once, [in_session])
        alone = [runner.infer({"x": x})["y"] for x in arrays]
        with ThreadPoolExecutor(8) as pool:
            together = list(pool.map(lambda x: runner.infer({"x": x})["y"], arrays))
    np.testing.assert_array_equal(together, alone)


def test_more_calls_than_threads(make_mlp, tmp_path: Path):
    with pytest.raises(EngineLoadError, match="streams must be 1 to 2, got 3"):
        OnnxRuntime().load_for_throughput(tmp_path / "engine.onnx", threads=2, streams=3)


@pytest.mark.parametrize(
    ("usable", "threads", "found"), [((0, 1), None, 2), ((0, 1), 3, 3), (tuple(range(8)), None, 0)]
)
def test_no_more_threads_than_may_run(
    usable: tuple[int, ...], threads: int | None, found: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """By itself ONNX Runtime starts a thread for each core of the machine, two of eight left to the process or not; 0 is its choice."""
    import onnxruntime

    from engines import cpu
    from engines.onnxruntime.library import running_options

    monkeypatch.setattr(cpu, "usable_cpus", lambda: usable)
    monkeypatch.setattr("os.cpu_count", lambda: 8)
    monkeypatch.setattr(cpu, "_OWN_CGROUPS", tmp_path / "none")
    assert running_options(onnxruntime, threads).intra_op_num_threads == found
