"""What steps of `benchmarks/on_device.py` do in processes of their own: python -m benchmarks.gpu_machine.jobs JOB WORD...

A job prints its result as JSON on the last line, {"failed": why} where it cannot do its work. One may run in a Python that has
NumPy, ONNX and a runtime alone, so whatever else it needs is imported inside it.
"""

from __future__ import annotations

import json
import shutil
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

Result = dict[str, Any]
TOLERANCE = 1e-4  # of one product in FP32
SECONDS = 1.5  # that a runner is timed for


def one_layer(target: str, folder: str, kind: str = "tensorrt-rtx") -> Result:
    """Build and run y = x · w.

    Args:
        target: "default", or "current" to build for the GPU that is here.
        folder: where the graph and the engine are written.
        kind: of the engine.
    """
    import numpy as np

    import engines

    model, plan = Path(folder, "one.onnx"), Path(folder, f"one-{target}.plan")
    weights = one_layer_graph(model)
    engine = engines.get(kind)
    options = engines.BuildOptions(compute_capabilities=("current",) if target == "current" else ())
    result: Result = {"built_for": engine.build(model, plan, options).target}
    x = np.random.default_rng(1).standard_normal((2, 8)).astype(np.float32)
    with engine.load(plan) as runner:
        for _ in range(4):  # launched one by one, captured as a CUDA graph, replayed
            y = runner.infer({"x": x})["y"]
        result["notes"] = getattr(runner, "notes", [])
    result["error"] = float(np.abs(y - x @ weights).max())
    result["runs"] = result["error"] < TOLERANCE
    return result if result["runs"] else {**result, "failed": f"wrong by {result['error']}"}


def one_layer_graph(path: Path) -> Any:
    """Write a graph of one product, float32 (2, 8) → (2, 8), and return its weights."""
    import numpy as np
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    weights = np.random.default_rng(0).standard_normal((8, 8)).astype(np.float32)
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [2, 8]) for name in ("x", "y"))
    product = helper.make_node("MatMul", ["x", "w"], ["y"])
    graph = helper.make_graph([product], "graph", [x], [y], [numpy_helper.from_array(weights, "w")])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
    return weights


def probe(kind: str, folder: str) -> Result:
    """Run a bundle's graph with a runtime: difference from the golden outputs, times, and what it says of its layers.

    Args:
        kind: of the engine, which is built where the bundle's own is of another.
        folder: of the bundle.
    """
    import numpy as np

    import engines

    bundle = Path(folder)
    manifest = json.loads((bundle / "manifest.json").read_text(encoding="utf-8"))
    engine, result = engines.get(kind), {}
    if kind == "onnxruntime":
        import torch  # noqa: F401 - brings the CUDA libraries that ONNX Runtime looks for

        path = bundle.with_name(f"{bundle.name}-cuda.onnx")
        engine.build(bundle / "model.onnx", path, engines.BuildOptions(device="cuda"))
        variants: dict[str, dict[str, Any]] = {"plain": {"device": "cuda"}}
    else:
        path, origin = _plan(engine, bundle, manifest, result)
        variants = {
            "graph": {"cuda_graph": True, "origin": origin},
            "plain": {"cuda_graph": False, "origin": origin},
        }
    with np.load(bundle / "golden.npz") as golden:
        images, expected = golden["images"], golden["logits"]
    batch = manifest["batch"].get("size", 1)
    images = np.resize(images, (batch, *images.shape[1:]))
    for label, options in variants.items():
        started = time.perf_counter()
        with engine.load(path, **options) as runner:
            result[f"{label}_load_seconds"] = round(time.perf_counter() - started, 2)
            values = _time_runner(runner, images, expected)
            result |= {f"{label}_{name}": value for name, value in values.items()}
            if label == "graph":
                result |= _layers(runner, bundle / "model.onnx") | _device_tensors(runner, images)
    return result


