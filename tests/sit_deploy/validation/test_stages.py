from __future__ import annotations

import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from engines.latency import Histogram, LatencyStats
from engines.timing import TimingOptions, WorkerResult, WorkerSpec
from sit_deploy.bundle import load_bundle
from sit_deploy.data.labelled import open_labelled
from sit_deploy.errors import InputError
from sit_deploy.pipeline.build import build
from sit_deploy.report.types import Stage
from sit_deploy.validation import stages as module
from sit_deploy.validation.checks import check_accuracy, open_labelled_for
from sit_deploy.validation.reference import TeacherSource, teacher_model
from sit_deploy.validation.stages import StageTable, measure_stages
from sit_deploy.validation.torch_worker import DeployCall, TeacherCall, TorchCall
from tests.sit_deploy.conftest import Trained

pytestmark = pytest.mark.slow

TEACHER, TEACHER_ENGINE, STUDENT, DEPLOY = (
    stage.value for stage in (Stage.TEACHER, Stage.TEACHER_ENGINE, Stage.STUDENT, Stage.DEPLOY_FORM)
)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, WorkerSpec]]:
    """What was to be timed, called once each as a process would be; the answer is 8, 4, 2, ... ms, in that order."""
    seen: dict[str, WorkerSpec] = {}

    def alternate(workers: dict[str, WorkerSpec], timing: TimingOptions, *_: Any) -> dict[str, WorkerResult]:
        seen.update(workers)
        for spec in workers.values():
            factory, args = pickle.loads(pickle.dumps((spec.factory, spec.args)))
            call = factory(*args)
            call()
            getattr(call, "close", lambda: None)()
        times = [[8e-3 / 2**i] * timing.rounds for i in range(len(workers))]
        return {
            name: WorkerResult(
                LatencyStats.from_seconds(t),
                tuple(1e3 * s for s in t),
                1,
                (0,),
                True,
                histogram=Histogram.from_seconds(t),
            )
            for name, t in zip(workers, times, strict=True)
        }

    monkeypatch.setattr(module, "alternate", alternate)
    monkeypatch.setattr(module, "SYNTHETIC", 6)
    threads = torch.get_num_threads()
    yield seen
    torch.set_num_threads(threads)


def entries(table: StageTable) -> dict[str, Any]:
    return {entry.name: entry for entry in table.entries}


def test_every_hop_of_a_cpu_bundle(trained: Trained, teacher: Path, asked: dict[str, WorkerSpec]) -> None:
    bundle = load_bundle(trained.bundle)
    samples = open_labelled(trained.images, bundle.manifest.classes, 7)
    found = measure_stages(
        bundle, samples, teacher=TeacherSource(teacher, "lvvit_nano"), timing=TimingOptions(2, threads=1)
    )
    names = [TEACHER, STUDENT, DEPLOY, "ONNX fp32", "onnxruntime engine"]
    assert [entry.name for entry in found.entries] == names == list(asked)
    assert [asked[name].factory for name in names[:3]] == [TeacherCall, TorchCall, DeployCall]
    assert [entry.latency_ms for entry in found.entries] == pytest.approx([8, 4, 2, 1, 0.5])
    rows = entries(found)
    assert rows[TEACHER].macs > 1.5 * rows[STUDENT].macs > 1.5 * rows[DEPLOY].macs * 0.9
    assert rows["ONNX fp32"].macs == rows["onnxruntime engine"].macs == bundle.manifest.model.macs
    assert rows["onnxruntime engine"].size == (trained.bundle / "engine.onnx").stat().st_size
    for name in names[2:]:
        assert rows[name].agreement == 100 and rows[name].sqnr_db > 100
        assert rows[name].top1 == rows[STUDENT].top1
    assert rows[TEACHER].agreement < 100 and rows[TEACHER].sqnr_db < 20
    assert rows[STUDENT].agreement == 100 and rows[STUDENT].sqnr_db is None
    assert (found.engine, found.images, found.batch_size) == ("onnxruntime engine", 11, 3)
    from sit_deploy.inference import load

    with load(bundle, threads=1) as classifier:
        measured = check_accuracy(bundle, classifier, open_labelled_for(bundle, trained.images)).accuracy
    assert found.accuracy.engine_top1 == measured.engine_top1 == rows["onnxruntime engine"].top1


@pytest.mark.parametrize("outputs", [("logits", "features"), ("logits", "cls", "patches")])
def test_logits_among_other_outputs(
    outputs: tuple[str, ...], trained: Trained, teacher: Path, asked: dict[str, WorkerSpec], tmp_path: Path
) -> None:
    """The figures are those of the logits; every hop is timed with all that it gives."""
    bundle = build(trained.request(tmp_path / "more", outputs=outputs))
    samples = open_labelled(trained.images, bundle.manifest.classes, 7)
    against = TeacherSource(teacher, "lvvit_nano")
    found = measure_stages(bundle, samples, teacher=against, timing=TimingOptions(1, threads=1))
    alone = measure_stages(load_bundle(trained.bundle), samples, teacher=against, timing=TimingOptions(0))
    assert list(asked) == [entry.name for entry in found.entries] == [entry.name for entry in alone.entries]
    for row, wanted in zip(found.entries, alone.entries, strict=True):
        assert (row.top1, row.top5, row.agreement) == (wanted.top1, wanted.top5, wanted.agreement)
    assert all(row.sqnr_db > 100 for row in found.entries[2:]) and found.neighbours is None


