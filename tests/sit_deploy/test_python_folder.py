"""What `package python` writes, and where it refuses to; tests/sit_deploy/portable runs it."""

from __future__ import annotations

import ast
import configparser
import errno
import itertools
import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import sit_deploy
from sit_deploy.bundle import load_bundle
from sit_deploy.python_folder import MODULES, requirements, write_folder
from tests.helpers.bundles import load_manifest, seal_again
from tests.helpers.command_line import CommandLine
from tests.sit_deploy.portable.conftest import on_fake_tensorrt

ROOT = Path(__file__).parents[2]
# what a module there may import at its head; runtimes are imported inside what needs them
_EVERYWHERE = {*sys.stdlib_module_names, "numpy", "PIL", "engines"}
_RUNTIMES = {"onnx", "onnxruntime", "openvino", "polygraphy", "google", "ml_dtypes", "torch", "cuda"}


def test_the_command(nano_fp32: Path, cli: CommandLine) -> None:
    found = cli("package", "python", nano_fp32, "-o", "deep/a folder", "--json").json()
    folder = cli.folder / "deep/a folder"
    assert found == {"folder": str(folder), "bundles": ["nano-fp32"]}
    assert {p.name for p in folder.iterdir()} == {
        *("README.md", "bundles", "check.py", "engines", "folder.json", "requirements.txt", "sit_bundle")
    }
    there = folder / "bundles/nano-fp32"
    assert {p.name: p.read_bytes() for p in there.iterdir()} == {
        p.name: p.read_bytes() for p in nano_fp32.iterdir()
    }
    assert "has files in it; choose a new or empty folder" in cli.refuses(
        "package", "python", nano_fp32, "-o", "deep/a folder"
    )
    assert "is not a bundle" in cli.refuses("package", "python", "gone", "-o", "other")
    (cli.folder / "empty").mkdir()
    assert "✓ empty: nano-fp32" in cli("package", "python", nano_fp32, "-o", "empty").out


def test_the_modules_are_ours_and_need_nothing_else(nano_fp32: Path, tmp_path: Path) -> None:
    write_folder([load_bundle(nano_fp32)], tmp_path / "folder")
    folder = tmp_path / "folder"
    assert all(
        (folder / "sit_bundle" / name).read_bytes() == (ROOT / "sit_deploy" / name).read_bytes()
        for name in MODULES
    )
    ours = {p.relative_to(ROOT) for p in (ROOT / "engines").rglob("*.py") if "cpp" not in p.parts}
    theirs = {p.relative_to(folder) for p in (folder / "engines").rglob("*.py")}
    assert ours == theirs and all((ROOT / p).read_bytes() == (folder / p).read_bytes() for p in ours)
    files = [*folder.rglob("*.py")]
    assert not list(folder.rglob("__pycache__")) and sum(p.stat().st_size for p in files) < 700_000
    for path in files:
        _check_imports(path, folder)


def _check_imports(path: Path, folder: Path) -> None:
    """Every relative import is of a file that is there, and every other of what the folder may count on."""
    tree = ast.parse(path.read_text(), feature_version=(3, 10))
    checking = {
        inner
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    head = {node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)}
    for node in ast.walk(tree):
        if node in checking or not isinstance(node, ast.Import | ast.ImportFrom):
            continue
        if isinstance(node, ast.ImportFrom) and node.level:
            base = path.parents[node.level - 1] / (node.module or "").replace(".", "/")
            names = [base] if node.module else [base / alias.name for alias in node.names]
            assert all(n.with_suffix(".py").is_file() or (n / "__init__.py").is_file() for n in names), (
                path,
                names,
            )
            continue
        roots = (
            {(node.module or "").split(".")[0]}
            if isinstance(node, ast.ImportFrom)
            else {a.name.split(".")[0] for a in node.names}
        )
        inside = node not in head or path.is_relative_to(folder / "engines")
        allowed = _EVERYWHERE | {"sit_bundle"} | (_RUNTIMES if inside else set())
        assert roots <= allowed, (path, roots)


