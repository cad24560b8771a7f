"""Tries a wheel as somebody has it who has nothing else of us: in an empty folder, and with no checkout to fall back on.

    python .ci/try_wheel.py dist/sit_deploy-0.1.0-py3-none-any.whl            # with the packages of the Python that runs this
    python .ci/try_wheel.py --fresh dist/sit_deploy-0.1.0-py3-none-any.whl    # with all that pip brings, 6 GB in minutes

Without --fresh, an environment is made that has the wheel and, behind it, the folder in which this Python's packages are. Python
follows no .pth file there, so an editable sit-deploy of that folder is not found: a module that the wheel lacks is missing.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
import sysconfig
import tempfile
import time
from pathlib import Path
from typing import Any

CONSTRAINTS = Path(__file__).resolve().parents[1] / "constraints.txt"
_WHERE = """\
from importlib import import_module, metadata
from pathlib import Path
import sys
for name in ("sit_deploy", "engines", "calibration", "training"):
    place = Path(import_module(name).__file__)
    assert place.is_relative_to(sys.prefix), f"{name} is taken from {place}, not from the wheel"
print(metadata.version("sit-deploy"))
"""
_PICTURE = (
    "from PIL import Image; Image.effect_mandelbrot((300, 240), (-2, -1.2, 1, 1.2), 60).save('a picture.png')"
)


class Trial:
    """An environment with a wheel, and an empty folder to work in."""

    def __init__(self, folder: Path) -> None:
        self.work = folder / "empty folder"
        self.work.mkdir()
        self.venv = folder / "venv"
        self.python = self.venv / "bin" / "python"
        self.environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
        self.environment |= {
            "PATH": f"{self.venv / 'bin'}{os.pathsep}{os.environ['PATH']}",
            "HF_HUB_OFFLINE": "1",
            "SIT_DEPLOY_CACHE": str(folder / "cache"),
        }

    def install(self, wheel: Path, fresh: bool) -> None:
        """Make the environment, by pip of the Python that runs this."""
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", self.venv], check=True)
        pip = [
            sys.executable,
            "-m",
            "pip",
            "--python",
            self.python,
            "install",
            "--disable-pip-version-check",
            "-q",
        ]
        if fresh:
            subprocess.run([*pip, "-c", CONSTRAINTS, f"{wheel}[triton]"], check=True, env=self.environment)
            return
        subprocess.run([*pip, "--no-deps", "--no-index", wheel], check=True, env=self.environment)
        (site,) = (self.venv / "lib").glob("python*/site-packages")
        borrowed = dict.fromkeys(sysconfig.get_path(kind) for kind in ("purelib", "platlib"))
        (site / "borrowed.pth").write_text("".join(f"{folder}\n" for folder in borrowed), encoding="utf-8")

    def run(self, *words: str | Path, where: Path | None = None) -> str:
        """Run a command, print how long it took, and return what it printed; exits where it fails."""
        started = time.perf_counter()
        command = shlex.join("…" if len(str(word)) > 80 else Path(word).name for word in words)
        done = subprocess.run(
            words, cwd=where or self.work, env=self.environment, capture_output=True, text=True
        )
        if done.returncode:
            sys.exit(f"{done.stdout}{done.stderr}\nthe wheel fails: {command} exited with {done.returncode}")
        print(f"{time.perf_counter() - started:5.1f} s  {command}", flush=True)
        return done.stdout

    def expect(self, *names: str) -> None:
        """Exit where a command left out a file that it writes."""
        for name in names:
            if not (self.work / name).is_file():
                sys.exit(f"the wheel fails: {name} was not written")


def attempt(trial: Trial, wheel: Path) -> None:
    """Go through what a user does first, checking what comes of each."""
    version = wheel.name.split("-")[1]
    if (found := trial.run(trial.python, "-c", _WHERE).strip()) != version:
        sys.exit(f"the wheel fails: it is {version} by its name, and {found} by its metadata")
    if version not in (said := trial.run("sit-deploy", "--version")):
        sys.exit(f"the wheel fails: it is {version}, and --version says {said!r}")
    for command in ("train", "quickstart", "slim", "search"):
        trial.run("sit-deploy", command, "--help")
    doctor: dict[str, Any] = json.loads(trial.run("sit-deploy", "doctor", "--json"))
    (runtime,) = [engine for engine in doctor["engines"] if engine["kind"] == "onnxruntime"]
    if not (runtime["can_build"] and runtime["can_run"]):
        sys.exit(f"the wheel fails: {runtime['reason']}")

    build = ("sit-deploy", "build", "--model", "sit_nano", "--engine", "onnxruntime", "-o", "a bundle")
    trial.run(*build)
    trial.expect("a bundle/manifest.json", "a bundle/report.html", "a bundle/golden.npz")
    trial.run(trial.python, "-c", _PICTURE)
    answer = json.loads(trial.run("sit-deploy", "predict", "a bundle", "a picture.png", "--json"))
    if not answer:
        sys.exit("the wheel fails: predict names no class")

    trial.run("sit-deploy", "package", "triton", "a bundle", "-o", "models")
    trial.run(
        "sit-deploy", "package", "triton", "a bundle", "-o", "models", "--backend", "python", "--name", "py"
    )
    trial.expect("models/sit_nano_fp32/config.pbtxt", "models/py/1/model.py")
    trial.run("sit-deploy", "package", "cpp", "a bundle", "-o", "cpp")
    trial.expect("cpp/main.cpp", "cpp/sit_deploy/CMakeLists.txt", "cpp/sit_deploy/src/manifest.cpp")
    trial.run("sit-deploy", "package", "python", "a bundle", "-o", "python folder")
    trial.run(trial.python, "check.py", "--rounds", "0", where=trial.work / "python folder")


def main() -> None:
    """Make the environment, go through it, and say that all is well."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("wheel", type=Path)
    parser.add_argument("--fresh", action="store_true", help="install every dependency anew")
    given = parser.parse_args()
    if not given.wheel.is_file():
        parser.error(f"{given.wheel} is no file; make one with: make wheel")
    started = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="sit-deploy-wheel-") as folder:
        trial = Trial(Path(folder))
        trial.install(given.wheel.resolve(), given.fresh)
        attempt(trial, given.wheel)
    print(f"{given.wheel.name} works ({time.perf_counter() - started:.0f} s)")


if __name__ == "__main__":
    main()
