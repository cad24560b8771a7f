"""What a verdict says, and of which evidence."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from sit_deploy.errors import GateError
from sit_deploy.measure.accuracy import Accuracy
from sit_deploy.report.paired import images_needed, largest_drop
from sit_deploy.report.types import Evidence
from sit_deploy.report.verdict import JudgedBundle, Outcome, Topic, Weight
from tests.helpers.judged import accuracy, eight_bits, evidence, faster, hop, judge, quantized, stage

DO_NOT, SHIP, UNSURE = Outcome.DO_NOT_SHIP, Outcome.SHIP, Outcome.UNSURE


def counts(images: float, lost: float, gained: float) -> SimpleNamespace:
    return SimpleNamespace(images=images, lost=lost, gained=gained)


def test_a_good_engine() -> None:
    found = judge(evidence())
    assert (found.outcome, found.headline, found.against, found.missing) == (SHIP, "Ship it.", (), ())
    told = " ".join(found.favour)
    for words in (
        "golden outputs here within 1.0e-03 of their spread (allowed 1)",
        "Top-1 falls by 0.10 points, from 80.00 to 79.90 %, on 10000 images, where 1 may be lost.",
        "int8 is 1.50× as fast as fp32 at batch 8 (half of the rounds 1.50 to 1.50; 4.00 over 2.67 ms).",
        "2.50× as fast as the same model in PyTorch",
        "3.50× as fast as its teacher",
    ):
        assert words in told


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        (
            {"golden": hop("golden output", False, 9.0)},
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
        ({"weights": {"source": "random"}}, "Its weights are random"),
        ({"hops": [hop(passed=False)]}, "ONNX int8 was out of tolerance"),
        (
            {"quantization": eight_bits(0.97)},
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
    entries = [stage("teacher"), stage("teacher engine", 30), stage("onnxruntime engine", 10)]
    ledger = {"entries": entries, "images": 9, "batch_size": 8}
    found = judge(evidence(speedups={"teacher": faster(9), "teacher engine": faster(2.8)}, ledger=ledger))
    assert found.favour[-1] == (
        "The engine is 2.80× as fast as its teacher on the same engine (half of the rounds 2.52 to 3.08; 8.00 over 4.00 ms); "
        "its teacher has 3.00× the MACs."
    )


def test_limits_given() -> None:
    assert judge(evidence(), max_drop=0.05).outcome == DO_NOT
    assert judge(evidence(), min_agreement=99.5).outcome == DO_NOT
    assert judge(evidence(), max_drop=0.3, min_agreement=98).outcome == SHIP


def test_no_image_lost_is_no_proof_on_few() -> None:
    """None of 30 lost: one in twenty could still be."""
    assert largest_drop(counts(30, 0, 0)) > 1
    assert largest_drop(counts(3000, 0, 0)) < 0.2


def test_the_interval_holds_what_it_promises() -> None:
    """Of drawn sets the true drop is below the upper end in at least 95 of 100."""
    import numpy as np

    random = np.random.default_rng(0)
    n, lost, gained = 2000, 0.02, 0.01
    draws = random.multinomial(n, (lost, gained, 1 - lost - gained), 4000)
    below = [largest_drop(counts(n, int(a), int(b))) >= 100 * (lost - gained) for a, b, _ in draws]
    assert np.mean(below) > 0.95


# ------------------------------------------------------------------------------------------------ the whole chain


def taught(
    lost: int, gained: int, images: int = 10_000, top1: float = 82.0, student: float = 80.0
) -> dict[str, Any]:
    found = Accuracy(images, student, None, top1, None, 90.0, gained, lost)
    return {
        "top1": top1,
        "top1_interval": list(found.interval(top1)),
        "retained": 100 * student / top1,
        "drop": 100 * (lost - gained) / images,
        "lost": lost,
        "gained": gained,
        "images": images,
    }


def test_a_student_that_keeps_what_its_teacher_has() -> None:
    found = judge(evidence(accuracy={**accuracy(), "teacher": taught(600, 400)}))
    assert found.outcome == SHIP
    words = "The student's top-1 falls by 2.00 points against its teacher's, from 82.00 to 80.00 %, on 10000 images"
    assert any(
        reason.startswith(words) and reason.endswith("where 3 may be lost.") for reason in found.favour
    )


def test_a_student_that_lost_too_much_is_not_shipped_however_exact_its_engine() -> None:
    ruined = accuracy(
        images=108, lost=0, gained=0, reference=20.0, sqnr_db=131.0, lowest_cosine=1.0, agreement=100.0
    )
    found = judge(evidence(accuracy={**ruined, "teacher": taught(60, 6, 108, 70.0, 20.0)}))
    assert found.outcome == DO_NOT
    assert any(
        "falls by 50.00 points against its teacher's, from 70.00 to 20.00 %" in why for why in found.against
    )


def test_few_images_do_not_decide_against_a_student() -> None:
    """5 points of 60 images are three images: chance."""
    few = {**accuracy(images=60, lost=0, gained=0, sqnr_db=131.0, lowest_cosine=1.0, agreement=100.0)}
    found = judge(evidence(accuracy={**few, "teacher": taught(5, 2, 60, 85.0)}))
    assert found.outcome == UNSURE and "measure on more images" in found.missing[0]
    # as many of ten thousand are none
    found = judge(evidence(accuracy={**accuracy(), "teacher": taught(800, 300)}))
    assert found.outcome == DO_NOT


def test_the_limit_of_a_student() -> None:
    told = evidence(accuracy={**accuracy(), "teacher": taught(600, 400)})
    assert judge(told, max_student_drop=1.0).outcome == DO_NOT
    assert judge(told, max_student_drop=0.0).outcome == DO_NOT
    assert judge(told, max_student_drop=5.0).outcome == SHIP


def test_a_limit_of_what_was_not_measured_is_not_kept() -> None:
    """As of the JSON of a report without a teacher, judged again with more limits."""
    found = judge(evidence(), max_student_drop=5.0)
    assert found.outcome == UNSURE
    assert found.missing == ("Its teacher was not measured beside it (--max-student-drop): give it with --teacher, and labelled images with --data.",)  # fmt: skip


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        # nine classes, 11.1 %: with a teacher or without
        (
            {"reference": 11.11, "classes": 9, "present": 9, "majority": 11.1},
            "guessing among 9 classes has 11.11 %",
        ),
        (
            {"reference": 0.2, "classes": 1000, "present": 1000, "majority": 0.1},
            "guessing among 1000 classes has 0.10 %",
        ),
        (
            {"reference": 52.0, "classes": 2, "present": 2, "majority": 50.0},
            "guessing among 2 classes has 50.00 %",
        ),
        # nine of ten images are of one class, and the model says no more than that
        (
            {"reference": 90.4, "classes": 2, "present": 2, "majority": 90.0},
            "always giving the commonest class has 90.00 %",
        ),
        ({"reference": 10.0, "reference_classes": 1}, "PyTorch gives all 10000 images one class"),
        (
            {"reference": 10.0, "engine_classes": 1, "agreement": 11.0},
            "the engine gives all 10000 images one class",
        ),
        ({"ties": 9_000}, "for 9000 of 10000 images several classes have the same highest logit"),
    ],
)
def test_what_holds_by_construction_speaks_against_it(changed: dict[str, Any], words: str) -> None:
    for equal in ({}, {"sqnr_db": 131.0, "lowest_cosine": 1.0, "agreement": 100.0}):
        found = judge(evidence(accuracy=accuracy(lost=0, gained=0, **{**equal, **changed})))
        assert found.outcome == DO_NOT and words.lower() in " ".join(found.against).lower()


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"present": 1, "majority": 100.0}, "all images are of one class"),
        ({"alike": True}, "all 10000 images give the same logits"),
        ({"ties": 800}, "for 800 of 10000 images several classes"),
        ({"images": 12, "reference": 33.3, "lost": 0, "gained": 0}, "which chance alone may explain"),
    ],
)
def test_what_says_too_little_is_asked_more_of(changed: dict[str, Any], words: str) -> None:
    for equal in ({}, {"sqnr_db": 131.0, "lowest_cosine": 1.0, "agreement": 100.0, "lost": 0, "gained": 0}):
        found = judge(evidence(accuracy=accuracy(**{**equal, **changed})))
        assert found.outcome == UNSURE and words in " ".join(found.missing).lower()


def test_a_teacher_at_chance() -> None:
    found = judge(evidence(accuracy={**accuracy(), "teacher": taught(100, 7000, top1=11.0)}))
    assert found.outcome == DO_NOT and found.against[0].startswith("The teacher itself has 11.00 % top-1")


def test_classes_without_images_are_told() -> None:
    found = judge(evidence(accuracy=accuracy(present=3, classes=10)))
    assert "on 10000 images of 3 of the 10 classes" in " ".join(found.favour)


# ------------------------------------------------------------------------------------------------- equal logits


def test_equal_logits_are_proof_on_however_few_images() -> None:
    few = {"images": 108, "lost": 0, "gained": 0, "agreement": 100.0, "lowest_cosine": 1.0}
    for noise, words in ((131.2, "but for float rounding (131 dB)"), (None, "to the bit")):
        found = judge(evidence(accuracy=accuracy(**few, sqnr_db=noise)))
        assert found.outcome == SHIP and found.missing == ()
        assert (
            f"The engine's logits are the student's {words} on all 108 images: top-1 stays at 80.00 %."
            in found.favour
        )


@pytest.mark.parametrize(
    "unequal",
    [
        {"sqnr_db": 60.0},  # FP16
        {"sqnr_db": 131.0, "lowest_cosine": 0.9999},  # one image is off
        {"sqnr_db": None, "lowest_cosine": 1.0, "ties": 108},  # logits of zeros
        {"sqnr_db": None, "lowest_cosine": 1.0, "alike": True},
        {"sqnr_db": 131.0, "lowest_cosine": 1.0, "agreement": 99.0},
    ],
)
def test_what_is_no_proof(unequal: dict[str, Any]) -> None:
    few = {"images": 108, "lost": 0, "gained": 0, "agreement": 100.0}
    found = judge(evidence(accuracy=accuracy(**{**few, **unequal})))
    assert found.outcome != SHIP and "but for float rounding" not in " ".join(found.favour)


@pytest.mark.parametrize(
    ("images", "lost", "gained", "limit"),
    [(108, 0, 0, 1.0), (200, 1, 0, 1.0), (500, 12, 9, 1.0), (50, 0, 1, 0.2)],
)
def test_how_many_images_would_do(images: int, lost: int, gained: int, limit: float) -> None:
    """So many with the same shares keep the limit, and nine tenths of them do not."""
    these = counts(images, lost, gained)
    needed = images_needed(these, limit)
    assert largest_drop(these) > limit

    def at(number: float) -> float:
        return largest_drop(counts(number, lost * number / images, gained * number / images))

    assert at(needed) <= limit < at(0.9 * needed)


def test_where_no_number_of_images_would_do() -> None:
    assert images_needed(counts(100, 1, 0), 1.0) is None
    found = judge(evidence(accuracy=accuracy(images=100, lost=1, gained=0)))
    assert found.outcome == UNSURE and found.missing[0].endswith(
        "measure on more images; it is at the limit, or beyond."
    )
    found = judge(evidence(accuracy=accuracy(images=108, lost=0, gained=0)))
    assert found.missing[0].endswith("measure on more images; about 280 images like these would tell.")


# --------------------------------------------------------------------------------------------------------- speed


def test_a_speed_that_the_rounds_do_not_bear_out_is_in_the_verdict() -> None:
    busy = "other programs took 50% of the CPUs while PyTorch was timed"
    found = judge(evidence(speedups={"student": faster(13.0, busy), "teacher": faster(14.3, busy)}))
    assert (found.outcome, found.missing, len(found.unmeasured)) == (SHIP, (), 2)
    assert found.headline == "Ship it, as far as accuracy goes: its speed is not measurable here now."
    assert found.unmeasured[0] == (
        f"Whether the engine is faster than the same model in PyTorch is not measurable here now: {busy}; close other programs "
        "and measure again, with more --rounds, or fewer --threads than CPUs."
    )
    assert "13.0" not in str(found.verdict) and "14.3" not in str(found.verdict)
    JudgedBundle(
        Evidence.from_dict(evidence()), found.verdict
    ).require()  # of a float engine it breaks no limit


def test_eight_bits_that_noise_hid_are_measured_again_where_they_can_be() -> None:
    build = {
        **evidence()["build"],
        "quantization": eight_bits(0.8, "half of the rounds lie between 0.5× and 2.0×"),
    }
    found = judge(evidence(build=build))
    assert (
        found.outcome == UNSURE
        and "int8 is faster than fp32 is not measurable here now" in found.unmeasured[0]
    )
    with pytest.raises(
        GateError, match=r"not enough evidence: Whether int8 is faster .* not measurable here now"
    ):
        JudgedBundle(Evidence.from_dict(evidence(build=build)), found.verdict).require()
    for now, outcome in ((faster(1.7), SHIP), (faster(0.7), DO_NOT), (faster(1.7, "busy"), UNSURE)):
        assert judge(evidence(build=build, speedups={"ONNX fp32": now})).outcome == outcome


def test_a_precision_that_the_kernels_do_not_have() -> None:
    """It is against shipping, unless the rounds say that 8 bits gain for all that."""
    wider = {"eight_bits": {"kept": ["a"], "widened": ["b"], "unknown": []}}
    for speed, outcome in ((None, DO_NOT), (1.5, SHIP), (0.7, DO_NOT)):
        build = {**evidence()["build"], "quantization": eight_bits(speed) if speed else quantized(None)}
        found = judge(evidence(build={**build, "engine": {**build["engine"], "details": wider}}))
        assert found.outcome == outcome
        assert any(text.startswith("Not all in 8 bits: ") for text in found.against) is (outcome == DO_NOT)
    build = {**evidence()["build"], "precision": "fp16", "quantization": None}
    build["engine"] = {**build["engine"], "details": {"raised": ["head"]}}
    found = judge(evidence(build=build))
    assert (found.outcome, found.against[0][:20]) == (DO_NOT, "Not all in 16 bits: ")


def test_a_report_of_before_ranges_were_kept() -> None:
    speed = {"over": "fp32", "batch_size": 1, "ratio": 3.44, "per_round": [8.2, 3.44, 1.1, 3.4, 9.0]}
    build = {
        **evidence()["build"],
        "quantization": quantized({**speed, "p50_ms": {"fp32": 27.55, "int8": 3.35}}),
    }
    found = judge(evidence(build=build))
    assert found.outcome == UNSURE and "3.44" not in " ".join(found.favour)


def test_an_engine_that_is_slower_than_pytorch() -> None:
    found = judge(evidence(speedups={"student": faster(0.5)}))
    assert found.outcome == DO_NOT and found.against[0].endswith("ms): it gains nothing over that.")


def test_a_verdict_is_of_values_and_only_then_of_words() -> None:
    """What a reason is about and what it weighs decide; the sentence is for readers."""
    verdict = judge(evidence(golden=None)).verdict
    (missing,) = verdict.of_weight(Weight.MISSING)
    assert missing.topic is Topic.GOLDEN
    told = verdict.to_dict()
    assert list(told) == ["outcome", "against", "missing", "favour", "unmeasured", "headline"]
    assert (told["outcome"], told["missing"]) == ("not enough evidence", [missing.text])
