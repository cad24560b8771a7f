"""Several bundles: which to take and why, each verdict once, the teacher beside them, a speed with its range."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from sit_deploy.report.overview import overview, verdict_groups
from sit_deploy.report.page import evidence_fields
from sit_deploy.report.recommend import Basis, headline, reason, recommend
from sit_deploy.report.types import Evidence
from sit_deploy.report.verdict import JudgedBundle, Reason, Topic, Verdict, Weight

GOOD = Verdict((Reason(Weight.FAVOUR, Topic.GOLDEN, "It is good."),))
BAD = Verdict((Reason(Weight.AGAINST, Topic.GOLDEN, "It is bad."),))
UNSURE = Verdict((Reason(Weight.MISSING, Topic.ACCURACY, "Nothing is known."),))


@pytest.fixture
def make(evidence: dict[str, Any]) -> Any:
    """A bundle of a name, milliseconds, top-1 and verdict."""

    def judged(name: str, ms: float, top1: float, verdict: Verdict = GOOD, **changes: Any) -> JudgedBundle:
        fields = copy.deepcopy({k: v for k, v in evidence.items() if k != "verdict"})
        fields |= {"name": name, "bundle": f"b/{name}"}
        fields["ledger"]["entries"][-1]["latency_ms"] = ms * fields["ledger"]["batch_size"]
        fields["accuracy"] |= {"engine_top1": top1, "engine_top1_interval": [top1 - 3, top1 + 3]}
        gain = {"median": 3.0, "low": 2.9, "high": 3.1, "doubt": None}
        fields["speedups"]["student"] = {**fields["speedups"]["student"], **gain, **changes.pop("gain", {})}
        return JudgedBundle(Evidence.from_dict({**fields, **changes}), verdict)

    return judged


def test_the_fastest_of_those_to_be_shipped(make: Any) -> None:
    bundles = [make("slow", 5.0, 92.0), make("fast", 2.0, 90.0), make("bad", 1.0, 91.0, BAD)]
    found = recommend(bundles)
    assert (found.taken.evidence.name, found.basis) == ("fast", Basis.SPEED)
    assert headline(found, bundles) == "Take fast."
    assert reason(found, bundles) == (
        "It is the fastest of the 2 to be shipped: top-1 90.00 %, 2.00 ms an image; the most accurate, slow, has 92.00 % and takes 5.00 ms."
    )
    assert evidence_fields(bundles)["recommended"] == {"bundle": "b/fast", "name": "fast", "basis": "speed"}
    assert "recommended" not in evidence_fields(bundles[:1])


def test_of_those_as_fast_the_most_accurate(make: Any) -> None:
    bundles = [make("a", 2.0, 90.0), make("b", 2.05, 91.0)]
    found = recommend(bundles)
    assert found.taken.evidence.name == "b"
    assert reason(found, bundles).startswith("It is as fast as the fastest, and the more accurate, of the 2")


@pytest.mark.parametrize(
    "changes",
    [
        {"machine": {"cpu_model": "another CPU", "usable_cpus": 2}},
        {"threads": 7},
        {"gain": {"doubt": "other programs took the CPUs"}},
    ],
    ids=["machine", "threads", "doubt"],
)
def test_times_that_do_not_compare_decide_nothing(changes: dict[str, Any], make: Any) -> None:
    bundles = [make("exact", 5.0, 92.0), make("fast", 2.0, 90.0, **changes)]
    found = recommend(bundles)
    assert (found.taken.evidence.name, found.basis) == ("exact", Basis.ACCURACY)
    assert "did not decide" in reason(found, bundles)


def test_one_alone_and_none(make: Any) -> None:
    one = [make("a", 5.0, 92.0), make("b", 2.0, 90.0, UNSURE)]
    assert (
        reason(recommend(one), one)
        == "It is the only one of 2 to be shipped: top-1 92.00 %, 5.00 ms an image."
    )
    for verdicts, said in (
        ((BAD, BAD), "Do not ship any of the 2 bundles."),
        ((UNSURE, UNSURE), "Not enough evidence to ship any of the 2 bundles."),
        ((BAD, UNSURE), "None of the 2 bundles is to be shipped yet."),
    ):
        none = [make(str(i), 2.0, 90.0, verdict) for i, verdict in enumerate(verdicts)]
        assert recommend(none) is None and headline(None, none) == said and reason(None, none) == ""
        assert overview(none)["severity"] == ("bad" if verdicts == (BAD, BAD) else "unsure")
        assert evidence_fields(none)["recommended"] is None


def test_equal_verdicts_are_one(make: Any) -> None:
    own = Reason(Weight.FAVOUR, Topic.SPEED, "It is quick.")
    more = Verdict((*GOOD.reasons, own))
    bundles = [make("a", 1, 90.0), make("b", 1, 90.0, more), make("c", 1, 90.0, BAD), make("d", 1, 90.0)]
    ship, bad = verdict_groups(bundles)
    assert (ship["headline"], ship["names"]) == ("Ship it.", ["a", "b", "d"])
    assert ship["shared"] == [("good", "It is good.")] and ship["own"] == [("b", [("good", "It is quick.")])]
    assert (bad["names"], bad["severity"]) == (["c"], "bad")


def test_the_table_says_once_what_all_have_and_has_ranges(make: Any) -> None:
    bundles = [make("a", 2.0, 90.0), make("b", 4.0, 91.0)]
    found = overview(bundles)
    build = bundles[0].evidence.build
    assert found["common"] == f"All: {build.model.name}, {build.precision}, {build.engine.kind}."
    assert found["head"] == ["bundle", "top-1 %", "drop", "ms an image", "over PyTorch", "size", "verdict"]
    assert found["table"][0][:5] == ["a", "90.00", found["table"][0][2], "2.00", "3.00× (2.90–3.10)"]
    other = copy.deepcopy(bundles[1].evidence.to_dict())
    other["build"]["engine"]["kind"] = "openvino"
    mixed = overview([bundles[0], JudgedBundle(Evidence.from_dict(other), GOOD)])
    assert mixed["head"][1] == "engine" and [row[1] for row in mixed["table"]] == ["onnxruntime", "openvino"]


def test_teachers_stand_beside_the_bundles(make: Any) -> None:
    def taught(name: str, top1: float) -> JudgedBundle:
        fields = make(name, 2.0, 90.0).evidence.to_dict()
        student = fields["ledger"]["entries"][0]
        teacher = {**student, "name": "teacher", "latency_ms": 8.0 * fields["ledger"]["batch_size"]}
        fields["ledger"]["entries"].insert(0, {**teacher, "macs": 2 * student["macs"]})
        images = fields["accuracy"]["images"]
        told = {"top1": top1, "top1_interval": [top1 - 3, top1 + 3], "lost": 0, "gained": 0, "drop": 0.0}
        fields["accuracy"]["teacher"] = {**told, "images": images}
        return JudgedBundle(Evidence.from_dict(fields), GOOD)

    one = overview([taught("a", 93.0), taught("b", 93.0)])
    assert [row[0] for row in one["table"]] == ["a", "b", "teacher"]
    assert one["table"][-1][1:4] == ["93.00", "—", "8.00"] and {len(row) for row in one["table"]} == {
        len(one["head"])
    }
    assert ">teacher<" in one["plot"]() and "teacher, PyTorch" in one["plot"]()
    two = overview([taught("a", 93.0), taught("b", 94.0)])
    assert [row[0] for row in two["table"]][2:] == ["teacher of a", "teacher of b"]
