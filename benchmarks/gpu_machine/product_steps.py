"""Steps of `benchmarks/on_device.py` that do what a user does: train, slim, package, and compare engines with PyTorch.

What a step makes stays in ~/gpu for those of later calls: teachers, bundles, compiled kernels.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from typing import Any

from benchmarks.gpu_machine.packs import require
from benchmarks.gpu_machine.session import GRACE, Session, error_line

Result = dict[str, Any]

# model, precision, images a run; the most wanted first. 8 bits have float32 beside them at this opset
TABLE = [
    ("sit_s", "fp16", 1),
    ("sit_s", "fp16", 128),
    ("lvvit_s", "fp16", 128),
    ("lvvit_s", "fp16", 1),
    ("sit_xs", "fp16", 128),
    ("sit_xs", "fp16", 1),
    ("sit_s", "int8", 128),
    ("sit_s", "fp32", 1),
]
TEACHERS = {"lvvit_nano": "sit_nano", "lvvit_micro": "sit_micro"}
KEPT = {"model.safetensors", "model.json", "summary.json", "log.jsonl", "state.json"}
FEW_THREADS = "4"  # of a build, of which several run at once


def product(*words: object) -> list[object]:
    """Return the command line that runs sit-deploy from this tree."""
    return [sys.executable, "-m", "sit_deploy", *words]


def device() -> str:
    """Return what PyTorch is to compute on."""
    return "cuda" if shutil.which("nvidia-smi") else "cpu"


def old_python(session: Session) -> tuple[Path, dict[str, str]]:
    """Return TensorRT 8.6's Python and its variables; a pack `python310` may bring what else it lacks."""
    python = require(session, "trt86") / "python3.10"
    paths = [path for path in [session.home / "python310" / "site"] if path.is_dir()]
    env = session.environment()
    return python, {**env, "PYTHONPATH": ":".join(map(str, [*paths, session.root]))}


def torch_environment(session: Session) -> dict[str, str]:
    """Return variables under which what PyTorch compiles is kept for later calls."""
    return {**session.environment(), "TORCHINDUCTOR_CACHE_DIR": str(session.home / "inductor")}


def bundle_of(session: Session, model: str, precision: str, batch: int) -> Path:
    return session.home / f"{model}-{precision}-b{batch}"


def exports(session: Session) -> Result:
    """Begin the graphs of `trt86_table` in the background, which later calls find, and fill PyTorch's cache of kernels."""
    started = []
    for model, precision, batch in TABLE:
        folder = bundle_of(session, model, precision, batch)
        if folder.is_dir() or folder.with_suffix(".txt").exists():
            continue
        words = product("build", "--model", model, "--precision", precision, "--engine", "onnxruntime")
        words += ["--opset", "17", "--batch-size", batch, "-o", folder, "--force", "--threads", FEW_THREADS]
        if precision == "int8":
            words += ["--quantize", "default"]
        _background(session, words, folder.with_suffix(".txt"))
        started.append(folder.name)
    for model, batch in dict.fromkeys((model, batch) for model, _, batch in TABLE):
        words = [sys.executable, "-m", "benchmarks.gpu_machine.jobs", "pytorch", model, batch]
        _background(session, words, session.home / f"warm-{model}-{batch}.txt")
    return {"started": started}


