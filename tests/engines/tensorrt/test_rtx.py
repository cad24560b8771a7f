"""Against the real TensorRT-RTX builder, which needs no GPU."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import warnings
from pathlib import Path

import pytest

from engines import BuildOptions, EngineBuildError, NoGpuError
from engines.gpus import GpuStatus

trt = pytest.importorskip("tensorrt_rtx")

from engines.tensorrt.config import attach_timing_cache, save_timing_cache  # noqa: E402
from engines.tensorrt.engine import TensorRTRTX  # noqa: E402
from engines.tensorrt.messages import Messages, make_logger  # noqa: E402

OPTIONS = BuildOptions()


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "engine.plan"


def build(source: Path, target: Path, options: BuildOptions = OPTIONS, progress=None):
    return TensorRTRTX().build(source, target, options, progress)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_builds_strongly_typed(make_mlp, target: Path, dtype: str):
    info = build(make_mlp(dtype), target)
    assert info.size_bytes == target.stat().st_size > 0
    assert info.version == trt.__version__
    assert info.details["layer_output_types"] == {dtype: info.details["layers"]}
    assert info.details["compute_capabilities"] == "default"
    assert info.target.startswith("sm80,") and "sm75" not in info.target


def test_quantized_graph_keeps_its_int8_layers(int8_model: Path, target: Path):
    assert build(int8_model, target).details["layer_output_types"]["int8"] == 2


def test_tf32_is_off(make_mlp, target: Path):
    assert "TF32" not in build(make_mlp(), target).details["flags"]


def test_mixed_types_are_refused_with_the_node(make_mlp, target: Path):
    source = make_mlp(second="float16")
    with pytest.raises(EngineBuildError) as caught:
        build(source, target)
    assert "node second (MatMul): " in str(caught.value)
    assert "Float" in str(caught.value) and "Half" in str(caught.value)
    assert "\n" not in str(caught.value) and ".cpp" not in str(caught.value)
    assert len(caught.value.problems) == 1
    assert list(target.parent.iterdir()) == [source]


def test_unsupported_operator_is_named(det_model: Path, target: Path):
    with pytest.raises(EngineBuildError) as caught:
        build(det_model, target)
    assert str(caught.value).endswith("node determinant (Det): operator Det is not supported by TensorRT-RTX")
    assert not target.exists()


def test_damaged_onnx_is_one_line(damaged_onnx: Path, target: Path):
    with pytest.raises(EngineBuildError, match="not a readable ONNX model") as caught:
        build(damaged_onnx, target)
    assert "\n" not in str(caught.value)
    assert not target.exists()


def test_open_batch_makes_a_profile(make_mlp, target: Path):
    info = build(make_mlp(batch="batch"), target, BuildOptions(dynamic_batch=(1, 4, 16)))
    assert info.details["profile"] == {"x": {"min": [1, 8], "opt": [4, 8], "max": [16, 8]}}


def test_open_batch_without_a_range(make_mlp, target: Path):
    with pytest.raises(EngineBuildError, match="--dynamic-batch MIN:OPT:MAX"):
        build(make_mlp(batch="batch"), target)


def test_range_for_a_fixed_batch(make_mlp, target: Path):
    with pytest.raises(EngineBuildError, match="export the graph with an open batch"):
        build(make_mlp(), target, BuildOptions(dynamic_batch=(1, 4, 16)))


def test_compute_capabilities_reach_the_builder(make_mlp, target: Path):
    options = BuildOptions(compute_capabilities=("sm80", "SM89", "sm80"))
    info = build(make_mlp(), target, options)
    assert info.target == "sm80,sm89"
    # Turing has no FP32 matmul here: that the builder says so shows that the target took.
    with pytest.raises(EngineBuildError, match=r"Turing \(SM75\)"):
        build(make_mlp(), target, BuildOptions(compute_capabilities=("sm75",)))


def test_unknown_compute_capability_lists_the_valid(make_mlp, target: Path):
    with pytest.raises(EngineBuildError, match=r"'sm42'.*valid: .*sm80, .*sm89"):
        build(make_mlp(), target, BuildOptions(compute_capabilities=("sm42",)))


def test_current_needs_a_gpu_and_stands_alone(make_mlp, target: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("engines.tensorrt.engine.find_gpus", lambda: GpuStatus((), "no driver"))
    with pytest.raises(NoGpuError, match="current needs an NVIDIA GPU"):
        build(make_mlp(), target, BuildOptions(compute_capabilities=("current",)))
    with pytest.raises(EngineBuildError, match="cannot be combined"):
        build(make_mlp(), target, BuildOptions(compute_capabilities=("current", "sm80")))


@pytest.mark.parametrize("batch", [2, "batch"])
def test_engines_can_be_captured(make_mlp, target: Path, batch: int | str):
    options = OPTIONS if batch == 2 else BuildOptions(dynamic_batch=(1, 4, 16))
    assert build(make_mlp(batch=batch), target, options).details["flags"] == ["REQUIRE_USER_ALLOCATION"]


def test_options_reach_the_builder(make_mlp, target: Path):
    options = BuildOptions(optimization_level=1, workspace_bytes=1 << 26, threads=1)
    assert build(make_mlp(), target, options).details["optimization_level"] == 1


def test_timing_cache_is_said_to_be_unused_and_not_written(make_mlp, target: Path, tmp_path: Path):
    cache = tmp_path / "timing.cache"
    info = build(make_mlp(), target, BuildOptions(timing_cache=cache))
    assert info.details["timing_cache"].startswith("not used")
    assert not cache.exists()


def test_timing_cache_is_written_and_a_damaged_one_replaced(tmp_path: Path, caplog):
    # The library keeps the calls though it times nothing, so full TensorRT's path runs here too.
    # (Without a GPU it takes any cache for a damaged one, so reading a good one is not tested.)
    path, messages = tmp_path / "timing.cache", Messages()
    logger = make_logger(trt, messages)
    builder = trt.Builder(logger)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        for content in (None, b"junk" * 100):
            if content is not None:
                path.write_bytes(content)
            config = builder.create_builder_config()
            found = attach_timing_cache(config, path, messages)
            assert found == {"loaded": False, "entries_before": 0}
            assert ("is damaged" in caplog.text) == (content is not None)
            assert save_timing_cache(config, path, found)["entries_after"] == 0
            assert path.stat().st_size > 0 and path.read_bytes() != content
    assert list(tmp_path.iterdir()) == [path]


def test_progress_comes_from_the_builder_in_our_thread(attention_chain, target: Path):
    seen = []
    build(
        attention_chain(8),
        target,
        progress=lambda *step: seen.append((threading.current_thread(), *step)),
    )
    assert {thread for thread, *_ in seen} == {threading.current_thread()}
    assert all(0 <= done <= total for _, _, done, total in seen)
    assert any(phase != "reading ONNX" for _, phase, _, _ in seen)


def test_an_exception_in_progress_cancels_the_build(attention_chain, target: Path):
    def interrupt(phase: str, done: int, total: int) -> None:
        if phase != "reading ONNX":
            raise KeyboardInterrupt

    source = attention_chain(12)
    with pytest.raises(KeyboardInterrupt):
        build(source, target, progress=interrupt)
    assert list(target.parent.iterdir()) == [source]


def test_the_same_build_twice_is_the_same_bytes(make_mlp, tmp_path: Path):
    source = make_mlp("float16")
    plans = [tmp_path / f"{turn}.plan" for turn in range(2)]
    for plan in plans:
        build(source, plan)
    assert plans[0].read_bytes() == plans[1].read_bytes()


def test_profiling_levels_reach_the_plan(make_mlp, tmp_path: Path):
    source, plans = make_mlp("float16"), {}
    for level in ("none", "names", "detailed"):
        info = build(source, tmp_path / f"{level}.plan", BuildOptions(profiling=level))
        assert info.details["profiling"] == level
        plans[level] = (tmp_path / f"{level}.plan").read_bytes()
    assert len(set(plans.values())) == 3


def test_too_little_workspace_is_the_builder_s_own_word(make_mlp, target: Path):
    with pytest.raises(EngineBuildError, match="workspace"):
        build(make_mlp("float16"), target, BuildOptions(workspace_bytes=1))
    assert not target.exists()


def test_what_this_library_does_not_do_is_refused_at_once(make_mlp, target: Path, monkeypatch):
    monkeypatch.setattr("engines.tensorrt.engine.find_gpus", lambda: GpuStatus((), "none"))
    with pytest.raises(NoGpuError, match="can be refitted only beside a GPU"):
        build(make_mlp("float16"), target, BuildOptions(strip_weights=True))
    with pytest.raises(EngineBuildError, match="name the GPUs with --target"):
        build(make_mlp("float16"), target, BuildOptions(hardware_compatibility="ampere_plus"))
    # its wheel lacks the lean runtime that such an engine would carry
    with pytest.raises(EngineBuildError, match="libnvinfer_lean"):
        build(make_mlp("float16"), target, BuildOptions(version_compatible=True))


SCRIPT = """
import sys
from pathlib import Path
from engines import BuildOptions
from engines.tensorrt.engine import TensorRTRTX

def progress(phase, done, total):
    if phase != "reading ONNX":
        print("building", flush=True)

TensorRTRTX().build(Path(sys.argv[1]), Path(sys.argv[2]), BuildOptions(), progress)
print("finished", flush=True)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_ctrl_c_cancels_and_leaves_nothing(attention_chain, target: Path):
    source = attention_chain(60)
    child = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(source), str(target)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert child.stdout is not None
    assert child.stdout.readline().strip() == "building"
    child.send_signal(signal.SIGINT)
    output, errors = child.communicate(timeout=60)
    assert "KeyboardInterrupt" in errors
    assert "finished" not in output
    assert child.returncode == -signal.SIGINT
    assert list(target.parent.iterdir()) == [source]
