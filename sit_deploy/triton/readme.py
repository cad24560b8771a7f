"""The README of a model in a repository: which container fits it, and what it takes and gives."""

from __future__ import annotations

from sit_deploy.bundle import Bundle
from sit_deploy.triton.config import Serving
from sit_deploy.triton.containers import SUPPORT_MATRIX, image_for


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
        image = image_for(engine.version)
        where = f"`{image}`" if image else f"the container with that release ({SUPPORT_MATRIX})"
        lines += [
            f"The engine runs in TensorRT {engine.version} only, on {engine.target}: serve it in {where}. "
            f"If Triton cannot deserialize it there, compare the container's TensorRT in the release notes: {SUPPORT_MATRIX}",
            "",
        ]
    elif serving.backend == "python":
        need = "NumPy, ONNX Runtime" + (" and Pillow" if serving.ensemble else "")
        lines += [f"Runs on a CPU in Triton's Python backend; the server's Python needs {need}.", ""]
    else:
        lines += ["Runs in Triton's ONNX Runtime backend, which any of its containers has.", ""]
    shape = ", ".join(map(str, preprocessing.shape))
    lines += [
        f"- `{serving.name}`: `images` {preprocessing.dtype} (n, {shape}), prepared as the bundle's manifest says "
        f"→ `logits` float32 (n, {manifest.model.num_classes})"
    ]
    if serving.ensemble:
        lines += [f"- `{serving.images}`: `image` BYTES (n, 1), files of images as they are → `logits`"]
    lines += ["", "Ask for `classification` of `logits` to get the names of the best classes.", ""]
    return "\n".join(lines)
