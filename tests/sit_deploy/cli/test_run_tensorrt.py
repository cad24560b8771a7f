"""The commands on a TensorRT bundle where a GPU is, with the fakes in the place of the GPU and of TensorRT."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import sit_deploy
from engines import BuildOptions, EngineInfo
from engines.tensorrt.engine import TensorRT
from sit_deploy.bundle import load_bundle
from sit_deploy.errors import GateError
from sit_deploy.manifest import write_manifest
from sit_deploy.pipeline.engine import BuiltEngine, tell_kernels
from sit_deploy.pipeline.kernel_gate import require_kernels
from sit_deploy.pipeline.request import BuildRequest
from sit_deploy.pipeline.work import Work
from tests.helpers.command_line import CommandLine
from tests.helpers.fake_tensorrt import make_plan
from tests.helpers.trt_rig import Rig, make_rig


@pytest.fixture(params=["tensorrt-8.6.0", "tensorrt-10.16.1", "tensorrt-rtx-1.7.1"])
def rig(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Rig:
    return make_rig(monkeypatch, tmp_path / "cache", request.param)


@pytest.fixture
def bundle(rig: Rig, nano_fp32: Path, copy_of: Callable[[Path], Path]) -> Path:
    """sit_nano as a build on this machine would have made it, with a plan that the fake runtime reads."""
    return remade(copy_of(nano_fp32), rig)


def remade(folder: Path, rig: Rig, **changes: object) -> Path:
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / manifest["engine"]["file"]).unlink()
    (folder / "engine.plan").write_bytes(make_plan((folder / "model.onnx").read_bytes()))
    manifest["engine"] = {
        "kind": rig.engine.kind,
        "file": "engine.plan",
        "version": rig.version,
        "target": "sm89 (Fake GPU)",
        "why": "a test",
        "build_seconds": 1.0,
        "details": {},
        **changes,
    }
    for key in ("schema", "files", "digest"):
        manifest.pop(key)
    write_manifest(folder, manifest)
    return folder


def test_validate_on_the_gpu(rig: Rig, bundle: Path, cli: CommandLine):
    result = cli("validate", bundle, "--json").json()
    assert result["engine"] == rig.engine.kind
    assert result["golden"]["compared"] and result["golden"]["passed"]
    # four golden images, one at a time: plain, captured and launched, launched twice more
    assert (rig.trt.executions, rig.gpu.launches) == (2, 3)
    rig.gpu.assert_clean()


def test_layers_are_told(rig: Rig, bundle: Path, cli: CommandLine):
    rig.trt.inspector = json.dumps(
        {
            "Layers": [
                {
                    "Name": "whole graph",
                    "LayerType": "myelin",
                    "Outputs": [{"Name": "logits", "Format/Datatype": "Float"}],
                    "Metadata": "[ONNX Layer: head]",
                }
            ]
        }
    )
    told = cli("validate", bundle, "--layers", "--json").json()["layers"]
    assert told["layers"][0]["layer"] == "whole graph" and told["layers"][0]["ms"] == pytest.approx(1.5)
    assert told["raised"] == []  # a float32 graph asks for nothing low
    shown = cli("validate", bundle, "--layers").out
    assert "whole graph" in shown and "1.5000" in shown


def told_layers(kind: str) -> str:
    """What an inspector may say of sit_nano: a product and an attention."""
    tensors = [{"Name": name, "Dimensions": [1, 50, 128], "Format/Datatype": kind} for name in ("x", "w")]
    layers = [
        {"Name": name, "LayerType": layer, "Inputs": tensors, "Outputs": tensors[:1], "Metadata": f"[ONNX Layer: blocks.0/{node}]"}
        for name, layer, node in (("fc1_myl0_0", "gemm", "mlp/fc1"), ("_gemm_mha_v2_myl0_1", "kgen", "attn/softmax"))
    ]  # fmt: skip
    return json.dumps({"Layers": layers, "Bindings": ["images", "logits"]})


TOLD = "2 kernels by its engine inspector; attention in one kernel in 1 of 8 places; kernels of products: 1 in float32"


def test_kernels_are_told(rig: Rig, bundle: Path, cli: CommandLine):
    """A bundle without a list of them is asked where its engine runs; TensorRT-RTX's builder has told, or nobody does."""
    rig.trt.inspector = told_layers("Float")
    assert f"Kernels: {TOLD}\n" in cli("validate", bundle, "--layers").out
    assert cli("validate", bundle, "--layers", "--json").json()["layers"]["census"]["kernels"]["kernels"] == 2
    if rig.engine.kind == "tensorrt-rtx":
        assert "build it again with --profiling detailed" in cli.refuses("inspect", bundle, "--kernels")
        return
    found = cli("inspect", bundle, "--kernels", "--json").json()
    assert [row["role"] for row in found["kernel_list"]] == ["product", "attention"]
    assert TOLD in cli("inspect", bundle, "--kernels").out
    rig.trt.inspector = json.dumps({"Layers": ["a"]})
    assert "the engine inspector tells names alone" in cli.refuses("inspect", bundle, "--kernels")


