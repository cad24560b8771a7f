"""The TensorRT backend in C++ is compiled on every machine, with declarations of ours where TensorRT's headers are not."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.engines.cpp.conftest import SOURCES

DECLARATIONS = Path(__file__).parent / "declarations"


@pytest.mark.slow
@pytest.mark.parametrize("kind", ((), ("-DSIT_DEPLOY_TENSORRT_RTX",)), ids=("tensorrt", "tensorrt-rtx"))
def test_it_compiles(kind: tuple[str, ...]) -> None:
    compiler = shutil.which("c++")
    triton = pytest.importorskip("triton", reason="it brings CUDA's headers")
    cuda = Path(triton.__file__).parent / "backends/nvidia/include"
    if compiler is None or not (cuda / "cuda_runtime_api.h").is_file():
        pytest.skip("needs a C++ compiler, and CUDA's headers in triton's package")
    command = [
        compiler, "-std=c++17", "-fsyntax-only", "-Wall", "-Wextra", "-Wconversion", "-Wshadow", "-Werror", *kind,
        "-isystem", cuda, "-isystem", DECLARATIONS, "-I", SOURCES / "include", SOURCES / "src/tensorrt.cpp",
    ]  # fmt: skip
    done = subprocess.run(list(map(str, command)), check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