def _plan(engine: Any, bundle: Path, manifest: Result, result: Result) -> tuple[Path, Any]:
    """Return an engine of this kind and where it is from: the bundle's own, or one built beside it."""
    import engines

    own = manifest["engine"]
    if own["kind"] == engine.kind:
        origin = engines.EngineOrigin(own["version"], own["target"], own.get("details", {}))
        return bundle / own["file"], origin
    path = bundle.with_name(f"{bundle.name}-{engine.kind}.plan")
    info = engine.build(bundle / "model.onnx", path, engines.BuildOptions())
    result["build_seconds"] = round(info.build_seconds, 1)
    result["typing"] = info.details.get("typing")
    result["warnings"] = info.details.get("warnings", [])[:5]
    return path, info.origin


def _time_runner(runner: Any, images: Any, expected: Any) -> Result:
    """Compare a runner's logits with those of PyTorch, over their standard deviation, and time it in milliseconds."""
    import numpy as np

    feeds = {runner.inputs[0].name: images}
    (logits,) = runner.infer(feeds).values()
    count = min(len(logits), len(expected))
    wall, gpu, stop = [], [], time.perf_counter() + SECONDS
    while time.perf_counter() < stop or len(wall) < 20:
        before = time.perf_counter()
        runner.infer(feeds)
        wall.append(time.perf_counter() - before)
        gpu.append(getattr(runner, "last_gpu_seconds", None) or wall[-1])
    return {
        "error": float(np.abs(logits[:count] - expected[:count]).max() / expected.std()),
        "ms": round(1e3 * statistics.median(gpu[10:]), 4),
        "wall_ms": round(1e3 * statistics.median(wall[10:]), 4),
        "notes": getattr(runner, "notes", []),
        "captured": getattr(runner, "captured", None),  # a context that cannot be captured yet leaves no note
    }


def _layers(runner: Any, model: Path) -> Result:
    """Hold the types that the inspector tells against those that the graph asks for."""
    import onnx

    from engines.graph_file import product_types
    from engines.layer_types import check_precision
    from engines.tensorrt.layers import read_layers

    asked = product_types(onnx.load(model))
    try:
        text = runner.inspect_layers()
        check = check_precision(read_layers(text), asked)
    except Exception as error:  # whatever it is, it is a result
        return {"inspector_failed": _one_line(error)}
    counts = {"kept": len(check.kept), "raised": check.raised[:5], "unknown": len(check.unknown)}
    return {"inspector": text[:600], "precision": counts}


def _device_tensors(runner: Any, images: Any) -> Result:
    """Run on PyTorch's tensors where they are, and time that by CUDA events."""
    try:
        import torch
    except ImportError:
        return {"device_ms": "no PyTorch in this Python"}
    try:
        name = runner.inputs[0].name
        x = torch.from_numpy(images).cuda()
        (on_host,) = runner.infer({name: images}).values()
        (on_device,) = runner.infer_device({name: x}).values()
        difference = float(abs(on_device.float().cpu().numpy() - on_host).max())
        for _ in range(20):
            runner.infer_device({name: x})
        started, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        started.record()
        for _ in range(100):
            runner.infer_device({name: x})
        ended.record()
        ended.synchronize()
        return {"device_error": difference, "device_ms": round(started.elapsed_time(ended) / 100, 4)}
    except Exception as error:  # whatever it is, it is a result
        return {"device_failed": _one_line(error)}


def bundle(kind: str, folder: str) -> Result:
    """Make a bundle of another's graph with another engine, for `sit-deploy validate`.

    Args:
        kind: of the engine.
        folder: of the bundle whose graph it is.
    """
    import engines
    from sit_deploy.bundle import load_bundle
    from sit_deploy.manifest import write_manifest

    source = Path(folder)
    target = source.with_name(f"{source.name}-{kind}")
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir()
    for name in ("model.onnx", "golden.npz"):
        shutil.copy(source / name, target)
    info = engines.get(kind).build(target / "model.onnx", target / "engine.plan", engines.BuildOptions())
    manifest = json.loads((source / "manifest.json").read_text(encoding="utf-8"))
    fields = {key: value for key, value in manifest.items() if key not in ("schema", "files", "digest")}
    fields["engine"] = {
        "kind": info.kind,
        "why": "tried on a GPU machine",
        "version": info.version,
        "file": "engine.plan",
        "target": info.target,
        "build_seconds": round(info.build_seconds, 2),
        "details": info.details,
    }
    write_manifest(target, fields)
    load_bundle(target)
    return {"folder": str(target)}


