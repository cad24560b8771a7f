"""Folders of `package python`, and bundles in them."""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from sit_deploy.bundle import load_bundle
from sit_deploy.manifest import write_manifest
from sit_deploy.portable import check
from sit_deploy.python_folder import write_folder
from tests.helpers.bundles import load_manifest, seal_again
from tests.helpers.fake_tensorrt import make_plan

ROOT = Path(__file__).parents[3]
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def folder_of(tmp_path: Path) -> Callable[..., Path]:
    """A function that writes the folder of some bundles and returns it."""

    def make(*bundles: Path, name: str = "a folder") -> Path:
        write_folder([load_bundle(bundle) for bundle in bundles], tmp_path / name)
        return tmp_path / name

    return make


def another(bundle: Path, copy_of: Callable[..., Path]) -> Path:
    """Return a copy of a bundle, named "other", that is not the same by its digest."""
    other = copy_of(bundle, "other")
    seal_again(other, {**load_manifest(other), "compared_on": "something else"})
    return other


def on_fake_tensorrt(bundle: Path, place: Path, release: str, **engine: object) -> Path:
    """Copy a bundle as a build on the fake GPU would have made it, for a recorded release."""
    shutil.copytree(bundle, place)
    manifest = json.loads((place / "manifest.json").read_text())
    (place / manifest["engine"]["file"]).unlink()
    (place / "engine.plan").write_bytes(make_plan((place / "model.onnx").read_bytes()))
    version = json.loads((ROOT / f"tests/engines/api/{release}.json").read_text())["version"]
    manifest["engine"] = {
        **{
            "kind": "tensorrt-rtx" if "rtx" in release else "tensorrt",
            "file": "engine.plan",
            "version": version,
        },
        **{"target": "sm89", "why": "a test", "build_seconds": 1.0, "details": {}, **engine},
    }
    fields = {key: value for key, value in manifest.items() if key not in ("schema", "files", "digest")}
    write_manifest(place, fields)
    return place


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> Iterator[Run]:
    """A function that runs check.py's program here, timing nothing: status, output, errors."""
    for module in ("record", "check"):
        monkeypatch.setattr(f"sit_deploy.portable.{module}.isolated", lambda call, *args: call(*args))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}

    def call(folder: Path, *words: object) -> tuple[int, str, str]:
        capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            check.main(folder, ["--rounds", "0", *map(str, words)])
        return int(ended.value.code or 0), *capfd.readouterr()

    yield call
    for number, handler in handlers.items():
        signal.signal(number, handler)
