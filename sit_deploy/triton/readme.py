"""The README of a model in a repository: which container fits it, and what it takes and gives."""

from __future__ import annotations

from engines.graph_file import read_model
from sit_deploy.bundle import Bundle
from sit_deploy.triton.chosen import holds_bf16
from sit_deploy.triton.config import Serving, python_runtime, runs_own_engine
from sit_deploy.triton.containers import SUPPORT_MATRIX, image_for, lowest_for_graph
from sit_deploy.triton.openvino import requirement

_PORTS = (8000, 8001, 8002)  # HTTP, gRPC, metrics


def container_for(bundle: Bundle, backend: str) -> str | None:
    """Return the container that serves a bundle: of TensorRT the one with its release, of ONNX Runtime the oldest that reads its graph.

    None for the Python backend, which needs packages and no release; for FP8, which no container was tried with; and where it
    is not known.
    """
    if backend == "tensorrt":
        return image_for(bundle.manifest.engine.version)
    if backend != "onnxruntime" or bundle.manifest.precision == "fp8":
        return None
    oldest = lowest_for_graph(*_opset_and_ir(bundle))
    return oldest and oldest.image


def _opset_and_ir(bundle: Bundle) -> tuple[int, int]:
    model = read_model(bundle.model_path)
    return max(o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), model.ir_version


def notes(bundle: Bundle, serving: Serving) -> tuple[str, ...]:
    """Return what differs between what a bundle was compared as and what a backend runs of it, a sentence each."""
    manifest, found = bundle.manifest, []
    if not runs_own_engine(bundle, serving.backend):
        found.append(
            f"It runs the bundle's graph on ONNX Runtime: its own engine, of {manifest.engine.kind}, is the one whose outputs and accuracy the bundle "
            "was compared by, and ONNX Runtime rounds elsewhere. Build with --engine onnxruntime to compare what is served."
        )
    if serving.backend == "onnxruntime" and manifest.precision == "int8":
        found.append(
            "A CPU that serves it needs VNNI: without, ONNX Runtime's INT8 sums saturate, and Triton's backend cannot be told to use its "
            "exact kernels. Package it with --backend python for such a CPU."
        )
    return tuple(found)


def readme(bundle: Bundle, serving: Serving) -> str:
    """Return the README of a bundle's network, as Markdown."""
    manifest = bundle.manifest
    engine, preprocessing = manifest.engine, bundle.preprocessing()
    lines = [
        f"# {serving.name}",
        "",
        f"{manifest.model.name} in {manifest.precision}, made by sit-deploy from bundle {manifest.digest[:12]}.",
        "",
    ]
    if serving.backend == "tensorrt":
        image = container_for(bundle, serving.backend)
        where = f"`{image}`" if image else f"the container with that release ({SUPPORT_MATRIX})"
        lines += [
            f"The engine runs in TensorRT {engine.version} only, on {engine.target}: serve it in {where}. "
            f"If Triton cannot deserialize it there, compare the container's TensorRT in the release notes: {SUPPORT_MATRIX}",
            "",
        ]
    elif serving.backend == "python":
        lines += [_python_line(bundle, serving), ""]
    else:
        lines += [_onnxruntime_line(bundle), ""]
    for note in notes(bundle, serving):
        lines += [note, ""]
    if image := container_for(bundle, serving.backend):
        lines += [
            "In the folder of the repository, where this model is a folder:",
            "",
            "```sh",
            _docker_line(image, serving),
            "```",
            "",
        ]
    shape = ", ".join(map(str, preprocessing.shape))
    lines += [
        f"- `{serving.name}`: `images` {preprocessing.dtype} (n, {shape}), prepared as the bundle's manifest says "
        f"→ {', '.join(f'`{one.name}` {one.dtype} {one.shape_text}' for one in bundle.outputs)}"
    ]
    if serving.ensemble:
        given = ", ".join(f"`{one.name}`" for one in bundle.outputs)
        lines += [f"- `{serving.images}`: `image` BYTES (n, 1), files of images as they are → {given}"]
    if manifest.has_logits:
        lines += ["", "Ask for `classification` of `logits` to get the names of the best classes."]
    lines += [""]
    return "\n".join(lines)


def _docker_line(image: str, serving: Serving) -> str:
    """Return the command that serves a repository from its folder, to this machine alone; docs/serving.md explains its options."""
    gpus = ["--gpus all"] if serving.backend == "tensorrt" or serving.gpus else []
    ports = [f"-p 127.0.0.1:{port}:{port}" for port in _PORTS]
    server = "tritonserver --model-repository=/models --model-control-mode=explicit '--load-model=*'"
    packages = []
    if serving.ensemble:  # whose decoder is a Python model, and the image has no Pillow
        packages = ["-e PIP_BREAK_SYSTEM_PACKAGES=1"]
        server = f'sh -c "python3 -m pip install numpy pillow && exec {server}"'
    options = [*gpus, "--shm-size 1g", "--ulimit stack=1073741824", *ports, '-v "$PWD:/models:ro"', *packages]
    return " ".join(("docker run --rm", *options, image, server))


def _python_line(bundle: Bundle, serving: Serving) -> str:
    engine = bundle.manifest.engine
    pillow = " and Pillow" if serving.ensemble else ""
    if python_runtime(bundle) == "onnxruntime":
        need = f"NumPy, ONNX Runtime{pillow}"
        return f"Runs on a CPU in Triton's Python backend; the server's Python needs {need}."
    cpu = "a CPU with AVX512-BF16 or AMX" if holds_bf16(bundle) else "a CPU"
    packages = f"pip install '{requirement(bundle)}' numpy{' pillow' if pillow else ''}"
    return (
        f"Runs on {cpu} in Triton's Python backend, the bundle's own engine on OpenVINO; the server's Python needs NumPy, OpenVINO "
        f"{engine.version} or newer{pillow} (`{packages}`)."
    )


def _onnxruntime_line(bundle: Bundle) -> str:
    image = container_for(bundle, "onnxruntime")
    opset, ir = _opset_and_ir(bundle)
    graph = f"its graph is of operator set {opset} and IR version {ir}"
    if image:
        return f"Runs in Triton's ONNX Runtime backend, of `{image}` or a newer one: {graph}."
    if bundle.manifest.precision == "fp8":
        return f"Runs in Triton's ONNX Runtime backend if that has FP8, which was tried with no container; {graph}."
    return f"Runs in Triton's ONNX Runtime backend if that is new enough: {graph} ({SUPPORT_MATRIX})."