def test_requirements(nano_fp32: Path, tmp_path: Path) -> None:
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    bounds = (setup["options"]["install_requires"] + setup["options.extras_require"]["tensorrt"]).splitlines()
    bounds = [line.partition(";")[0].strip() for line in bounds]
    gpu = load_bundle(
        on_fake_tensorrt(nano_fp32, tmp_path / "gpu", "tensorrt-rtx-1.7.1", version="1.7.1.116")
    )
    old = load_bundle(on_fake_tensorrt(nano_fp32, tmp_path / "old", "tensorrt-8.6.0", version="8.6.1"))
    cpu = load_bundle(nano_fp32)
    lines = requirements([cpu, gpu, old])
    ort = f"onnxruntime>={cpu.manifest.engine.version}"
    assert {ort, "tensorrt-rtx==1.7.1.116", "tensorrt==8.6.1.*"} <= set(lines)
    common = {line.lstrip("# ").partition("  ")[0] for line in lines} - {
        ort,
        "tensorrt-rtx==1.7.1.116",
        "tensorrt==8.6.1.*",
    }
    assert common == {"numpy>=1.26", "pillow>=10.0", "pycuda>=2024.1", "cuda-bindings>=12.8", "onnx>=1.21"}
    assert common <= set(bounds)
    assert requirements([cpu]) == ["numpy>=1.26", "pillow>=10.0", ort]


def test_names(nano_fp32: Path, trained: Any, tmp_path: Path, copy_of: Callable[..., Path]) -> None:
    raw = tmp_path / os.fsdecode(b"b\xff")
    shutil.copytree(trained.bundle, raw)
    (tmp_path / "up").mkdir()
    twin = Path(shutil.copytree(nano_fp32, tmp_path / "up" / "NANO-fp32"))
    fields = load_manifest(twin)
    seal_again(twin, {**fields, "compared_on": "something else"})
    names = write_folder([load_bundle(path) for path in (nano_fp32, raw, twin)], tmp_path / "folder")
    assert names == ["nano-fp32", "sit_nano-fp32-onnxruntime-b2-4", "sit_nano-fp32-onnxruntime-b1"]
    assert sorted(names) == sorted(p.name for p in (tmp_path / "folder/bundles").iterdir())
    assert load_bundle(tmp_path / "folder/bundles" / names[1]).manifest.digest == load_manifest(raw)["digest"]


def test_what_is_refused(
    nano_fp32: Path, tmp_path: Path, cli: CommandLine, copy_of: Callable[..., Path]
) -> None:
    bundle = copy_of(nano_fp32, "mine")
    refuses = lambda *words: cli.refuses("package", "python", *words)  # noqa: E731
    assert "is the same bundle as" in refuses(bundle, nano_fp32, "-o", "out")
    assert "lies in the bundle" in refuses(bundle, "-o", bundle / "inside")
    assert "has files in it" in refuses(bundle, "-o", bundle)
    (tmp_path / "file").write_text("")
    assert "is not a folder; choose a new or empty folder" in refuses(bundle, "-o", "file")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    assert "is a symbolic link" in refuses(bundle, "-o", "link")
    assert "cannot write to" in refuses(bundle, "-o", "file/below")
    (bundle / "engine.onnx").write_bytes(b"cut off")
    assert "was changed: engine.onnx does not match its hash" in refuses(bundle, "-o", "out")


