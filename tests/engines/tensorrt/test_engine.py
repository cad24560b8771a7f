from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from engines import BuildOptions, Engine, EngineLoadError, NoGpuError, get, select
from engines.errors import EngineBuildError
from engines.gpus import Gpu, GpuStatus
from engines.tensorrt.config import targets
from engines.tensorrt.features import Features
from engines.tensorrt.library import TENSORRT, Library
from engines.tensorrt.messages import Messages, builder_problems, clean, facts
from tests.helpers import trt_api

KINDS = ("tensorrt", "tensorrt-rtx")
MODULES = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}


def fake_trt(**more: object) -> SimpleNamespace:
    return SimpleNamespace(
        __version__="99.0",
        Builder=object,
        OnnxParser=object,
        NetworkDefinitionCreationFlag=SimpleNamespace(),
        INetworkDefinition=SimpleNamespace(add_normalization=None),
        IExecutionContext=SimpleNamespace(set_tensor_address=None, execute_async_v3=None),
        BuilderFlag=SimpleNamespace(**more),
        ILogger=type("ILogger", (), {"Severity": None}),
    )


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engines.tensorrt.engine.find_gpus", lambda: GpuStatus((), "no driver"))


@pytest.fixture
def one_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    status = GpuStatus((Gpu("Some GPU", "sm89"),), "")
    monkeypatch.setattr("engines.tensorrt.engine.find_gpus", lambda: status)


@pytest.fixture
def plan(tmp_path: Path) -> Path:
    path = tmp_path / "engine.plan"
    path.write_bytes(b"plan")
    return path


