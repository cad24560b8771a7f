from __future__ import annotations

import json
from typing import Any

import pytest

pytestmark = pytest.mark.slow


def test_what_is_gathered(measured: dict[str, Any]) -> None:
    names = [entry["name"] for entry in measured["ledger"]["entries"]]
    assert names == ["student", "deploy form", "ONNX fp32", "ONNX int8", "onnxruntime engine"]
    assert set(measured["timing"]) == set(names) and set(measured["speedups"]) == set(names[:-1])
    assert measured["golden"]["passed"] and measured["accuracy"]["images"] == 20
    assert measured["drift"]["tensors"] and measured["layers"]
    assert {"decode_ms", "prepare_ms", "classes_ms"} < set(measured["around"])
    assert measured["verdict"]["outcome"] in ("do not ship", "not enough evidence")  # of twenty images
    json.dumps(measured, allow_nan=False)


def test_flipped_images_are_shown_as_the_model_sees_them(trained: Any, copy_of: Any) -> None:
    import base64
    import io

    import onnx
    from PIL import Image

    from sit_deploy.bundle import load_bundle
    from sit_deploy.data.labelled import open_labelled
    from sit_deploy.measure.accuracy import Accuracy
    from sit_deploy.measure.evaluate import Evaluation
    from sit_deploy.measure.tally import Flip
    from sit_deploy.validation.evidence import _accuracy
    from sit_deploy.validation.stages import StageTable

    bundle = load_bundle(trained.bundle)
    samples = open_labelled(trained.images, bundle.manifest.classes, 7)
    flip = Flip("x.png", 4, 0, 1, 2, 0.9, 0.5, 0.4)
    accuracy = Accuracy(11, 90.0, 100.0, 80.0, 100.0, 90.0, 1, 0, flips=(flip,))
    table = StageTable([], "engine", 11, 1, accuracy, Evaluation({}), onnx.ModelProto(), {})
    (told,) = _accuracy(bundle, table, samples)["flips"]
    head, data = told["picture"].split(",")
    picture = Image.open(io.BytesIO(base64.b64decode(data)))
    assert head == "data:image/jpeg;base64" and picture.size == (112, 112)
    import numpy as np

    from sit_deploy.preprocessing import load_image

    seen = bundle.preprocessing().pixels(load_image(samples[4][0])).astype(int)
    assert np.abs(np.asarray(picture).astype(int) - seen).mean() < 12


def test_a_bundle_is_timed_on_the_threads_that_it_was_built_for(
    trained: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As `bench` does: a page had the times of all CPUs for an engine that was built, and is served, on one."""
    from engines.timing import TimingOptions
    from sit_deploy.bundle import Bundle, load_bundle
    from sit_deploy.errors import GateError
    from sit_deploy.validation import evidence

    asked: list[int | None] = []

    def stop(*_: Any, timing: TimingOptions, **__: Any) -> None:
        asked.append(timing.threads)
        raise GateError("enough")

    monkeypatch.setattr(evidence, "measure_stages", stop)
    monkeypatch.setattr(Bundle, "threads", property(lambda _: 1))
    for timing in (None, TimingOptions(threads=2)):
        with pytest.raises(GateError, match="enough"):
            evidence.gather(load_bundle(trained.bundle), timing=timing)
    assert asked == [1, 2]
    told = evidence.Threads.of(load_bundle(trained.bundle), 2).note
    assert told == "run on 2 threads, and built for 1 (build --threads)"
