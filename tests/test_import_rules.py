"""The rules of who may import whom (pyproject.toml, `make lint`) hold, and notice what breaks them."""

import ast
import os
import shutil
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("engines", "calibration", "sit_deploy", "training")

# contract's first word, file, what is added to it
PLANTED = [
    ("packages", "engines/latency.py", "import sit_deploy.text\n"),
    ("packages", "engines/latency.py", "def later():\n    from training import recipes\n"),
    ("packages", "sit_deploy/cli/train.py", "from training import recipes\n"),
    ("floors", "sit_deploy/graph/export.py", "def later():\n    from sit_deploy.pipeline import build\n"),
    ("floors", "sit_deploy/nowhere.py", ""),
    ("command line", "training/recipes.py", "from sit_deploy.cli import common\n"),
    ("calibration", "calibration/ranges.py", "from engines import timing\n"),
    ("runtimes", "engines/openvino/engine.py", "import engines.onnxruntime.engine\n"),
    ("runtimes", "engines/timing.py", "def later():\n    from engines.openvino import engine\n"),
    ("circles", "calibration/ranges.py", "from calibration import collect\n"),
]


@pytest.fixture(scope="module")
def copied_tree(tmp_path_factory):
    """The sources and the rules, in a folder of their own."""
    tree = tmp_path_factory.mktemp("tree")
    for package in PACKAGES:
        shutil.copytree(
            ROOT / package,
            tree / package,
            ignore=lambda folder, names: [n for n in names if _is_other(folder, n)],
        )
    shutil.copy(ROOT / "pyproject.toml", tree)
    return tree


def _is_other(folder, name):
    return Path(folder, name).is_file() and not name.endswith(".py")


def check_rules(tree):
    """Exit status and words of lint-imports, as `make lint` runs it."""
    run = subprocess.run(
        [sys.executable, "-c", "from importlinter.cli import lint_imports_command as c; c()", "--no-cache"],
        cwd=tree,
        env={**os.environ, "PYTHONPATH": str(tree), "COLUMNS": "200"},
        capture_output=True,
        text=True,
    )
    return run.returncode, run.stdout + run.stderr


def test_the_tree_keeps_the_rules(copied_tree):
    status, words = check_rules(copied_tree)
    assert status == 0, words
    assert "0 broken" in words


@pytest.mark.slow
@pytest.mark.parametrize(("contract", "file", "lines"), PLANTED)
def test_a_planted_import_is_refused(copied_tree, contract, file, lines):
    path = copied_tree / file
    before = path.read_text() if path.exists() else None
    try:
        path.write_text((before or "") + lines)
        status, words = check_rules(copied_tree)
    finally:
        path.unlink() if before is None else path.write_text(before)
    broken = [line for line in words.splitlines() if " BROKEN" in line]
    assert status == 1, words
    assert any(line.startswith(contract) for line in broken), words


def import_order(packages):
    """Every module after those that it imports (a folder's __init__ is one); graphlib.CycleError where there is no such order."""
    grimp = pytest.importorskip("grimp", reason="needs import-linter: pip install import-linter")
    graph = grimp.build_graph(*packages, exclude_type_checking_imports=True, cache_dir=None)
    return list(
        TopologicalSorter(
            {name: graph.find_modules_directly_imported_by(name) for name in graph.modules}
        ).static_order()
    )


def test_modules_have_an_order_in_which_none_needs_a_later_one():
    # import-linter compares the modules of a folder with each other, not with the folder's own __init__
    order = import_order(PACKAGES)
    assert order.index("engines.files") < order.index("sit_deploy.cli")


def test_a_circle_over_a_folders_init_is_noticed(tmp_path, monkeypatch):
    package = tmp_path / "ring"
    package.mkdir()
    (package / "__init__.py").write_text("from ring.a import x\n")
    (package / "a.py").write_text("def x():\n    from ring import b\n")
    (package / "b.py").write_text("from ring import x\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(CycleError):
        import_order(["ring"])


def private_names_taken(root):
    """`file: name` of every name with an underscore that a module of ours takes from another one of ours."""
    taken = []
    for path in (path for package in PACKAGES for path in sorted((root / package).rglob("*.py"))):
        modules = {}  # what this file calls a module or a name of ours
        tree = ast.parse(path.read_text())
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in PACKAGES:
                modules |= {alias.asname or alias.name: alias.name for alias in node.names}
            elif isinstance(node, ast.Import):
                modules |= {
                    a.asname: a.name for a in node.names if a.asname and a.name.split(".")[0] in PACKAGES
                }
        names = set(modules.values())
        for node in ast.walk(tree):
            if (
                isinstance(node, ast.Attribute)
                and isinstance(node.value, ast.Name)
                and node.value.id in modules
            ):
                names.add(node.attr)
        private = sorted(name for name in names if name.startswith("_") and not name.startswith("__"))
        taken += [f"{path.relative_to(root)}: {name}" for name in private]
    return taken


def test_what_begins_with_an_underscore_stays_in_its_module(tmp_path):
    assert private_names_taken(ROOT) == []
    (tmp_path / "training").mkdir()
    (tmp_path / "training" / "planted.py").write_text(
        "from calibration.gptq import _key\nfrom calibration import ranges\n\nprint(ranges._ranges)\n"
    )
    assert private_names_taken(tmp_path) == ["training/planted.py: _key", "training/planted.py: _ranges"]
