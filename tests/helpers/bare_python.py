"""A Python that has what a requirements.txt asks for and nothing else, made without a network; and a GPU for it that is not there."""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

from packaging.requirements import Requirement

HELPERS = Path(__file__).parent
RECORDS = HELPERS.parent / "engines" / "api"


def make(folder: Path, requirements: Iterable[str]) -> Path:
    """Make a virtual environment of the installed packages that some requirements need; return its interpreter.

    Raises:
        AssertionError: what is installed here does not meet them.
    """
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", "--symlinks", folder], check=True)
    (site,) = (folder / "lib").glob("python*/site-packages")
    for name in _needed(requirements):
        for file in importlib.metadata.files(name) or ():
            top = file.parts[0]
            source = Path(importlib.metadata.distribution(name).locate_file(top))
            if top not in ("..", "__pycache__") and not (site / top).exists():
                (site / top).symlink_to(source)
    return folder / "bin" / "python"


def _needed(requirements: Iterable[str]) -> set[str]:
    """The packages behind some requirements, those that they need in turn included."""
    found: set[str] = set()
    waiting = [Requirement(line) for line in requirements if line and not line.startswith("#")]
    while waiting:
        wanted = waiting.pop()
        if wanted.marker and not wanted.marker.evaluate({"extra": ""}):
            continue
        assert wanted.specifier.contains(importlib.metadata.version(wanted.name), prereleases=True), wanted
        if wanted.name not in found:
            found.add(wanted.name)
            waiting += map(Requirement, importlib.metadata.requires(wanted.name) or ())
    return found


def add_fake_gpu(
    folder: Path, release: str, capability: tuple[int, int] = (8, 9), more: str = ""
) -> dict[str, str]:
    """Write modules that stand for a TensorRT release, PyCUDA and cuda-bindings, a driver and nvidia-smi.

    `more` is Python that changes the fakes, TRT and GPU. Returns the environment in which every Python finds them.
    """
    kind = "tensorrt_rtx" if "rtx" in release else "tensorrt"
    files = {
        "sitecustomize.py": _DRIVER.format(capability=capability),
        "fake_machine.py": (
            "from tests.helpers.fake_cuda import FakeGpu\nfrom tests.helpers.fake_tensorrt import FakeTensorRT\n"
            f"GPU = FakeGpu(capability={capability})\nTRT = FakeTensorRT({release!r}, GPU)\n{more}\n"
        ),
        f"{kind}.py": "import sys, fake_machine\nsys.modules[__name__] = fake_machine.TRT.module\n",
        "pycuda/__init__.py": "",
        "pycuda/driver.py": "import sys, fake_machine\nsys.modules[__name__] = fake_machine.GPU.driver\n",
        "cuda/__init__.py": "",
        "cuda/bindings/__init__.py": "",
        "cuda/bindings/driver.py": "import sys, fake_machine\nsys.modules[__name__] = fake_machine.GPU.graphs\n",
        "bin/nvidia-smi": "#!/bin/sh\necho Fake GPU, 580.65, 1500, 1980, 9501, 70.5, 72, 41, 24576\n",
    }
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    (folder / "bin/nvidia-smi").chmod(0o755)
    for source in (
        *(
            HELPERS / f"{n}.py"
            for n in ("fake_cuda", "fake_streams", "fake_tensorrt", "fake_tensorrt_parts", "trt_api")
        ),
        RECORDS / f"{release}.json",
    ):
        place = folder / "tests" / source.relative_to(HELPERS.parent)
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source, place)
    return {
        "PYTHONPATH": str(folder),
        "PATH": f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}",
        "SIT_DEPLOY_CACHE": str(folder / "cache"),
    }


# found by every Python that has its folder in PYTHONPATH: a driver of one device
_DRIVER = """\
import ctypes


def _put(pointer, value):
    pointer._obj.value = value
    return 0


class _Driver:
    cuInit = staticmethod(lambda flags: 0)
    cuDeviceGetCount = staticmethod(lambda count: _put(count, 1))
    cuDeviceGet = staticmethod(lambda device, number: 0)
    cuDeviceGetName = staticmethod(lambda name, size, device: setattr(name, "value", b"Fake GPU"))
    cuDeviceGetAttribute = staticmethod(lambda value, what, device: _put(value, {capability}[what - 75]))


class _CDLL(ctypes.CDLL):
    def __new__(cls, name=None, *args, **kwargs):
        return _Driver() if name == "libcuda.so.1" else super().__new__(cls)


ctypes.CDLL = _CDLL
"""
