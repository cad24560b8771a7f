"""What `import sit_deploy` offers: names, types, errors, and how quickly."""

from __future__ import annotations

import ast
import copy
import importlib
import inspect
import json
import pickle
import pkgutil
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import pytest

import engines
import sit_deploy
from sit_deploy.cli import cli
from training.recipes import Recipe

ROOT = Path(sit_deploy.__file__).parents[1]
SCRIPT = ROOT / "tests/helpers/user_script.py"
HEAVY = ("torch", "timm", "onnx", "onnxruntime", "openvino", "tensorrt_rtx", "numpy", "PIL", "matplotlib")

# Never leave the module that raises them, or the command line: signals from one of its functions to another.
_SIGNALS = {
    "DamagedFileError", "DoubleNameError", "GraphError", "HostilePickle", "OtherPickleError", "PipeBrokeError", "RefusedError",
    "_StopSearchError",
}  # fmt: skip


def python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    return done.stdout


def test_every_name_is_there_and_in_one_list() -> None:
    assert sorted(sit_deploy.__all__) == sorted(sit_deploy._HOMES) == list(sit_deploy.__all__)
    for name in sit_deploy.__all__:
        assert getattr(sit_deploy, name).__name__ == name
    assert set(sit_deploy.__all__) <= set(dir(sit_deploy))


def test_type_checkers_see_the_names_where_they_are() -> None:
    tree = ast.parse(inspect.getsource(sit_deploy))
    (block,) = (node for node in tree.body if isinstance(node, ast.If))
    seen = {alias.name: node.module for node in block.body for alias in node.names}
    assert seen == sit_deploy._HOMES


def test_no_name_is_a_modules_too() -> None:
    """Importing such a module would put it in the function's place."""
    assert not {module.name for module in pkgutil.iter_modules(sit_deploy.__path__)} & set(sit_deploy.__all__)


def test_an_unknown_name() -> None:
    with pytest.raises(AttributeError, match="no attribute 'biuld'"):
        sit_deploy.biuld  # noqa: B018


def test_importing_it_is_quick() -> None:
    """Nothing heavy is imported by the package, by its errors, or by what a request holds."""
    loaded = python(
        "import sys, sit_deploy; from pathlib import Path; sit_deploy.Error; "
        "sit_deploy.BuildRequest('sit_s', Path('out')); print(*sys.modules)"
    ).split()
    assert not set(HEAVY) & set(loaded)


def modules() -> list[str]:
    found = []
    for package in ("sit_deploy", "training", "engines", "calibration"):
        root = importlib.import_module(package)
        found += [info.name for info in pkgutil.walk_packages(root.__path__, f"{package}.")]
    return [name for name in found if "python_models" not in name and not name.endswith("__main__")]


def test_every_error_is_a_kind_of_one_root() -> None:
    errors = {
        value
        for name in modules()
        for value in vars(importlib.import_module(name)).values()
        if inspect.isclass(value) and issubclass(value, Exception) and value.__module__ in modules()
    }
    assert {error.__name__ for error in errors if not issubclass(error, sit_deploy.Error)} == _SIGNALS
    kinds = (sit_deploy.InputError, sit_deploy.GateError, sit_deploy.EngineError, sit_deploy.CalibrationError)
    assert set(kinds) <= errors
    assert {error.exit_status for error in errors if issubclass(error, sit_deploy.Error)} == {1, 2}


def mypy(script: Path, cache: Path) -> subprocess.CompletedProcess[str]:
    """Type-check a program in strict mode, this package's own types taken and PyTorch's left out, which takes minutes."""
    settings = cache / "mypy.ini"
    others = "torch timm torchvision onnx onnxruntime PIL msgspec ml_dtypes safetensors sklearn scipy matplotlib click rich"
    settings.write_text(
        "[mypy]\nstrict = true\nfollow_imports = silent\n"
        f"[mypy-{','.join(f'{name}.*' for name in others.split())}]\nfollow_imports = skip\nignore_missing_imports = true\n"
    )
    command = [sys.executable, "-m", "mypy", "--config-file", settings, "--cache-dir", cache / "mypy", script]
    return subprocess.run(
        command, cwd=cache, env={"MYPYPATH": str(ROOT), "PATH": ""}, capture_output=True, text=True
    )


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("mypy")


@pytest.mark.slow
def test_a_users_program_is_typed(cache: Path) -> None:
    done = mypy(SCRIPT, cache)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
def test_the_programs_of_the_docs_are_typed(cache: Path) -> None:
    text = (ROOT / "docs/python.md").read_text()
    programs = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    program, *parts = (
        text for text in programs if "import sit_bundle" not in text
    )  # that is run: test_python_folder
    assert len(parts) > 1
    lines = "import numpy as np\nimages = np.zeros((1, 3, 224, 224), np.float32)\n"
    script = cache / "documented.py"
    script.write_text("\n".join((program, lines, *parts)))
    done = mypy(script, cache)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ('precision="fp16"', "precision=16"),
        ("assert_type(bundle, sit_deploy.Bundle)", "assert_type(bundle, str)"),
        ("error.exit_status", "error.exit_code"),
        ("sit_deploy.train(", "sit_deploy.trian("),
        ("threads=2), sit_deploy.Bundle", "treads=2), sit_deploy.Bundle"),
        ("rounds=0", 'rounds="0"'),
    ],
)
def test_a_wrong_program_is_refused(right: str, wrong: str, cache: Path) -> None:
    text = SCRIPT.read_text()
    assert right in text
    script = cache / "wrong.py"
    script.write_text(text.replace(right, wrong))
    done = mypy(script, cache)
    assert done.returncode == 1
    assert "error:" in done.stdout