def test_a_build_keeps_what_the_inspector_tells(rig: Rig, bundle: Path):
    """And is held to it: a graph in FP16 whose product the engine has in FP32."""
    request = BuildRequest("sit_nano", bundle, precision="fp16", rest="fp16")
    work, images = Work(request, lambda *_: None), load_bundle(bundle).golden()[0]
    info = EngineInfo(rig.engine.kind, rig.version, "engine.plan", 1, 0.5, "sm89 (Fake GPU)", {"a": 1})
    built = BuiltEngine(rig.engine, bundle / "engine.plan", info)
    rig.trt.inspector = told_layers("Float")
    told = tell_kernels(work, built, SimpleNamespace(inputs=images))
    assert told.info.details["a"] == 1 and told.info.details["kernels"]["kernels"] == 2
    assert len(json.loads((bundle / "kernels.json").read_text())["kernels"]) == 2
    assert tell_kernels(work, told, SimpleNamespace(inputs=images)) is told  # asked once
    raised = {**told.info.details, "raised": ["blocks.0/mlp/fc1"]}
    with pytest.raises(
        GateError, match=r"^not all in 16 bits: by its engine inspector the engine multiplies 1 "
    ):
        require_kernels(work, raised, SimpleNamespace(quantization=None))
    names = replace(request, profiling="names")
    assert tell_kernels(Work(names, lambda *_: None), built, SimpleNamespace(inputs=images)) is built


def test_predict_on_the_gpu(bundle: Path, cli: CommandLine, make_image_folder: Callable[..., Path]):
    images = make_image_folder(classes=("a",), per_class=3)
    ours = cli("predict", bundle, images, "--json").json()
    on_cpu = cli("predict", bundle, images, "--engine", "onnxruntime", "--json").json()
    assert [x["classes"][0]["index"] for x in ours] == [x["classes"][0]["index"] for x in on_cpu]


def test_one_public_call(bundle: Path):
    images, reference = load_bundle(bundle).golden()
    with sit_deploy.load(bundle) as classify:
        error = np.abs(classify.logits(images) - reference).max() / reference.std()
    assert error < 1e-4


def test_a_wrong_engine_fails_validation(rig: Rig, bundle: Path, cli: CommandLine, nano_fp32: Path):
    """Another model's plan under a right manifest: the golden outputs find it."""
    import onnx
    from onnx import numpy_helper

    graph = onnx.load(nano_fp32 / "model.onnx")
    for tensor in graph.graph.initializer:
        if tensor.name.startswith("head") or "norm" in tensor.name:
            tensor.CopyFrom(numpy_helper.from_array(-numpy_helper.to_array(tensor), tensor.name))
    (bundle / "engine.plan").write_bytes(make_plan(graph.SerializeToString()))
    manifest = json.loads((bundle / "manifest.json").read_text())
    for key in ("schema", "files", "digest"):
        manifest.pop(key)
    write_manifest(bundle, manifest)
    assert cli("validate", bundle, "--json", status=1).json()["golden"]["passed"] is False