def _background(session: Session, words: list[object], log: Path) -> subprocess.Popen[bytes]:
    """Start a command that outlives this call; its output is in the log."""
    env = {**torch_environment(session), "OMP_NUM_THREADS": FEW_THREADS}
    with log.open("w") as file:
        return subprocess.Popen(
            list(map(str, words)),
            cwd=session.root,
            env=env,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def trt86_table(session: Session) -> Result:
    """TensorRT 8.6 beside PyTorch, eager and compiled, which are timed before and after it; one thing at a time on the GPU."""
    python, own = old_python(session)
    exports(session)
    env, result = torch_environment(session), {}
    for model, precision, batch in TABLE:
        name, folder = f"{model} {precision} b{batch}", bundle_of(session, model, precision, batch)
        if session.left() < 60:
            result[name] = {"failed": "no time left"}
            continue
        while not folder.is_dir() and session.left() > 60 and not _ended(folder.with_suffix(".txt")):
            time.sleep(1)
        if not folder.is_dir():
            log = folder.with_suffix(".txt").read_text(errors="replace")
            result[name] = {"failed": f"no graph: {error_line(log)}"}
            continue
        words = [sys.executable, "-m", "benchmarks.gpu_machine.jobs", "pytorch", model, batch]
        row: Result = {}
        if precision == "fp16":
            row["pytorch before"] = session.ask(words, min(90.0, session.left() - GRACE), env)
        probe = [python, "-m", "benchmarks.gpu_machine.jobs", "probe", "tensorrt", folder]
        row["tensorrt"] = session.ask(probe, min(150.0, session.left() - GRACE), own)
        if precision == "fp16" and session.left() > 30:
            row["pytorch after"] = session.ask(words, min(90.0, session.left() - GRACE), env)
        result[name] = row
    return result


def _ended(log: Path) -> bool:
    text = log.read_text(errors="replace") if log.exists() else ""
    return "Error" in text or "Built in" in text


def portable(session: Session) -> Result:
    """`package python`, and its check.py --build with TensorRT 8.6 in a Python that has neither PyTorch nor sit-deploy."""
    python, _ = old_python(session)
    bundles = [session.home / "nano17", bundle_of(session, "sit_s", "fp16", 1)]
    folder, env = session.home / "folder", session.environment()
    shutil.rmtree(folder, ignore_errors=True)
    status, text = session.run(product("package", "python", *bundles, "-o", folder), 60, env)
    if status != 0:
        return {"failed": error_line(text)}
    bare = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    answer = session.out / "check.json"
    words = [python, folder / "check.py", "--build", "--rounds", "3", "-o", answer]
    status, text = session.run(words, min(200.0, session.left() - 2 * GRACE), bare)
    result: Result = {"check.py": f"status {status}: {text[-600:]}"}
    if answer.is_file():
        page = session.out / "measured.md"
        words = product("report", bundles[0], "--measured", answer, "-o", page, "--force")
        status, text = session.run(words, max(20.0, session.left() - GRACE), env)
        result["report"] = f"status {status}: {text[-400:]}"
    return result


def commands(session: Session) -> Result:
    """A teacher and its students on digits, on the GPU: mixed precision, compiled, slimmed; then a bundle's accuracy."""
    env, runs, on = torch_environment(session), session.home / "runs", device()
    teacher, student = runs / "teacher", runs / "student"
    digits = ["--data", "digits", "--device", on]
    frd = ["train", "--model", "sit_nano", "--teacher", teacher / "model.safetensors", *digits]
    compiled = ["--compile", "--channels-last", "--amp", "fp16", "--epochs", "2"]
    slim = ["slim", "--model", "sit_nano", "--checkpoint", teacher / "model.safetensors", "--device", on]
    slim += ["--images", session.home / "jpegs" / "train", "--seconds", "20", "--val-data", "digits"]
    bundle = runs / "bundle"
    wanted = {
        "doctor": ["doctor"],
        "teacher": ["train", "--model", "lvvit_nano", *digits, "-o", teacher],
        "student": [*frd, "-o", student],
        "compiled, fp16": [*frd, *compiled, "-o", runs / "compiled"],
        "float32": [*frd, "--amp", "off", "--epochs", "2", "-o", runs / "float32"],
        "slim": [*slim, "-o", runs / "slim.safetensors"],
        "build": [
            "build",
            "--checkpoint",
            student / "model.safetensors",
            "--engine",
            "onnxruntime",
            "-o",
            bundle,
        ],
        "validate": ["validate", bundle, "--data", "digits"],
    }
    result: Result = {}
    for name, words in wanted.items():
        if session.left() < 30:
            result[name] = "no time left"
            continue
        began = time.perf_counter()
        status, text = session.run(product(*words), min(120.0, session.left() - GRACE), env)
        shown = " | ".join(line.strip() for line in text.splitlines()[-6:] if line.strip())
        result[name] = f"status {status} after {time.perf_counter() - began:.0f} s: {shown[:600]}"
    return result


def teachers(session: Session) -> Result:
    """The teachers of benchmarks/frd_ablation.py, both at once; their weights come back."""
    running = {}
    for teacher, student in TEACHERS.items():
        work, log = session.home / teacher, session.home / f"{teacher}.txt"
        words = [
            sys.executable,
            "benchmarks/frd_ablation.py",
            work,
            "--teacher-model",
            teacher,
            "--model",
            student,
        ]
        words += ["--teacher-only", "--device", device(), "--workers", "5"]
        running[teacher] = _background(session, words, log)
    result: Result = {}
    for teacher, process in running.items():
        try:
            status: int | str = process.wait(max(1.0, session.left() - GRACE))
        except subprocess.TimeoutExpired:
            status = "goes on in the background"
        log = (session.home / f"{teacher}.txt").read_text(errors="replace")
        result[teacher] = f"status {status}: {log[-400:]}"
        _bring_back(session, teacher)
    return result


def starts(session: Session) -> Result:
    """benchmarks/warm_start.py on all images, of both teachers, begun in the background; a later call brings what is ready."""
    result: Result = {}
    for teacher in TEACHERS:
        work, log = session.home / teacher, session.home / f"starts-{teacher}.txt"
        output = session.home / f"warm_start_{teacher}.json"
        if output.is_file():
            shutil.copy(output, session.out)
            result[teacher] = "done"
        elif log.exists():
            result[teacher] = f"goes on: {log.read_text(errors='replace')[-300:]}"
        elif not (work / "teacher" / "model.json").is_file():
            result[teacher] = {"failed": "there is no teacher; run the step teachers first"}
        else:
            words = [sys.executable, "benchmarks/warm_start.py", work, "--per-class", "500", "--jobs", "6"]
            words += ["--device", device(), "--workers", "1", "--output", output]
            _background(session, words, log)
            result[teacher] = "begun"
    return result


def _bring_back(session: Session, teacher: str) -> None:
    """Put a folder's weights and records into the results, as one archive."""
    work = session.home / teacher
    with tarfile.open(session.out / f"{teacher}.tar", "w") as archive:
        for path in sorted(work.rglob("*")):
            if path.name in KEPT:
                archive.add(path, path.relative_to(session.home))


PRODUCT_STEPS = {step.__name__: step for step in (exports, trt86_table, portable, commands, teachers, starts)}
