"""Which mode, on how many threads: what contradicts itself is refused, and what differs from the build is said."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from engines import EngineLoadError, Runner, TensorSpec
from engines.performance import Performance
from sit_deploy import performance as module
from sit_deploy.bundle import load_bundle
from sit_deploy.errors import InputError
from sit_deploy.inference import Classifier, load
from sit_deploy.performance import Threads, batch_note, read_performance, require_several_at_once
from tests.helpers.bundles import load_manifest, seal_again


def built_for(threads: int | None, kind: str = "openvino") -> Any:
    return SimpleNamespace(
        threads=threads,
        batch_size=8,
        path=Path("b"),
        manifest=SimpleNamespace(engine=SimpleNamespace(kind=kind)),
    )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("fast", None), "performance 'fast' is not offered; choose latency or throughput"),
        (("latency", 2), "pass --performance throughput with --streams"),
        (("throughput", None, "cuda:0"), "throughput mode is the CPU's, and device cuda:0 was asked for"),
    ],
)
def test_what_contradicts_itself(words: tuple[Any, ...], message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_performance(*words)


def test_what_is_offered() -> None:
    assert read_performance("latency", None, "cuda:0") is Performance.LATENCY
    assert read_performance("throughput", 2, "cpu") is Performance.THROUGHPUT
    require_several_at_once(built_for(None), "openvino")
    with pytest.raises(
        InputError, match=r"TensorRT-RTX, which has no throughput mode here \(onnxruntime, openvino have\)"
    ):
        require_several_at_once(built_for(None, "tensorrt-rtx"), "tensorrt-rtx")


def test_threads_are_those_of_the_build(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "cpu_count", lambda: 4)
    assert Threads.of(built_for(2), None) == Threads.of(built_for(2), 2) == Threads(2)
    assert Threads.of(built_for(None), None) == Threads(None) and Threads.of(built_for(None), 3) == Threads(3)
    other = Threads.of(built_for(2), 1)
    assert (other.count, other.note) == (1, "run on 1 thread, and built for 2 (build --threads)")
    fewer = Threads.of(built_for(16), None)
    assert (
        fewer.count == 4
        and "run on 4 threads, as many as there are CPUs here, and built for 16" in fewer.note
    )
    assert Threads.of(built_for(2, "tensorrt"), None) == Threads(None)  # they are the builder's there
    crowd = Threads.of(built_for(None), 9)
    assert (crowd.count, crowd.note) == (9, "here 9 threads share 4 CPUs and wait for one another")
    both = "run on 9 threads, and built for 2 (build --threads); here 9 threads share 4 CPUs and wait for one another"
    assert Threads.of(built_for(2), 9).note == both and Threads.of(built_for(9), 9).note == crowd.note


def test_batches_are_those_of_the_build() -> None:
    assert batch_note(built_for(None), 8) is None
    assert batch_note(built_for(None), 1) == "run at batch 1, and the engine is tuned for 8"


class Slow(Runner):
    """Two calls at a time, which meet: alone, neither would come back."""

    at_once = 2

    def __init__(self) -> None:
        import threading

        super().__init__(
            (TensorSpec("images", (1, 3, 2, 2), "float32"),), (TensorSpec("y", (1, 2), "float32"),)
        )
        self.met = threading.Barrier(2, timeout=20)

    def _infer(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        self.met.wait()
        sums = feeds["images"].sum(axis=(1, 2, 3))
        return {"y": np.stack([sums, -sums], axis=1)}

    def _close(self) -> None:
        pass


def test_one_call_with_many_images_keeps_an_engine_busy() -> None:
    images = np.repeat(np.arange(6, dtype=np.float32), 12).reshape(6, 3, 2, 2)
    with Classifier(Slow(), (1, 1)) as classify:
        found = classify.logits(images)
    np.testing.assert_array_equal(found[:, 0], 12 * np.arange(6))  # in order


def test_load(nano_fp32: Path, nano_rtx: Path) -> None:
    images, logits = load_bundle(nano_fp32).golden()
    with load(nano_fp32, threads=2, performance="throughput", streams=2) as classify:
        assert classify.runner.at_once == 2
        np.testing.assert_allclose(classify.logits(images), logits, atol=1e-3)
    for words, message in (
        ({"performance": "throughput", "streams": 3, "threads": 2}, "streams must be 1 to 2"),
        ({"streams": 2}, "pass --performance throughput"),
        ({"performance": 3}, "performance must be text"),
        ({"streams": "2"}, "streams must be a whole number"),
    ):
        with pytest.raises((InputError, EngineLoadError), match=message):
            load(nano_fp32, **words)
    with pytest.raises(InputError, match="has no throughput mode here"):
        load(nano_rtx, performance="throughput")
    with pytest.raises(InputError, match="throughput is of the bundle's own engine"):
        load(nano_rtx, "onnxruntime", performance="throughput")


def test_threads_are_in_the_manifest(nano_fp32: Path, copy_of: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "threads" not in load_manifest(nano_fp32)["engine"]  # nobody said
    bundle = copy_of(nano_fp32)
    manifest = load_manifest(bundle)
    manifest["engine"]["threads"] = 1
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    seal_again(bundle)
    assert load_bundle(bundle).threads == 1
    asked: list[Any] = []
    monkeypatch.setattr(
        "engines.onnxruntime.engine.OnnxRuntime.load", lambda *_, **given: asked.append(given["threads"])
    )
    load(bundle)
    load(bundle, threads=2)
    assert asked == [1, 2]
