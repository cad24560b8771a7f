"""Opening plans, against a GPU and a TensorRT that fail on misuse: what is refused, what is kept, what is given back."""

from __future__ import annotations

import gc
import logging
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from engines import EngineError, EngineLoadError, EngineOrigin
from engines.errors import EngineNotInstalledError, NoGpuError
from tests.helpers.fake_tensorrt import EngineValidity, make_plan
from tests.helpers.trt_rig import Rig, expected, images, make_rig


def test_truncated_plan(rig: Rig, plan: Path):
    plan.write_bytes(plan.read_bytes()[:-10])
    with pytest.raises(EngineLoadError, match=r"cannot open .*engine\.plan: .*Size mismatch") as caught:
        rig.engine.load(plan)
    assert "\n" not in str(caught.value) and "build it again" in str(caught.value)
    del caught  # its traceback holds what was being opened
    gc.collect()
    rig.trt.assert_clean()


def test_not_a_plan_at_all(rig: Rig, plan: Path):
    plan.write_bytes(b"not a plan at all")
    with pytest.raises(EngineLoadError, match="build it again"):
        rig.engine.load(plan)


def test_a_library_that_does_not_start(rig: Rig, plan: Path):
    rig.trt.refuse_runtime = True
    with pytest.raises(
        EngineError,
        match=r"makes no Runtime here: CUDA initialization failure with error: 35.*; check that the NVIDIA driver",
    ) as caught:
        rig.engine.load(plan)
    assert "\n" not in str(caught.value)


def test_rtx_judges_a_plan_before_it_opens_it(rtx: Rig, plan: Path, caplog: pytest.LogCaptureFixture):
    rtx.trt.validity = EngineValidity.INVALID
    rtx.trt.diagnostics = 2 + 4
    with pytest.raises(
        EngineLoadError,
        match=r"not an engine that TensorRT-RTX can run here \(unsupported cc; old cuda driver\); build it again",
    ):
        rtx.engine.load(plan)
    rtx.trt.validity = EngineValidity.SUBOPTIMAL
    with caplog.at_level(logging.WARNING):
        rtx.engine.load(plan).close()
    assert "slower than one built for this GPU" in caplog.text


def origin(rig: Rig, **changes: object) -> EngineOrigin:
    facts = {
        "version": rig.version,
        "target": "sm89 (Fake GPU)",
        "details": {},
        "rebuild": "sit-deploy build X",
    }
    return EngineOrigin(**{**facts, **changes})


def test_engine_of_another_release(rig: Rig, plan: Path):
    with pytest.raises(EngineLoadError) as caught:
        rig.engine.load(plan, origin=origin(rig, version="1.2.3"))
    message = str(caught.value)
    assert f"built by {rig.engine.flavour.title} 1.2.3, and {rig.version} is installed" in message
    assert message.endswith("build it again: sit-deploy build X") and "\n" not in message
    compatible = origin(rig, version="1.2.3", details={"version_compatible": True})
    rig.engine.load(plan, origin=compatible).close()


@pytest.mark.parametrize(
    ("target", "level", "runs"),
    [
        ("sm89 (Fake GPU)", None, True),
        ("sm80,sm86,sm89", None, True),
        ("sm80,sm86", None, False),
        ("sm90 (Other GPU)", None, False),
        ("sm80 (Other GPU)", "ampere_plus", True),
        ("sm80 (Other GPU)", "same_compute_capability", False),
    ],
)
def test_engine_for_another_gpu(rig10: Rig, plan: Path, target: str, level: str | None, runs: bool):
    stale = origin(rig10, target=target, details={"hardware_compatibility": level})
    if runs:
        rig10.engine.load(plan, origin=stale).close()
        return
    with pytest.raises(
        EngineLoadError, match=r"was built for sm\d+(, sm86)?, and GPU 0 here is sm89 \(Fake GPU\)"
    ):
        rig10.engine.load(plan, origin=stale)


def test_rtx_judges_gpus_that_it_was_not_built_for(rtx: Rig, plan: Path, caplog: pytest.LogCaptureFixture):
    stale = origin(rtx, target="sm80,sm86")
    with caplog.at_level(logging.WARNING):
        rtx.engine.load(plan, origin=stale).close()
    assert "built for sm80,sm86, and GPU 0 is sm89" in caplog.text
    rtx.trt.validity = EngineValidity.INVALID
    with pytest.raises(EngineLoadError, match="not an engine that TensorRT-RTX can run here"):
        rtx.engine.load(plan, origin=stale)


def test_a_gpu_that_rtx_does_not_list(rtx: Rig, plan: Path):
    rtx.gpu.capability = (9, 0)
    rtx.engine.load(plan).close()  # the library has the last word
    rtx.trt.validity, rtx.trt.diagnostics = EngineValidity.INVALID, 2
    with pytest.raises(
        EngineLoadError,
        match=r"\(unsupported cc\); it is for sm75, .* and Fake GPU is sm90: build with --engine tensorrt for this GPU",
    ):
        rtx.engine.load(plan)


def test_another_gpu_of_the_same_kind_is_warned_of(rig10: Rig, plan: Path, caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.WARNING):
        rig10.engine.load(plan, origin=origin(rig10, target="sm89 (Other GPU)")).close()
    assert "was tuned on Other GPU and runs on Fake GPU" in caplog.text