@pytest.mark.parametrize("kind", KINDS)
def test_not_installed(monkeypatch: pytest.MonkeyPatch, kind: str):
    monkeypatch.setitem(sys.modules, MODULES[kind], None)
    answer = get(kind).probe()
    assert not answer.installed and not answer.can_build and not answer.can_run
    assert "is not installed" in answer.reason
    assert "pip install" in (answer.remedy or "")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("source", "cause"),
    [
        ("raise OSError('libnvinfer.so.10: cannot open')", "libnvinfer.so.10: cannot open"),
        ("import a_module_nobody_has", "a_module_nobody_has"),
    ],
)
def test_broken_install_is_not_called_missing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, kind: str, source: str, cause: str
):
    (tmp_path / f"{MODULES[kind]}.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, MODULES[kind], raising=False)
    answer = get(kind).probe()
    assert not answer.installed
    assert "installed but cannot be imported" in answer.reason and cause in answer.reason


def test_a_release_without_a_path_is_refused(monkeypatch: pytest.MonkeyPatch):
    old = fake_trt()
    old.__version__ = "8.4.3"
    old.IExecutionContext = SimpleNamespace(execute_async_v2=None)
    monkeypatch.setitem(sys.modules, "tensorrt", old)
    answer = get("tensorrt").probe()
    assert not answer.installed
    assert answer.reason == "TensorRT 8.4.3 has no execute_async_v3"
    assert answer.remedy == "install TensorRT 8.6 or newer"


@pytest.mark.parametrize(
    ("kind", "since"), [("tensorrt", "TensorRT 10.14"), ("tensorrt-rtx", "TensorRT-RTX 1.7.1")]
)
def test_a_release_that_does_not_read_attention_is_refused_for_opset_23(
    monkeypatch: pytest.MonkeyPatch, kind: str, since: str
) -> None:
    library = fake_trt()
    monkeypatch.setitem(sys.modules, MODULES[kind], library)
    engine = get(kind)
    engine.check_opset(20)
    refused = f"^{engine.title} 99.0 does not read opset 23, .* [(]{since} does[)]; leave --opset out$"
    with pytest.raises(EngineBuildError, match=refused):
        engine.check_opset(23)
    library.INetworkDefinition.add_attention = None
    engine.check_opset(23)


def test_full_tensorrt_needs_a_gpu_to_build(
    monkeypatch: pytest.MonkeyPatch, no_gpu: None, make_mlp, tmp_path: Path
):
    monkeypatch.setitem(sys.modules, "tensorrt", fake_trt())
    answer = get("tensorrt").probe()
    assert answer.installed and not answer.can_build
    with pytest.raises(NoGpuError, match="building a TensorRT engine needs an NVIDIA GPU"):
        get("tensorrt").build(make_mlp(), tmp_path / "engine.plan", BuildOptions())
    assert not (tmp_path / "engine.plan").exists()


@pytest.mark.parametrize("kind", KINDS)
def test_load_without_a_gpu(no_gpu: None, plan: Path, kind: str):
    with pytest.raises(NoGpuError) as caught:
        get(kind).load(plan)
    message = str(caught.value)
    assert "needs an NVIDIA GPU and driver; none found here" in message
    assert "--engine onnxruntime" in message and "\n" not in message


def test_load_of_a_missing_file(tmp_path: Path):
    with pytest.raises(EngineLoadError, match="no such engine file"):
        get("tensorrt-rtx").load(tmp_path / "engine.plan")


def test_targets_on_a_library_that_has_none():
    trt = fake_trt()
    library = Library(trt, TENSORRT, Features.of(trt), Messages(), None)
    assert targets(library, (), False) == ()
    with pytest.raises(EngineBuildError, match="cannot be given compute capabilities"):
        targets(library, ("sm80",), False)


@pytest.mark.parametrize(
    ("raw", "heart"),
    [
        (
            "ITensor::getDimensions: Error Code 4: API Usage Error (mm1: IMatrixMultiplyLayer must "
            "have same input types. In validateTypes at /_src/nodes/matrixMultiplyNode.cpp:38)",
            "mm1: IMatrixMultiplyLayer must have same input types",
        ),
        (
            "IBuilder::buildSerializedNetwork: Error Code 1: Myelin ([pass.cpp:337: "
            "check_turing_op_compatibility] Cannot compile operation 'mm0' for Turing (SM75): "
            "FP32 GEMM is not supported. In compileGraph at /_src/myelin/codeGenerator.cpp:2012)",
            "Cannot compile operation 'mm0' for Turing (SM75): FP32 GEMM is not supported",
        ),
        ("something\nplain", "something plain"),
    ],
)
def test_clean_keeps_the_heart_of_a_message(raw: str, heart: str):
    assert clean(raw) == heart


def test_absent_driver_is_only_told_if_there_is_nothing_else():
    driver = "[a.cpp::b::25] Error Code 1: Cuda Runtime (In b at /_src/a.cpp:25 (cudaError 35: x))"
    assert builder_problems(Messages(errors=[driver, "the real one", driver])) == ("the real one",)
    (alone,) = builder_problems(Messages(errors=[driver]))
    assert "cudaError 35" in alone


def test_facts_are_read_from_the_builder_s_notes():
    notes = [
        "Total Weights Memory: 33024 bytes",
        "[MemUsageStats] Peak memory usage of TRT CPU/GPU memory allocators: CPU 4 MiB, GPU 7 MiB",
    ]
    assert facts(notes) == {
        "weights_bytes": 33024,
        "builder_peak_cpu_mib": 4,
        "builder_peak_gpu_mib": 7,
    }


def test_targets_that_have_fp8(monkeypatch: pytest.MonkeyPatch) -> None:
    def has_gpu(capability: str) -> None:
        status = GpuStatus((Gpu("a GPU", capability),), "")
        monkeypatch.setattr("engines.tensorrt.engine.find_gpus", lambda: status)

    has_gpu("sm86")
    rtx, full = get("tensorrt-rtx"), get("tensorrt")
    assert rtx.targets_with("fp8", ()) == ("sm89", "sm120", "sm121")
    assert rtx.targets_with("fp8", ("sm89",)) == ("sm89",)
    for engine, asked, named in (
        (rtx, ("sm120", "sm80"), "sm80"),
        (rtx, ("current",), "sm86"),
        (full, (), "sm86"),
    ):
        assert engine.targets_with("int8", asked) == asked
        with pytest.raises(
            EngineBuildError,
            match=f"^{named} has no FP8: it came with sm89; pass --precision int8 or a newer",
        ):
            engine.targets_with("fp8", asked)
    has_gpu("sm90")
    assert full.targets_with("fp8", ()) == ()
    assert rtx.targets_with("fp8", ("current",)) == ("current",)


def test_where_nothing_is_to_stand_before_attention() -> None:
    """FP8 is in one form for all GPUs of an engine, and one form suits sm120."""
    rtx, full = get("tensorrt-rtx"), get("tensorrt")
    assert rtx.attends_unscaled("int8", ()) and rtx.attends_unscaled("int8", ("sm80", "sm120"))
    assert rtx.attends_unscaled("fp8", ("sm89",)) and not rtx.attends_unscaled("fp8", ("sm89", "sm120"))
    assert not rtx.attends_unscaled("fp8", ("current",)) and not rtx.attends_unscaled("fp8", ())
    assert not full.attends_unscaled("int8", ()) and not full.attends_unscaled("fp8", ())


def rtx_beside(monkeypatch: pytest.MonkeyPatch, *gpus: Gpu) -> Engine:
    """TensorRT-RTX by its recorded names, on a machine with GPUs and a PyCUDA."""
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", trt_api.load("tensorrt-rtx-1.7.1"))
    monkeypatch.setitem(sys.modules, "pycuda.driver", SimpleNamespace(init=lambda: None))
    monkeypatch.setattr("engines.tensorrt.engine.find_gpus", lambda: GpuStatus(gpus, ""))
    return get("tensorrt-rtx")


def test_a_gpu_that_rtx_is_not_for(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture):
    rtx = rtx_beside(monkeypatch, Gpu("NVIDIA H200", "sm90"))
    answer = rtx.probe()
    assert answer.can_build and answer.foreign_gpu and not answer.can_run
    assert answer.reason == (
        "TensorRT-RTX 1.7.1.116 does not run on NVIDIA H200 (sm90); it is for sm75, sm80, sm86, sm89, sm120, sm121"
    )
    assert answer.remedy.startswith("use --engine tensorrt for this GPU")
    rtx.check(BuildOptions(compute_capabilities=("sm89",)))  # for another machine's
    rtx.check(BuildOptions(compute_capabilities=("current",)))  # of which the library has the last word
    assert "does not run on NVIDIA H200 (sm90)" in caplog.text
    with pytest.raises(
        EngineBuildError,
        match=r"unknown compute capability 'sm90' .*; sit-deploy build --engine tensorrt builds for it",
    ):
        rtx.check(BuildOptions(compute_capabilities=("sm90",)))
    assert [rtx.serves(capability) for capability in ("sm89", "sm90", "sm100", "sm121")] == [
        True,
        False,
        False,
        True,
    ]


@pytest.mark.parametrize(
    ("capabilities", "end"),
    [
        (("sm90", "sm89"), "builds and runs here, on GPU 1"),
        (("sm120",), "builds and runs here, on GPU 0"),
        (("sm75",), "on GPU 0, with --target sm75: engines leave it out by default"),
    ],
)
def test_a_gpu_that_rtx_is_for(monkeypatch: pytest.MonkeyPatch, capabilities: tuple[str, ...], end: str):
    answer = rtx_beside(monkeypatch, *(Gpu(f"GPU {i}", c) for i, c in enumerate(capabilities))).probe()
    assert answer.can_run and not answer.foreign_gpu and answer.reason.endswith(end)


def test_auto_passes_rtx_over_for_a_gpu_that_it_is_not_for(monkeypatch: pytest.MonkeyPatch):
    rtx_beside(monkeypatch, Gpu("NVIDIA B200", "sm100"))
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    engine, why = select()
    assert engine.kind == "onnxruntime"
    assert "tensorrt-rtx was passed over: TensorRT-RTX 1.7.1.116 does not run on NVIDIA B200 (sm100)" in why
    engine, why = select("tensorrt-rtx")  # for another machine
    assert engine.kind == "tensorrt-rtx" and "does not run on NVIDIA B200" in why
    monkeypatch.setitem(sys.modules, "tensorrt", trt_api.load("tensorrt-11.4.0"))
    assert select()[0].kind == "tensorrt"


def test_attention_without_a_kernel_is_told_with_the_way_out() -> None:
    said = """MyelinCheckException: decompose_composite_ops.cpp:59: CHECK(composite_op->is_decomposable()) failed. Attention
    operation was not supported by a dedicated kernel.  (See https://docs.nvidia.com/ for shapes.)"""
    (problem,) = builder_problems(Messages(errors=[said.replace("\n   ", "")]))
    assert problem.endswith("leave --opset 23 out, and attention is written out")
