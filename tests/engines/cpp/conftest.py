"""The C++ library, compiled by the real compiler: once as users get it, once with sanitizers."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

SOURCES = Path(__file__).parents[3] / "engines/cpp"
# verbs of sit_probe that open no runtime, whose leaks would not be ours: these are searched for leaks too
_OURS_ALONE = {"decode", "resize", "prepare", "open", "orientation"}
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


def _shared(factory: pytest.TempPathFactory, name: str, *options: str) -> Programs:
    """Build once for all processes of a test run, or for all runs into SIT_DEPLOY_CPP_BUILD: the first one compiles, the
    others wait and find it done."""
    root = factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        root = root.parent
    root = Path(os.environ.get("SIT_DEPLOY_CPP_BUILD", root))
    root.mkdir(parents=True, exist_ok=True)
    with (root / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        return compiled(root / name, *options)


@pytest.fixture(scope="session")
def release(tmp_path_factory: pytest.TempPathFactory) -> Programs:
    """The library as users build it."""
    return _shared(tmp_path_factory, "release", "-DSIT_DEPLOY_TESTS=OFF")


@pytest.fixture(scope="session")
def checked(tmp_path_factory: pytest.TempPathFactory) -> Programs:
    """The library with AddressSanitizer and UndefinedBehaviorSanitizer, which end a program at what they find."""
    return _shared(
        tmp_path_factory,
        "checked",
        "-DSIT_DEPLOY_SANITIZE=address,undefined",
        "-DCMAKE_BUILD_TYPE=RelWithDebInfo",
        "-DCMAKE_CXX_FLAGS_RELWITHDEBINFO=-O1 -g1",
    )
