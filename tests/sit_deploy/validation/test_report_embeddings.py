"""A report of bundles that give embeddings: its figures are those that PyTorch and NumPy give by themselves."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from sit_deploy import ReportRequest, write_report
from sit_deploy.bundle import load_bundle
from sit_deploy.data.image_folder import ImageFolder
from sit_deploy.errors import InputError
from sit_deploy.inference import load
from sit_deploy.pipeline.build import build
from sit_deploy.preprocessing import load_image
from sit_deploy.validation.reference import reference_model
from tests.helpers.shared import shared
from tests.sit_deploy.conftest import Trained

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def vectors(trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`trained` without its head: features and patches."""
    return shared(
        tmp_path_factory,
        "trained-vectors",
        lambda path: build(trained.request(path, outputs=("features", "patches"), labels=None)),
    )


def test_its_figures_are_those_of_pytorch_and_the_engine(
    vectors: Path, trained: Trained, tmp_path: Path
) -> None:
    outputs = tuple(tmp_path / f"page.{form}" for form in ("html", "md", "json"))
    report = write_report(ReportRequest((vectors,), outputs, data=str(trained.images), rounds=0))
    (judged,) = report.bundles
    found, bundle = judged.evidence.embedding, load_bundle(vectors)
    samples = ImageFolder(trained.images).samples
    images = np.stack([bundle.preprocessing()(load_image(path)) for path, _ in samples])
    labels = np.array([label for _, label in samples])
    with torch.inference_mode(), load(bundle) as engine:
        tokens = reference_model(bundle).forward_features(torch.from_numpy(images))
        theirs = reference_model(bundle).forward_head(tokens, pre_logits=True).numpy()
        ours = engine.all_outputs([path for path, _ in samples])["features"]
    sides = [v / np.linalg.norm(v, axis=1, keepdims=True) for v in (theirs, ours)]
    cosine = (sides[0] * sides[1]).sum(1)
    right = []
    for side in sides:
        table = side @ side.T
        np.fill_diagonal(table, -2)
        right.append(labels[table.argmax(1)] == labels)
    assert (found.output, found.images, found.measured_on) == ("features", 11, "onnxruntime engine")
    assert (found.reference, found.engine) == tuple(pytest.approx(100 * r.mean()) for r in right)
    assert (found.paired.lost, found.paired.gained) == (
        int((right[0] & ~right[1]).sum()),
        int((right[1] & ~right[0]).sum()),
    )
    assert found.cosine_min == pytest.approx(float(cosine.min()), abs=1e-5)
    assert found.cosine_mean == pytest.approx(float(cosine.mean()), abs=1e-5)
    stages = {stage.name: stage for stage in judged.evidence.ledger.entries}
    assert list(stages) == ["student", "deploy form", "ONNX fp32", "onnxruntime engine"]
    for stage in stages.values():
        assert (
            stage.nearest == pytest.approx(found.engine)
            and stage.lowest_cosine > 0.9999
            and stage.top1 is None
        )
    assert judged.evidence.accuracy is None and judged.evidence.golden.passed
    for path in outputs:
        assert "Nearest neighbours" in path.read_text() or path.suffix == ".json"
    again = write_report(ReportRequest((outputs[2],), (tmp_path / "again.html",)))
    assert again.bundles[0].verdict == judged.verdict


def test_what_it_is_not_for(vectors: Path, trained: Trained, nano_fp32: Path, tmp_path: Path) -> None:
    def refused(*sources: Path, **fields: object) -> str:
        with pytest.raises(InputError) as refusal:
            write_report(ReportRequest(sources, (tmp_path / "page.html",), **fields))
        assert not list(tmp_path.iterdir())
        return str(refusal.value)

    assert "gives embeddings and" in refused(vectors, trained.bundle)
    assert "--teacher is for bundles that classify" in refused(vectors, teacher=trained.checkpoint)
    assert "--max-student-drop is for bundles that classify" in refused(vectors, max_student_drop=1.0)


def test_synthetic_images_and_times(vectors: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without images of one's own: cosines on made-up ones, the time of every hop, and no word of neighbours being right."""
    monkeypatch.setattr("sit_deploy.validation.stages.SYNTHETIC", 4)
    report = write_report(ReportRequest((vectors,), (tmp_path / "page.md",), rounds=2, seconds=0.05))
    evidence = report.bundles[0].evidence
    assert evidence.embedding.data is None and evidence.embedding.reference is None
    assert set(evidence.timing) == {stage.name for stage in evidence.ledger.entries}
    assert evidence.around.classes_ms is None and evidence.drift.tensors
    text = (tmp_path / "page.md").read_text()
    assert (
        "4 synthetic images" in text
        and "give images of two labels at least" in text
        and "classes from logits" not in text
    )
