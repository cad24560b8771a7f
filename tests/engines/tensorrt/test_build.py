"""How options reach the builders of three generations, by their recorded names; the builder itself is not there."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from engines import BuildOptions, EngineBuildError, EngineError, NoGpuError
from engines.gpus import Gpu, GpuStatus
from engines.graph_file import read_model, tensor_types
from engines.tensorrt.config import check_options, configure
from engines.tensorrt.engine import TensorRT
from engines.tensorrt.messages import parser_problems
from engines.tensorrt.types import constrain, network_flags, numpy_type, require_types
from tests.helpers import trt_api

FULL = ("tensorrt-8.6.0", "tensorrt-10.0.1", "tensorrt-10.16.1", "tensorrt-11.4.0")


class Config:
    """A builder's configuration: takes what the release has, and remembers it."""

    def __init__(self, trt: ModuleType) -> None:
        self.__dict__.update(trt=trt, flags={"TF32"}, calls=[])

    def __getattr__(self, name: str) -> Any:
        known = self.trt.IBuilderConfig.signatures
        if name not in known:
            raise AttributeError(f"IBuilderConfig of this release has no {name}")

        def call(*args: Any) -> Any:
            trt_api.bind(self.trt.IBuilderConfig, name, args, {})
            if name == "get_tactic_sources":
                return 0b11111
            if name in ("set_flag", "clear_flag"):
                (self.flags.add if name == "set_flag" else self.flags.discard)(args[0].name)
            self.calls.append((name, *args))
            return True

        return call

    def __setattr__(self, name: str, value: Any) -> None:
        if name not in self.trt.IBuilderConfig.signatures:
            raise AttributeError(f"IBuilderConfig of this release has no {name}")
        self.__dict__[name] = value


def configured(release: str, options: BuildOptions) -> Config:
    library = trt_api.library(release)
    config = Config(library.trt)
    configure(library, None, None, config, options, ())
    return config


@pytest.mark.parametrize("release", [*FULL, "tensorrt-rtx-1.7.1"])
def test_defaults(release: str):
    config = configured(release, BuildOptions())
    # TF32 is cleared, which would round what the graph calls float32
    assert config.flags == ({"REQUIRE_USER_ALLOCATION"} if "rtx" in release else set())
    assert config.profiling_verbosity.name == "DETAILED"
    # all but cuBLAS, cuBLAS LT and cuDNN, which are other packages
    sources = [call for call in config.calls if call[0] == "set_tactic_sources"]
    assert sources == ([("set_tactic_sources", 0b11000)] if release == "tensorrt-8.6.0" else [])


@pytest.mark.parametrize("release", FULL)
def test_every_option_that_a_release_has(release: str):
    options = BuildOptions(
        optimization_level=4,
        workspace_bytes=1 << 20,
        hardware_compatibility="ampere_plus",
        version_compatible=True,
        refit=True,
        profiling="none",
    )
    check_options(trt_api.library(release), options, True)
    config = configured(release, options)
    assert config.flags == {"VERSION_COMPATIBLE", "REFIT"}
    assert config.hardware_compatibility_level.name == "AMPERE_PLUS"
    assert config.profiling_verbosity.name == "NONE"
    assert config.builder_optimization_level == 4
    (limit,) = [call for call in config.calls if call[0] == "set_memory_pool_limit"]
    assert (limit[1].name, limit[2]) == ("WORKSPACE", 1 << 20)


def test_stripped_weights_come_back_the_same_where_that_can_be_said():
    options = BuildOptions(strip_weights=True)
    assert configured("tensorrt-11.4.0", options).flags == {"STRIP_PLAN", "REFIT_IDENTICAL"}
    # the same value by its older name
    assert configured("tensorrt-10.0.1", options).flags == {"WEIGHTLESS", "REFIT_IDENTICAL"}
    both = BuildOptions(strip_weights=True, refit=True)
    assert configured("tensorrt-11.4.0", both).flags == {"STRIP_PLAN", "REFIT"}


