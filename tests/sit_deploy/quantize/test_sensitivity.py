from __future__ import annotations

import numpy as np
import pytest

from sit_deploy.quantize.image_stream import ImageStream
from sit_deploy.quantize.logits import run_logits
from sit_deploy.quantize.quantizer import Quantizer
from sit_deploy.quantize.sensitivity import measure_sensitivity
from tests.helpers.digits import Digits
from tests.helpers.graphs import sqnr_db


@pytest.mark.slow
def test_sensitivity_is_of_each_layer_alone(
    quantizer: Quantizer, stream: ImageStream, digits: Digits
) -> None:
    names = ("blocks.0/attn/qkv", "tsm.1/fc2")
    others = [n for n in quantizer.plan.quantized if n not in names]
    two = quantizer.with_plan(quantizer.plan.keep_high(others))
    labelled = [(path, int(path.parent.name)) for path in stream.sources]
    seen: list[tuple[int, int]] = []
    found = measure_sensitivity(two, stream, labelled, lambda _, done, total: seen.append((done, total)))
    assert set(found) == set(names) and seen == [(0, 2), (1, 2)]
    reference = run_logits(quantizer.graph, stream)
    for name in names:
        logits = run_logits(quantizer.quantized([name]), stream)
        assert found[name]["noise"] == pytest.approx(np.square(logits.astype(np.float64) - reference).mean())
        assert found[name]["alone_db"] == pytest.approx(sqnr_db(logits, reference), abs=1e-3)
        right = np.mean(logits.argmax(1) == [label for _, label in labelled])
        assert found[name]["alone_drop"] == pytest.approx(100 * (1 - right))
    assert "alone_drop" not in measure_sensitivity(two, stream)[names[0]]


def test_sensitivity_of_logits_that_are_all_zero(
    quantizer: Quantizer, stream: ImageStream, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There is no ratio of nothing to something, in dB or otherwise."""
    one = quantizer.with_plan(quantizer.plan.keep_high(quantizer.plan.quantized[1:]))
    given = iter([np.zeros((2, 3), np.float32), np.ones((2, 3), np.float32)])
    monkeypatch.setattr("sit_deploy.quantize.sensitivity.logits_of_each", lambda *_: [next(given)])
    assert measure_sensitivity(one, stream) == {quantizer.plan.quantized[0]: {"noise": 1.0}}
