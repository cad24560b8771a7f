from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from engines import (
    BuildOptions,
    EngineBuildError,
    EngineError,
    EngineInputError,
    EngineLoadError,
    EngineNotInstalledError,
)
from engines.install import pip_install

pytest.importorskip("openvino", reason="needs OpenVINO: pip install '.[openvino]'")

from engines.openvino.engine import OpenVino

OPTIONS = BuildOptions()


def reference(path: Path, x: np.ndarray) -> np.ndarray:
    w1, w2 = (numpy_helper.to_array(tensor) for tensor in onnx.load(path).graph.initializer)
    return np.maximum(x @ w1, 0) @ w2


def files(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


@pytest.mark.parametrize("threads", [None, 1])
def test_built_engine_gives_the_graphs_numbers(make_mlp, tmp_path: Path, threads: int | None):
    source, target = make_mlp(), tmp_path / "engine.xml"
    info = OpenVino().build(source, target, BuildOptions(threads=threads))
    assert (info.kind, info.filename, info.target) == ("openvino", "engine.xml", "cpu")
    assert info.size_bytes == target.stat().st_size + target.with_suffix(".bin").stat().st_size
    assert info.details["operators"]["MatMul"] == 2
    assert files(tmp_path) == ["engine.bin", "engine.xml", "mlp.onnx"]
    x = np.random.default_rng(1).standard_normal((2, 8)).astype(np.float32)
    with OpenVino().load(target, threads=threads) as runner:
        assert str(runner.inputs[0]) == "float32 (2, 8)"
        np.testing.assert_allclose(runner.infer({"x": x})["y"], reference(source, x), rtol=1e-5)


def test_open_batch_runs_at_several_sizes(make_mlp, tmp_path: Path):
    source, target = make_mlp(batch="batch"), tmp_path / "engine.xml"
    OpenVino().build(source, target, BuildOptions(dynamic_batch=(1, 2, 4)))
    with OpenVino().load(target) as runner:
        assert runner.inputs[0].shape == (None, 8)
        for batch in (1, 3, 2):
            x = np.random.default_rng(batch).standard_normal((batch, 8)).astype(np.float32)
            np.testing.assert_allclose(runner.infer({"x": x})["y"], reference(source, x), rtol=1e-5)


def test_a_result_outlives_the_next_run(make_mlp, tmp_path: Path):
    OpenVino().build(make_mlp(), tmp_path / "engine.xml", OPTIONS)
    with OpenVino().load(tmp_path / "engine.xml") as runner:
        first = runner.infer({"x": np.ones((2, 8), np.float32)})["y"]
        kept = first.copy()
        runner.infer({"x": np.zeros((2, 8), np.float32)})
        assert np.array_equal(first, kept)
        strided = np.ones((8, 2), np.float32).T  # not contiguous
        assert np.array_equal(runner.infer({"x": strided})["y"], kept)


def test_half_precision_graph_keeps_its_types(make_mlp, tmp_path: Path):
    OpenVino().build(make_mlp("float16"), tmp_path / "engine.xml", OPTIONS)
    with OpenVino().load(tmp_path / "engine.xml") as runner:
        assert [spec.dtype for spec in (*runner.inputs, *runner.outputs)] == ["float16"] * 2
        assert runner.infer({"x": np.ones((2, 8), np.float16)})["y"].dtype == np.float16


def test_quantized_products_are_exact(int8_model: Path, tmp_path: Path):
    OpenVino().build(int8_model, tmp_path / "engine.xml", OPTIONS)
    with OpenVino().load(tmp_path / "engine.xml") as runner:
        (spec,) = runner.inputs
        x = np.full(spec.shape, 100, np.float32)
        (y,) = runner.infer({spec.name: x}).values()
    assert (y == 64 * 127 * 100).all()


def test_what_does_not_fit_is_refused(make_mlp, tmp_path: Path):
    OpenVino().build(make_mlp(), tmp_path / "engine.xml", OPTIONS)
    runner = OpenVino().load(tmp_path / "engine.xml")
    with runner, pytest.raises(EngineInputError, match=r"expected shape \(2, 8\), got \(3, 8\)"):
        runner.infer({"x": np.ones((3, 8), np.float32)})
    with pytest.raises(EngineInputError, match="this engine is closed"):
        runner.infer({"x": np.ones((2, 8), np.float32)})


def test_fixed_batch_refuses_a_range(make_mlp, tmp_path: Path):
    with pytest.raises(EngineBuildError, match=r"1:2:4 .*fixed shape \(2, 8\)"):
        OpenVino().build(make_mlp(), tmp_path / "e.xml", BuildOptions(dynamic_batch=(1, 2, 4)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (BuildOptions(optimization_level=0), "OpenVINO has no use for optimization level"),
        (BuildOptions(compute_capabilities=("sm89",)), "OpenVINO has no use for compute capabilities"),
        (BuildOptions(device="cuda"), "device cuda asked for, but OpenVINO engines run on the CPU here"),
    ],
)
def test_options_of_other_runtimes(options: BuildOptions, message: str, make_mlp, tmp_path: Path):
    with pytest.raises(EngineBuildError, match=message):
        OpenVino().check(options)
    with pytest.raises(EngineBuildError, match=message):
        OpenVino().build(make_mlp(), tmp_path / "e.xml", options)
    assert files(tmp_path) == ["mlp.onnx"]


def test_a_graph_it_cannot_build_leaves_nothing(make_mlp, tmp_path: Path):
    (tmp_path / "text.onnx").write_text("no graph")
    with pytest.raises(EngineBuildError, match="is not a readable ONNX model"):
        OpenVino().build(tmp_path / "text.onnx", tmp_path / "e.xml", OPTIONS)
    model = onnx.load(make_mlp())
    model.graph.node[1].op_type = "NoSuchOperator"
    onnx.save(model, tmp_path / "strange.onnx")
    with pytest.raises(EngineBuildError, match=r"OpenVINO cannot build .*NoSuchOperator") as caught:
        OpenVino().build(tmp_path / "strange.onnx", tmp_path / "e.xml", OPTIONS)
    assert "\n" not in str(caught.value)
    assert files(tmp_path) == ["mlp.onnx", "strange.onnx", "text.onnx"]


def test_a_folder_that_is_not_there(make_mlp, tmp_path: Path):
    with pytest.raises(EngineError, match=r"folder .*gone does not exist"):
        OpenVino().build(make_mlp(), tmp_path / "gone/e.xml", OPTIONS)


def test_a_stream_that_fails_is_said_in_words(make_mlp, tmp_path: Path, monkeypatch):
    import openvino

    def full(*_: object, **__: object) -> None:
        raise RuntimeError("Exception from src/core.cpp:1:\nbasic_ios::clear: iostream error\n")

    monkeypatch.setattr(openvino, "save_model", full)
    with pytest.raises(
        EngineError, match=r"e\.xml: the disk is full or fails; [\d.]+ MB are free there without"
    ):
        OpenVino().build(make_mlp(), tmp_path / "e.xml", OPTIONS)


def test_a_build_that_fails_while_saving_leaves_nothing(make_mlp, tmp_path: Path, monkeypatch):
    import openvino

    def full(_, path: str, **__: object) -> None:
        Path(path).write_text("half")
        raise RuntimeError("Exception from src/somewhere.cpp:1:\nNo space left on device\n")

    monkeypatch.setattr(openvino, "save_model", full)
    with pytest.raises(EngineError, match=r"cannot write .*e\.xml: No space left on device$"):
        OpenVino().build(make_mlp(), tmp_path / "e.xml", OPTIONS)
    assert files(tmp_path) == ["mlp.onnx"]


def test_engines_that_cannot_be_loaded(make_mlp, tmp_path: Path):
    target = tmp_path / "engine.xml"
    with pytest.raises(EngineLoadError, match="no such engine file"):
        OpenVino().load(target)
    OpenVino().build(make_mlp(), target, OPTIONS)
    with pytest.raises(EngineLoadError, match="device cuda:1 asked for, but OpenVINO engines run on the CPU"):
        OpenVino().load(target, device="cuda:1")
    with pytest.raises(EngineLoadError, match="threads must be at least 1, got 0"):
        OpenVino().load(target, threads=0)
    whole = target.read_bytes()
    target.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(EngineLoadError, match="is not an engine OpenVINO can load: ") as caught:
        OpenVino().load(target)
    assert "\n" not in str(caught.value)
    target.write_bytes(whole)
    target.with_suffix(".bin").unlink()
    with pytest.raises(EngineLoadError, match=r"engine\.bin: no such engine file"):
        OpenVino().load(target)


def test_without_openvino(monkeypatch: pytest.MonkeyPatch, make_mlp, tmp_path: Path):
    monkeypatch.setitem(sys.modules, "openvino", None)
    answer = OpenVino().probe()
    assert (answer.installed, answer.can_build, answer.can_run) == (False, False, False)
    assert answer.remedy == f"run {pip_install('openvino')}"
    with pytest.raises(EngineNotInstalledError, match="OpenVINO is not installed"):
        OpenVino().build(make_mlp(), tmp_path / "e.xml", OPTIONS)


def many(runner, arrays: list[np.ndarray]) -> list[np.ndarray]:
    """Run all arrays from eight threads."""
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(8) as pool:
        return list(pool.map(lambda x: runner.infer({"x": x})["y"], arrays))


@pytest.mark.parametrize("streams", [None, 1, 2])
def test_several_calls_at_a_time(make_mlp, tmp_path: Path, streams: int | None):
    source, target = make_mlp(), tmp_path / "engine.xml"
    OpenVino().build(source, target, OPTIONS)
    arrays = list(np.random.default_rng(1).standard_normal((40, 2, 8)).astype(np.float32))
    with OpenVino().load_for_throughput(target, threads=2, streams=streams) as runner:
        assert runner.at_once == 2 if streams is None else runner.at_once >= streams
        for x, y in zip(arrays, many(runner, arrays), strict=True):
            np.testing.assert_allclose(y, reference(source, x), rtol=1e-5)


def test_threads_that_call_an_engine_for_latency_wait_for_one_another(make_mlp, tmp_path: Path):
    """OpenVINO would refuse the second call of a request that is under way."""
    source, target = make_mlp(), tmp_path / "engine.xml"
    OpenVino().build(source, target, OPTIONS)
    arrays = list(np.random.default_rng(1).standard_normal((40, 2, 8)).astype(np.float32))
    with OpenVino().load(target) as runner:
        assert runner.at_once == 1
        for x, y in zip(arrays, many(runner, arrays), strict=True):
            np.testing.assert_allclose(y, reference(source, x), rtol=1e-5)
    with pytest.raises(EngineInputError, match="closed"):
        runner.infer({"x": arrays[0]})
    with pytest.raises(EngineInputError, match="closed"):
        runner._infer({"x": arrays[0]})  # closed between the look and the call


def test_streams_that_it_would_make_fewer_of(make_mlp, tmp_path: Path):
    target = tmp_path / "engine.xml"
    OpenVino().build(make_mlp(), target, OPTIONS)
    with pytest.raises(EngineLoadError, match="streams must be 1 to 2, got 3"):
        OpenVino().load_for_throughput(target, threads=2, streams=3)


def test_the_first_inference_of_a_process_is_alone(make_mlp, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Two at a time can wait for one another for ever."""
    import threading

    from engines.openvino import runner as module

    monkeypatch.setattr(module, "_RAN", threading.Event())
    monkeypatch.setattr(module, "_FIRST", threading.Lock())
    under_way, most_before_one_was_done, lock = [0], [0], threading.Lock()
    run = module.OpenVinoRunner._run

    def watched(self, feeds):
        with lock:
            under_way[0] += 1
            if not module._RAN.is_set():
                most_before_one_was_done[0] = max(most_before_one_was_done[0], under_way[0])
        try:
            return run(self, feeds)
        finally:
            with lock:
                under_way[0] -= 1

    monkeypatch.setattr(module.OpenVinoRunner, "_run", watched)
    source, target = make_mlp(), tmp_path / "engine.xml"
    OpenVino().build(source, target, OPTIONS)
    arrays = list(np.random.default_rng(1).standard_normal((16, 2, 8)).astype(np.float32))
    with OpenVino().load_for_throughput(target, threads=2) as runner:
        many(runner, arrays)
    assert most_before_one_was_done == [1] and module._RAN.is_set()


@pytest.mark.parametrize("kind", ["openvino", "onnxruntime"])
def test_opening_an_engine_needs_no_onnx(kind: str):
    """Where a folder of `package python` runs, there is none."""
    import subprocess

    program = f"import sys; sys.modules['onnx'] = None; import engines.timing, engines.{kind}.engine, engines.{kind}.runner"
    path = [str(Path(__file__).parents[3]), *filter(None, sys.path)]
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path[:] = {path!r}; {program}"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


def test_threads_of_a_container_that_has_the_time_of_fewer_cpus(
    make_mlp, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """OpenVINO counts the CPUs that it sees, and a quota is no set of CPUs: its threads would be stopped in turn."""
    from engines.openvino import library
    from engines.openvino.runner import compile_engine

    target = tmp_path / "engine.xml"
    OpenVino().build(make_mlp(), target, OPTIONS)
    ov = library.import_openvino()
    count = ov.properties.inference_num_threads
    monkeypatch.setattr(library, "throttled_to", lambda: 1)
    assert compile_engine(ov, target, None).get_property(count) == 1
    assert library.settings(ov, 4)[count] == 4  # as it was asked for
    monkeypatch.setattr(library, "throttled_to", lambda: None)
    assert count not in library.settings(ov, None)