@pytest.mark.parametrize(
    ("release", "options", "sentence"),
    [
        ("tensorrt-8.6.0", BuildOptions(strip_weights=True), "cannot leave weights out"),
        (
            "tensorrt-10.0.1",
            BuildOptions(hardware_compatibility="same_compute_capability"),
            r"levels: ampere_plus\)",
        ),
        (
            "tensorrt-11.4.0",
            BuildOptions(hardware_compatibility="turing"),
            "has no hardware compatibility 'turing'",
        ),
        (
            "tensorrt-rtx-1.7.1",
            BuildOptions(hardware_compatibility="ampere_plus"),
            "name the GPUs with --target",
        ),
    ],
)
def test_what_a_release_lacks_is_refused(release: str, options: BuildOptions, sentence: str):
    with pytest.raises(EngineBuildError, match=sentence):
        check_options(trt_api.library(release), options, True)


@pytest.mark.parametrize("options", [BuildOptions(strip_weights=True), BuildOptions(refit=True)])
def test_rtx_refits_only_beside_a_gpu(options: BuildOptions):
    library = trt_api.library("tensorrt-rtx-1.7.1")
    check_options(library, options, True)
    with pytest.raises(NoGpuError, match="only beside a GPU"):
        check_options(library, options, False)


def test_an_unknown_profiling_level():
    with pytest.raises(EngineBuildError, match="profiling must be none or names or detailed, got 'all'"):
        BuildOptions(profiling="all")


@pytest.mark.parametrize(
    ("release", "names"),
    [
        ("tensorrt-8.6.0", {"EXPLICIT_BATCH"}),
        ("tensorrt-10.0.1", {"STRONGLY_TYPED"}),
        ("tensorrt-11.4.0", {"STRONGLY_TYPED"}),
        ("tensorrt-rtx-1.7.1", {"STRONGLY_TYPED"}),
    ],
)
def test_network_flags(release: str, names: set[str]):
    library = trt_api.library(release)
    flags = network_flags(library)
    assert flags == sum(1 << int(library.trt.NetworkDefinitionCreationFlag[name]) for name in names)


def layer(trt: ModuleType, kind: str, *types: str) -> SimpleNamespace:
    tensors = [SimpleNamespace(dtype=trt.DataType[name]) for name in types]
    made = SimpleNamespace(type=trt.LayerType[kind], num_outputs=len(types), precision=None, told={})
    made.get_output = lambda i: tensors[i]
    made.set_output_type = made.told.__setitem__
    return made


def test_a_weakly_typed_network_is_told_every_type():
    library = trt_api.library("tensorrt-8.6.0")
    trt = library.trt
    layers = [
        layer(trt, "MATRIX_MULTIPLY", "HALF"),
        layer(trt, "NORMALIZATION", "FLOAT"),
        layer(trt, "SHAPE", "INT32"),
        layer(trt, "CAST", "HALF"),
        layer(trt, "QUANTIZE", "INT8"),
        layer(trt, "CONSTANT", "HALF"),
        layer(trt, "TOPK", "HALF", "INT32"),
    ]
    network = SimpleNamespace(num_layers=len(layers), get_layer=layers.__getitem__)
    config = Config(trt)
    assert constrain(library, network, config, {"float32", "float16", "int8"}) == 3
    assert config.flags == {"TF32", "FP16", "INT8", "PREFER_PRECISION_CONSTRAINTS"}
    half, single = trt.DataType.HALF, trt.DataType.FLOAT
    assert [made.precision for made in layers] == [half, single, None, None, None, None, half]
    assert [made.told for made in layers] == [{0: half}, {0: single}, {}, {}, {}, {}, {0: half}]


def test_a_float32_graph_gets_no_low_precision():
    library = trt_api.library("tensorrt-8.6.0")
    config = Config(library.trt)
    constrain(library, SimpleNamespace(num_layers=0), config, {"float32"})
    assert config.flags == {"TF32", "PREFER_PRECISION_CONSTRAINTS"}


