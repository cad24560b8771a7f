from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import engines
import sit_deploy
from sit_deploy.bundle import load_bundle
from sit_deploy.portable.bundle import architecture, load, open_bundle, platform_of, require_platform
from tests.helpers.bundles import load_manifest, seal_again
from tests.helpers.trt_rig import make_rig
from tests.sit_deploy.conftest import Trained
from tests.sit_deploy.portable.conftest import on_fake_tensorrt


def test_it_says_of_a_bundle_what_the_package_says(trained: Trained) -> None:
    ours, theirs = load_bundle(trained.bundle), open_bundle(trained.bundle)
    assert theirs.classes == ours.classes and theirs.digest == ours.manifest.digest
    assert theirs.batch_range == ours.batch_range and theirs.batch_sizes == (2, 3, 4)
    assert theirs.preprocessing() == ours.preprocessing() and theirs.dynamic_batch == (2, 3, 4)
    assert theirs.engine.path == ours.engine_path and theirs.engine.origin.version == ours.origin.version
    for mine, other in zip(theirs.golden(), ours.golden(), strict=True):
        assert np.array_equal(mine, other)
    pictures = sorted(trained.images.rglob("*.png"))[:3]
    with load(trained.bundle, threads=1) as here, sit_deploy.load(trained.bundle, threads=1) as there:
        assert np.array_equal(here(pictures), there(pictures))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda b: (b / "manifest.json").unlink(), "is not a bundle: it has no manifest.json"),
        (lambda b: (b / "manifest.json").write_text("{"), "cannot be read"),
        (
            lambda b: (b / "manifest.json").write_text('{"schema": 9}'),
            "of another schema than the 2 known here",
        ),
        (lambda b: _edit(b / "manifest.json"), "was changed: it does not match its digest"),
        (
            lambda b: (b / "engine.onnx").write_bytes(b"cut"),
            "was changed: engine.onnx does not match its hash",
        ),
        (lambda b: (b / "golden.npz").unlink(), "lacks its file golden.npz"),
    ],
)
def test_what_was_changed_is_refused(
    change: Callable[[Path], object], message: str, nano_fp32: Path, copy_of: Callable[..., Path]
) -> None:
    bundle = copy_of(nano_fp32)
    change(bundle)
    with pytest.raises(sit_deploy.InputError, match=message) as raised:
        open_bundle(bundle)
    assert "\n" not in str(raised.value)


def _edit(path: Path) -> None:
    path.write_text(path.read_text().replace("sit_nano", "sit_mano", 1))


def test_a_manifest_that_lacks_what_is_needed_is_one_line(
    nano_fp32: Path, copy_of: Callable[..., Path]
) -> None:
    bundle = copy_of(nano_fp32)
    fields = load_manifest(bundle)
    del fields["engine"]["version"]
    seal_again(bundle, fields)
    with pytest.raises(
        sit_deploy.InputError, match=r"is not as it should be \(KeyError: 'version'\); copy the folder"
    ):
        open_bundle(bundle)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("Linux-6.18.44-fc-v669-x86_64-with-glibc2.36", ("Linux", "x86_64")),
        ("Linux-5.15.0-tegra-aarch64-with-glibc2.35", ("Linux", "aarch64")),
        ("Windows-11-10.0.22631-SP0", ("Windows", "")),
        ("macOS-14.5-arm64-arm-64bit", ("macOS", "aarch64")),
        ("", ("", "")),
    ],
)
def test_platforms(text: str, found: tuple[str, str]) -> None:
    assert platform_of(text) == found


def test_it_knows_this_machine() -> None:
    assert platform_of(platform.platform()) == (platform.system(), architecture())


@pytest.mark.parametrize(
    ("release", "system", "refused"),
    [
        ("tensorrt-10.16.1", "Linux-5.15.0-tegra-aarch64-with-glibc2.35", True),
        ("tensorrt-10.16.1", "Windows-10-x86_64", True),
        ("tensorrt-rtx-1.7.1", "Linux-5.15.0-tegra-aarch64-with-glibc2.35", True),
        ("tensorrt-rtx-1.7.1", "Windows-10-x86_64", False),
        ("tensorrt-10.16.1", "", False),
    ],
)
def test_a_plan_of_another_platform(
    release: str, system: str, refused: bool, nano_fp32: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(platform, "system", lambda: "Linux")
    bundle = on_fake_tensorrt(nano_fp32, tmp_path / "bundle", release)
    fields = load_manifest(bundle)
    fields["versions"]["platform"] = system
    seal_again(bundle, fields)
    if not refused:
        require_platform(open_bundle(bundle))
        return
    with pytest.raises(
        engines.EngineLoadError, match=r"where its plan does not run; build it here: python check.py --build"
    ):
        load(bundle)


def test_without_a_gpu(nano_fp32: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "engines.tensorrt.engine.find_gpus", lambda: engines.gpus.GpuStatus((), "no NVIDIA driver")
    )
    bundle = on_fake_tensorrt(nano_fp32, tmp_path / "bundle", "tensorrt-rtx-1.7.1")
    with pytest.raises(
        engines.NoGpuError, match="bundle is a TensorRT-RTX engine, which needs an NVIDIA GPU"
    ):
        load(bundle)


@pytest.mark.parametrize("release", ["tensorrt-10.16.1", "tensorrt-rtx-1.7.1"])
def test_on_the_fake_gpu(
    release: str, nano_fp32: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig = make_rig(monkeypatch, tmp_path / "cache", release)
    bundle = open_bundle(on_fake_tensorrt(nano_fp32, tmp_path / "bundle", release))
    images, reference = bundle.golden()
    with load(bundle.path) as classifier:
        assert np.abs(classifier.logits(images) - reference).max() < 1e-3
    rig.gpu.assert_clean()


@pytest.mark.parametrize(
    ("release", "engine", "message"),
    [
        (
            "tensorrt-10.16.1",
            {"version": "10.0.1"},
            r"bundle: the engine was built by TensorRT 10.0.1, and 10.16.1.* is installed; install 10.0.1, or build it again: "
            "python check.py --build bundle",
        ),
        (
            "tensorrt-10.16.1",
            {"target": "sm80 (NVIDIA A100)"},
            r"built for sm80, and GPU 0 here is sm89 \(Fake GPU\); build it again for this GPU: python check.py --build bundle",
        ),
    ],
)
def test_a_plan_of_another_release_or_gpu(
    release: str,
    engine: dict[str, str],
    message: str,
    nano_fp32: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    make_rig(monkeypatch, tmp_path / "cache", release)
    bundle = on_fake_tensorrt(nano_fp32, tmp_path / "bundle", release, **engine)
    with pytest.raises(engines.EngineLoadError, match=message):
        load(bundle)


def test_a_place_whose_name_is_no_utf8(nano_fp32: Path, tmp_path: Path) -> None:
    odd = tmp_path / os.fsdecode(b"\xff")
    shutil.copytree(nano_fp32, odd / "bundle")
    with pytest.raises(
        engines.EngineLoadError,
        match=r"bundle: ONNX Runtime cannot open .*\\xff.*use it through a symbolic link",
    ):
        load(odd / "bundle")
    (tmp_path / "link").symlink_to(odd)
    load(tmp_path / "link/bundle").close()


def test_without_its_runtime(nano_fp32: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(nano_fp32, tmp_path / "bundle")
    monkeypatch.setitem(__import__("sys").modules, "onnxruntime", None)
    with pytest.raises(
        engines.EngineNotInstalledError,
        match=r"bundle: ONNX Runtime is .*; run `pip install -r requirements.txt`",
    ):
        load(tmp_path / "bundle")
