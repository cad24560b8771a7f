import ast
import importlib.metadata
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from engines import install
from engines.install import pip_install, requirement

ROOT = Path(__file__).parents[2]
# what these write or say is of another Python than the one that runs
ELSEWHERE = (
    "sit_deploy/portable/bundle.py",
    "sit_deploy/portable/script.py",
    "sit_deploy/cpp_project.py",
    "sit_deploy/python_folder.py",
    "sit_deploy/cli/package.py",
    "sit_deploy/triton/readme.py",
    "sit_deploy/triton/python_models/openvino_session.py",
)


@pytest.fixture
def activated(monkeypatch):
    """As in an environment that is activated: its `pip` comes first."""
    monkeypatch.setattr(install.shutil, "which", lambda name: str(Path(sys.executable).with_name(name)))


@pytest.fixture
def metadata(monkeypatch):
    """Sets what sit-deploy's metadata says; None where it is not installed."""

    def set_to(lines):
        def requires(name):
            assert name == "sit-deploy"
            if lines is None:
                raise importlib.metadata.PackageNotFoundError(name)
            return lines

        monkeypatch.setattr(install.importlib.metadata, "requires", requires)

    return set_to


def test_every_requirement_of_sit_deploy_keeps_its_extras_and_releases():
    lines = [Requirement(line) for line in importlib.metadata.requires("sit-deploy")]
    wanted = {one.name: (one.extras, one.specifier) for one in lines if one.name != "sit-deploy"}
    found = {name: Requirement(requirement(name)) for name in wanted}
    assert {name: (one.extras, one.specifier) for name, one in found.items()} == wanted
    assert {"onnxruntime", "openvino", "tritonclient", "tensorboard", "pycuda"} <= set(wanted)


@pytest.mark.parametrize(
    ("line", "asked", "answer"),
    [
        ("openvino>=2025.0; extra == 'openvino'", "openvino", "openvino>=2025.0"),
        ("tritonclient[grpc,http]>=2.41 ; extra == 'triton'", "tritonclient", "tritonclient[grpc,http]>=2.41"),
        ("ml_dtypes (>=0.5)", "ml-dtypes", "ml_dtypes>=0.5"),
        ("scikit_learn", "scikit-learn", "scikit_learn"),
        ("onnxruntime>=1.22,<2", "onnx", "onnx"),
        ("onnx>=1.21", "onnx>=1.30", "onnx>=1.30"),
    ],
)  # fmt: skip
def test_a_requirement_is_read_from_metadata(metadata, line, asked, answer):
    metadata([line])
    assert requirement(asked) == answer


def test_where_sit_deploy_is_not_installed_a_package_goes_by_its_name(metadata, activated):
    metadata(None)
    assert pip_install("openvino") == "`pip install openvino`"
    metadata([])
    assert pip_install("openvino", "onnx") == "`pip install openvino onnx`"


def test_a_shell_takes_the_command(metadata, activated):
    metadata(["openvino>=2025.0; extra == 'openvino'"])
    assert pip_install("openvino") == "`pip install 'openvino>=2025.0'`"
    assert pip_install("openvino", again=True) == "`pip install --force-reinstall 'openvino>=2025.0'`"


def test_an_environment_that_is_not_activated_is_named(monkeypatch, metadata, tmp_path):
    metadata([])
    monkeypatch.setattr(install.shutil, "which", lambda name: "/usr/bin/pip")
    monkeypatch.setattr(Path, "home", lambda: tmp_path / "home")
    monkeypatch.chdir(tmp_path)
    for python, named in (
        (tmp_path / "a b/bin/python", "'a b/bin/python'"),
        (tmp_path / "home/venv/bin/python", "home/venv/bin/python"),
        (Path("/opt/x y/bin/python"), "'/opt/x y/bin/python'"),
    ):
        monkeypatch.setattr(sys, "executable", str(python))
        assert pip_install("onnx") == f"`{named} -m pip install onnx`"
    monkeypatch.chdir("/")
    monkeypatch.setattr(sys, "executable", str(tmp_path / "home/my venv/bin/python"))
    monkeypatch.setattr(Path, "cwd", lambda: tmp_path / "elsewhere")
    assert pip_install("onnx") == "`~/'my venv/bin/python' -m pip install onnx`"
    for unknown in (
        FileNotFoundError,
        RuntimeError,
    ):  # the current folder was removed; nobody knows the user's own

        def lost(error=unknown):
            raise error

        monkeypatch.setattr(Path, "cwd", lost)
        monkeypatch.setattr(Path, "home", lost)
        monkeypatch.setattr(sys, "executable", "/opt/bin/python")
        assert pip_install("onnx") == "`/opt/bin/python -m pip install onnx`"
    monkeypatch.setattr(sys, "executable", "")  # embedded in another program
    assert pip_install("onnx") == "`pip install onnx`"


@pytest.mark.slow
def test_pip_takes_the_command_for_this_python():
    pytest.importorskip("pip", reason="needs pip")
    command = pip_install("onnxruntime", "ml_dtypes", "scikit-learn").strip("`")
    done = subprocess.run(
        f"{command} --dry-run --no-index --disable-pip-version-check",
        shell=True,
        capture_output=True,
        text=True,
        env={**os.environ, "PIP_QUIET": "0"},  # .ci/run quiets pip
    )
    assert done.returncode == 0, done.stderr
    for name in ("onnxruntime", "ml_dtypes", "scikit-learn"):
        assert f"Requirement already satisfied: {requirement(name)} in " in done.stdout


def texts(path):
    """Every text in a module but for its docstrings; what is filled in is left out."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    docs = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docs:
            yield node.value


def test_no_other_message_says_pip_install_in_words_of_its_own():
    said = {
        path.relative_to(ROOT).as_posix()
        for top in ("sit_deploy", "training", "engines", "calibration")
        for path in (ROOT / top).rglob("*.py")
        if any(re.search(r"\bpip3? install\b|sit-deploy\[", text) for text in texts(path))
    }
    assert said == set(ELSEWHERE)


def test_a_page_installs_an_extra_from_a_checkout():
    """Nobody publishes a package of this name: pip would take whatever somebody put there."""
    pages = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")]
    named = [
        f"{page.name}: {line}"
        for page in pages
        for line in page.read_text(encoding="utf-8").splitlines()
        if re.search(r"sit-deploy\[[\w,]+\](?! @)", line)
    ]
    assert not named