def pytorch(name: str, batch: str) -> Result:
    """Time a model in PyTorch on the GPU in FP16, eager and compiled, with images already there, in milliseconds.

    Args:
        name: of the model.
        batch: images a call.
    """
    import torch

    from benchmarks.gpu_cells import _time_on_device, _warm_up, torch_candidate
    from benchmarks.random_weights import random_model
    from sit_deploy.models.catalog import get_config

    if not torch.cuda.is_available():
        return {"failed": "PyTorch finds no GPU"}
    device, size = torch.device("cuda"), get_config(name).image_size
    images, result = torch.randn(int(batch), 3, size, size, device=device), {}
    for label, compiled in (("eager", False), ("compiled", True)):
        candidate = torch_candidate(random_model(name), device, compiled)
        _warm_up(candidate, images, device)
        seconds = _time_on_device(lambda c=candidate: c.on_device(images), device, SECONDS)
        result[f"{label}_ms"] = round(1e3 * statistics.median(seconds), 4)
    return result


def jpegs(folder: str, pictures: str = "32", copies: str = "64") -> Result:
    """Write JPEGs of ImageNet's mean size to train on: few pictures many times, as loading them costs their decoding.

    Args:
        folder: where, as classes in train and val.
        pictures: that differ.
        copies: of each of them in train.
    """
    from sit_deploy.data.synthetic import synthetic_images

    for index, image in enumerate(synthetic_images(int(pictures), size=(500, 375))):
        for part, count in (("train", int(copies)), ("val", 1)):
            target = Path(folder, part, f"class{index % 2}")
            target.mkdir(parents=True, exist_ok=True)
            image.save(target / f"{index}-0.jpg", quality=90)
            for copy in range(1, count):
                shutil.copy(target / f"{index}-0.jpg", target / f"{index}-{copy}.jpg")
    return {"images": len(list(Path(folder).rglob("*.jpg")))}


def world(backend: str) -> Result:
    """Do in a world of one process what training does in larger ones.

    Args:
        backend: "nccl", or "gloo" on a CPU.
    """
    import torch
    import torch.distributed as dist

    from sit_deploy.processes import World, join_world

    if backend == "nccl" and not torch.cuda.is_available():
        return {"failed": "PyTorch finds no GPU"}
    with join_world("cuda" if backend == "nccl" else "cpu") as joined:
        device, ids = joined.device, [joined.device.index] if backend == "nccl" else None
        several = World(dist.get_rank(), 2, device)  # "2": or else it would not ask
        total = several.sum(torch.ones(4, device=device)).tolist()
        flag, gathered = several.any(True), [None]
        dist.all_gather_object(gathered, {"a": 1})
        several.barrier()
        layer = torch.nn.Linear(4, 4).to(device)
        parallel = torch.nn.parallel.DistributedDataParallel(layer, device_ids=ids)
        parallel(torch.ones(2, 4, device=device)).sum().backward()
        learnt = layer.weight.grad is not None
        works = dist.get_backend() == backend
    works = works and total == [1.0] * 4 and flag and gathered == [{"a": 1}] and learnt
    return (
        {"works": works, "nccl": ".".join(map(str, torch.cuda.nccl.version()))} if ids else {"works": works}
    )


def _one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:600]


JOBS: dict[str, Callable[..., Result]] = {
    job.__name__: job for job in (one_layer, probe, bundle, pytorch, jpegs, world)
}


def main(words: list[str]) -> None:
    """Do a job and print its result."""
    try:
        result = JOBS[words[0]](*words[1:])
    except Exception as error:  # whatever it is, it is the result
        result = {"failed": _one_line(error)}
    print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
