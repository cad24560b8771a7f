"""Building where the engine will run: with the fakes, and with TensorRT-RTX's real builder."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import engines
import sit_deploy
from engines.tensorrt.engine import TensorRT
from sit_deploy.portable.build import build_here, choose_kind
from sit_deploy.portable.bundle import load, open_bundle
from sit_deploy.report.check_record import read_check
from tests.helpers.fake_tensorrt import make_plan
from tests.helpers.trt_rig import Rig, make_rig
from tests.sit_deploy.portable.conftest import Run

RELEASE = "tensorrt-10.16.1"


@pytest.fixture
def rig(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Rig:
    """The fakes, with a builder: it makes a plan of the graph."""
    rig = make_rig(monkeypatch, tmp_path / "cache", RELEASE)

    def build(self: Any, model: Path, path: Path, options: engines.BuildOptions, progress: Any = None) -> Any:
        path.write_bytes(make_plan(model.read_bytes(), batch=options.dynamic_batch))
        size = path.stat().st_size
        return engines.EngineInfo("tensorrt", rig.version, path.name, size, 2.0, "sm89 (Fake GPU)")

    monkeypatch.setattr(TensorRT, "build", build)
    return rig


def test_a_bundle_of_a_cpu_on_a_gpu(rig: Rig, nano_fp32: Path, folder_of: Callable[..., Path]) -> None:
    path = folder_of(nano_fp32) / "bundles/nano-fp32"
    bundle = open_bundle(path)
    assert choose_kind(None) == "tensorrt"
    built = build_here(bundle, "tensorrt")
    assert built == path.parents[1] / "built/nano-fp32" and {p.name for p in built.iterdir()} == {
        "built.json",
        "engine.plan",
    }
    again = open_bundle(path)
    assert again.engine.here and again.engine.kind == "tensorrt" and again.digest == bundle.digest
    nodes = again.engine.nodes
    assert len(nodes.products) > 20 and set(nodes.types.values()) == {"float32"} and len(nodes.attention) == 8
    images, reference = again.golden()
    with load(path) as classifier:
        assert np.abs(classifier.logits(images) - reference).max() < 1e-3
    build_here(again, "tensorrt")  # in place of the earlier one
    assert [p.name for p in built.parent.iterdir()] == ["nano-fp32"]
    rig.gpu.assert_clean()


def test_what_was_built_of_another_bundle_or_changed_is_refused(
    rig: Rig, nano_fp32: Path, folder_of: Callable[..., Path]
) -> None:
    path = folder_of(nano_fp32) / "bundles/nano-fp32"
    built = build_here(open_bundle(path), "tensorrt")
    plan = (built / "engine.plan").read_bytes()
    (built / "engine.plan").write_bytes(plan[:-1])
    with pytest.raises(
        sit_deploy.InputError, match=r"engine.plan does not match its hash; remove .*, or run python check.py"
    ):
        open_bundle(path)
    (built / "engine.plan").write_bytes(plan)
    from sit_deploy.hashes import digest

    facts = {**json.loads((built / "built.json").read_text()), "bundle": "0" * 64}
    (built / "built.json").write_text(json.dumps({**facts, "digest": digest(facts)}))
    with pytest.raises(sit_deploy.InputError, match="was built of another bundle nano-fp32"):
        open_bundle(path)


def test_a_failed_build_leaves_what_was_there(
    rig: Rig, nano_fp32: Path, folder_of: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = folder_of(nano_fp32) / "bundles/nano-fp32"

    def fail(*_: Any) -> Any:
        raise engines.EngineBuildError("the builder gave up")

    monkeypatch.setattr(TensorRT, "build", fail)
    with pytest.raises(engines.EngineBuildError, match="gave up"):
        build_here(open_bundle(path), "tensorrt")
    assert not list((path.parents[1] / "built").iterdir()) and not open_bundle(path).engine.here


def test_what_cannot_be_built(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(sit_deploy.InputError, match="must be tensorrt or tensorrt-rtx, got 'onnxruntime'"):
        choose_kind("onnxruntime")
    nothing = engines.gpus.GpuStatus((), "no NVIDIA driver")
    monkeypatch.setattr("engines.tensorrt.engine.find_gpus", lambda: nothing)
    monkeypatch.setattr("sit_deploy.portable.build.find_gpus", lambda: nothing)
    with pytest.raises(
        engines.NoGpuError, match="builds for the GPU of this machine, and none can be used here"
    ):
        choose_kind("tensorrt")
    monkeypatch.setitem(__import__("sys").modules, "tensorrt", None)
    with pytest.raises(engines.EngineNotInstalledError):
        choose_kind("tensorrt")
    monkeypatch.setitem(__import__("sys").modules, "onnx", None)
    with pytest.raises(engines.EngineNotInstalledError, match=r"run `.*pip install 'onnx>="):
        choose_kind(None)


def test_check_py_builds_and_measures_what_it_built(
    rig: Rig, run: Run, nano_fp32: Path, folder_of: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    here = engines.gpus.GpuStatus((engines.gpus.Gpu("Fake GPU", "sm89"),), "")
    monkeypatch.setattr("sit_deploy.portable.record.find_gpus", lambda: here)
    folder = folder_of(nano_fp32)
    status, out, err = run(folder, "--build", "--engine", "tensorrt")
    assert (status, err) == (0, "") and f"tensorrt {rig.version}" in out
    fields = read_check(Path("check.json"))
    (bundle,) = fields["bundles"]
    assert bundle["engine"]["built_here"] and bundle["engine"]["target"] == "sm89 (Fake GPU)"
    assert bundle["golden"]["passed"] and fields["gpu"]["name"] == "Fake GPU"
    # the next run takes what was built
    assert run(folder, "-o", "again.json")[0] == 0
    assert read_check(Path("again.json"))["bundles"][0]["engine"] == bundle["engine"]
    rig.gpu.assert_clean()


@pytest.mark.parametrize(
    ("device", "targets"), [(None, ("sm75",)), ("cuda:1", ("sm120",)), ("cuda", ("sm75",))]
)
def test_a_library_for_named_gpus_builds_for_the_one_that_is_here(
    device: str | None,
    targets: tuple[str, ...],
    nano_fp32: Path,
    folder_of: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """By default TensorRT-RTX would leave a T4 out, and be slower on each of the others."""
    make_rig(monkeypatch, tmp_path / "cache", "tensorrt-rtx-1.7.1")
    gpus = tuple(engines.gpus.Gpu(*row) for row in (("T4", "sm75"), ("RTX 5090", "sm120")))
    monkeypatch.setattr("sit_deploy.portable.build.find_gpus", lambda: engines.gpus.GpuStatus(gpus, ""))
    asked: list[tuple[str, ...]] = []

    def build(self: Any, model: Path, path: Path, options: engines.BuildOptions, progress: Any = None) -> Any:
        asked.append(options.compute_capabilities)
        path.write_bytes(b"a plan")
        return engines.EngineInfo("tensorrt-rtx", "1.7.1", path.name, 6, 2.0, "sm75")

    monkeypatch.setattr(TensorRT, "build", build)
    build_here(open_bundle(folder_of(nano_fp32) / "bundles/nano-fp32"), "tensorrt-rtx", device)
    assert asked == [targets]


def test_a_gpu_that_is_not_there_is_refused_before_anything_is_built(
    rig: Rig, run: Run, nano_fp32: Path, folder_of: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    gpus = tuple(engines.gpus.Gpu(*row) for row in (("T4", "sm75"), ("RTX 5090", "sm120")))
    monkeypatch.setattr("sit_deploy.portable.build.find_gpus", lambda: engines.gpus.GpuStatus(gpus, ""))
    folder = folder_of(nano_fp32)
    status, out, err = run(folder, "--build", "--device", "cuda:2")
    assert (status, out) == (2, "") and not (folder / "built").exists() and not list(Path().iterdir())
    assert err == (
        "Error: there is no GPU cuda:2 for --build; pass --device as one of cuda:0 (T4), cuda:1 (RTX 5090)\n"
    )


@pytest.mark.slow
def test_the_real_builder(nano_rtx: Path, folder_of: Callable[..., Path]) -> None:
    path = folder_of(nano_rtx) / "bundles/nano-rtx"
    before = open_bundle(path)
    build_here(before, "tensorrt-rtx")
    after = open_bundle(path)
    assert after.engine.here and after.engine.origin.version == before.engine.origin.version
    assert after.engine.nodes == before.engine.nodes and "float16" in after.engine.nodes.types.values()