def test_bundles_of_several_machines(nano_fp32: Path, tmp_path: Path, cli: CommandLine) -> None:
    release = "tensorrt-10.16.1"
    first = on_fake_tensorrt(nano_fp32, tmp_path / "first", release)
    second = on_fake_tensorrt(nano_fp32, tmp_path / "second", release, version="10.14.1")
    message = cli.refuses("package", "python", first, second, "-o", "out")
    assert "and one environment has one release; package them apart, or build one again" in message
    # the environment has the newer release, which opens an older plan only where that was built for it
    compatible = {"details": {"version_compatible": True}}
    old = on_fake_tensorrt(nano_fp32, tmp_path / "old", release, version="10.14.1", **compatible)
    new = on_fake_tensorrt(nano_fp32, tmp_path / "new", release, version="11.0.0", **compatible)
    assert cli("package", "python", first, old, "-o", "good").out
    assert "tensorrt==10.16.1." in (cli.folder / "good/requirements.txt").read_text()
    for order in ((first, new), (new, first)):
        assert "one environment has one release" in cli.refuses("package", "python", *order, "-o", "out")
    third = on_fake_tensorrt(nano_fp32, tmp_path / "third", release, why="another")
    fields = load_manifest(third)
    fields["versions"]["platform"] = "Linux-5.15.0-tegra-aarch64-with-glibc2.35"
    seal_again(third, fields)
    fields = load_manifest(first)
    fields["versions"]["platform"] = "Linux-6.1.0-x86_64-with-glibc2.36"
    seal_again(first, fields)
    assert "for x86_64 and " in cli.refuses("package", "python", first, third, "-o", "out")


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS])
def test_a_full_or_read_only_disk(
    number: int, nano_fp32: Path, cli: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(source: Path, target: Path, **_: Any) -> None:
        raise OSError(number, os.strerror(number), str(target))

    monkeypatch.setattr(shutil, "copyfile", fail)
    assert os.strerror(number) in cli.refuses("package", "python", nano_fp32, "-o", "out")


def test_ctrl_c_leaves_nothing(nano_fp32: Path, cli: CommandLine, monkeypatch: pytest.MonkeyPatch) -> None:
    copied = shutil.copyfile

    def interrupt(source: Path, target: Path, **_: Any) -> Any:
        if Path(target).name == "check.py":
            raise KeyboardInterrupt
        return copied(source, target)

    monkeypatch.setattr(shutil, "copyfile", interrupt)
    assert "interrupted; nothing was left half-written" in cli.refuses(
        "package", "python", nano_fp32, "-o", "deep/out"
    )


def test_the_readme_and_what_it_says_of_a_gpu(nano_fp32: Path, tmp_path: Path) -> None:
    write_folder([load_bundle(nano_fp32)], tmp_path / "cpu")
    text = (tmp_path / "cpu/README.md").read_text()
    assert "| `nano-fp32` | sit_nano | fp32 | ONNX Runtime" in text and "## On a GPU" not in text
    gpu = on_fake_tensorrt(nano_fp32, tmp_path / "gpu", "tensorrt-rtx-1.7.1")
    write_folder([load_bundle(gpu)], tmp_path / "out")
    assert "check.py --build" in (tmp_path / "out/README.md").read_text()
    described = json.loads((tmp_path / "out/folder.json").read_text())["bundles"]
    assert list(described) == [load_manifest(gpu)["digest"]]
    assert set(described[load_manifest(gpu)["digest"]]["nodes"]["types"].values()) == {"float32"}
    assert sit_deploy.__version__ in text


def test_the_readme_of_an_odd_name(nano_fp32: Path, tmp_path: Path, copy_of: Callable[..., Path]) -> None:
    """Its lines are Python and a table all the same."""
    odd = copy_of(nano_fp32, 'a "b" | c\\d')
    (name,) = write_folder([load_bundle(odd)], tmp_path / "out")
    text = (tmp_path / "out/README.md").read_text()
    (row,) = [line for line in text.splitlines() if "sit_nano | fp32" in line]
    assert row.replace("\\|", "").count("|") == 9
    (call,) = [node for node in ast.walk(ast.parse(_program(text))) if isinstance(node, ast.With)]
    assert ast.literal_eval(call.items[0].context_expr.args[0]) == f"bundles/{name}"


def _program(readme: str) -> str:
    lines = readme[readme.index("    import sit_bundle") :].splitlines()
    return "\n".join(
        line[4:] for line in itertools.takewhile(lambda line: line[:4].isspace() or not line, lines)
    )
