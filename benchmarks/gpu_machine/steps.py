"""The steps of `benchmarks/on_device.py`: each takes a session and returns its result as plain values."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from benchmarks.gpu_machine.packs import require
from benchmarks.gpu_machine.product_steps import PRODUCT_STEPS, old_python, product
from benchmarks.gpu_machine.session import GRACE, Session, StepFailed, error_line, is_missing

Result = dict[str, Any]

# what the product, its tests and these steps import
NEEDED = [
    "torch",
    "torchvision",
    "timm",
    "onnx",
    "onnxscript",
    "onnxruntime",
    "numpy",
    "click",
    "rich",
    "ml_dtypes",
    "msgspec",
    "PIL",
    "safetensors",
    "sklearn",
    "scipy",
    "matplotlib",
    "jinja2",
    "pytest",
    "xdist",
    "hypothesis",
    "filelock",
    "cuda.bindings.driver",
]
SHOWN = [
    "torch",
    "torchvision",
    "timm",
    "numpy",
    "onnx",
    "onnxscript",
    "onnxruntime",
    "rich",
    "cuda-bindings",
    "pytest",
]
TOOLS = ["gcc", "g++", "nvcc", "xz", "cmake", "torchrun"]
ENGINE_TESTS, MODEL_TESTS = "tests/engines/tensorrt/test_gpu.py", "tests/sit_deploy/test_gpu.py"
PYTEST = ["-p", "no:cacheprovider", "-m", "gpu"]
if not is_missing("pytest_timeout"):
    PYTEST.append("--timeout=240")  # a kernel that hangs costs one test
OPSET_17 = [
    "--precision",
    "fp16",
    "--engine",
    "onnxruntime",
    "--opset",
    "17",
]  # the newest that TensorRT 8.6 reads
LOOP_RESULT = "training_step_sit_s_cuda.json"


def job(name: str, *words: object, python: object = sys.executable) -> list[object]:
    """Return the command line of a job of `benchmarks.gpu_machine.jobs`."""
    return [python, "-m", "benchmarks.gpu_machine.jobs", name, *words]


def facts(session: Session) -> Result:
    """What the machine is, and what is missing there."""
    query = "name,driver_version,compute_cap,memory.total,clocks.sm,power.limit"
    result: Result = {
        "cpus": os.cpu_count(),
        "python": sys.version.split()[0],
        "missing": [name for name in NEEDED if is_missing(name)],
    }
    with contextlib.suppress(OSError, subprocess.TimeoutExpired):
        command = ["nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader"]
        answer = subprocess.run(command, capture_output=True, encoding="utf-8", errors="replace", timeout=30)
        result["gpu"] = answer.stdout.strip() or answer.stderr.strip()
    for name in SHOWN:
        with contextlib.suppress(PackageNotFoundError):
            result[name] = version(name)
    result["tools"] = [tool for tool in TOOLS if shutil.which(tool)]
    result["free_disk_gb"] = round(shutil.disk_usage(Path.home()).free / 1e9)
    session.say(f"machine: {result.get('gpu') or 'no GPU (there is no nvidia-smi)'}")
    session.say(f"missing packages: {', '.join(result['missing']) or 'none'}")
    return result


def keep(session: Session) -> Result:
    """Nothing: parts of packs are kept by every call."""
    parts = session.home / "parts"
    return {"parts": len(list(parts.iterdir())) if parts.is_dir() else 0}


def train(session: Session) -> Result:
    """The training loop beside bare steps, and NCCL in a world of one."""
    env = session.environment()
    pictures = session.home / "jpegs"
    written = session.ask(job("jpegs", pictures), 60, env)
    if "failed" in written:
        return {"failed": f"no pictures to train on: {written['failed']}"}
    command = [sys.executable, "benchmarks/training_step.py", "--device", "cuda", "--data", pictures]
    command += [
        "--model",
        "sit_s",
        "--batch-size",
        "128",
        "--threads",
        "8",
        "--workers",
        "14",
        "--rounds",
        "2",
    ]
    status, text = session.run(command, session.left() - 45, env)
    result: Result = {}
    if status == 0:
        path = session.root / "benchmarks" / "results" / LOOP_RESULT
        result["loop"] = json.loads(path.read_text(encoding="utf-8"))
        shutil.copy(path, session.out / LOOP_RESULT)
    else:
        result["failed"] = error_line(text)
    result["nccl"] = session.ask(world_of_one("nccl"), min(60.0, session.left() - GRACE), env)
    return result


def world_of_one(backend: str) -> list[object]:
    """Return the command line that starts one process as torchrun does, and has it talk to itself."""
    launcher = [
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "1",
        "-m",
        "benchmarks.gpu_machine.jobs",
    ]
    return [sys.executable, *launcher, "world", backend]


def smoke(session: Session) -> Result:
    """Whether TensorRT-RTX runs on this GPU, with its default targets and with this GPU as target; then the product on it."""
    require(session, "rtx")
    env = session.environment("rtx")
    result: Result = {
        target: session.ask(job("one_layer", target, session.home), 60, env)
        for target in ("default", "current")
    }
    runs = [target for target, answer in result.items() if answer.get("runs")]
    answers = [f"{t}: {'runs' if t in runs else a.get('failed')}" for t, a in result.items()]
    result["verdict"] = (
        f"TensorRT-RTX {'RUNS' if runs else 'DOES NOT RUN'} on this GPU ({'; '.join(answers)})"
    )
    session.say(result["verdict"])
    if not runs:
        return result
    bundle = session.home / "nano-rtx"
    target = ["--target", "current"] if "current" in runs else []
    build = ["build", "--model", "sit_nano", "--precision", "fp16", "--engine", "tensorrt-rtx", "--force"]
    commands = {
        "build": product(*build, *target, "-o", bundle),
        "validate": product("validate", bundle, "--layers"),
        "bench": product("bench", bundle, "--rounds", "4", "--seconds", "0.5"),
    }
    for name, words in commands.items():
        status, text = session.run(words, min(120.0, session.left() - GRACE), env)
        result[name] = "passed" if status == 0 else error_line(text)
    if result["build"] == "passed":
        result["probe"] = session.ask(
            job("probe", "tensorrt-rtx", bundle), min(90.0, session.left() - GRACE), env
        )
    return result


def tests(session: Session) -> Result:
    """The tests that need a GPU. Those of engines run one by one, since one of them measures free memory."""
    require(session, "rtx")
    env = session.environment("rtx")
    suites: dict[str, list[object]] = {
        "engines": [ENGINE_TESTS, *PYTEST, "-v"],
        # processes of xdist may crash without ending the run
        "small": [MODEL_TESTS, *PYTEST, "-n", "4", "-k", "nano"],
        "rest": [MODEL_TESTS, *PYTEST, "-n", "4", "-k", "not nano"],
    }
    result: Result = {}
    for name, words in suites.items():
        if session.left() < 60:
            result[name] = {"failed": "no time left"}
            continue
        result[name] = session.pytest(sys.executable, words, name, session.left() - 2 * GRACE, env)
    return result


def bench(session: Session) -> Result:
    """The table of docs/gpu.md."""
    env = session.environment("rtx")  # where it does not run, that is one line of the result
    minutes, output = max(0.5, (session.left() - 75) / 60), session.out / "gpu.json"
    command = [sys.executable, "benchmarks/gpu.py", "--minutes", f"{minutes:.1f}", "--output", output]
    _, text = session.run(command, session.left() - 2 * GRACE, env)
    if not output.is_file():
        return {"failed": error_line(text)}
    written = json.loads(output.read_text(encoding="utf-8"))
    return {
        "complete": written["complete"],
        "cells": len(written["cells"]),
        "targets": written["targets"],
        "not_run": written["runtimes_skipped"],
    }


def trt86(session: Session) -> Result:
    """Full TensorRT 8.6, in a Python without PyTorch: a small model, the engines' tests, and a bundle that is validated."""
    python, own = old_python(session)
    env, result = session.environment(), {}
    small = session.home / "nano17"
    if not small.is_dir():
        session.run(product("build", "--model", "sit_nano", *OPSET_17, "-o", small, "--force"), 120, env)
    result["sit_nano"] = session.ask(job("probe", "tensorrt", small, python=python), 120, own)
    words = [ENGINE_TESTS, *PYTEST, "-v", "-k", "not rtx and not thousand"]
    result["tests"] = session.pytest(python, words, "trt86", min(200.0, session.left() - 60), own)
    bundle = session.ask(job("bundle", "tensorrt", small, python=python), 60, own)
    if "failed" not in bundle:
        command = [python, "-m", "sit_deploy", "validate", bundle["folder"], "--layers"]
        status, text = session.run(command, 60, own)
        bundle = {"validate": "passed" if status == 0 else error_line(text)}
    result["bundle"] = bundle
    if session.left() > 60:
        words = [ENGINE_TESTS, *PYTEST, "-v", "-k", "thousand and not rtx"]
        result["leaks"] = session.pytest(python, words, "leaks", session.left() - 2 * GRACE, own)
    return result


def ortcuda(session: Session) -> Result:
    """ONNX Runtime with CUDA."""
    require(session, "ortcuda")
    bundle = require(session, "nano17")
    return {"sit_nano": session.ask(job("probe", "onnxruntime", bundle), 90, session.environment("ortcuda"))}


STEPS: dict[str, Callable[[Session], Result]] = {
    step.__name__: step for step in (facts, keep, train, smoke, tests, bench, trt86, ortcuda)
} | PRODUCT_STEPS
__all__ = ["STEPS", "StepFailed", "world_of_one"]
