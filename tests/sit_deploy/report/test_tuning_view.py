"""What is shown of a plan that was chosen by measuring."""

from __future__ import annotations

from typing import Any

import pytest

from sit_deploy.errors import InputError
from sit_deploy.report.build_types import Quantization
from sit_deploy.report.tuning_text import plan_text
from sit_deploy.report.tuning_view import tuning_sentence, tuning_view
from sit_deploy.schema import check

DEFAULT = ["fc1", "fc2", "proj", "qkv", "tsm"]


def plan(
    groups: list[str], ratio: float, db: float | None, rest: str = "fp32", **more: Any
) -> dict[str, Any]:
    flags = {"front": False, "chosen": False, "doubt": None, "drop": None, "high": []}
    quartiles = {"ratio": ratio, "low": ratio - 0.05, "high_quartile": ratio + 0.05, "ms": 8 / ratio}
    return {"groups": groups, "rest": rest, "sqnr_db": db, **quartiles, **flags, **more}


PLANS = [
    plan(DEFAULT, 1.75, 34.8),
    plan([], 1.0, 120.0, front=True),
    plan([], 1.6, 39.0, "bf16", front=True),
    plan([*DEFAULT, "stem"], 2.4, 33.9, "bf16", front=True, chosen=True),
    plan([*DEFAULT, "head"], 2.2, None, "bf16"),
    plan(DEFAULT, 2.3, None, "bf16", doubt="others took the CPUs"),
]


def quantization(plans: list[dict[str, Any]] | None = None, **more: Any) -> Quantization:
    tuning = {
        "verdict": "plan",
        "limit": "SQNR of at least 30 dB",
        "seconds": 84.2,
        "finished": True,
        "tie": None,
    }
    tuning |= {"default": DEFAULT, "candidates": PLANS if plans is None else plans, **more}
    fields = {
        "method": "mse",
        "rest": "bf16",
        "share_of_macs": 0.9,
        "layers": [],
        "speed": None,
        "tuning": tuning,
    }
    return check(fields, Quantization, "report", "")


@pytest.mark.parametrize(
    ("groups", "high", "words"),
    [
        (DEFAULT, 0, "default; rest fp32"),
        ([*DEFAULT, "stem", "head"], 0, "default, head, stem; rest fp32"),
        ([*DEFAULT, "stem"], 1, "default, stem, less 1 layer; rest fp32"),
        (["fc1", "fc2", "qkv"], 2, "default without proj and tsm, less 2 layers; rest fp32"),
        (["qkv", "stem"], 0, "qkv, stem; rest fp32"),
        ([], 0, "fp32"),
    ],
)
def test_a_plan_in_words(groups: list[str], high: int, words: str) -> None:
    assert plan_text(groups, "fp32", high, DEFAULT) == words


def test_the_sentence() -> None:
    told = tuning_sentence(quantization().tuning)
    assert told == (
        "tuned: default, stem; rest bf16, 2.40× (2.35–2.45) as fast as fp32, its logits on calibration images at 33.9 dB; "
        "the fastest with SQNR of at least 30 dB "
        "(4 plans timed in 84 s)"
    )
    for verdict, why in (
        ("noise", "others took the CPUs"),  # as the warning of the build says
        ("no time", "the seconds were used up first"),
    ):
        told = tuning_sentence(quantization(verdict=verdict).tuning)
        assert told == f"not tuned, the default groups are in 8 bits: {why} (4 plans timed in 84 s)"
    told = tuning_sentence(quantization(PLANS[:2], verdict="noise").tuning)
    assert "8 bits: times differed too much to tell plans apart (1 plan timed" in told


def test_times_that_were_kept_are_not_said_to_be_taken() -> None:
    for timed, words in (
        (1, "(1 plan timed in 84 s, 3 times kept from an earlier build)"),
        (3, "(3 plans timed in 84 s, 1 time kept from an earlier build)"),
        (4, "(4 plans timed in 84 s)"),
    ):
        assert tuning_sentence(quantization(timed=timed).tuning).endswith(words)


def test_a_tie_is_not_called_the_fastest() -> None:
    tie = plan(DEFAULT, 2.41, 33.0, "bf16")
    told = tuning_sentence(quantization(tie=tie).tuning)
    assert "; the most accurate of those as fast as the fastest with SQNR of at least 30 dB (" in told


def test_the_table_and_the_picture_have_the_same_numbers() -> None:
    view = tuning_view(quantization().tuning)
    rows = {row[0]: row for row in view["rows"]}
    assert [row[1] for row in view["rows"]][:2] == ["default, stem; rest bf16", "default; rest bf16"]
    assert rows["1"][-1] == "chosen" and rows["2"][-1] == "not measurable: others took the CPUs"
    assert rows["3"][4] == "—" and rows["6"][1:3] == ("fp32", "1.00× (0.95–1.05)")
    svg = view["plot"]()
    assert all(
        f">{number}<" in svg for number in (1, 4, 5)
    )  # those with a time and an error; float32 is the dotted line
    assert not any(f">{number}<" in svg for number in (2, 3, 6))
    assert "8 bits beside bf16" in svg and "bf16 alone" in svg


def test_what_else_there_is_to_say() -> None:
    tie = plan(DEFAULT, 2.41, 33.0, "bf16")
    plans = [plan(DEFAULT, 1.7, 35.0, chosen=True, drop=0.25)]
    view = tuning_view(quantization(plans, tie=tie, finished=False).tuning)
    assert "A tie with default; rest bf16" in view["what"] and "ended the search early" in view["what"]
    assert view["head"][-2] == "points lost" and view["rows"][0][-2] == "+0.25"
    assert tuning_view(quantization([plan([], 1.0, None)]).tuning)["plot"] is None


@pytest.mark.parametrize(
    ("verdict", "instead", "words"),
    [
        ("none", "fp32", "8 bits were given up for fp32: no plan keeps SQNR of at least 30 dB (4 plans timed in 84 s)"),
        (
            "float",
            "bf16",
            "8 bits were given up for bf16, 1.60× (1.55–1.65) as fast as fp32: no plan with SQNR of at least 30 dB is faster "
            "(4 plans timed in 84 s)",
        ),
    ],
)  # fmt: skip
def test_what_8_bits_were_given_up_for(verdict: str, instead: str, words: str) -> None:
    """The front is shown all the same: it is why."""
    plans = [{**one, "chosen": not one["groups"] and one["rest"] == instead} for one in PLANS]
    record = quantization(plans, verdict=verdict, instead=instead).tuning
    assert tuning_sentence(record) == words
    view = tuning_view(record)
    assert [row[1] for row in view["rows"] if row[-1] == "chosen"] == [instead] and len(view["rows"]) == 6


def test_without_one() -> None:
    assert tuning_view(None) is None
    with pytest.raises(InputError, match=r"tuning\.candidates\[0\]\.ratio"):
        quantization([{**PLANS[0], "ratio": -1.0}])