def test_the_types_are_packaged(tmp_path: Path) -> None:
    code = "import sys; sys.argv[1:] = ['-q', 'build_py', '--build-lib', sys.argv[1]]; import setuptools; setuptools.setup()"
    subprocess.run([sys.executable, "-c", code, tmp_path], cwd=ROOT, check=True, capture_output=True)
    for package in ("sit_deploy", "training", "engines", "calibration"):
        assert (tmp_path / package / "py.typed").is_file()
    assert (tmp_path / "engines/cpp/CMakeLists.txt").is_file()


_FOR_A_TERMINAL = {
    "csv_path",
    "force",
    "batch_sizes",
}  # of bench: a program writes the figures as it likes, and calls it several times
_OTHERWISE = {"no_ema": "ema"}


@pytest.mark.parametrize(
    ("command", "functions"),
    [
        ("build", [sit_deploy.build]),
        ("export", [sit_deploy.export]),
        ("calibrate", [sit_deploy.calibrate]),
        ("validate", [sit_deploy.validate]),
        ("bench", [sit_deploy.bench]),
        ("report", [sit_deploy.write_report]),
        ("embed", [sit_deploy.embed]),
        ("slim", [sit_deploy.slim]),
        ("train", [sit_deploy.train, Recipe]),
        ("predict", [sit_deploy.load, sit_deploy.Classifier.predict]),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_every_option_of_a_command_is_a_keyword(command: str, functions: list[Callable[..., Any]]) -> None:
    """Who knows the command knows the function."""
    found = cli.get_command(click.Context(cli), command)
    options = {one.name for one in found.params if one.expose_value} - {"as_json"}
    options -= _FOR_A_TERMINAL if command == "bench" else set()
    keywords = {name for function in functions for name in inspect.signature(function).parameters}
    assert {_OTHERWISE.get(name, name) for name in options} <= keywords


def test_arguments_of_another_type_are_refused(nano_fp32: Path) -> None:
    """What a type checker finds, for programs that have none."""
    calls: list[Callable[[], object]] = [
        *(lambda call=call, value=value: call(value)
          for call in (sit_deploy.build, sit_deploy.export, sit_deploy.calibrate, sit_deploy.validate, sit_deploy.write_report)
          for value in (None, 5, {"bundle": "x"})),
        lambda: sit_deploy.bench(nano_fp32, timing={"rounds": 1}),
        lambda: sit_deploy.bench(nano_fp32, batch_size="1"),
        lambda: sit_deploy.bench(nano_fp32, rounds="1"),
        lambda: sit_deploy.bench(nano_fp32, rounds=0),
        lambda: sit_deploy.bench(nano_fp32, seconds=float("nan")),
        lambda: sit_deploy.bench(nano_fp32, threads=0),
        lambda: sit_deploy.bench(nano_fp32, rounds=1, timing=sit_deploy.TimingOptions()),
        lambda: sit_deploy.bench(nano_fp32, checkpoint="gone.pth"),
        lambda: sit_deploy.bench(nano_fp32, teacher="nowhere"),
        lambda: sit_deploy.bench(nano_fp32, cpus=0),
        lambda: sit_deploy.bench(nano_fp32, cpus=[]),
        lambda: sit_deploy.TimingOptions(rounds="1"),
        lambda: sit_deploy.TimingOptions(seconds="1"),
        lambda: sit_deploy.TimingOptions(threads="two"),
        lambda: sit_deploy.TimingOptions(cpus="0-1"),
        lambda: sit_deploy.TimingOptions(seconds=float("nan")),
        lambda: sit_deploy.write_report(sit_deploy.ReportRequest(())),
        *(lambda name=name, value=value: sit_deploy.write_report(sit_deploy.ReportRequest((nano_fp32,), (), **{name: value}))
          for name, value in (("rounds", 10**30), ("seconds", float("nan")), ("max_accuracy_drop", -1), ("min_agreement", float("nan")))),
        *(lambda name=name, value=value: sit_deploy.validate(sit_deploy.ValidateRequest(nano_fp32, data="digits", **{name: value}))
          for name, value in (("images", 0), ("threads", 0), ("max_accuracy_drop", float("nan")), ("min_agreement", 1000))),
        lambda: sit_deploy.calibrate(sit_deploy.BuildRequest("sit_nano", Path("c.json"), "int8")),
    ]  # fmt: skip
    for call in calls:
        with pytest.raises(sit_deploy.Error) as caught:
            call()
        assert caught.value.exit_status == 2 and "\n" not in str(caught.value)


def test_results_and_errors_go_to_other_processes(
    nano_fp32: Path, evidence: dict[str, Any], tmp_path: Path
) -> None:
    bundle = sit_deploy.load_bundle(nano_fp32)
    earlier = tmp_path / "earlier.json"
    earlier.write_text(json.dumps({"bundles": [evidence]}))
    report = sit_deploy.write_report(sit_deploy.ReportRequest((earlier,), ()))
    for again in (lambda value: pickle.loads(pickle.dumps(value)), copy.deepcopy):
        assert again(bundle).manifest.to_dict() == bundle.manifest.to_dict()
        assert again(bundle).manifest == bundle.manifest
        assert again(report).to_dict() == report.to_dict()
    assert copy.copy(report.bundles[0].evidence).to_dict() == report.bundles[0].evidence.to_dict()
    error = pickle.loads(pickle.dumps(engines.EngineNotInstalledError("it is missing", "install it")))
    assert (str(error), error.remedy) == ("it is missing; install it", "install it")