def test_stale_bundles_are_refused_in_one_line(
    rig: Rig, nano_fp32: Path, copy_of: Callable[..., Path], cli: CommandLine
):
    old = remade(copy_of(nano_fp32, "old"), rig, version="0.0.1")
    message = cli.refuses("validate", old)
    assert "0.0.1, and" in message and "build it again: sit-deploy build --model sit_nano" in message


def test_another_gpu(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, nano_fp32: Path, copy_of: Callable, cli: CommandLine
):
    rig = make_rig(monkeypatch, tmp_path / "cache", "tensorrt-10.16.1")
    foreign = remade(copy_of(nano_fp32, "foreign"), rig, target="sm90 (Other GPU)")
    assert "was built for sm90, and GPU 0 here is sm89" in cli.refuses("validate", foreign)


def test_a_device_that_is_none(bundle: Path, cli: CommandLine):
    assert "pass cuda or cuda:N" in cli.refuses("validate", bundle, "--device", "cpu")
    assert "there is no GPU 7" in cli.refuses("validate", bundle, "--device", "cuda:7")


def test_a_truncated_plan_is_found_by_its_hash(bundle: Path, cli: CommandLine):
    plan = bundle / "engine.plan"
    plan.write_bytes(plan.read_bytes()[:-1])
    assert "engine.plan does not match its hash" in cli.refuses("validate", bundle)


def test_doctor_says_that_it_runs(rig: Rig, cli: CommandLine):
    found = {row["kind"]: row for row in cli("doctor", "--json").json()["engines"]}
    assert found[rig.engine.kind]["can_run"]


@pytest.mark.slow
def test_a_build_where_a_gpu_is_runs_its_engine(rig: Rig, cli: CommandLine, monkeypatch: pytest.MonkeyPatch):
    """The builder is stood in for; everything after it is what a build does: compare, ask for layers, report."""

    def build(
        self: TensorRT, source: Path, target: Path, options: BuildOptions, progress: object = None
    ) -> EngineInfo:
        target.write_bytes(make_plan(source.read_bytes()))
        return EngineInfo(rig.engine.kind, rig.version, target.name, 1, 0.5, "sm89 (Fake GPU)", {})

    monkeypatch.setattr(TensorRT, "build", build)
    monkeypatch.setattr(TensorRT, "check", lambda self, options: None)
    rig.trt.inspector = json.dumps({"Layers": ["<b>whole graph", "head"], "Bindings": []})
    cli("build", "--model", "sit_nano", "--engine", rig.engine.kind, "-o", "made")
    report = json.loads((cli.folder / "made" / "report.json").read_text())
    hop = report["hops"][-1]
    assert hop["name"] == f"{rig.engine.kind} engine" and hop["compared"] and hop["passed"]
    assert {row["layer"] for row in report["engine_layers"]["layers"]} == {
        "<b>whole graph",
        "head",
        "whole graph",
    }
    assert "the kernels of the engine are not known: the engine inspector tells names alone" in str(
        report["notes"]
    )
    page = (cli.folder / "made" / "report.html").read_text()
    assert "Where the time goes" in page and "&lt;b&gt;whole graph" in page and "<b>whole" not in page
    rig.gpu.assert_clean()


def test_speed_is_measured_on_the_engine_s_device(rig: Rig, bundle: Path):
    from sit_deploy.validation.bench import torch_device

    kind = rig.engine.kind
    assert torch_device(kind, None, "fp16") == ("cuda:0", "float16")
    assert torch_device(kind, "cuda:1", "int8") == ("cuda:1", "float16")
    assert torch_device(kind, None, "fp32") == ("cuda:0", "float32")
    assert torch_device("onnxruntime", None, "fp16") == ("cpu", "float32")
    assert torch_device("onnxruntime", "cuda", "bf16") == ("cuda:0", "bfloat16")
