from __future__ import annotations

from typing import Any

import pytest

from sit_deploy.accuracy import Accuracy
from sit_deploy.report.verdict import DO_NOT, SHIP, UNSURE, judge, largest_drop


def accuracy(
    images: int = 10_000,
    lost: int = 20,
    gained: int = 10,
    agreement: float = 99.0,
    warning: str | None = None,
) -> dict[str, Any]:
    reference = 80.0
    engine = reference - 100 * (lost - gained) / images
    found = Accuracy(images, reference, 95.0, engine, 95.0, agreement, lost, gained)
    return {**found.to_dict(), "warning": warning}


def evidence(**changed: Any) -> dict[str, Any]:
    hop = {"name": "ONNX int8", "passed": True, "compared": True}
    build = {
        "hops": [hop],
        "weights": {"source": "x.pth"},
        "engine": {"kind": "onnxruntime"},
        "precision": "int8",
        "quantization": {"speed": {"ratio": 1.5, "over": "fp32", "batch_size": 8}},
    }
    golden = {"passed": True, "error": 1e-3, "tolerance": 1.0}
    speedups = {"student": 2.5, "teacher": 3.5}
    whole = {"build": build, "golden": golden, "accuracy": accuracy(), "speedups": speedups}
    return {**whole, **changed}


def test_a_good_engine() -> None:
    found = judge(evidence())
    assert (found.outcome, found.headline, found.against, found.missing) == (SHIP, "Ship it.", (), ())
    told = " ".join(found.favour)
    for words in (
        "golden outputs here within 1.0e-03 of their spread (allowed 1)",
        "Top-1 falls by 0.10 points, from 80.00 to 79.90 %, on 10000 images, where 1 may be lost.",
        "int8 is 1.50× as fast as fp32 at batch 8.",
        "2.50× as fast as the same model in PyTorch",
        "3.50× as fast as its teacher",
    ):
        assert words in told


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        (
            {"golden": {"passed": False, "error": 9, "tolerance": 1}},
            "does not give the reference's golden outputs",
        ),
        ({"accuracy": accuracy(lost=300, gained=10)}, "Top-1 falls by 2.90 points, from 80.00 to 77.10 %"),
    ],
)
def test_what_speaks_against_it(changed: dict[str, Any], words: str) -> None:
    found = judge(evidence(**changed))
    assert found.outcome == DO_NOT and found.headline == "Do not ship it."
    assert words in found.against[0]


def test_what_its_build_found_speaks_against_it() -> None:
    for change, words in (
        ({"weights": {"source": "random", "seed": 0}}, "Its weights are random"),
        ({"hops": [{"name": "ONNX int8", "passed": False}]}, "ONNX int8 was out of tolerance"),
        (
            {"quantization": {"speed": {"ratio": 0.97, "over": "fp32", "batch_size": 1}}},
            "int8 is not faster than fp32 on this engine (0.97×): build without 8 bits.",
        ),
    ):
        found = judge(evidence(build={**evidence()["build"], **change}))
        assert found.outcome == DO_NOT and words in found.against[0]


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"golden": None}, "engine did not run on this machine"),
        ({"accuracy": None}, "accuracy was not measured"),
        ({"accuracy": accuracy(warning="the reference itself has 3 %")}, "The reference itself has 3 %."),
        ({"accuracy": accuracy(images=200, lost=1, gained=0)}, "measure on more images"),
    ],
)
def test_what_is_missing(changed: dict[str, Any], words: str) -> None:
    found = judge(evidence(**changed))
    assert found.outcome == UNSURE and words in found.missing[0]


def test_a_teacher_on_the_same_engine_counts_for_more_than_one_in_pytorch() -> None:
    entries = [{"name": "teacher engine", "macs": 30}, {"name": "onnxruntime engine", "macs": 10}]
    found = judge(evidence(speedups={"teacher": 9.0, "teacher engine": 2.8}, ledger={"entries": entries}))
    assert found.favour[-1] == "It is 2.80× as fast as its teacher on the same engine, at 3.00× fewer MACs."


def test_limits_given() -> None:
    assert judge(evidence(), max_drop=0.05).outcome == DO_NOT
    assert judge(evidence(), min_agreement=99.5).outcome == DO_NOT
    assert judge(evidence(), max_drop=0.3, min_agreement=98).outcome == SHIP


def test_no_image_lost_is_no_proof_on_few() -> None:
    """None of 30 lost: one in twenty could still be."""
    assert largest_drop({"images": 30, "lost": 0, "gained": 0}) > 1
    assert largest_drop({"images": 3000, "lost": 0, "gained": 0}) < 0.2


def test_the_interval_holds_what_it_promises() -> None:
    """Of drawn sets the true drop is below the upper end in at least 95 of 100."""
    import numpy as np

    random = np.random.default_rng(0)
    n, lost, gained = 2000, 0.02, 0.01
    draws = random.multinomial(n, (lost, gained, 1 - lost - gained), 4000)
    below = [
        largest_drop({"images": n, "lost": int(a), "gained": int(b)}) >= 100 * (lost - gained)
        for a, b, _ in draws
    ]
    assert np.mean(below) > 0.95
