"""Tests are collected wherever the product's own packages are: what else a test needs, it asks for while it runs.

`python -m pytest -m gpu` imports every file of tests, and a GPU machine lacks what has nothing to do with its GPU: an import that
fails there stops them all.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

from benchmarks.gpu_machine.steps import NEEDED

ROOT = Path(__file__).parents[1]
OURS = {"benchmarks", "calibration", "engines", "sit_deploy", "tests", "training"}
# what NEEDED brings along: ONNX protobuf, pytest packaging, rich markdown-it-py, timm PyYAML
BROUGHT = {"google", "markdown_it", "packaging", "typing_extensions", "yaml"}
THERE = {name.partition(".")[0] for name in NEEDED} | set(sys.stdlib_module_names) | OURS | BROUGHT


def asked_for(body: list[ast.stmt]) -> dict[str, int]:
    """Packages that `pytest.importorskip` looks for when a file is imported, which ends it there, with their lines."""
    found = {}
    for node in body:
        if not isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            for call in ast.walk(node):
                if isinstance(call, ast.Call) and ast.unparse(call.func) == "pytest.importorskip":
                    found[call.args[0].value.partition(".")[0]] = call.lineno
    return found


def missing(text: str, conftest: str = "") -> Iterator[str]:
    """What a file imports when it is imported itself, of what a GPU machine may lack; `conftest` is that of its folder."""
    body, asked = ast.parse(text).body, asked_for(ast.parse(conftest).body)
    here = asked_for(body)
    for node in body:
        if isinstance(node, ast.Import):
            packages = [alias.name.partition(".")[0] for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and not node.level:
            packages = [node.module.partition(".")[0]]
        else:
            continue
        for package in packages:
            if (
                package not in THERE
                and package not in asked
                and here.get(package, node.lineno) >= node.lineno
            ):
                yield f"line {node.lineno}: {package}"


def test_no_file_of_tests_imports_what_a_gpu_machine_may_lack() -> None:
    found = {}
    for path in (ROOT / "tests").rglob("*.py"):
        conftest = path.with_name("conftest.py")
        beside = conftest.read_text(encoding="utf-8") if conftest.is_file() else ""
        if lines := list(missing(path.read_text(encoding="utf-8"), beside)):
            found[str(path.relative_to(ROOT))] = lines
    assert not found


def test_an_import_that_would_stop_all_is_noticed() -> None:
    asking = "import pytest\npytest.importorskip('openvino.utils')\n"
    assert list(missing("import fvcore.nn\nfrom openvino import Core\nimport torch")) == [
        "line 1: fvcore",
        "line 2: openvino",
    ]
    assert not list(missing(asking + "from openvino import Core"))
    assert list(missing("from openvino import Core\n" + asking)) == ["line 1: openvino"]
    assert not list(missing("import openvino", conftest=asking))
    assert not list(missing("def later():\n    import fvcore\nif TYPE_CHECKING:\n    import grimp"))
