"""Installs a Triton server on this machine.

NVIDIA's `nvidia-pytriton` wheel carries the server with its Python backend. It is installed into an environment of its own
with NumPy 1 (with NumPy 2 this backend garbles tensors), beside what our Python models import.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import venv
from collections.abc import Callable, Sequence
from pathlib import Path

from engines.files import held
from sit_deploy.errors import InputError
from sit_deploy.files import scratch
from sit_deploy.triton.server import STUB, is_installed, packages_of

WHEEL = "nvidia-pytriton==0.7.0"  # Triton 2.51
_BESIDE = ("numpy>=1.26,<2", "onnxruntime>=1.22", "pillow>=10.0")
_PYTHONS = ((3, 10), (3, 13))  # that the wheel has a backend for, and NumPy 1 and ONNX Runtime wheels


def install_server(folder: Path, progress: Callable[[str, int, int], None]) -> None:
    """Install the server into a folder, whole or not at all; one that is there is left alone.

    Raises:
        InputError: another Python or system than the wheel is for, a folder in use, or a package that cannot be installed.
    """
    version = sys.version_info[:2]
    if sys.platform != "linux" or not _PYTHONS[0] <= version <= _PYTHONS[1]:
        low, high = (".".join(map(str, v)) for v in _PYTHONS)
        raise InputError(
            f"the Triton wheel is for Linux with Python {low} to {high}, and this is {sys.platform} with "
            f"{version[0]}.{version[1]}; package the bundle and serve it in NVIDIA's container"
        )
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is not a folder; name an empty or new one with --server-folder")
    if not is_installed(folder) and folder.exists():
        _check_no_other_files(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with held(folder):
        if not is_installed(folder):  # by another run meanwhile
            _check_no_other_files(folder)
            shutil.rmtree(folder / "venv", ignore_errors=True)  # of a run that was killed
            _install(folder, progress)


def _check_no_other_files(folder: Path) -> None:
    ours = {"venv"} if (folder / "venv/pyvenv.cfg").is_file() else set()
    if any(path.name not in ours and not path.name.endswith(".partial") for path in folder.iterdir()):
        raise InputError(f"{folder} has other files in it; name an empty or new one with --server-folder")


def _install(folder: Path, progress: Callable[[str, int, int], None]) -> None:
    # not moved there when it is ready, as other folders are: an environment knows its own place
    try:
        progress("Making a virtual environment", 0, 0)
        _make_environment(folder / "venv")
        progress("Making a virtual environment", 1, 1)
        for text, arguments in (
            ("Installing Triton", ["--no-deps", WHEEL]),
            ("Installing NumPy, ONNX Runtime and Pillow", list(_BESIDE)),
        ):
            progress(text, 0, 0)
            _pip(folder, arguments)
            progress(text, 1, 1)
        _make_backends(folder)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def _make_environment(folder: Path) -> None:
    try:
        venv.create(folder, with_pip=True)
    except subprocess.CalledProcessError as error:  # Debian keeps this part of Python in a package of its own
        version = "{}.{}".format(*sys.version_info[:2])
        last = next(
            iter(reversed((error.output or b"").decode(errors="replace").strip().splitlines())), error
        )
        raise InputError(
            f"no virtual environment can be made with this Python ({last}); if its ensurepip is missing, install that (on "
            f"Debian or Ubuntu: apt-get install python{version}-venv)"
        ) from None


def _pip(folder: Path, arguments: Sequence[str]) -> None:
    command = [str(folder / "venv/bin/python"), "-m", "pip", "install", "--quiet", *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        last = next((line for line in reversed(done.stderr.splitlines()) if "ERROR" in line), "pip failed")
        raise InputError(
            f"{' '.join(a for a in arguments if a[0] != '-')} cannot be installed ({last.strip()}); mend that and run it again"
        )


def _make_backends(folder: Path) -> None:
    """Put the Python backend together: the wheel keeps its per-Python part elsewhere."""
    wheel = packages_of(folder) / "pytriton/tritonserver"
    version = "{}.{}".format(*sys.version_info[:2])
    with scratch(folder / "backends") as staged:
        shutil.copytree(wheel / "backends/python", staged / "python")
        shutil.copy2(wheel / "python_backend_stubs" / version / STUB, staged / "python" / STUB)
        (staged / "python" / STUB).chmod(0o755)
        staged.rename(folder / "backends")
