"""Installs a Triton server on this machine.

NVIDIA's `nvidia-pytriton` wheel carries the server with its Python backend. It is installed into an environment of its own
with NumPy 1 (with NumPy 2 this backend garbles tensors), beside what our Python models import: ONNX Runtime and Pillow, and OpenVINO
where it is asked for, also into an environment from before.
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
from sit_deploy.files import scratch, uninterrupted
from sit_deploy.triton.openvino import fits
from sit_deploy.triton.server import STUB, is_installed, packages_of

WHEEL = "nvidia-pytriton==0.7.0"  # Triton 2.51
_BESIDE = ("numpy>=1.26,<2", "onnxruntime>=1.22", "pillow>=10.0")
_PYTHONS = ((3, 10), (3, 13))  # that the wheel has a backend for, and NumPy 1 and ONNX Runtime wheels


def install_server(
    folder: Path, progress: Callable[[str, int, int], None], openvino: str | None = None
) -> None:
    """Install the server into a folder, whole or not at all; one that is there is left alone, or gets the OpenVINO that it lacks.

    Args:
        folder: of the server.
        progress: is told what is done.
        openvino: the least release of OpenVINO that it needs, as pip takes it ("openvino>=2026.4.1"); None for none.

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
            _install(folder, progress, openvino)
        elif openvino is not None and not fits(folder, openvino):
            _add_openvino(folder, progress, openvino)


def _check_no_other_files(folder: Path) -> None:
    ours = {"venv"} if (folder / "venv/pyvenv.cfg").is_file() else set()
    if any(path.name not in ours and not path.name.endswith(".partial") for path in folder.iterdir()):
        raise InputError(f"{folder} has other files in it; name an empty or new one with --server-folder")


def _install(folder: Path, progress: Callable[[str, int, int], None], openvino: str | None) -> None:
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
        if openvino is not None:
            _add_openvino(folder, progress, openvino)
        _make_backends(folder)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def _add_openvino(folder: Path, progress: Callable[[str, int, int], None], openvino: str) -> None:
    """Put OpenVINO into the environment, in place of an older one; what pip leaves there when it is stopped would be half of it.

    Alone: of what it asks for, NumPy is there, and its telemetry is for its converter.
    """
    progress("Installing OpenVINO", 0, 0)
    packages = packages_of(folder)
    with scratch(folder / "openvino") as staged:
        _pip(folder, ["--no-deps", "--target", str(staged), openvino], [openvino])
        new = [staged / "openvino", *staged.glob("openvino-*.dist-info")]
        # what says that it is there goes first and comes last
        with uninterrupted():
            for old in (*packages.glob("openvino-*.dist-info"), packages / "openvino"):
                if old.exists():
                    old.rename(staged / f"{old.name}.old")
            for path in new:
                path.rename(packages / path.name)
    progress("Installing OpenVINO", 1, 1)


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


def _pip(folder: Path, arguments: Sequence[str], wanted: Sequence[str] | None = None) -> None:
    """Install what the arguments say; `wanted` is what a message calls it, where that is not each that is no option."""
    command = [str(folder / "venv/bin/python"), "-m", "pip", "install", "--quiet", *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        last = next((line for line in reversed(done.stderr.splitlines()) if "ERROR" in line), "pip failed")
        raise InputError(
            f"{' '.join(wanted or (a for a in arguments if a[0] != '-'))} cannot be installed ({last.strip()}); mend that and run it again"
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
