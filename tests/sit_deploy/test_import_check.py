"""Folders and files of the user's own that have the names of our packages, or of those that we need."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import sit_deploy

HOME = str(Path(sit_deploy.__file__).parents[1])
CONSOLE = "import sys; sys.argv[0] = '/usr/bin/sit-deploy'; from sit_deploy.cli import main; main()"  # as pip writes it


def run(folder: Path, *words: str, path: str = HOME) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *words],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
    )


def hide(folder: Path, name: str) -> Path:
    """Make a package or a module of the user's own; returns what a message has to name."""
    folder.mkdir(exist_ok=True)
    if name.endswith(".py"):
        (folder / name).write_text("mine = True\n")
    else:
        (folder / name).mkdir()
        (folder / name / "__init__.py").write_text("mine = True\n")
    return folder / name


@pytest.mark.parametrize("path", [HOME, f".{os.pathsep}{HOME}"], ids=["plain", "PYTHONPATH=."])
def test_the_command_line_does_not_look_in_the_current_folder(path: str, tmp_path: Path) -> None:
    for name in ("engines", "calibration", "training", "click.py", "torch.py", "numpy.py"):
        hide(tmp_path, name)
    for start in (["-m", "sit_deploy"], ["-c", CONSOLE])[: 1 if path == HOME else 2]:
        done = run(tmp_path, *start, "models", "--json", path=path)
        assert (done.returncode, done.stderr) == (0, ""), start
        assert "sit_s" in done.stdout


@pytest.mark.parametrize("start", [["-m", "sit_deploy"], ["-c", CONSOLE]], ids=["-m", "console"])
@pytest.mark.parametrize("name", ["engines", "calibration", "training", "engines.py"])
def test_what_hides_ours_is_named_on_one_line(name: str, start: list[str], tmp_path: Path) -> None:
    place = hide(tmp_path / "project", name)
    (tmp_path / "elsewhere").mkdir()
    done = run(tmp_path / "elsewhere", *start, "models", path=f"{place.parent}{os.pathsep}{HOME}")
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"Error: {place} hides the package {place.stem} ")


@pytest.mark.parametrize("name", ["engines", "calibration.py", "click.py", "torch.py"])
def test_a_script_beside_such_a_folder_is_told(name: str, tmp_path: Path) -> None:
    place = hide(tmp_path, name)
    (tmp_path / "script.py").write_text("import sit_deploy\n")
    done = run(tmp_path, "script.py")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith(f"ImportError: {place} hides the package {place.stem} ")


@pytest.mark.parametrize("name", ["training", "data", "models.py", "engines_of_mine", "onnx"])
def test_a_script_may_have_folders_of_its_own(name: str, tmp_path: Path) -> None:
    """Other names, and `training`, which `sit_deploy.load` has no need of."""
    hide(tmp_path, name)
    stem = Path(name).stem
    (tmp_path / "script.py").write_text(
        f"import sit_deploy, {stem}\nassert {stem}.mine\nsit_deploy.load_bundle\n"
    )
    done = run(tmp_path, "script.py")
    assert (done.returncode, done.stderr) == (0, "")


def test_a_folder_without_python_in_it_hides_nothing(tmp_path: Path) -> None:
    (tmp_path / "engines").mkdir()
    (tmp_path / "engines/diesel.txt").touch()
    (tmp_path / "script.py").write_text("import sit_deploy\n")
    assert run(tmp_path, "script.py").returncode == 0


def test_the_folder_of_this_package_stays_on_the_path() -> None:
    done = run(Path(HOME), "-m", "sit_deploy", "--version", path="")
    assert (done.returncode, done.stdout.splitlines()[0]) == (0, f"sit-deploy {sit_deploy.__version__}")


def test_the_training_command_and_its_workers(tmp_path: Path) -> None:
    """Processes that are started anew get the parent's path."""
    for name in ("engines", "calibration", "torch.py"):
        hide(tmp_path, name)
    assert run(tmp_path, "-m", "training", "--help").returncode == 0
    spawned = """
import sys
sys.argv = ["sit-deploy"]
import sit_deploy, engines.files, multiprocessing, pathlib
child = multiprocessing.get_context("spawn").Process(target=engines.files.sweep, args=(pathlib.Path("."),))
child.start()
child.join()
sys.exit(child.exitcode)
"""
    done = run(tmp_path, "-c", spawned)
    assert (done.returncode, done.stderr) == (0, "")