def test_out_of_memory_says_how_much(rig: Rig, plan: Path):
    rig.gpu.memory = 100
    with pytest.raises(
        EngineLoadError, match=r"out of memory on Fake GPU: tensor y needs 0\.0 MiB and finds"
    ) as caught:
        rig.engine.load(plan)
    assert "--batch-size" in str(caught.value)
    del caught
    gc.collect()
    rig.trt.assert_clean()


def test_no_room_for_a_context(rig: Rig, open_plan: Path):
    rig.trt.context_bytes = 2 << 30
    with pytest.raises(
        EngineLoadError, match=r"an execution context needs 2\.00 GiB and finds 1\.00 GiB of 1\.00 GiB"
    ):
        rig.engine.load(open_plan)
    gc.collect()
    rig.trt.assert_clean()


@pytest.mark.parametrize("refused", [[True], [False, True]])
def test_a_context_that_is_refused_leaves_none_of_the_others(rig: Rig, plan: Path, refused: list[bool]):
    rig.trt.refuse_context = list(refused)
    with pytest.raises(EngineLoadError, match=r"makes no execution context: .*initialization error"):
        rig.engine.load(plan, contexts=2)
    gc.collect()
    rig.trt.assert_clean()


def test_weights_come_from_the_graph(make_mlp: Callable[..., Path], tmp_path: Path, rig10: Rig):
    graph = make_mlp(name="model")
    path = tmp_path / "engine.plan"
    path.write_bytes(make_plan(graph.read_bytes(), stripped=True))
    bare = origin(rig10, details={"strip_weights": True})
    with rig10.engine.load(path, origin=bare) as runner:
        np.testing.assert_array_equal(
            runner.infer({"x": images()})["y"], expected(tmp_path, images(), "model")
        )
    graph.write_bytes(make_mlp(batch=3, name="other").read_bytes())
    with pytest.raises(EngineLoadError, match=r"the weights of .*model\.onnx do not fit the engine"):
        rig10.engine.load(path, origin=bare)
    graph.unlink()
    with pytest.raises(EngineLoadError, match="has no weights of its own"):
        rig10.engine.load(path, origin=bare)


def test_refit_where_the_library_has_none(plan: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    rig = make_rig(monkeypatch, tmp_path, "tensorrt-8.6.0")
    with pytest.raises(EngineLoadError, match="cannot refit engines from ONNX"):
        rig.engine.load(plan, origin=origin(rig, details={"strip_weights": True}))


def test_the_runtime_cache_is_kept_and_taken(rtx: Rig, plan: Path, tmp_path: Path):
    rtx.engine.load(plan).close()
    (kept,) = (tmp_path / "cache" / "tensorrt-rtx").iterdir()
    assert kept.name.endswith(".cache") and rtx.trt.compiled == 1
    rtx.engine.load(plan, contexts=2).close()
    assert rtx.trt.compiled == 1  # nothing more


def test_a_foreign_runtime_cache_is_made_anew(
    rtx: Rig, plan: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    rtx.engine.load(plan).close()
    (kept,) = (tmp_path / "cache" / "tensorrt-rtx").iterdir()
    whole = kept.read_bytes()
    kept.write_bytes(b"damaged")
    with caplog.at_level(logging.WARNING):
        rtx.engine.load(plan).close()
    assert "made anew" in caplog.text and kept.read_bytes() == whole


def test_a_cache_that_cannot_be_written_only_warns(
    rtx: Rig, plan: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    (tmp_path / "cache").write_text("a file where the folder should be")
    with caplog.at_level(logging.WARNING), rtx.engine.load(plan) as runner:
        runner.infer({"x": images()})
    assert "was not kept" in caplog.text


@pytest.mark.parametrize("device", ["cpu", "cuda:x", "tpu"])
def test_a_device_that_is_no_gpu(rig10: Rig, plan: Path, device: str):
    with pytest.raises(EngineLoadError, match="run on a GPU"):
        rig10.engine.load(plan, device=device)


def test_a_gpu_that_is_not_there(rig10: Rig, plan: Path):
    with pytest.raises(NoGpuError, match="there is no GPU 3; this machine has 1"):
        rig10.engine.load(plan, device="cuda:3")


def test_without_pycuda(rig10: Rig, plan: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delitem(sys.modules, "pycuda.driver")
    monkeypatch.setitem(sys.modules, "pycuda", None)
    with pytest.raises(
        EngineNotInstalledError, match=r"needs PyCUDA; run `.*pip install 'pycuda>=.*' 'cuda-bindings>="
    ):
        rig10.engine.load(plan)
    answer = rig10.engine.probe()
    assert answer.can_build and not answer.can_run and "pip install" in answer.remedy


def test_no_context_is_refused(rig10: Rig, plan: Path):
    with pytest.raises(EngineLoadError, match="at least one context, got 0"):
        rig10.engine.load(plan, contexts=0)
    gc.collect()
    rig10.trt.assert_clean()


def test_a_process_gives_its_context_back_once(rig10: Rig, plan: Path):
    from engines.tensorrt.cuda import _release_contexts

    for _ in range(3):
        rig10.engine.load(plan).close()
    assert rig10.gpu.detached == 0  # kept for the next
    _release_contexts()
    _release_contexts()
    assert rig10.gpu.detached == 1
