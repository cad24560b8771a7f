"""Virtual environments of tools to compare with, whose requirements would not fit beside ours, and processes in them."""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
import time
import venv
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import onnx

ROOT = Path(__file__).resolve().parent.parent
PEERS = ROOT / "benchmarks" / "peers"
SCRIPTS = {"onnxruntime": "onnxruntime_static.py", "modelopt": "modelopt_onnx.py", "nncf": "nncf_quantize.py"}
LAYER_TYPES = ("Conv", "MatMul", "Gemm")


def environment(who: str, work: Path) -> Path:
    """Return the Python of a peer's environment, made where it is not there yet, and whole or not at all.

    Raises:
        RuntimeError: its packages cannot be installed.
    """
    folder = work / f"env-{who}"
    python = folder / "bin" / "python"
    if not python.exists():
        venv.create(folder, with_pip=True)
        try:
            run([str(python), "-m", "pip", "install", "-q", "-r", str(PEERS / f"requirements-{who}.txt")])
        except BaseException:
            shutil.rmtree(folder)
            raise
    return python


def run(command: list[str]) -> tuple[float, int]:
    """Run a command; return its wall seconds and peak resident memory in bytes.

    Raises:
        RuntimeError: it failed; the text is the last line it wrote to standard error.
    """
    with tempfile.TemporaryFile() as messages:
        started, peak = time.perf_counter(), 0
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=messages)
        while process.poll() is None:
            # not wait4's maximum, which begins with what this process had when it forked
            peak = max(peak, peak_memory(process.pid))
            time.sleep(0.02)
        seconds = time.perf_counter() - started
        if process.returncode:
            messages.seek(0)
            said = messages.read().decode(errors="replace").strip().splitlines()
            raise RuntimeError(said[-1] if said else f"exit status {process.returncode}")
    return seconds, peak


def quantize(who: str, python: Path, *, output: Path, **job: Any) -> dict[str, Any]:
    """Have a peer quantize in its own environment and a process of its own; return what it answers, with wall seconds and peak memory.

    Args:
        who: a name of SCRIPTS.
        python: of its environment.
        output: the quantized graph.
        job: the other fields of `peers.job.Job`, and for `images` the file that holds them.

    Raises:
        RuntimeError: it failed; as `run`.
    """
    asked, answer = output.with_suffix(".job.json"), output.with_suffix(".answer.json")
    asked.write_text(json.dumps({"output": output, **job}, default=str), encoding="utf-8")
    seconds, peak = run([str(python), str(PEERS / SCRIPTS[who]), str(asked), str(answer)])
    return {**json.loads(answer.read_text(encoding="utf-8")), "process_seconds": seconds, "peak_bytes": peak}


def linear_and_conv(model: onnx.ModelProto) -> list[str]:
    """Return the names of the layers: Conv, MatMul and Gemm whose weight is constant."""
    constant = {tensor.name for tensor in model.graph.initializer}
    return [n.name for n in model.graph.node if n.op_type in LAYER_TYPES and n.input[1] in constant]


def peak_memory(pid: int) -> int:
    """Return the most resident memory a process has had, in bytes; 0 once it has ended."""
    try:
        status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
    except OSError:
        return 0
    # Linux counts in KiB
    return next((int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM")), 0)