def test_types_that_a_release_has_none_of():
    old = trt_api.library("tensorrt-8.6.0")
    with pytest.raises(EngineBuildError, match="no bfloat16; build with --precision fp16"):
        require_types(old, {"bfloat16"})
    with pytest.raises(EngineBuildError, match="no FP8 networks; build with --precision int8"):
        require_types(old, {"float8_e4m3fn"})
    require_types(old, {"float32", "float16", "int8"})
    require_types(trt_api.library("tensorrt-10.0.1"), {"bfloat16", "float8_e4m3fn"})


@pytest.mark.parametrize("release", [*FULL, "tensorrt-rtx-1.7.1"])
def test_types_by_their_numpy_names(release: str):
    names = {numpy_type(dtype) for dtype in trt_api.load(release).DataType}
    assert {"float32", "float16", "int8", "int32", "bool"} <= names


def test_an_old_parser_s_word_on_gelu_names_the_opset():
    error = SimpleNamespace(
        node=lambda: 7,
        code=lambda: SimpleNamespace(name="UNSUPPORTED_NODE"),
        desc=lambda: "getPluginCreator could not find plugin: Gelu version: 1",
    )
    parser = SimpleNamespace(num_errors=1, get_error=lambda i: error)
    (problem,) = parser_problems(parser, "TensorRT")
    assert problem.startswith("node node number 7: ") or problem.startswith("node number 7: ")
    assert problem.endswith("; build with --opset 17")


@pytest.mark.parametrize("release", FULL)
def test_probe_takes_every_full_release(release: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "tensorrt", trt_api.load(release))
    monkeypatch.setattr("engines.tensorrt.engine.find_gpus", lambda: GpuStatus((Gpu("G", "sm89"),), ""))
    monkeypatch.setitem(sys.modules, "pycuda.driver", SimpleNamespace(init=lambda: None))
    answer = TensorRT().probe()
    assert answer.can_build and answer.can_run


def test_types_that_a_graph_holds(make_mlp, int8_model):
    """What decides the builder flags of a weakly typed library."""
    assert tensor_types(read_model(make_mlp())) == {"float32"}
    assert tensor_types(read_model(make_mlp("float16"))) == {"float16"}
    assert tensor_types(read_model(int8_model)) == {"float32", "int8"}


def test_casts_count_as_types():
    from onnx import TensorProto, helper

    nodes = [
        helper.make_node("Cast", ["x"], ["low"], to=TensorProto.BFLOAT16),
        helper.make_node("Cast", ["low"], ["y"], to=TensorProto.FLOAT),
    ]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [2]) for name in "xy"]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:])
    assert tensor_types(helper.make_model(graph)) == {"float32", "bfloat16"}


def test_a_builder_that_does_not_start(make_mlp, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    trt = trt_api.load("tensorrt-11.4.0")

    def refused(logger: Any) -> None:
        logger.log(
            1,
            "createInferBuilder: Error Code 6: API Usage Error (CUDA initialization failure with error: 35)",
        )
        raise TypeError("pybind11::init(): factory function returned nullptr")

    trt.Builder = refused
    severity = SimpleNamespace(INTERNAL_ERROR=0, ERROR=1, WARNING=2, INFO=3, VERBOSE=4)
    trt.ILogger = type("ILogger", (), {"Severity": severity})
    monkeypatch.setitem(sys.modules, "tensorrt", trt)
    monkeypatch.setattr("engines.tensorrt.engine.find_gpus", lambda: GpuStatus((Gpu("G", "sm89"),), ""))
    with pytest.raises(
        EngineError,
        match=r"TensorRT 11\.4\.0\S* makes no Builder here: CUDA initialization failure with error: 35; check",
    ) as caught:
        TensorRT().build(make_mlp(), tmp_path / "engine.plan", BuildOptions())
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "engine.plan").exists()
