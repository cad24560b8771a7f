"""The TensorRT backend in C++: compiled where its headers are (SIT_DEPLOY_TENSORRT_INCLUDE), and clear without a GPU."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from engines.gpus import find_gpus
from tests.engines.cpp.conftest import SOURCES, Programs, cmake_arguments, compiled

HEADERS = os.environ.get("SIT_DEPLOY_TENSORRT_INCLUDE")
pytestmark = [
    pytest.mark.skipif(
        not HEADERS, reason="needs TensorRT's headers: set SIT_DEPLOY_TENSORRT_INCLUDE to their folder"
    ),
    pytest.mark.skipif(bool(find_gpus()), reason="is about machines without a GPU"),
]


def cuda_folder(tmp_path: Path) -> Path:
    """include/ and lib/ of CUDA's runtime, from the wheels that PyTorch brings."""
    import nvidia
    import triton

    root = tmp_path / "cuda"
    (root / "lib").mkdir(parents=True)
    (root / "include").symlink_to(Path(triton.__file__).parent / "backends/nvidia/include")
    (library,) = Path(nvidia.__path__[0]).glob("cu*/lib/libcudart.so.*")
    (root / "lib" / library.name).symlink_to(library)
    return root


@pytest.fixture(scope="module", params=["nvinfer", "tensorrt_rtx"])
def linked(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Programs:
    """The library with the backend, linked with a stub."""
    folder = tmp_path_factory.mktemp(request.param)
    cuda = cuda_folder(folder)
    root = folder / "tensorrt"
    (root / "lib").mkdir(parents=True)
    (root / "include").symlink_to(Path(HEADERS).absolute())
    stub = [
        "c++",
        "-shared",
        "-fPIC",
        "-o",
        root / f"lib/lib{request.param}.so",
        SOURCES / "tests/stub_nvinfer.cpp",
    ]
    subprocess.run([*map(str, stub), f"-I{root}/include", f"-I{cuda}/include"], check=True)
    cmake_arguments()
    return compiled(folder / "build", f"-DTENSORRT_ROOT={root}", f"-DCUDA_ROOT={cuda}")


def test_without_a_gpu_it_says_so_before_it_calls_the_library(
    linked: Programs, nano_rtx: Path, nano_fp32: Path
) -> None:
    message = linked.refusal("sit_probe", "tensorrt", nano_rtx)
    if "tensorrt_rtx" in str(linked.folder):
        assert message.startswith("needs an NVIDIA GPU and its driver (")
    else:
        assert "holds an engine of tensorrt-rtx, and this program has TensorRT" in message
    assert "holds an engine of onnxruntime, not of TensorRT" in linked.refusal(
        "sit_probe", "tensorrt", nano_fp32
    )
    # a bundle for ONNX Runtime goes to OpenVINO all the same
    assert linked.output("sit_check", nano_fp32).endswith(b": good\n")
