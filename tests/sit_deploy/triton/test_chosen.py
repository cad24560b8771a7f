"""What is chosen for a bundle: its backend, and its name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
from msgspec import structs

from sit_deploy.bundle import Bundle, load_bundle
from sit_deploy.errors import InputError
from sit_deploy.triton.chosen import choose_backend, default_name
from sit_deploy.triton.config import parse
from sit_deploy.triton.readme import readme
from sit_deploy.triton.repository import write_repository
from tests.sit_deploy.triton.conftest import as_tensorrt, refused, saying, serving

Copy = Callable[..., Path]


def test_which_backend_serves_a_bundle(nano_rtx: Path, copy_of: Copy, bundle: Bundle) -> None:
    assert choose_backend(bundle, None) == "onnxruntime"
    rtx = load_bundle(nano_rtx)
    with pytest.raises(
        InputError, match="an engine of tensorrt-rtx, which is served by no backend here; pass --backend"
    ):
        choose_backend(rtx, None)
    assert choose_backend(rtx, "python") == "python"
    openvino = saying(rtx, engine=structs.replace(rtx.manifest.engine, kind="openvino"))
    assert choose_backend(openvino, None) == choose_backend(openvino, "python") == "python"
    assert choose_backend(openvino, "onnxruntime") == "onnxruntime"
    with pytest.raises(InputError, match="an engine of openvino, not of tensorrt"):
        choose_backend(openvino, "tensorrt")
    full = as_tensorrt(copy_of(nano_rtx))
    assert choose_backend(full, None) == "tensorrt"
    details = {**full.manifest.engine.details, "strip_weights": True}
    stripped = saying(full, engine=structs.replace(full.manifest.engine, details=details))
    with pytest.raises(InputError, match="holds no weights, and Triton cannot give it any"):
        choose_backend(stripped, None)


@pytest.mark.parametrize(
    ("precision", "what", "remedy"),
    [
        ("bf16", "in bf16,", "build one in fp32, fp16 or int8"),
        ("int8", "in int8 with bf16 beside,", "build one with --rest fp32 or fp16"),
    ],
)
def test_bf16_is_served_by_what_has_it(
    precision: str, what: str, remedy: str, nano_rtx: Path, copy_of: Copy, tmp_path: Path
) -> None:
    """ONNX Runtime has it on no CPU, in Triton's backend of that as in our Python model; OpenVINO, which our model then runs, has."""
    rtx = saying(load_bundle(copy_of(nano_rtx)), precision=precision)
    graph = onnx.load(rtx.model_path)
    for node in graph.graph.node:
        for attribute in node.attribute:
            if node.op_type == "Cast" and attribute.i == onnx.TensorProto.FLOAT16:
                attribute.i = onnx.TensorProto.BFLOAT16
    onnx.save(graph, rtx.model_path)
    openvino = saying(rtx, engine=structs.replace(rtx.manifest.engine, kind="openvino"))
    for backend in ("python", "onnxruntime"):
        message = f"{what} which ONNX Runtime has no CPU kernels for; {remedy}"
        refused([(rtx, serving(backend=backend))], tmp_path / "repo", message)
    assert choose_backend(openvino, None) == choose_backend(openvino, "python") == "python"
    own = "no CPU kernels for; leave --backend out, which serves its own engine on OpenVINO, or " + remedy
    refused([(openvino, serving(backend="onnxruntime"))], tmp_path / "repo", f"{what} .* {own}")
    with pytest.raises(InputError, match="in fp8, which OpenVINO has no CPU kernels for"):
        choose_backend(saying(openvino, precision="fp8"), "python")


@pytest.mark.parametrize(
    ("kind", "backend", "precision", "graph", "vnni"),
    [
        ("onnxruntime", "onnxruntime", "fp32", False, False),
        ("onnxruntime", "onnxruntime", "int8", False, True),
        ("onnxruntime", "python", "int8", False, False),  # it looks at the CPU itself
        ("openvino", "python", "int8", False, False),
        ("openvino", "onnxruntime", "fp32", True, False),
        ("openvino", "onnxruntime", "int8", True, True),
        ("tensorrt-rtx", "python", "fp16", True, False),
    ],
)
def test_what_is_served_and_was_not_compared_is_said(
    kind: str, backend: str, precision: str, graph: bool, vnni: bool, nano_fp32: Path, tmp_path: Path
) -> None:
    """Of another backend than the engine's it is the graph, on a runtime that the bundle's accuracy was not measured with."""
    bundle = load_bundle(nano_fp32)
    engine = structs.replace(bundle.manifest.engine, kind=kind)
    model, way = saying(bundle, engine=engine, precision=precision), serving(backend=backend)
    if (kind, backend) != ("openvino", "python"):  # which copies files that this one has not
        write_repository([(model, way)], tmp_path / "repo")
        config = parse((tmp_path / "repo/net/config.pbtxt").read_text())
        assert ("runs" in config.parameters) == graph
    text = readme(model, way)
    assert (f"It runs the bundle's graph on ONNX Runtime: its own engine, of {kind}, is" in text) == graph
    assert ("A CPU that serves it needs VNNI" in text) == vnni


def test_names_follow_model_and_precision(nano_fp32: Path, nano_rtx: Path) -> None:
    assert default_name(load_bundle(nano_fp32)) == "sit_nano_fp32"
    assert default_name(load_bundle(nano_rtx)) == "sit_nano_fp16"
