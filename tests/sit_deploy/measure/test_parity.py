from __future__ import annotations

import json
import math

import numpy as np
import pytest

from sit_deploy.errors import GateError
from sit_deploy.measure.parity import Hop, agreement_note, compare, reference_fault, require
from sit_deploy.precisions import TOLERANCE


def test_figures_are_those_of_their_definitions() -> None:
    reference = np.array([[1.0, -1.0], [3.0, -3.0]], np.float32)  # standard deviation √5, mean square 5
    previous = np.array([[1.0, -1.0], [3.0, -3.5]], np.float32)
    logits = np.array([[1.0, -1.0], [3.0, -2.0]], np.float32)
    hop = compare("x", logits, previous, reference, 0.5, "a note")
    assert hop.error == pytest.approx(1 / math.sqrt(5))
    assert hop.step_error == pytest.approx(1.5 / math.sqrt(5))
    assert hop.sqnr_db == pytest.approx(10 * math.log10(5 / 0.25))
    assert (hop.name, hop.agreement, hop.tolerance, hop.note, hop.passed) == ("x", 1.0, 0.5, "a note", True)


def test_error_means_the_same_at_any_scale(logits: np.ndarray) -> None:
    noise = np.random.default_rng(1).normal(size=logits.shape).astype(np.float32)
    small, large = (
        compare("x", scale * (logits + 0.01 * noise), logits, scale * logits, None) for scale in (1e-3, 1e3)
    )
    assert small.error == pytest.approx(large.error, rel=1e-4)
    assert small.sqnr_db == pytest.approx(large.sqnr_db, rel=1e-4)


def test_equal_logits_have_no_error(logits: np.ndarray) -> None:
    hop = compare("x", logits, logits, logits, 0.0)
    assert (hop.error, hop.step_error, hop.sqnr_db, hop.agreement, hop.passed) == (0, 0, None, 1, True)


def test_agreement_is_the_share_of_equal_top_classes(logits: np.ndarray) -> None:
    other = logits.copy()
    for row in (0, 3):
        other[row, (other[row].argmax() + 1) % 9] = 99
    assert compare("x", other, logits, logits, None).agreement == pytest.approx(4 / 6)


def test_tolerance_is_the_largest_error_that_passes() -> None:
    assert Hop("x", error=0.1, tolerance=0.1).passed
    assert not Hop("x", error=0.1000001, tolerance=0.1).passed
    assert Hop("x", note="not run").passed
    assert not Hop("x", error=math.inf, tolerance=0.1).passed


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_nan_and_infinity_never_pass(bad: float, logits: np.ndarray) -> None:
    """They agree with nothing, even where argmax happens to fall on the same class."""
    broken = logits.copy()
    broken[2, logits[2].argmax()] = bad
    broken[4] = bad
    hop = compare("x", broken, logits, logits, 1e9)
    assert (hop.error, hop.step_error, hop.passed) == (math.inf, math.inf, False)
    assert hop.agreement == pytest.approx(4 / 6)
    assert hop.note == "NaN or infinite logits for 2 of 6 images"
    plain = hop.to_dict()
    assert (plain["error"], plain["compared"], plain["passed"]) == (None, True, False)
    json.dumps(plain, allow_nan=False)
    with pytest.raises(
        GateError, match=r"x gives NaN or infinite logits for 2 of 6 images; nothing was written"
    ):
        require([hop])


def test_a_step_that_was_not_compared_says_so() -> None:
    plain = Hop("engine", note="run it where a GPU is", precision="fp16").to_dict()
    assert (plain["compared"], plain["passed"], plain["error"]) == (False, True, None)
    require([Hop("engine", note="run it where a GPU is")])


def test_the_first_failure_is_the_one_reported(logits: np.ndarray) -> None:
    good = compare("deploy form", logits, logits, logits, 1e-4)
    first = compare("ONNX fp16", logits * 1.5, logits, logits, TOLERANCE["fp16"], precision="fp16")
    second = compare("engine", logits * 2, logits, logits, TOLERANCE["fp16"])
    with pytest.raises(GateError) as caught:
        require([good, first, second])
    message = str(caught.value)
    assert message.startswith(
        f"ONNX fp16 is {first.error:.2g} standard deviations of the logits off the PyTorch"
    )
    assert "(tolerance 0.05); nothing was written: try --precision bf16 or fp32" in message
    assert caught.value.exit_status == 1
    with pytest.raises(GateError, match=r"engine is .*; do not use it: .* so would a defect"):
        require([second], "do not use it")


def test_no_cause_is_named_where_none_is_certain(logits: np.ndarray) -> None:
    """In float32 the weights may be what is to blame, and not the program."""
    with pytest.raises(
        GateError, match=r"can do that, and so would a defect .* report it with `sit-deploy doctor"
    ):
        require([compare("deploy form", logits + 1, logits, logits, 1e-4)])


def test_tolerances_get_wider_with_coarser_types() -> None:
    assert TOLERANCE["fp32"] == 1e-4
    assert TOLERANCE["fp32"] < TOLERANCE["fp16"] < TOLERANCE["bf16"] < 1


@pytest.mark.parametrize(
    ("reference", "words"),
    [
        (np.zeros((4, 3)), "each class of an image the same logit"),
        (np.full((4, 3), 7.5), "each class of an image the same logit"),
        (np.arange(4.0)[:, None].repeat(3, axis=1), "each class of an image the same logit"),
        (np.array([[1.0, 2.0, 3.0]] * 4), "the same logits for every image"),
        (np.array([[1.0, 2.0, 3.0]] * 3 + [[1.0, np.nan, 3.0]]), "NaN or infinite logits"),
        (np.array([[1.0, 2.0, 3.0]] * 3 + [[1.0, np.inf, 3.0]]), "NaN or infinite logits"),
    ],
)
def test_a_reference_that_everything_agrees_with(reference: np.ndarray, words: str) -> None:
    images = np.arange(4, dtype=np.float32).reshape(4, 1, 1, 1).repeat(3, axis=1)
    assert words in (reference_fault(reference.astype(np.float32), images) or "")


def test_a_reference_that_says_something() -> None:
    images = np.arange(4, dtype=np.float32).reshape(4, 1, 1, 1)
    logits = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)
    assert reference_fault(logits, images) is None
    # one picture in four copies, whose logits are no fault of the model's; one image; and one class
    assert reference_fault(logits[[0, 0, 0, 0]], images[[0, 0, 0, 0]]) is None
    assert reference_fault(logits[:1], images[:1]) is None
    assert reference_fault(logits[:, :1], images) is None


def test_agreement_on_one_class() -> None:
    logits = np.eye(3, dtype=np.float32)
    assert (
        agreement_note(logits[[1, 1, 1]])
        == "PyTorch gives all 3 images class 1: their agreement says nothing"
    )
    assert agreement_note(logits) == agreement_note(logits[:1]) == ""
