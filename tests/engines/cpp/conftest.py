"""The C++ library, compiled by the real compiler: once as users get it, once with sanitizers."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from filelock import FileLock

from sit_deploy.bundle import load_bundle
from sit_deploy.cpp_project import write_project
from tests.engines.cpp.manifests import rewrite
from tests.helpers import compiled_once
from tests.helpers.shared import run_folder, shared
from tests.sit_deploy.conftest import (
    Trained,
    copy_of,
    nano_embeddings,
    nano_fp32,
    nano_rtx,
    trained,
    trained_bf16,
    trained_openvino,
    trained_pixels,
)

__all__ = [
    "copy_of",
    "nano_embeddings",
    "nano_fp32",
    "nano_rtx",
    "trained",
    "trained_bf16",
    "trained_openvino",
    "trained_pixels",
]  # fixtures

SOURCES = Path(__file__).parents[3] / "engines/cpp"
# verbs of sit_probe that open no runtime, whose leaks would not be ours: these are searched for leaks too
_OURS_ALONE = {"decode", "resize", "prepare", "pixels", "open", "orientation"}
_SANITIZERS = {
    "UBSAN_OPTIONS": "print_stacktrace=1",
    "TBB_ENABLE_SANITIZERS": "1",  # else TBB loads a library in a way that AddressSanitizer refuses
}


@dataclass(frozen=True)
class Programs:
    """A build of the library: its folder, and how to run what is in it."""

    folder: Path

    def run(
        self, program: str, *words: object, cwd: Path | None = None
    ) -> subprocess.CompletedProcess[bytes]:
        command = [str(self.folder / program), *map(str, words)]
        leaks = program == "sit_fuzz" or (program == "sit_probe" and bool(words) and words[0] in _OURS_ALONE)
        environment = {**os.environ, **_SANITIZERS, "ASAN_OPTIONS": f"detect_leaks={int(leaks)}"}
        return subprocess.run(command, capture_output=True, env=environment, timeout=300, cwd=cwd)

    def output(self, program: str, *words: object) -> bytes:
        """What a program prints, which must end well."""
        done = self.run(program, *words)
        assert (done.returncode, done.stderr) == (0, b""), done.stderr.decode()[-2000:]
        return done.stdout

    def refusal(self, program: str, *words: object) -> str:
        """The one line that a program refuses with."""
        done = self.run(program, *words)
        assert (done.returncode, done.stdout) == (2, b""), done.stderr.decode()[-2000:]
        (line,) = done.stderr.decode().splitlines()
        assert line.startswith("Error: ")
        return line.removeprefix("Error: ")

    def image(self, *words: object) -> np.ndarray:
        """The image that sit_probe prints: uint8 (H, W, 3)."""
        size, _, data = self.output("sit_probe", *words).partition(b"\n")
        width, height = map(int, size.split())
        return np.frombuffer(data, np.uint8).reshape(height, width, 3)


def cmake_arguments() -> list[str]:
    """Where OpenVINO is; skips the test where something to compile with is missing."""
    for command, package in (("cmake", "cmake"), ("c++", "g++")):
        if not shutil.which(command):
            pytest.skip(f"needs {command}: apt-get install {package}")
    for header, package in (
        ("jpeglib.h", "libjpeg-dev"),
        ("png.h", "libpng-dev"),
        ("openssl/evp.h", "libssl-dev"),
    ):
        found = subprocess.run(
            ["c++", "-E", "-x", "c++", "-"],
            input=f"#include <cstdio>\n#include <{header}>\n",
            text=True,
            capture_output=True,
        )
        if found.returncode:
            pytest.skip(f"needs {header}: apt-get install {package}")
    utils = pytest.importorskip("openvino.utils", reason="needs OpenVINO: pip install openvino")
    return [f"-DOpenVINO_DIR={utils.get_cmake_path()}"]


def launcher(how: str, factory: pytest.TempPathFactory) -> str:
    """CMake's CMAKE_CXX_COMPILER_LAUNCHER by which builds of a run share objects: `how` is keep or take; see `compiled_once`."""
    return ";".join((sys.executable, compiled_once.__file__, how, str(run_folder(factory) / "objects")))


def compiled(folder: Path, *options: str) -> Programs:
    """Configure and build the library into a folder; a warning is an error."""
    configure = [
        *("cmake", "-S", str(SOURCES), "-B", str(folder), *cmake_arguments()),
        *("-DSIT_DEPLOY_WARNINGS_AS_ERRORS=ON", "-DSIT_DEPLOY_TESTS=ON", *options),
    ]  # fmt: skip
    for command in (configure, ["cmake", "--build", str(folder), "--parallel", "2"]):
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    return Programs(folder)


@pytest.fixture(scope="session")
def project(trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A packaged project of `trained`, built by the command of its README, in a folder whose name is no help."""

    def make(folder: Path) -> None:
        cmake_arguments()
        write_project(load_bundle(trained.bundle), folder)
        done = subprocess.run(
            [
                str(folder / "build.sh"),
                "-DSIT_DEPLOY_WARNINGS_AS_ERRORS=ON",
                f"-DCMAKE_CXX_COMPILER_LAUNCHER={launcher('keep', tmp_path_factory)}",
            ],
            capture_output=True,
            text=True,
            env={**os.environ, "PYTHON": sys.executable},
        )
        assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]

    return shared(tmp_path_factory, "my project", make)


@pytest.fixture(scope="session")
def release(project: Path) -> Programs:
    """The project's programs: the library as users build it."""
    return Programs(project / "build")


@pytest.fixture(scope="session")
def checked(tmp_path_factory: pytest.TempPathFactory) -> Programs:
    """The library with AddressSanitizer and UndefinedBehaviorSanitizer, which end a program at what they find.

    As one source, which compiles sooner. Built once for all processes of a test run, or for all runs into
    SIT_DEPLOY_CPP_BUILD.
    """

    def make(folder: Path) -> None:
        compiled(
            folder,
            "-DSIT_DEPLOY_SANITIZE=address,undefined",
            "-DCMAKE_BUILD_TYPE=RelWithDebInfo",
            "-DCMAKE_CXX_FLAGS_RELWITHDEBINFO=-Og -g1",
            "-DCMAKE_UNITY_BUILD=ON",
            "-DCMAKE_UNITY_BUILD_BATCH_SIZE=0",
        )

    if kept := os.environ.get("SIT_DEPLOY_CPP_BUILD"):
        folder = Path(kept) / "checked"
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.with_suffix(".lock")):
            make(folder)
        return Programs(folder)
    return Programs(shared(tmp_path_factory, "checked", make))


@pytest.fixture(scope="session")
def light(nano_fp32: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`nano_fp32` with no graphs in its graphs' files: enough for opening it, which hashes them. Do not write into it."""

    def make(folder: Path) -> None:
        shutil.copytree(nano_fp32, folder)
        for name in ("model.onnx", "engine.onnx"):
            (folder / name).write_text(name)
        rewrite(folder)

    return shared(tmp_path_factory, "nano-light", make)