def test_hops_of_eight_bits(nano_int8: Path, asked: dict[str, WorkerSpec]) -> None:
    """Without labelled images there is no accuracy, and the hops are compared all the same."""
    found = measure_stages(load_bundle(nano_int8), timing=TimingOptions(rounds=1))
    names = [STUDENT, DEPLOY, "ONNX fp32", "ONNX int8", "onnxruntime engine"]
    assert [entry.name for entry in found.entries] == names
    rows = entries(found)
    assert rows["ONNX fp32"].sqnr_db > 100 > 60 > rows["ONNX int8"].sqnr_db > 5
    assert rows["ONNX int8"].size < 0.5 * rows["ONNX fp32"].size
    assert all(entry.top1 is None for entry in found.entries) and found.accuracy is None
    assert found.images == module.SYNTHETIC


def test_an_engine_that_does_not_run_here(rtx_int8: Path, asked: dict[str, WorkerSpec]) -> None:
    """FP16, which 8 bits leave the rest in, is a hop of its own; what a CPU simulates is not timed, and that is said."""
    from engines.gpus import find_gpus

    if find_gpus():
        pytest.skip("the engine does run here")
    found = measure_stages(load_bundle(rtx_int8), timing=TimingOptions(rounds=1))
    rows = entries(found)
    assert list(rows) == [STUDENT, DEPLOY, "ONNX fp32", "ONNX fp16", "ONNX int8", "tensorrt-rtx engine"]
    assert found.engine == "ONNX int8" and list(asked) == [STUDENT, DEPLOY, "ONNX fp32"]
    assert rows["ONNX fp32"].sqnr_db > rows["ONNX fp16"].sqnr_db > rows["ONNX int8"].sqnr_db > 5
    assert "simulated" in rows["ONNX fp16"].note and rows["ONNX fp16"].latency_ms is None
    engine = rows["tensorrt-rtx engine"]
    assert (engine.agreement, engine.sqnr_db, engine.latency_ms) == (None, None, None)
    assert engine.note == "needs a GPU: not run here" and engine.size > 0


def test_the_engine_of_a_teachers_bundle(
    trained: Trained, teacher_bundle: Path, asked: dict[str, WorkerSpec]
) -> None:
    found = measure_stages(
        load_bundle(trained.bundle), teacher=TeacherSource(teacher_bundle), timing=TimingOptions(rounds=1)
    )
    rows = entries(found)
    assert list(rows)[:3] == [TEACHER, TEACHER_ENGINE, STUDENT] == list(asked)[:3]
    assert asked[TEACHER_ENGINE].args[1] == (teacher_bundle / "engine.onnx").absolute()
    assert rows[TEACHER_ENGINE].agreement == rows[TEACHER].agreement
    assert rows[TEACHER_ENGINE].sqnr_db == pytest.approx(rows[TEACHER].sqnr_db, abs=0.01)
    assert found.engine == "onnxruntime engine"


def test_nothing_is_timed_unless_asked(nano_fp32: Path, asked: dict[str, WorkerSpec]) -> None:
    found = measure_stages(load_bundle(nano_fp32), timing=TimingOptions(rounds=0))
    assert not asked and all(entry.latency_ms is None for entry in found.entries)


def test_a_bundle_that_takes_pixels(trained_pixels: Path, asked: dict[str, WorkerSpec]) -> None:
    rows = entries(measure_stages(load_bundle(trained_pixels), timing=TimingOptions(rounds=0)))
    assert all(row.agreement == 100 for row in rows.values())
    assert rows["onnxruntime engine"].sqnr_db > 80


def test_a_teacher_that_does_not_fit(trained: Trained, nano_fp32: Path, tmp_path: Path) -> None:
    bundle = load_bundle(trained.bundle)
    another = r"another batch than .*; build it with the same, or give its checkpoint"
    with pytest.raises(InputError, match=another):
        measure_stages(bundle, teacher=TeacherSource(nano_fp32), timing=TimingOptions(rounds=0))
    with pytest.raises(InputError, match=r"1000 classes, the model of .* 112 and 7; give the teacher"):
        teacher_model(bundle, TeacherSource(nano_fp32))
    with pytest.raises(InputError, match="does not exist"):
        measure_stages(bundle, teacher=TeacherSource(tmp_path / "gone.pth"), timing=TimingOptions(rounds=0))
