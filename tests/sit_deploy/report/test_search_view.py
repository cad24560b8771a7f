"""The page of a search: what it says, that it is whole, and that nothing in it is taken for markup."""

import copy

import pytest

from sit_deploy.errors import GateError, InputError
from sit_deploy.report.search_page import render_search
from sit_deploy.report.search_record import SearchRecord
from sit_deploy.report.search_view import schedule_words, search_headline, search_view
from tests.helpers.searches import RECORD, point, search_fields


def record(**changes):
    return SearchRecord.from_dict(search_fields(**changes))


def test_the_headline_says_what_was_chosen_and_what_it_gives():
    said = search_headline(record())
    assert "--stages 2,3,3 --kept 49,24,12 takes 0.98 of 1 ms at fp32, 2.04× as fast as unslimmed" in said
    assert "90.0 % of images" in said  # the engine's own, not that of the float model


def test_several_precisions_are_told_over_fp32_and_over_the_same():
    """What was asked for is over FP32; the schedule's own part of it is over the same precision."""
    points = [p | {"precision": "bf16"} for p in RECORD["points"]]
    both = record(points=points, unslimmed_ms={"fp32": 3.0, "bf16": 2.0})
    assert (
        "3.06× as fast as unslimmed at fp32 and 2.04× as fast as unslimmed at bf16, and"
        in search_headline(both)
    )
    assert "is of the same precision" in search_view(both)["what"]
    assert "is of the same precision" not in search_view(record())["what"]


def test_what_was_asked_what_it_costs_and_what_is_not_known_are_said():
    view = search_view(record(asked="2x the speed of the unslimmed model"))
    assert view["asked"] == (
        "Asked for 2x the speed of the unslimmed model: at most 1 ms a batch of 1 of openvino 2026.4 on a CPU, 2 threads."
    )
    assert view["lost"] == [
        "On 64 of 100 images in photos, labelled: top-1 88.00 %, the unslimmed model 90.00 %, before any training."
    ]
    assert "which schedule is the best after training" in view["unknown"][0]
    assert "TSMs in place of transform: bench it" in view["unknown"][1]
    points = [p | {"student_ms": 0.8} if p["chosen"] else p for p in RECORD["points"]]
    assert search_view(record(points=points))["unknown"][1].endswith(
        "bench it. The latency table foretells 0.8 ms."
    )
    for page in (render_search(record()), render_search(record(), "md")):
        assert "Not known: which schedule" in page and "top-1 88.00 %" in page
    whole = record(points=[point([8], [49], 0.9, 0.0, chosen=True, measured=0.9)])
    assert search_view(whole)["unknown"] == []  # nothing was slimmed


def test_nothing_chosen_is_said():
    points = [p | {"chosen": False} for p in RECORD["points"]]
    assert search_headline(record(points=points)) == "no schedule that was built takes 1 ms"


def test_an_unslimmed_model_that_is_fast_enough_is_said():
    points = [point([8], [49], 0.9, 0.0, chosen=True, measured=0.9)]
    assert (
        search_headline(record(points=points)) == "lvvit_nano as it is keeps the limit: 0.9 of 1 ms at fp32"
    )
    assert schedule_words(record(points=points).points[0]) == "unslimmed"


def test_the_table_holds_the_front_and_what_was_built_the_fastest_first():
    view = search_view(record())
    assert [row[0] for row in view["rows"]] == [
        "--stages 1,7 --kept 49,12",
        "--stages 2,3,3 --kept 49,24,12",
        "unslimmed",
    ]
    assert view["rows"][2][4] == "0"  # its divergence from itself, which rounding makes a little more
    facts = dict(view["facts"])
    assert facts["fastest of them"].endswith("predicted") and facts["built and timed"] == "2"
    assert view["rows"][1][1:] == ("fp32", "0.98 (0.96–1.01)", "2.04×", "0.04", "90.0", "88.00", "chosen")
    assert view["rows"][0][2:4] == ("0.8", "2.50×")


def test_without_labels_there_is_no_column_of_them():
    points = copy.deepcopy(RECORD["points"])
    for one in points:
        for name in ("score", "engine_score"):
            one.get(name, {}).pop("top1", None)
    view = search_view(record(points=points))
    assert "top-1 %" not in view["head"] and {len(row) for row in view["rows"]} == {len(view["head"])}


def test_a_time_that_says_nothing_is_told():
    points = [
        *RECORD["points"],
        point([4, 4], [49, 24], 1.1, 0.01, measured=1.2, doubt="others took the CPUs"),
    ]
    rows = search_view(record(points=points))["rows"]
    assert "not measurable: others took the CPUs" in [row[-1] for row in rows]


def test_the_page_is_one_file_in_which_nothing_is_markup():
    page = render_search(record(model="<script>x</script>"))
    assert "<script" not in page and "&lt;script&gt;x" in page and "seconds &lt;ran&gt; out" in page
    assert "<svg" in page and "--muted" not in page and "http" not in page.split("</style>")[1]
    assert "sit-deploy train --model lvvit_nano --stages 2,3,3 --kept 49,24,12" in page


def test_markdown_says_the_same():
    text = render_search(record(), "md")
    assert "| --stages 2,3,3 --kept 49,24,12 | fp32 |" in text and "seconds \\<ran\\> out" in text
    assert "    sit-deploy train" in text


@pytest.mark.parametrize(
    "change",
    [
        *({"limit_ms": 0}, {"points": [{}]}, {"points": []}, {"unslimmed_ms": {"fp32": -1}}, {"tried": -1}),
        *({"notes": "x"}, {"schema": 2}, {"bundle": "x"}, {"unslimmed_ms": {"int8": 1.0}}),
        {"points": [point([8], [49, 12], 1.0, 0.1)]},
        {"points": [point([8], [49], 1.0, 0.1, low_ms=1.0)]},
        {"points": [point([8], [49], 1.0, 0.1, chosen=True)] * 2},
    ],
)
def test_a_record_that_is_none_is_refused(change):
    with pytest.raises(InputError):
        record(**change)


def test_what_was_compared_on_other_images_says_on_how_many():
    assert "images" not in search_view(record())["head"]
    points = copy.deepcopy(RECORD["points"])
    points[2]["score"] |= {"images": 20, "top1": 75.0}
    view = search_view(record(points=points))
    place = view["head"].index("images")
    assert [row[place] for row in view["rows"]] == ["20", "64", "64"]
    assert "where their numbers differ" in view["what"]
    assert {len(row) for row in view["rows"]} == {len(view["head"])}


def test_accuracy_is_held_to_what_was_allowed():
    assert record().drop == 2.0 and record().failure is None
    record(max_accuracy_drop=2.0).require()
    said = record(max_accuracy_drop=1.5)
    assert said.failure.startswith(
        "2x49-3x24-3x12 loses 2.00 points of top-1, and --max-accuracy-drop allows 1.5"
    )
    assert said.failure in search_headline(said)
    with pytest.raises(GateError, match="cannot be judged here: the labels are another's"):
        record(max_accuracy_drop=2.0, unsound="the labels are another's").require()
    unknown = copy.deepcopy(RECORD["points"])
    unknown[1]["engine_score"].pop("top1")
    with pytest.raises(GateError, match="an unknown number of points"):
        record(max_accuracy_drop=2.0, points=unknown).require()


def test_nothing_that_keeps_the_limit_is_a_failure_with_what_to_do():
    points = [p | {"chosen": False} for p in RECORD["points"]]
    with pytest.raises(GateError, match=r"ask for 1\.2 ms"):
        record(points=points, notes=["no photos", "all are slower: ask for 1.2 ms"]).require()
